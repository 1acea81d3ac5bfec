"""Learned mode: second stages that can only be run."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from _robust_problems import generate

import trace_core as tc
from trace_core.nodes.decision import (
    BadOutcome,
    Box,
    Budget,
    BudgetTooSmall,
    DecisionError,
    Infeasible,
    InvalidProblem,
    Linear,
    Model,
    NoDependence,
    NoisySecondStage,
    Scenarios,
    SolverError,
    decision,
)
from trace_core.optimizers.decision import Neur2RO, RobustProblem


def stock(function: Any, xi: Any = None, **options: Any) -> RobustProblem:
    return RobustProblem(decision("x", binary=2), xi or Box(0, 1, size=2), second_stage=function, **options)


def quadratic(x: Any, xi: Any) -> float:
    return float((x - xi) @ (x - xi) + 0.3 * x.sum())


@pytest.mark.slow
def test_a_hidden_knapsack_is_solved_as_by_enumeration() -> None:
    knapsack = generate("UN", 6, share=0.25, spread=0.5, seed=3, top=30)
    best, _ = knapsack.enumerate()
    problem = knapsack.problem(second_stage=tc.bundle(knapsack.second_stage))
    result = Neur2RO(problem, executions=250, seed=0, seconds=600).solve()
    exact = generate("UN", 6, share=0.25, spread=0.5, seed=3, top=30)
    true = worst_case(exact, result.x)
    assert true >= best - 0.03 * abs(best)
    assert result.worst_case >= true - 1e-6  # executed scenarios are some of all
    certificate = result.certificate
    assert (certificate.kind, certificate.lower, certificate.upper, certificate.gap) == ("empirical", None, None, None)
    assert certificate.executions <= 250
    assert certificate.model_error is not None
    assert problem.uncertainty.contains(result.worst_scenario)
    assert problem.decisions[0].value.tolist() == result.x.tolist()


def worst_case(knapsack: Any, x: Any) -> float:
    from trace_core.optimizers.decision.adversary import ConcaveAdversary

    problem = knapsack.problem()
    attack = ConcaveAdversary(problem.recourse, problem.uncertainty).attack(x, tolerance=1e-7)
    return -(problem.value_of(x) + attack.upper)


def test_scenarios_and_constraints() -> None:
    xi = Scenarios([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    x = decision("x", binary=2, constraints=[Linear([1, 1], ">=", 1)])
    problem = RobustProblem(x, xi, first_stage=[0.1, 0.0], second_stage=quadratic)
    result = Neur2RO(problem, executions=40).solve()
    true = {
        x: max(quadratic(np.array(x), s) for s in xi.vectors) + 0.1 * x[0]
        for x in itertools.product((0, 1), repeat=2)
        if any(x)
    }
    assert result.worst_case == pytest.approx(min(true.values()))
    assert true[tuple(result.x.astype(int).tolist())] == min(true.values())  # type: ignore[index]
    assert result.certificate.executions <= 12  # 3 decisions x 3 scenarios, and the three run twice


def test_continuous_decisions() -> None:
    """min over x of max over xi in [0, 1] of (x - xi)^2: the middle."""
    x = decision("level", continuous=1, low=-1, high=2)
    problem = RobustProblem(x, Box(0, 1, size=1), second_stage=lambda x, xi: float(((x.value - xi.value) ** 2).sum()))
    result = Neur2RO(problem, executions=200, seed=1, seconds=600).solve()
    assert abs(result.x[0] - 0.5) < 0.15
    assert result.worst_case < 0.45


def test_several_decisions_reach_the_workflow_and_its_trace() -> None:
    a, b = decision("a", binary=2), decision("b", integer=1, low=0, high=2)
    seen = []

    @tc.bundle
    def react(a, b, xi):  # type: ignore[no-untyped-def]
        return float(xi @ (1 - a)) + float((b[0] - 1) ** 2)

    def workflow(a: Any, b: Any, xi: Any) -> Any:
        out = react(a, b, xi)
        seen.append(tc.Trace.of(out).parameters)
        return out

    result = Neur2RO(RobustProblem([a, b], Box(0, 1, size=2), second_stage=workflow), executions=60).solve()
    assert seen[0] == [a, b]
    assert (result.x.tolist(), result.worst_case) == ([1.0, 1.0, 1.0], 0.0)


def test_numerical_trouble_of_the_solver_does_not_end_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """HiGHS ends with kSolveError on some models of a network; proposals then come from local search alone."""
    real = Model.solve
    asked = []

    def solve(self: Model, **options: Any) -> Any:
        if options.get("gap") in (0.005, 0.01):  # the models of the network
            asked.append(self)
            raise SolverError("a model could not be solved", "kSolveError")
        return real(self, **options)

    monkeypatch.setattr(Model, "solve", solve)
    result = Neur2RO(stock(quadratic), executions=80, seconds=600).solve()
    assert asked
    assert result.worst_case <= 2.0
    assert result.certificate.executions <= 80


def test_impossible_reactions_are_learned_as_such() -> None:
    @tc.bundle
    def serve(x, xi):  # type: ignore[no-untyped-def]
        if x.sum() < xi.sum() - 1e-9:  # a scenario on the border may be beyond it by rounding
            raise Infeasible(violation=float(xi.sum() - x.sum()))
        return float(xi.sum())

    x = decision("staff", binary=4)
    problem = RobustProblem(x, Budget(4, gamma=2.0), first_stage=[3.0, 1.0, 1.5, 2.0], second_stage=serve)
    result = Neur2RO(problem, executions=120, seed=0, seconds=600).solve()
    assert result.infeasible > 0
    assert result.x.tolist() == [0.0, 1.0, 1.0, 0.0]  # two of them are enough, the cheapest two
    nowhere = stock(lambda x, xi: math.inf)
    with pytest.raises(SolverError, match="no decision was found"):
        Neur2RO(nowhere, executions=20).solve()


def test_equal_seeds_give_equal_runs() -> None:
    runs = [Neur2RO(stock(quadratic), executions=40, seed=4, seconds=600) for _ in range(2)]
    first, second = [(run.solve().worst_case, run.records()) for run in runs]
    assert first[0] == second[0]
    assert [(r["x"], r["xi"], r["value"]) for r in first[1]] == [(r["x"], r["xi"], r["value"]) for r in second[1]]


def test_in_steps_a_user_runs_the_workflow() -> None:
    serve = tc.bundle(quadratic)
    problem = stock(serve)
    optimizer = Neur2RO(problem, executions=40, seconds=600)
    (x,) = problem.decisions
    while not optimizer.done:
        optimizer.zero_feedback()
        out = serve(x, optimizer.next_scenario())
        trace = optimizer.backward(out, "a cost")
        assert trace.parameters == [x]
        optimizer.step()
    result = optimizer.result()
    assert np.array_equal(x.value, result.x)
    assert result.worst_case == pytest.approx(
        max(quadratic(result.x, np.array(xi)) for xi in itertools.product((0.0, 1.0), repeat=2)), abs=0.3
    )
    with pytest.raises(DecisionError, match="the search has ended"):
        optimizer.next_scenario()


def test_backward_needs_a_scenario() -> None:
    serve = tc.bundle(quadratic)
    problem = stock(serve)
    with pytest.raises(DecisionError, match="call next_scenario"):
        Neur2RO(problem, executions=40).backward(serve(problem.decisions[0], np.zeros(2)))


def test_state_is_plain_and_goes_on() -> None:
    optimizer = Neur2RO(stock(quadratic), executions=40, seconds=600)
    for _ in range(15):
        optimizer._solver.round()
    state = json.loads(json.dumps(optimizer.state_dict()))
    other = Neur2RO(stock(quadratic), executions=40, seconds=600)
    other.load_state_dict(state)
    assert len(other.records()) == 15
    assert other.solve().certificate.executions <= 40
    with pytest.raises(tc.StateError):
        Neur2RO(stock(quadratic, Box(0, 2, size=2)), executions=40).load_state_dict(state)


def test_records_of_earlier_runs_are_used_and_strangers_rejected() -> None:
    first = Neur2RO(stock(quadratic), executions=40, seconds=600)
    first.solve()
    strangers = [{"x": [0, 2], "xi": [0, 0], "value": 1.0}, {"x": [0, 1], "xi": [0, 7], "value": 1.0}]
    second = Neur2RO(stock(quadratic), executions=20, records=first.records() + strangers[:1], seconds=600)
    result = second.solve()
    assert result.rejected == 1
    assert len(second.records()) > len(first.records())
    with pytest.warns(UserWarning, match="2 of 6 records"):
        Neur2RO(stock(quadratic), executions=20, records=first.records()[:4] + strangers)
    with pytest.raises(InvalidProblem, match="no execution that lies within"):
        Neur2RO(stock(quadratic), executions=20, records=strangers)
    with pytest.raises(InvalidProblem, match="what is no execution"):
        Neur2RO(stock(quadratic), executions=20, records=[{"x": "a"}])


@pytest.mark.parametrize("given", [math.nan, -math.inf, None, "3", 1j, [1.0, 2.0], True])
def test_what_is_no_cost_is_an_error_with_its_place(given: Any) -> None:
    with pytest.raises(BadOutcome, match="expected") as caught:
        Neur2RO(stock(lambda x, xi: given), executions=20).solve()
    assert caught.value.x.shape == caught.value.xi.shape == (2,)


def test_an_exception_is_chained_or_counts_as_infeasible_if_asked() -> None:
    def broken(x: Any, xi: Any) -> float:
        if x.value[0]:
            raise ZeroDivisionError("no stock")
        return float(xi.value.sum())

    with pytest.raises(BadOutcome, match="ZeroDivisionError: no stock") as caught:
        Neur2RO(stock(broken), executions=20).solve()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    result = Neur2RO(stock(broken), executions=30, on_error="infeasible").solve()
    assert result.x[0] == 0
    assert result.infeasible > 0
    with pytest.raises(InvalidProblem, match="on_error"):
        Neur2RO(stock(broken), executions=30, on_error="skip")  # type: ignore[arg-type]


def test_noise_is_seen_and_said() -> None:
    rng = np.random.default_rng(0)
    noisy = stock(lambda x, xi: float(x.value.sum() + rng.normal()))
    with pytest.warns(NoisySecondStage, match="for the same input"):
        result = Neur2RO(noisy, executions=30).solve()
    assert result.certificate.noisy


@pytest.mark.filterwarnings("ignore::trace_core.nodes.decision.NoDependence")
def test_what_does_not_matter_is_said() -> None:
    with pytest.warns(NoDependence, match="what comes"):
        Neur2RO(stock(lambda x, xi: float(x.value.sum())), executions=60).solve()


def test_a_revenue_is_maximised() -> None:
    problem = stock(lambda x, xi: -quadratic(x.value, xi.value), sense="max")
    result = Neur2RO(problem, executions=60, seconds=600).solve()
    assert result.worst_case < 0
    same = Neur2RO(stock(tc.bundle(quadratic)), executions=60, seconds=600).solve()
    assert result.worst_case == pytest.approx(-same.worst_case)


def test_too_few_executions_are_refused() -> None:
    with pytest.raises(BudgetTooSmall, match="at least 18") as caught:
        Neur2RO(stock(quadratic), executions=17)
    assert caught.value.minimum == 18


def test_tensors_as_values() -> None:
    torch = pytest.importorskip("torch")
    problem = stock(lambda x, xi: torch.tensor(quadratic(x.value, xi.value)))
    assert Neur2RO(problem, executions=20).solve().certificate.kind == "empirical"
