"""What the surrogate promises, whatever the inner solver: descent, gradient descent as a special case, exactness."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

import torch
from surrogate_problems import Linear, step

import trace_core as tc
from trace_core.nodes.tensor import TensorParameter, module_node
from trace_core.optimizers import OptimizerError
from trace_core.optimizers.surrogate import GaussNewton, TargetSurrogate

INNER = ["exact", "adam", "lbfgs", "armijo"]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 20),
    columns=st.integers(1, 8),
    kind=st.sampled_from(["squares", "logistic"]),
    mean=st.booleans(),
    inner=st.sampled_from(INNER),
    share=st.floats(0.05, 1.0),
)
def test_loss_never_rises_with_eta_below_the_inverse_smoothness(
    seed: int, rows: int, columns: int, kind: str, mean: bool, inner: str, share: float
) -> None:
    problem = Linear(rows, columns, seed, kind, mean)
    smoothness = 0.25 if kind == "logistic" else 1.0
    optimizer = TargetSurrogate([problem.w], inner=inner, eta=share / smoothness)
    before = problem.value()
    for _ in range(4):
        step(optimizer, problem.loss())
        after = problem.value()
        assert after <= before + 1e-12 * max(1.0, abs(before))
        before = after


@given(seed=st.integers(0, 10**6), kind=st.sampled_from(["squares", "logistic"]), mean=st.booleans())
@settings(max_examples=30)
def test_surrogate_lies_above_the_loss_and_touches_it(seed: int, kind: str, mean: bool) -> None:
    """Checked where it matters: the decrease of the loss is at least that of the surrogate, which the reason gives."""
    problem = Linear(10, 3, seed, kind, mean)
    optimizer = TargetSurrogate([problem.w], eta=4.0 if kind == "logistic" else 1.0)
    output = problem.loss()
    before = problem.value()
    optimizer.backward(output)
    (proposal,) = optimizer.propose()
    optimizer.apply(proposal)
    promised = float(proposal.reason.split("0 -> ")[1].split()[0])
    assert before - problem.value() >= -promised * (1 - 1e-2) - 1e-12


@pytest.mark.parametrize("kind", ["squares", "logistic"])
@pytest.mark.parametrize("mean", [False, True])
def test_one_inner_step_is_gradient_descent(kind: str, mean: bool) -> None:
    problem = Linear(kind=kind, mean=mean)
    weight = problem.w.value.detach().clone().requires_grad_()
    optimizer = TargetSurrogate([problem.w], inner="gd", inner_lr=0.05, inner_steps=1)
    for _ in range(3):
        step(optimizer, problem.loss())
        (gradient,) = torch.autograd.grad(problem.reduced(problem.x @ weight), [weight])
        weight = weight.detach().sub(gradient, alpha=0.05).requires_grad_()
        assert torch.equal(problem.w.value.detach(), weight.detach())


def test_one_inner_step_is_gradient_descent_on_a_network() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)).double()
    twin = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)).double()
    twin.load_state_dict(net.state_dict())
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randint(0, 4, (6,))
    policy = module_node(net, name="policy")
    optimizer = TargetSurrogate(policy, inner="gd", inner_lr=0.1)
    sgd = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(3):
        step(optimizer, tc.bundle(torch.nn.functional.cross_entropy)(policy(x), y))
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(twin(x), y).backward()
        sgd.step()
    for mine, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("condition", [1.0, 1e3])
def test_exact_inner_is_least_squares(condition: float) -> None:
    problem = Linear(40, 6)
    problem.x *= torch.logspace(0, torch.log10(torch.tensor(condition)).item(), 6, dtype=torch.float64)
    optimizer = TargetSurrogate([problem.w], inner="exact", eta=1.0)
    step(optimizer, problem.loss())
    expected = torch.linalg.lstsq(problem.x, problem.y[:, None]).solution[:, 0]
    assert float(((problem.w.value.detach() - expected) / expected).abs().max()) < 1e-10
    assert optimizer.calls.gradients == 1
    assert optimizer.calls.total == 1


def test_exact_inner_without_forming_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trace_core.optimizers.surrogate.exact.DENSE", 0.0)
    problem = Linear(40, 6)
    step(TargetSurrogate([problem.w], inner=GaussNewton(steps=4, products=12, tolerance=0.0)), problem.loss())
    expected = torch.linalg.lstsq(problem.x, problem.y[:, None]).solution[:, 0]
    assert float(((problem.w.value.detach() - expected) / expected).abs().max()) < 1e-10


def test_exact_inner_with_fewer_rows_than_parameters() -> None:
    problem = Linear(3, 8)
    step(TargetSurrogate([problem.w], inner="exact"), problem.loss())
    assert problem.value() < 1e-20


def test_exact_inner_solves_a_nonlinear_fit() -> None:
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)
    a, b = (
        TensorParameter(torch.tensor(0.5, dtype=torch.float64)),
        TensorParameter(torch.tensor(0.1, dtype=torch.float64)),
    )
    curve = tc.bundle(lambda a, b: torch.exp(a * x) + b, name="curve")
    wanted = torch.exp(1.3 * x) - 0.7
    loss = tc.bundle(lambda z: 0.5 * (z - wanted).square().sum(), name="loss")
    optimizer = TargetSurrogate([a, b], inner=GaussNewton(steps=20, tolerance=0.0))
    step(optimizer, loss(curve(a, b)))
    assert float(a.value.detach()) == pytest.approx(1.3, abs=1e-10)
    assert float(b.value.detach()) == pytest.approx(-0.7, abs=1e-10)


@pytest.mark.parametrize("inner", INNER)
def test_inner_solvers_come_close_to_the_exact_solution(inner: str) -> None:
    problem = Linear(20, 3, seed=3)
    best = 0.5 * float((problem.x @ torch.linalg.pinv(problem.x) @ problem.y - problem.y).square().sum())
    start = problem.value()
    optimizer = TargetSurrogate([problem.w], inner=inner, inner_steps=60)
    for _ in range(10):
        step(optimizer, problem.loss())
    assert problem.value() - best < 0.05 * (start - best)


def test_frozen_and_unused_parameters_stay() -> None:
    problem = Linear()
    frozen = TensorParameter(torch.ones(4, dtype=torch.float64), requires_grad=False, name="frozen")
    unused = TensorParameter(torch.ones(2, dtype=torch.float64), name="unused")
    target = tc.bundle(lambda w, f: problem.x @ (w * f), name="predict")(problem.w, frozen)
    before = problem.value()
    proposal = step(TargetSurrogate([problem.w, frozen, unused]), tc.bundle(problem.reduced, name="loss")(target))
    assert list(proposal.values) == [problem.w]
    assert problem.value() < before
    assert frozen.value.tolist() == [1, 1, 1, 1]


def test_propose_leaves_the_parameters_alone_and_halves_the_step() -> None:
    problem = Linear()
    before = problem.w.value.detach().clone()
    optimizer = TargetSurrogate([problem.w])
    optimizer.backward(problem.loss())
    first, second = optimizer.propose(n=2)
    assert torch.equal(problem.w.value.detach(), before)
    torch.testing.assert_close(second.values[problem.w] - before, (first.values[problem.w] - before) / 2)
    assert optimizer.calls.total == 1


def test_step_with_a_closure_keeps_only_what_scores_higher() -> None:
    problem = Linear()
    optimizer = TargetSurrogate([problem.w], eta=50.0)
    optimizer.backward(problem.loss())
    before = problem.w.value.detach().clone()
    assert optimizer.step(lambda: -problem.value()).status == "rejected"
    assert torch.equal(problem.w.value.detach(), before)
    optimizer = TargetSurrogate([problem.w], eta=1.0)
    assert step_with_closure(optimizer, problem) == "applied"


def step_with_closure(optimizer: Any, problem: Linear) -> str:
    optimizer.zero_feedback()
    optimizer.backward(problem.loss())
    return str(optimizer.step(lambda: -problem.value()).status)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner": "newton"}, "inner must be a solver or one of adam, armijo, exact, gd, lbfgs; got 'newton'"),
        ({"inner_steps": 0}, "inner_steps must be at least 1, got 0"),
        ({"inner": "lbfgs", "inner_lr": 0.1}, "inner_lr is for the inner solvers adam and gd"),
        ({"inner": GaussNewton(), "inner_steps": 3}, "go to the solver itself"),
        ({"eta": "wolfe"}, "eta must be a number, a rule or one of adagrad-norm, bb,"),
        ({"eta": -1.0}, "eta must be a positive number, got -1.0"),
        ({"curvature": "full"}, "curvature must be None or 'diag', got 'full'"),
        ({"geometry": "l1"}, "geometry must be one of euclidean, kl; got 'l1'"),
        ({"geometry": "kl", "curvature": "diag"}, "cannot go with 'kl'"),
        ({"reduction": "median"}, "reduction must be 'auto', 'mean' or 'sum', got 'median'"),
        ({"differences": "central"}, "differences must be one of auto, coordinates, spsa; got 'central'"),
        ({"probe_size": 0.0}, "probe_size must be positive, got 0.0"),
        ({"probes": 0}, "probes must be at least 1, got 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptimizerError, match=message.replace("(", r"\(")):
        TargetSurrogate([Linear().w], **options)


def test_other_kinds_of_parameters_are_refused() -> None:
    with pytest.raises(OptimizerError, match=r"expected tensor parameters, got others \(prompt\)"):
        TargetSurrogate([tc.node("hello", trainable=True, name="prompt")])
