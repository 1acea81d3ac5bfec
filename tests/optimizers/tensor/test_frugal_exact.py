"""Trajectories against torch's AdamW, against sign descent, and against a slow reference, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from frugal_reference import Reference, Settings  # noqa: E402 - after the skip
from hypothesis import given, settings  # noqa: E402 - after the skip
from hypothesis import strategies as st  # noqa: E402 - after the skip

from trace_core.optimizers.tensor import Frugal  # noqa: E402 - after the skip

SHAPES = [(7, 5), (4, 9), (6, 6), (7, 5), (3, 2, 2, 2), (8,), (12, 3)]  # two of one shape: they are stacked
SPLITS = ["block", "columns", "rows", "randk", "svd", "random"]


def tensors(seed: int = 0, shapes: list[tuple[int, ...]] = SHAPES) -> list[Any]:
    made = torch.Generator().manual_seed(seed)
    return [torch.randn(s, dtype=torch.float64, generator=made).requires_grad_() for s in shapes]


def gradients(step: int, params: list[Any]) -> list[Any]:
    made = torch.Generator().manual_seed(1000 + step)
    return [torch.randn(p.shape, dtype=torch.float64, generator=made) for p in params]


def give(params: list[Any], grads: list[Any]) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad = g


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("fused", [None, False])
def test_density_one_is_adamw(split: str, fused: bool | None) -> None:
    ours, theirs = tensors(), tensors()
    options = {"lr": 3e-3, "betas": (0.8, 0.99), "weight_decay": 0.1}
    frugal = Frugal([{"params": ours, "project": True}], density=1.0, gap=None, split=split, fused=fused, **options)
    adamw = torch.optim.AdamW(theirs, **options)
    for step in range(30):
        give(ours, gradients(step, ours))
        give(theirs, gradients(step, theirs))
        frugal.step()
        adamw.step()
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-12


@pytest.mark.parametrize("split", SPLITS)
def test_density_zero_is_sign_descent_where_projected(split: str) -> None:
    ours, theirs = tensors(), tensors()
    frugal = Frugal(
        [{"params": ours[:5], "project": True}, {"params": ours[5:], "project": False}],
        lr=1e-2, density=0.0, gap=3, split=split,
    )  # fmt: skip
    adamw = torch.optim.AdamW(theirs[5:], lr=1e-2, weight_decay=0.0)
    for step in range(8):
        give(ours, gradients(step, ours))
        give(theirs, gradients(step, theirs))
        frugal.step()
        adamw.step()
        with torch.no_grad():
            for p in theirs[:5]:
                p -= 1e-2 * p.grad.sign()
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-12
    assert not any(p in frugal.state for p in ours[:5])


def as_matrix(shape: tuple[int, ...], split: str) -> tuple[int, int]:
    if len(shape) == 1:
        return (shape[0], 1) if split == "rows" else (1, shape[0])
    return shape[0], int(np.prod(shape[1:]))


def expected_basis(grad: np.ndarray[Any, Any], rank: int) -> tuple[str, np.ndarray[Any, Any]]:
    left, _, right = np.linalg.svd(grad, full_matrices=False)
    return ("right", right[:rank].T) if grad.shape[0] >= grad.shape[1] else ("left", left[:, :rank])


def part_of(frugal: Frugal, p: Any, split: str, grad: np.ndarray[Any, Any]) -> Any:
    """What the reference is told: masks and random bases as drawn, leading subspaces from an exact SVD."""
    chosen = frugal.chosen(p).numpy()
    if chosen.dtype == bool:
        return chosen.reshape(grad.shape).astype(float)
    if split == "svd":
        return expected_basis(grad, chosen.shape[1])
    return ("right" if grad.shape[0] >= grad.shape[1] else "left", chosen)


def compare(split: str, reset: bool, density: float, gap: int, steps: int, lr: float, **options: Any) -> None:
    params = tensors()
    project = [True] * (len(params) - 1) + [False]
    names = [(f"w{i}", p) for i, p in enumerate(params)]
    rule = Settings(lr=lr, **options)
    frugal = Frugal(
        [{"params": names[:-1], "project": True}, {"params": names[-1:], "project": False}],
        lr=lr, split=split, density=density, gap=gap, seed=5, on_refresh="reset" if reset else "reproject", **options,
    )  # fmt: skip
    references: list[Reference] = []
    for step in range(steps):
        grads = gradients(step, params)
        give(params, grads)
        before = [p.detach().clone() for p in params]
        frugal.step()
        for i, (p, g) in enumerate(zip(params, grads, strict=True)):
            flat = g.numpy().reshape(as_matrix(tuple(p.shape), split))
            part = part_of(frugal, p, split, flat) if project[i] else None
            if step == 0:
                references.append(Reference(before[i].numpy().reshape(flat.shape), rule, project[i], part))
            elif project[i] and step % gap == 0:
                references[i].refresh(part, reset=reset)
            references[i].step(flat)
            error = np.abs(p.detach().numpy().reshape(flat.shape) - references[i].value).max()
            assert error <= 1e-10, (split, step, i, error)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("free", ["signsgd", "sgd", "none"])
def test_trajectories_equal_the_reference(split: str, reset: bool, free: str) -> None:
    compare(split, reset, 0.4, 4, 14, 1e-2, free=free, weight_decay=0.05, projected_scale=0.5, free_scale=0.1)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("full", ["lion", "sgdm"])
def test_other_rules_equal_the_reference(split: str, full: str) -> None:
    compare(split, True, 0.4, 4, 10, 1e-2, full=full, momentum=0.8, dampening=0.3)
    compare(split, False, 0.4, 4, 10, 1e-2, full=full, weight_decay=0.1)


@settings(max_examples=25, deadline=None)
@given(
    split=st.sampled_from(SPLITS),
    reset=st.booleans(),
    density=st.floats(0.0, 1.0),
    gap=st.integers(1, 6),
    lr=st.floats(1e-4, 0.1),
    decay=st.floats(0.0, 0.5),
)
def test_any_setting_equals_the_reference(
    split: str, reset: bool, density: float, gap: int, lr: float, decay: float
) -> None:
    compare(split, reset, density, gap, 7, lr, weight_decay=decay)


def test_descent_through_a_closure_and_parameters_without_gradients() -> None:
    """The refresh follows the group's counter: a first tensor without a gradient changes nothing for the others."""
    first, second = tensors(3, [(4, 4), (4, 4)])
    lone = tensors(3, [(4, 4), (4, 4)])[1]
    both = Frugal([{"params": [first, second], "project": True}], lr=1e-2, split="columns", density=0.5, gap=5)
    one = Frugal(
        [{"params": [torch.zeros(4, 4, dtype=torch.float64)], "project": True}, {"params": [lone], "project": True}],
        lr=1e-2, split="columns", density=0.5, gap=5,
    )  # fmt: skip
    masks = []
    for step in range(12):
        (grad,) = gradients(step, [second])

        def loss(p: Any = second, g: Any = grad) -> Any:
            p.grad = None
            value = (p * g).sum()
            value.backward()
            return value

        expected = (second.detach() * grad).sum()
        assert torch.equal(both.step(loss), expected)
        lone.grad = grad
        one.step()
        masks.append(both.chosen(second))
        assert first not in both.state
    assert torch.equal(second, lone)
    assert all(torch.equal(masks[0], m) for m in masks[:5])
    assert any(not torch.equal(masks[0], m) for m in masks[5:])
