"""Random expressions over random values: equal to plain Python, replayed to the same, recomputed after a change."""

from __future__ import annotations

import operator
from typing import Any

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import trace_core as tc

SCALARS = st.integers(-50, 50) | st.floats(-1e3, 1e3) | st.booleans() | st.text("ab{}%,", max_size=4)
VALUES = SCALARS | st.lists(SCALARS, max_size=4)
BINARY = [
    operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.and_,
    operator.or_, operator.xor, operator.lt, operator.le, operator.eq, operator.ne, operator.getitem, divmod,
]  # fmt: skip
UNARY = [operator.neg, abs, operator.invert, round]
METHODS = ["upper", "strip", "title", "isdigit", "bit_length", "is_integer", "copy"]

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("binary"), st.sampled_from(BINARY), st.integers(0, 9), st.integers(0, 9)),
        st.tuples(st.just("unary"), st.sampled_from(UNARY), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("method"), st.sampled_from(METHODS), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("pack"), st.just(None), st.integers(0, 9), st.integers(0, 9)),
        st.tuples(st.just("bundle"), st.just(None), st.integers(0, 9), st.integers(0, 9)),
    ),
    min_size=1,
    max_size=8,
)


def mix(x: Any, y: Any, *, z: Any = 0) -> Any:
    return [x, {"y": y, "z": z}] if isinstance(x, str) else (x, y)


def run(leaves: list[Any], steps: Any, bundled: Any) -> list[Any]:
    """All values of the program; a step that plain Python refuses is passed over."""
    values = list(leaves)
    for kind, what, i, j in steps:
        a, b = values[i % len(values)], values[j % len(values)]
        try:
            if kind == "binary":
                if what is operator.mod and isinstance(plain(a), str):
                    continue  # formatting: str's own business
                values.append(what(a, b))
            elif kind == "unary":
                values.append(what(a))
            elif kind == "method":
                values.append(getattr(a, what)())
            elif kind == "pack":
                values.append([a, b] if bundled is mix else tc.node([a, b]))
            else:
                values.append(bundled(a, z=b, y=a))
        except (
            TypeError,
            ValueError,
            ZeroDivisionError,
            IndexError,
            KeyError,
            AttributeError,
            OverflowError,
            MemoryError,
        ):
            values.append(0)
    return values


def plain(value: Any) -> Any:
    return value.value if isinstance(value, tc.Node) else value


def bounded(values: list[Any]) -> bool:
    return all(len(repr(value)) < 2000 for value in values)


def same(left: Any, right: Any) -> bool:
    return repr(left) == repr(right)


@settings(max_examples=300)
@given(leaves=st.lists(VALUES, min_size=1, max_size=4), steps=STEPS)
def test_programs_equal_plain_python(leaves: list[Any], steps: Any) -> None:
    expected = run(leaves, steps, mix)
    assume(bounded(expected))
    nodes = run([tc.node(leaf) for leaf in leaves], steps, tc.bundle(mix))
    for node, value in zip(nodes, expected, strict=True):
        assert same(plain(node), value)


@settings(max_examples=300)
@given(leaves=st.lists(VALUES, min_size=1, max_size=3), changed=st.lists(VALUES, min_size=3, max_size=3), steps=STEPS)
def test_replays_equal_recomputation(leaves: list[Any], changed: list[Any], steps: Any) -> None:
    assume(bounded(run(leaves, steps, mix)))
    parameters = [tc.Parameter(leaf, constraint=tc.Anything()) for leaf in leaves]
    nodes = run(list(parameters), steps, tc.bundle(mix))
    output = nodes[-1]
    assume(isinstance(output, tc.Node))
    trace = tc.Trace.of(output, "")
    assert same(trace.replay().value, output.value)
    assert same(trace.replay({p: p.value for p in trace.parameters}).value, output.value)
    changes = {
        p: value for p, value in zip(parameters, changed, strict=False) if trace.parameters and p in trace.parameters
    }
    new_leaves = [changes.get(p, leaf) for p, leaf in zip(parameters, leaves, strict=True)]
    expected = run(new_leaves, steps, mix)
    try:
        found = trace.replay(changes).value
    except (tc.ExecutionError, tc.ReplayError):
        return  # some step fails for the new values; the program then goes another way
    old = run(leaves, steps, mix)
    if [is_default(v) for v in old] == [is_default(v) for v in expected]:
        assert same(found, expected[-1])


def is_default(value: Any) -> bool:
    return type(value) is int and value == 0


@settings(max_examples=100)
@example(leaves=[0], steps=[("method", "upper", 0, 0), ("pack", None, 1, 1), ("pack", None, 1, 2)])
@example(leaves=[0], steps=[("method", "upper", 0, 0), ("pack", None, 1, 1), ("bundle", None, 1, 2)])
@given(leaves=st.lists(VALUES, min_size=1, max_size=3), steps=STEPS)
def test_traces_survive_storage_and_rendering(leaves: list[Any], steps: Any) -> None:
    parameters = [tc.Parameter(leaf, constraint=tc.Anything()) for leaf in leaves]
    output = run(list(parameters), steps, tc.bundle(mix))[-1]
    assume(isinstance(output, tc.Node))
    assume(bounded([output.value]))
    trace = tc.Trace.of(output, "feedback")
    twin = tc.Trace.from_dict(trace.to_dict())
    assert twin.render() == trace.render()
    assert same(twin.output.value, trace.output.recorded)
    assert trace.to_mermaid()
    assert trace._repr_html_()
