"""What is changed in place after it was recorded (behaviour 15)."""

from __future__ import annotations

from typing import Any

import pytest

import trace_core as tc

torch = pytest.importorskip("torch")


def test_a_tensor_changed_after_its_use_is_said_to_have_changed() -> None:
    weight = tc.node(torch.ones(2), trainable=True, name="weight")
    bias = tc.node(torch.zeros(2), name="bias")
    trace = (weight * 2 + bias).backward("too small")
    assert "changed in place" not in trace.render()
    weight.value.add_(1)
    bias.value.add_(1)
    lines = [line for line in trace.render().splitlines() if "changed in place since it was used" in line]
    assert [line.partition(" = ")[0] for line in lines] == ["weight", "bias"]


def test_a_replay_does_not_mix_old_and_new_values() -> None:
    weight = tc.node(torch.ones(2), trainable=True, name="weight")
    scale = tc.node(3.0, trainable=True, name="scale")
    trace = tc.Trace.of(weight * scale)
    weight.value.add_(1)
    with pytest.raises(tc.ReplayError, match="'weight' was changed in place since it was recorded"):
        trace.replay({scale: 5.0})
    assert trace.replay({scale: 5.0, weight: torch.ones(2)}).value.tolist() == [5.0, 5.0]


def test_a_long_list_changed_after_its_use_cannot_be_replayed() -> None:
    numbers = tc.node(list(range(20_000)), name="numbers")
    scale = tc.node(2, trainable=True)
    trace = tc.Trace.of(tc.bundle(lambda xs, s: sum(xs) * s)(numbers, scale))
    assert trace.replay({scale: 0}).value == 0
    numbers.value.append(1)
    with pytest.raises(tc.ReplayError, match="'numbers' was changed in place"):
        trace.replay({scale: 0})


def test_a_parameter_changed_in_place_gets_a_version() -> None:
    """A trace made after the change shows what it was, one made before what it had been."""
    words = tc.node(["a"], trainable=True, name="words")
    join = tc.bundle(lambda items: " ".join(items))
    before = join(words).backward("x")
    for change in (lambda: words.value.append("b"), lambda: words.value.__setitem__(0, "c")):
        version = words.version
        change()
        trace = join(words).backward("x")
        assert trace.values[words] == words.value
        assert trace.output.value == " ".join(words.value)
        assert words.version == version + 1
        assert join(words).backward("x").versions == trace.versions
    assert before.values[words] == ["a"]
    assert before.replay({words: ["z"]}).value == "z"


def test_a_change_in_place_to_what_is_not_allowed_is_refused() -> None:
    sizes = tc.node([1, 2], trainable=True, name="sizes", constraint=lambda v: len(v) < 3)
    sizes.value.append(3)
    with pytest.raises(tc.ParameterError, match="'sizes'"):
        len(sizes)


def test_a_tensor_parameter_updated_in_place_is_traced_as_it_is() -> None:
    """As torch's optimizers do it."""
    weight = tc.node(torch.nn.Parameter(torch.ones(2)), trainable=True, name="weight")
    first = (weight * 2).backward("x")
    optimizer = torch.optim.SGD([weight.value], lr=1.0)
    weight.value.grad = torch.ones(2)
    optimizer.step()
    second = (weight * tc.node(2.0, name="two")).backward("x")
    assert weight.version == 1
    assert "changed in place" not in second.render()
    assert "changed in place" in first.render()
    two = next(node for node in second.nodes if node.op is None and node.name == "two")
    assert second.replay({two: 3.0}).value.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "make", [lambda: [1], lambda: {1: 1}, lambda: {1}, lambda: torch.ones(1), lambda: bytearray(1)]
)
def test_a_node_whose_value_was_changed_between_two_uses(make: Any) -> None:
    """The trace shows both; the change itself is not in the graph, so that a replay through it is refused."""
    p = tc.node(1, trainable=True, name="p")
    value = tc.bundle(lambda p: make())(p)
    size = tc.bundle(lambda v: float(sum(v)))
    first = size(value)
    held = value.value
    for _ in range(2):
        if isinstance(held, list):
            held.append(7)
        elif isinstance(held, dict):
            held[7 + len(held)] = 1
        elif isinstance(held, set):
            held.add(7 + len(held))
        elif isinstance(held, bytearray):
            held.append(7)
        else:
            held.add_(7)
    second = size(value)
    assert second.inputs["v"] is size(value).inputs["v"]
    assert second.inputs["v"] is not value
    assert second.value == float(sum(held))
    trace = (first + second).backward("x")
    assert trace.parameters == [p]
    assert "changed(" in trace.render()
    with pytest.raises(tc.ReplayError, match="changed in place"):
        trace.replay({p: 2})
