"""Tensors as values: recorded without a look at their data. Skipped where torch is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import trace_core as tc

torch: Any = pytest.importorskip("torch")


def test_functions_methods_and_operators() -> None:
    p = tc.node(torch.tensor([1.0, 2.0]), trainable=True)
    plain = torch.tensor([3.0, 4.0])
    for result, expected in (
        (torch.relu(p - 1.5), [0.0, 0.5]),
        (torch.stack([p, p]).sum(dim=0), [2.0, 4.0]),
        (torch.cat([p, plain]), [1.0, 2.0, 3.0, 4.0]),
        (plain + p, [4.0, 6.0]),
        (p * 2, [2.0, 4.0]),
        (2 - p, [1.0, 0.0]),
        (p.clamp(max=1.0), [1.0, 1.0]),
        (plain @ p, 11.0),
        (p @ plain, 11.0),
        (torch.nn.functional.softplus(p * 0), [0.6931472, 0.6931472]),
        (p[0], 1.0),
    ):
        assert isinstance(result, tc.Node)
        assert tc.Trace.of(result, "").parameters == [p]
        if expected is not None:
            assert result.value.tolist() == pytest.approx(expected)
    assert [x.value.item() for x in p] == [1.0, 2.0]
    assert float(p.sum()) == 3.0


def test_gradients_flow_through_the_values() -> None:
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    p = tc.Parameter(weight, name="w")
    loss = ((p * 3) ** 2).sum()
    loss.value.backward()
    assert weight.grad.tolist() == [18.0, 36.0]
    assert p.value is weight


def test_in_place_forms_are_refused_or_make_new_values() -> None:
    p = tc.node(torch.ones(2), trainable=True)
    plain = torch.zeros(2)
    for change in (lambda: p.add_(1), lambda: plain.add_(p), lambda: torch.add(plain, p, out=plain)):
        with pytest.raises(tc.MutationError):
            change()
    with pytest.raises(tc.MutationError):
        plain[0] = p[0]
    with pytest.raises(tc.MutationError):
        p[0] = 5
    kept = plain
    plain += p
    assert isinstance(plain, tc.Node)
    assert plain.value.tolist() == [1.0, 1.0]
    assert kept.tolist() == [0.0, 0.0]


class Touchy(torch.Tensor):  # type: ignore[misc]
    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("item", "tolist", "__repr__", "__bool__", "__float__", "numpy", "cpu"):
            raise AssertionError(f"data was read: {func.__name__}")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_recording_never_reads_the_data() -> None:
    p = tc.Parameter(torch.ones(3).as_subclass(Touchy), constraint=tc.Anything())

    @tc.bundle
    def f(x: Any, items: list[Any]) -> Any:
        return x * 2 + items[0]

    output = f(p, [p]).sum()
    assert output.backward("x").parameters == [p]


def test_meta_tensors_can_be_recorded_and_traced() -> None:
    p = tc.Parameter(torch.ones(3, device="meta"), constraint=tc.Anything())
    assert tc.Trace.of((p * 2).sum(), "x").parameters == [p]


def test_summaries_are_made_when_rendering() -> None:
    p = tc.node(torch.arange(100.0).reshape(10, 10), trainable=True, name="w")
    text = tc.Trace.of(p * 2, "").render()
    assert "w = tensor(10x10, float32: mean 49.5, std 28.87, min 0, max 99, 1 % zeros: [0, 1, 2, 3, 4, 5, …])" in text
    mask = tc.Trace.of(tc.node(torch.ones(10), trainable=True) > 0, "").render()
    assert "bool" in mask


def test_a_tensor_changed_in_place_later_is_said_to_be() -> None:
    x = torch.ones(1000)
    p = tc.node(2.0, trainable=True)
    trace = tc.Trace.of(tc.node(x, name="x") * p, "")
    assert "changed in place" not in trace.render()
    x.add_(1)
    assert "changed in place" in trace.render()


def test_replay_with_tensors() -> None:
    p = tc.node(torch.tensor([1.0, 2.0]), trainable=True)
    loss = torch.relu(p * 2).sum()
    assert tc.Trace.of(loss, "").replay({p: torch.tensor([-1.0, 5.0])}).value.item() == 10.0


def test_truth_of_a_tensor_follows_torch() -> None:
    assert bool(tc.node(torch.tensor([1.0])) > 0)
    with pytest.raises(RuntimeError):
        bool(tc.node(torch.ones(2)) > 0)


def test_constraints_of_tensors() -> None:
    p = tc.node(torch.zeros(2), trainable=True)
    p.update(torch.ones(2))
    for bad in (torch.zeros(3), [1.0, 2.0], 5, None):
        with pytest.raises(tc.ParameterError):
            p.update(bad)
    scalar = tc.node(1.0, trainable=True)
    scalar.update(torch.tensor(2.5))
    assert scalar.value == 2.5
    with pytest.raises(tc.ParameterError):
        scalar.update(torch.tensor(float("nan")))


def test_state_round_trip(tmp_path: Path) -> None:
    import numpy as np

    class Net(tc.Module):
        def __init__(self, value: float) -> None:
            self.weight = tc.node(torch.full((2, 2), value, dtype=torch.bfloat16), trainable=True)
            self.tied = tc.node(torch.full((4,), value), trainable=True)
            self.bias = tc.node(np.full(2, value), trainable=True)

    first, second = Net(1.0), Net(0.0)
    first.save(tmp_path / "net.json")
    second.load(tmp_path / "net.json")
    assert second.weight.value.dtype == torch.bfloat16
    assert second.weight.value.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert isinstance(second.bias.value, np.ndarray)


def test_stored_traces() -> None:
    p = tc.node(torch.tensor([1.0, 2.0]), trainable=True, name="p")
    trace = tc.Trace.of(p * 2, tc.Feedback(gradient=torch.ones(2)))
    twin = tc.Trace.from_dict(trace.to_dict())
    assert twin.replay({twin.parameters[0]: torch.tensor([5.0, 6.0])}).value.tolist() == [10.0, 12.0]
    assert torch.equal(twin.feedback.gradient, torch.ones(2))


def test_deep_copies() -> None:
    import copy

    p = tc.node(torch.zeros(2), trainable=True)
    twin = copy.deepcopy(p)
    twin.value.add_(1)
    assert p.value.tolist() == [0.0, 0.0]


def test_modules_as_values() -> None:
    layer = torch.nn.Linear(2, 1)

    @tc.bundle
    def apply(x: Any) -> Any:
        return layer(x)

    p = tc.node(torch.ones(2), trainable=True)
    assert tc.Trace.of(apply(p), "").parameters == [p]
    assert tc.Trace.of(tc.node(layer)(p), "").parameters == [p]
