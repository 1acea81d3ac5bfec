"""Backward passes and traces (behaviours 5 and 13 to 17)."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest

import trace_core as tc


def chain(parameter: tc.Node, length: int) -> tc.Node:
    node = parameter + 0
    for _ in range(length):
        node = node + 1
    return node


# ---- 5, 13: who gets feedback


@pytest.mark.parametrize(
    "make", [lambda p: p + p, lambda p: p * p, lambda p: (p + 1) * (p - 1), lambda p: tc.node([p, p])]
)
def test_diamonds_get_the_feedback_once(make: Any) -> None:
    parameter = tc.node(3, trainable=True)
    trace = make(parameter).backward("x")
    assert parameter.feedback == [trace]
    assert len(trace.nodes) == len(set(trace.nodes))


def test_feedback_reaches_connected_parameters_only() -> None:
    used, unused, dead_end = (tc.node(i, trainable=True, name=f"p{i}") for i in range(3))
    _ = dead_end + used
    trace = (used * 2).backward("good")
    assert trace.parameters == [used]
    assert len(used.feedback) == 1
    assert unused.feedback == []
    assert dead_end.feedback == []


def test_the_subgraph_is_minimal_and_topologically_ordered() -> None:
    p, q = tc.node(1, trainable=True), tc.node(2, trainable=True)
    constant = tc.node(5) * 2
    left = p + constant
    right = q * left
    output = left + right
    trace = output.backward("x")
    assert trace.nodes[-1] is output
    position = {node: index for index, node in enumerate(trace.nodes)}
    for node in trace.nodes:
        for source in node.inputs.values():
            if source in position:
                assert position[source] < position[node]
    assert constant in position  # a direct input of something that depends on a parameter
    assert len(trace.nodes) == 6


def test_output_that_is_a_parameter() -> None:
    p = tc.node("x", trainable=True)
    trace = p.backward("shorter")
    assert p.feedback == [trace]
    assert trace.values == {p: "x"}


def test_no_parameter_warns() -> None:
    with pytest.warns(tc.UnreachedWarning, match="depends on no parameter"):
        tc.node(1).backward("x")


def test_what_is_no_node_is_refused() -> None:
    with pytest.raises(tc.TraceCoreError, match="needs a Node"):
        tc.Trace.of("text", "feedback")  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), object(), (1, 2, 3), ("a", "b"), {"a": "b"}, None])
def test_bad_feedback_is_refused_and_leaves_nothing(bad: Any) -> None:
    p = tc.node(1, trainable=True)
    with pytest.raises(tc.FeedbackError):
        (p + 1).backward(bad)
    assert p.feedback == []


def test_kinds_of_feedback() -> None:
    of = tc.Feedback.of
    assert of("a") == tc.Feedback("a")
    assert of(0.5) == tc.Feedback(score=0.5)
    assert of(True).score == 1.0
    assert of((0.5, "a")) == tc.Feedback("a", 0.5)
    assert of({"a": 1}).scores == {"a": 1.0}
    assert of(ValueError("bad")).text == "ValueError: bad"
    assert of(AssertionError()).text.startswith("AssertionError")
    assert of(tc.node(2)).score == 2.0
    assert of(np.float64(2)).score == 2.0
    assert of(np.array([2.0])).score == 2.0
    with pytest.raises(AttributeError):
        of("a").text = "b"  # type: ignore[misc]


# ---- 14: several passes


def test_two_outputs_with_different_feedback_are_both_kept() -> None:
    p = tc.node(1, trainable=True)
    (p + 1).backward("first")
    (p + 2).backward("second")
    assert [trace.feedback.text for trace in p.feedback] == ["first", "second"]
    assert [trace.output.value for trace in p.feedback] == [2, 3]


def test_several_passes_through_one_graph() -> None:
    p = tc.node(1, trainable=True)
    middle = p + 1
    output = middle * 2
    output.backward("a")
    output.backward("b")
    middle.backward("c")
    assert [trace.feedback.text for trace in p.feedback] == ["a", "b", "c"]
    p.zero_feedback()
    assert p.feedback == []


def test_cutting_a_trace_gives_no_feedback() -> None:
    p = tc.node(1, trainable=True)
    trace = tc.Trace.of(p + 1, "x")
    assert p.feedback == []
    assert trace.deposit() is trace
    assert p.feedback == [trace]


# ---- 15: values of the moment


def test_updates_do_not_change_earlier_traces() -> None:
    p = tc.node("old", trainable=True)
    trace = (p + "!").backward("x")
    p.update("new")
    assert trace.values == {p: "old"}
    assert "old" in trace.render()
    assert "new" not in trace.render()


def test_two_versions_in_one_trace() -> None:
    p = tc.node(1, trainable=True, name="p")
    first = p + 0
    p.update(5)
    trace = (first + p).backward("x")
    assert trace.output.value == 6
    assert sorted(version.recorded for version in trace.versions) == [1, 5]
    assert trace.parameters == [p]
    assert len(set(trace.names().values())) == len(trace.nodes)


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: [1, [2]], lambda v: v[1].append(3)),
        (lambda: {"a": {"b": 1}}, lambda v: v["a"].update(c=2)),
        (lambda: {1, 2}, lambda v: v.add(3)),
        (lambda: np.zeros(3), lambda v: v.__setitem__(0, 9)),
        (lambda: bytearray(b"a"), lambda v: v.extend(b"b")),
    ],
)
def test_mutation_after_recording_does_not_change_the_trace(make: Any, change: Any) -> None:
    @tc.bundle
    def use(data: Any, p: int) -> Any:
        return p

    p = tc.node(1, trainable=True)
    argument, held = make(), make()
    holder = tc.node(held)
    trace = (use(argument, p) + use(holder, p)).backward("x")
    before = trace.render()
    change(argument)
    change(held)
    assert trace.render() == before


def test_a_list_of_nodes_may_change_later() -> None:
    @tc.bundle
    def total(items: list[int]) -> int:
        return sum(items)

    p, q = tc.node(1, trainable=True), tc.node(2, trainable=True)
    items = [p + 0]
    result = total(items)
    items.append(q + 0)
    assert result.backward("x").parameters == [p]


def test_dataclasses_and_models_are_kept_as_they_were() -> None:
    from dataclasses import dataclass

    from pydantic import BaseModel

    @dataclass
    class Data:
        items: list[int]

    class Model(BaseModel):
        items: list[int]

    @tc.bundle
    def use(data: Any, p: int) -> int:
        return p

    p = tc.node(1, trainable=True)
    for made in (Data([1]), Model(items=[1])):
        trace = use(made, p).backward("x")
        made.items.append(99)
        assert "99" not in trace.render()


def test_big_values_are_kept_by_reference_and_a_change_is_said() -> None:
    big = list(range(20_000))
    p = tc.node(1, trainable=True)

    @tc.bundle
    def use(data: Any, p: int) -> int:
        return p

    trace = use(tc.node(big), p).backward("x")
    assert "changed in place" not in trace.render(budget=500)
    big.append(1)
    assert "changed in place" in trace.render(budget=500)


# ---- 16: long chains


def test_a_chain_of_a_hundred_thousand_goes_backward_without_recursion() -> None:
    p = tc.node(0, trainable=True)
    output = chain(p, 100_000)
    trace = output.backward("x")
    assert len(trace.nodes) == 100_002
    assert trace.replay({p: 5}).value == 100_005
    del trace, output
    p.zero_feedback()


def test_a_long_chain_can_be_shown_and_copied() -> None:
    p = tc.node(0, trainable=True)
    output = chain(p, 10_000)
    trace = output.backward("x")
    assert len(trace.render(budget=300)) < 3000
    assert len(trace.to_mermaid()) < 50_000
    assert len(trace._repr_html_()) < 200_000
    assert copy.deepcopy(output).value == 10_000
    assert tc.Trace.from_dict(trace.to_dict()).output.value == 10_000


def test_a_wide_graph_goes_backward() -> None:
    p = tc.node(1, trainable=True)
    assert len(tc.node([p + i for i in range(2000)]).backward("x").nodes) == 2000 + 2


def test_backward_looks_at_every_link_once() -> None:
    """The number of times nodes are hashed and links are followed grows with the graph, not with its square."""
    import trace_core.graph as graph

    counts = []
    for length in (1_000, 2_000):
        calls = 0
        original = graph.dependencies

        def counted(node: tc.Node, unfold: bool = False, original: Any = original) -> list[tc.Node]:
            nonlocal calls
            calls += 1
            return original(node, unfold)

        graph.dependencies = counted  # type: ignore[assignment]
        try:
            chain(tc.node(0, trainable=True), length).backward("x")
        finally:
            graph.dependencies = original
        counts.append(calls)
    assert counts[1] <= 2 * counts[0] + 10


# ---- 17: memory


def grown(work: Any) -> int:
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = work()
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del kept
    return after - before


def test_memory_is_flat_with_a_living_parameter() -> None:
    p = tc.node(1, trainable=True)

    @tc.bundle
    def use(x: int) -> int:
        return x + p.value

    def work() -> None:
        for i in range(8_000):
            if p > i:
                use(p * i)

    assert grown(work) < 300_000


def test_memory_is_flat_with_a_living_input() -> None:
    p, x = tc.node(2, trainable=True), tc.node(3)

    def work() -> None:
        for _ in range(2_000):
            y = x * p + 1
            if y > 3:
                len(tc.node("a") * y)

    assert grown(work) < 300_000


def test_a_kept_chain_is_small() -> None:
    p = tc.node(0, trainable=True)
    assert grown(lambda: chain(p, 10_000)) < 5_000_000


def test_resident_memory_of_a_process_stays_flat() -> None:
    code = """
import resource, trace_core as tc
p = tc.node(1, trainable=True)
@tc.bundle
def f(x): return x + 1
def work(n):
    for i in range(n):
        f(p + i)
work(2000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
work(33_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    kib = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert kib < 2048
