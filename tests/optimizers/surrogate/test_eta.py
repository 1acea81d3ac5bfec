"""The rules for eta, curvature, geometry, and state."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from surrogate_problems import Linear, step

import trace_core as tc
from trace_core.nodes.tensor import TensorParameter
from trace_core.optimizers import OptimizerError
from trace_core.optimizers.surrogate import (
    AdaGradNorm,
    Answer,
    BarzilaiBorwein,
    Constant,
    Exponential,
    InverseSqrt,
    LineSearch,
    TargetSurrogate,
)


def identity(losses: Any, start: float = 2.0, entries: int = 1) -> tuple[TensorParameter, Any]:
    """A parameter that is its own target, and the workflow."""
    w = TensorParameter(torch.full((entries,), start, dtype=torch.float64), name="w")
    target = tc.bundle(lambda w: w * 1.0, name="target")
    return w, lambda: tc.bundle(losses, name="loss")(target(w))


def moves(rule: Any, slope: float = 1.0, steps: int = 4) -> list[float]:
    """How far each step goes on a line of constant slope: eta times the slope."""
    w, run = identity(lambda z: slope * z.sum())
    optimizer, found = TargetSurrogate([w], eta=rule), []
    for _ in range(steps):
        before = float(w.value.detach())
        step(optimizer, run())
        found.append(before - float(w.value.detach()))
    return found


def test_rules_that_know_the_step_only() -> None:
    assert moves(0.3) == pytest.approx([0.3] * 4)
    assert moves(Constant(0.3)) == pytest.approx([0.3] * 4)
    assert moves(InverseSqrt(0.6)) == pytest.approx([0.6 / t**0.5 for t in (1, 2, 3, 4)])
    assert moves(Exponential(0.6, total=4)) == pytest.approx([0.6 * 0.25 ** (t / 4) for t in (1, 2, 3, 4)])


def test_adagrad_norm_divides_by_what_gradients_there_were() -> None:
    assert moves(AdaGradNorm(1.0), slope=3.0) == pytest.approx([3 / (9 * t) ** 0.5 for t in (1, 2, 3, 4)])


@pytest.mark.parametrize("scale", [0.01, 1.0, 50.0])
def test_line_search_in_target_space_needs_no_tuning(scale: float) -> None:
    problem = Linear(rows=30, columns=3)
    loss = tc.bundle(lambda z: scale * problem.reduced(z), name="loss")
    optimizer = TargetSurrogate([problem.w], eta="line-search")
    best = 0.5 * float((problem.x @ torch.linalg.pinv(problem.x) @ problem.y - problem.y).square().sum())
    before = problem.value()
    for _ in range(20):
        step(optimizer, loss(problem.predict()))
        assert problem.value() <= before + 1e-12
        before = problem.value()
    assert problem.value() - best < 1e-4 * best
    assert optimizer.calls.gradients == 20
    assert optimizer.calls.losses >= 20


def test_line_search_asks_for_losses_at_moved_targets_and_never_moves_the_parameters() -> None:
    w, _ = identity(lambda z: z.sum())
    seen: list[tuple[float, float]] = []

    def loss(z: Any) -> Any:
        seen.append((float(w.tensor.detach()), float(z.detach())))
        return z.square().sum()

    target = tc.bundle(lambda w: w * 1.0, name="target")
    optimizer = TargetSurrogate([w], eta=LineSearch(start=4.0, c=0.5, shrink=0.5))
    optimizer.backward(tc.bundle(loss, name="loss")(target(w)))
    optimizer.propose()
    # eta 4, 2, 1, 0.5: z = 2 - 4 eta; the last goes to the minimum, where the loss has fallen by half of the promise
    assert [z for _, z in seen] == [2.0, -14.0, -6.0, -2.0, 0.0]
    assert {value for value, _ in seen} == {2.0}
    assert optimizer.calls.losses == 4


def test_line_search_works_through_an_oracle_function() -> None:
    problem = Linear()

    def oracle(z: torch.Tensor) -> Answer:
        return Answer(loss=problem.losses(z).sum(), gradient=z - problem.y)

    optimizer = TargetSurrogate([problem.w], eta="line-search", oracle=oracle)
    before = problem.value()
    step(optimizer, problem.predict())
    assert problem.value() < before
    assert optimizer.calls.gradients >= 1


def test_barzilai_borwein_finds_the_curvature_of_a_parabola() -> None:
    w, run = identity(lambda z: 5 * z.square().sum(), entries=3)
    optimizer = TargetSurrogate([w], eta=BarzilaiBorwein(start=0.01))
    step(optimizer, run())
    step(optimizer, run())
    assert w.value.detach().tolist() == pytest.approx([0.0] * 3, abs=1e-12)


def test_barzilai_borwein_keeps_eta_between_different_examples() -> None:
    problem = Linear(rows=12)
    rule = BarzilaiBorwein(start=0.5)
    optimizer = TargetSurrogate([problem.w], eta=rule)
    predict = tc.bundle(lambda x, w: x @ w, name="predict")
    loss = tc.bundle(lambda z, y: (z - y).square().sum(), name="loss")
    for rows in (slice(0, 6), slice(6, 12), slice(0, 6), slice(0, 6)):
        step(optimizer, loss(predict(problem.x[rows], problem.w), problem.y[rows]))
        if rows.stop == 12:
            assert rule.last == 0.5
    assert rule.last == pytest.approx(0.5)  # the last two are about the same rows: 1/L of (z - y)^2


def test_diagonal_curvature_makes_separate_parabolas_one_step() -> None:
    weights = torch.tensor([1.0, 10.0, 1000.0], dtype=torch.float64)
    w, run = identity(lambda z: (weights * (z - 1).square()).sum(), entries=3)
    step(TargetSurrogate([w], curvature="diag"), run())
    assert w.value.detach().tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("how", ["autograd", "given", "oracle"])
def test_diagonal_curvature_is_one_newton_step_of_logistic_regression(how: str) -> None:
    problem = Linear(rows=40, columns=3, kind="logistic", mean=True)
    z = problem.x @ problem.w.value.detach()
    p = torch.sigmoid(z)
    hessian = problem.x.T @ ((p * (1 - p))[:, None] * problem.x)
    expected = problem.w.value.detach() - torch.linalg.solve(hessian, problem.x.T @ (p - problem.y))
    optimizer = TargetSurrogate(
        [problem.w],
        curvature="diag",
        oracle=(lambda z: Answer(gradient=p - problem.y, curvature=p * (1 - p))) if how == "oracle" else None,
    )
    if how == "autograd":
        step(optimizer, problem.loss())
    elif how == "given":
        step(optimizer, problem.predict(), tc.Feedback(gradient=p - problem.y), curvature=p * (1 - p))
    else:
        step(optimizer, problem.predict())
    torch.testing.assert_close(problem.w.value.detach(), expected, rtol=1e-8, atol=1e-10)
    assert optimizer.calls.total == 1


def test_diagonal_curvature_of_rows_with_several_columns_and_of_coupled_entries() -> None:
    from trace_core.optimizers.surrogate.curvature import diagonal

    torch.manual_seed(0)
    for loss in (
        lambda z: torch.nn.functional.cross_entropy(z, torch.arange(6) % 3, reduction="sum"),
        lambda z: (z.sum(1) ** 4).sum() + z.square().sum(),
        lambda z: z.sum() ** 3 + z.square().sum(),  # every entry with every other
    ):
        z = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(z), [z], create_graph=True)
        full = torch.autograd.functional.hessian(loss, z.detach()).reshape(18, 18)
        torch.testing.assert_close(diagonal(gradient, z).flatten(), full.diagonal())


def test_curvature_of_a_line_is_refused() -> None:
    w, run = identity(lambda z: z.sum() * 2 + 0 * z.square().sum())
    with pytest.raises(OptimizerError, match="every second derivative at the target is zero"):
        step(TargetSurrogate([w], curvature="diag"), run())


# ---- mirror steps


def tabular() -> tuple[TensorParameter, Any, torch.Tensor]:
    logits = TensorParameter(torch.zeros(2, 3, dtype=torch.float64), name="logits")
    policy = tc.bundle(lambda t: t.softmax(-1), name="policy")
    cost = torch.tensor([[1.0, 0.0, 2.0], [0.5, 0.2, 0.1]], dtype=torch.float64)
    return logits, policy, cost


@pytest.mark.parametrize("inner", ["exact", "lbfgs"])
def test_kl_geometry_takes_the_mirror_step(inner: str) -> None:
    logits, policy, cost = tabular()
    optimizer = TargetSurrogate([logits], "policy", geometry="kl", eta=1.5, inner=inner, inner_steps=40)
    before = logits.value.detach().softmax(-1)
    step(optimizer, tc.bundle(lambda p: (p * cost).sum(), name="cost")(policy(logits)))
    wanted = before * torch.exp(-1.5 * cost)
    wanted /= wanted.sum(-1, keepdim=True)
    tolerance = 1e-3 if inner == "exact" else 1e-5
    torch.testing.assert_close(logits.value.detach().softmax(-1), wanted, rtol=tolerance, atol=tolerance)


def test_kl_geometry_stays_among_probabilities_however_long_the_step() -> None:
    logits, policy, cost = tabular()
    optimizer = TargetSurrogate([logits], "policy", geometry="kl", eta="line-search")
    for _ in range(5):
        step(optimizer, tc.bundle(lambda p: (p * cost).sum(), name="cost")(policy(logits)))
    p = logits.value.detach().softmax(-1)
    assert p.argmax(-1).tolist() == [1, 2]
    assert bool(torch.isfinite(p).all())


def test_kl_geometry_refuses_what_is_no_probability() -> None:
    problem = Linear()
    with pytest.raises(OptimizerError, match="needs probabilities that sum to 1"):
        TargetSurrogate([problem.w], geometry="kl").backward(problem.loss())


# ---- state


@pytest.mark.parametrize("rule", ["bb", "line-search", "adagrad-norm", "sqrt", "exponential", 0.5])
@pytest.mark.parametrize("kind", ["gradient", "losses"])
def test_a_run_goes_on_from_its_state(rule: Any, kind: str) -> None:
    def run(problem: Linear, optimizer: TargetSurrogate, steps: int) -> None:
        judge = tc.bundle(lambda z: float(problem.losses(z).detach().sum()), name="judge")
        for _ in range(steps):
            step(optimizer, problem.loss() if kind == "gradient" else judge(problem.predict()))

    whole, first = Linear(), Linear()
    optimizer = TargetSurrogate([whole.w], eta=rule)
    run(whole, optimizer, 5)
    early = TargetSurrogate([first.w], eta=rule)
    run(first, early, 2)
    late = TargetSurrogate([first.w], eta=rule)
    late.load_state_dict(through_files(early.state_dict()))
    run(first, late, 3)
    assert torch.equal(first.w.value.detach(), whole.w.value.detach())
    assert late.calls == optimizer.calls
    assert late.steps == 5


def through_files(state: dict[str, Any]) -> dict[str, Any]:
    """JSON for what is plain; tensors stay tensors."""
    plain: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, dict):
            plain[key] = through_files(value)
        else:
            plain[key] = value.clone() if isinstance(value, torch.Tensor) else json.loads(json.dumps(value))
    return plain
