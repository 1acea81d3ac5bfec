"""Traces as data and back; reading one runs no code."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trace_core as tc

Point = namedtuple("Point", ["x", "y"])


@dataclass
class Record:
    item: Any


def round_trip(trace: tc.Trace, **options: Any) -> tc.Trace:
    data = json.loads(json.dumps(trace.to_dict(), allow_nan=False))
    twin = tc.Trace.from_dict(data, **options)
    assert twin.to_dict() == data or any(isinstance(v, tc.Parameter) for v in options.get("parameters", {}).values())
    return twin


def workflow() -> tuple[tc.Trace, tc.Parameter]:
    @tc.bundle(trainable=True, isolation="inline")
    def plan(text: str, *, limit: int = 3) -> str:
        """Cut."""
        return text[:limit]

    prompt = tc.node("hello", trainable=True, name="prompt", description="what to say")
    x = tc.node([1, 2], name="x")
    made = plan(prompt.upper() + "!", limit=tc.node(2, trainable=True, constraint=tc.Range(1, 5)))
    return tc.Trace.of(
        tc.node({"a": made, "b": x[0]}), tc.Feedback("good", 0.5, {"speed": 1.0}, gradient=np.ones(2), example="e1")
    ), prompt


def test_a_stored_trace_reads_like_the_original() -> None:
    trace, _ = workflow()
    twin = round_trip(trace)
    assert twin.render() == trace.render()
    assert [n.recorded for n in twin.nodes][:-1] == [n.recorded for n in trace.nodes][:-1]
    assert [p.name for p in twin.parameters] == [p.name for p in trace.parameters]
    assert [p.kind for p in twin.parameters] == [p.kind for p in trace.parameters]
    assert (twin.feedback.text, twin.feedback.score, twin.feedback.example) == ("good", 0.5, "e1")
    assert np.array_equal(twin.feedback.gradient, np.ones(2))
    assert twin.to_mermaid() == trace.to_mermaid()
    assert twin._repr_html_() == trace._repr_html_()


def test_binding_to_live_parameters() -> None:
    trace, prompt = workflow()
    twin = round_trip(trace, parameters={"prompt": prompt})
    assert prompt in twin.parameters
    assert twin.values[prompt] == "hello"
    prompt.update("other")
    assert twin.values[prompt] == "hello"
    with pytest.raises(tc.StateError, match="'prompt' was of kind 'text'"):
        tc.Trace.from_dict(trace.to_dict(), {"prompt": tc.node(5, trainable=True)})


def test_replay_through_stored_operators() -> None:
    p, q = tc.node("a b", trainable=True, name="p"), tc.node(3, trainable=True, name="q")
    words = p.split(" ")
    output = (words[1] + str.join("", ["x"])).upper() * (
        pow(q, 2, 5) + round(q / 2, 1) * 0 + abs(-q) - abs(q)
    ).__trunc__()
    trace = tc.Trace.of(tc.node([output, words == []]), "")
    twin = round_trip(trace)
    new_p, new_q = twin.parameters
    result = twin.replay({new_p: "c d", new_q: 2})
    expected = trace.replay({p: "c d", q: 2})
    assert result.value == expected.value == ["DX" * 4, False]


def test_branches_are_still_guarded() -> None:
    p = tc.node(2, trainable=True)
    y = p * 3
    output = y + 1 if y else y - 1
    twin = round_trip(tc.Trace.of(output, ""))
    assert twin.replay({twin.parameters[0]: 5}).value == 16
    with pytest.raises(tc.ReplayError, match="bool"):
        twin.replay({twin.parameters[0]: 0})


def test_branches_on_temporaries_are_refused() -> None:
    for test in (lambda p, y: y > 3, lambda p, y: (p + 1) * 2 > 3, lambda p, y: p * y > 3):
        p = tc.node(2, trainable=True)
        y = p * 3
        output = y + 1 if test(p, y) else y - 1
        twin = round_trip(tc.Trace.of(output, ""))
        with pytest.raises(tc.ReplayError, match="tested"):
            twin.replay({twin.parameters[0]: 0})


def test_conditions_on_parameters_are_kept() -> None:
    p = tc.node(2, trainable=True)
    twin = round_trip(tc.Trace.of(p + 1 if p > 1 else p - 1, ""))
    assert twin.replay({twin.parameters[0]: 5}).value == 6
    with pytest.raises(tc.ReplayError, match="bool"):
        twin.replay({twin.parameters[0]: 0})


@pytest.mark.parametrize("function", [lambda x: x + 1, np.sin, len])
def test_functions_are_not_replayable(function: Any) -> None:
    p = tc.node(np.array([1.0]) if function is np.sin else [1] if function is len else 1, trainable=True)
    output = np.sin(p) if function is np.sin else tc.bundle(function)(p)
    twin = round_trip(tc.Trace.of(output + 1, ""))
    with pytest.raises(tc.ReplayError, match="code of functions"):
        twin.replay({twin.parameters[0]: p.value})


def test_methods_of_foreign_objects_and_private_names_are_refused() -> None:
    array = tc.node(np.arange(3), trainable=True)
    twin = round_trip(tc.Trace.of(array.sum() + 0, ""))
    with pytest.raises(tc.ReplayError, match="cannot be run from stored data"):
        twin.replay({twin.parameters[0]: np.arange(3)})
    p = tc.node("text", trainable=True)
    data = tc.Trace.of(p.upper(), "").to_dict()
    data["nodes"][1]["args"][1] = "__class__"
    twin = tc.Trace.from_dict(data)
    with pytest.raises(tc.ReplayError, match="cannot be run"):
        twin.replay({twin.parameters[0]: "x"})


VALUES: list[Any] = [
    None, True, 5, 10**5000, 0.1, float("nan"), float("inf"), "text \ud800", b"\x00", 3j, [1, [2]], (1, (2,)), {1, 2},
    frozenset({1}), {"a": 1}, {1: "a", (2,): "b"}, {"$": "node", "index": 0}, range(3), slice(1, 2),
    np.arange(4).reshape(2, 2), np.float32(1.5), np.zeros(5000), np.array(["a"]), object(), Point(1, 2),
    OrderedDict(a=1), Record([1]), ValueError("bad"), int, len,
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_any_value_can_be_stored_and_shown(value: Any) -> None:
    p = tc.Parameter(value, constraint=tc.Anything())
    trace = tc.Trace.of(tc.node([p, tc.node([value]), value]), "")
    twin = round_trip(trace)
    assert twin.render(budget=500)
    assert twin._repr_html_()


@pytest.mark.parametrize("value", [v for v in VALUES[:17] if v == v], ids=type)
def test_plain_values_come_back_as_they_were(value: Any) -> None:
    twin = round_trip(tc.Trace.of(tc.Parameter(value, constraint=tc.Anything()), ""))
    assert twin.output.value == value
    assert type(twin.output.value) is type(value)


def test_values_stored_as_text_refuse_to_be_computed_with() -> None:
    p, thing = tc.node(1, trainable=True), tc.node(object())
    twin = round_trip(tc.Trace.of(tc.node([p, thing == p]), ""))
    with pytest.raises(tc.ReplayError, match="stored as text"):
        twin.replay({twin.parameters[0]: 2})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
        max_leaves=15,
    )
)
def test_random_data_comes_back(value: Any) -> None:
    from trace_core._codec import decode, encode

    found = decode(json.loads(json.dumps(encode(value, exact=True), allow_nan=False)))
    assert repr(found) == repr(value)


def test_deep_and_cyclic_values() -> None:
    cyclic: list[Any] = [1]
    cyclic.append(cyclic)
    deep: list[Any] = []
    for _ in range(500):
        deep = [deep]
    p = tc.node(1, trainable=True)
    for value in (cyclic, deep):
        json.dumps(tc.Trace.of(tc.bundle(lambda a, b: a)(p, value), "").to_dict())


def test_unfolded_traces() -> None:
    @tc.bundle(transparent=True)
    def f(x: Any) -> Any:
        return x * 2 + 1

    p = tc.node(3, trainable=True)
    trace = tc.Trace.of(f(p), "", unfold=True)
    assert len(round_trip(trace).nodes) == len(trace.nodes) == 4


def test_errors_and_names_survive() -> None:
    with pytest.raises(tc.ExecutionError) as caught:
        tc.bundle(lambda x: 1 / 0, name="divide")(tc.node(1, trainable=True))
    trace = tc.Trace.of(caught.value.node, "fix")
    twin = round_trip(trace)
    assert twin.error == trace.error
    assert twin.render() == trace.render()


def damage(path: list[Any], value: Any) -> Any:
    def apply(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        if value is KeyError:
            del data[path[-1]]
        else:
            data[path[-1]] = value

    return apply


@pytest.mark.parametrize(
    "spoil",
    [
        damage(["format"], "other"),
        damage(["version"], 99),
        damage(["nodes"], 5),
        damage(["nodes"], KeyError),
        damage(["output"], 99),
        damage(["output"], -1),
        damage(["output"], "x"),
        damage(["feedback"], {"text": 5}),
        damage(["feedback"], {"unknown": 5}),
        damage(["feedback"], None),
        damage(["parameters"], []),
        damage(["nodes", 0, "value"], KeyError),
        damage(["nodes", 0, "value"], {"$": "unknown"}),
        damage(["nodes", 0, "value"], {"$": "array", "dtype": "object", "shape": [1], "data": [1]}),
        damage(["nodes", 0, "value"], {"$": "array", "dtype": "int64", "shape": [7], "data": [1]}),
        damage(["nodes", 0, "value"], {"$": "bytes", "hex": "zz"}),
        damage(["nodes", 1, "operator"], "exec"),
        damage(["nodes", 1, "operator"], ["exec"]),
        damage(["nodes", 1, "args"], [{"$": "node", "index": 5}]),
        damage(["nodes", 1, "args"], [{"$": "node", "index": 1}]),
    ],
)
def test_damaged_data_is_refused(spoil: Any) -> None:
    p = tc.node("a", trainable=True)
    data = copy.deepcopy(tc.Trace.of(p + "b", "").to_dict())
    spoil(data)
    with pytest.raises(tc.StateError):
        tc.Trace.from_dict(data)


@pytest.mark.parametrize("data", [None, [], "text", {}, 5])
def test_what_is_no_stored_trace_is_refused(data: Any) -> None:
    with pytest.raises(tc.StateError, match="no stored trace"):
        tc.Trace.from_dict(data)
