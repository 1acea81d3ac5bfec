"""What bad, degenerate and large input gets."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest

import trace_core as tc
from trace_core.nodes.decision import (
    Box,
    Budget,
    BudgetTooSmall,
    InvalidProblem,
    LargeProblem,
    MilpStage,
    NoDependence,
    Polytope,
    RejectedRecords,
    Scenarios,
    UncertaintySet,
    decision,
)
from trace_core.optimizers.decision import Neur2RO, RobustProblem


def cost(x: Any, xi: Any) -> float:
    x, xi = np.asarray(x, dtype=float), np.asarray(xi, dtype=float)
    return float(((x[:2] - xi[:2]) ** 2).sum() + 0.3 * x.sum() + xi.sum())


def problem(xi: UncertaintySet | None = None, function: Any = cost, n: int = 2, **options: Any) -> RobustProblem:
    return RobustProblem(decision("x", binary=n), xi or Box(0, 1, size=2), second_stage=function, **options)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([1, math.nan], r"first_stage\[1\] is nan"),
        ([math.inf, 1], r"first_stage\[0\] is inf"),
        ([1, 2, 3], r"first_stage has shape \(3,\), expected 2"),
        (["1", "2"], "first_stage must hold numbers"),
        ([True, False], "first_stage must hold numbers"),
        (np.array([1, None], dtype=object), "first_stage must hold numbers"),
        (lambda x: x[0] * x[1], "is not affine: .*put it into the second stage"),
        (lambda x: math.nan, "first_stage is nan"),
        (lambda x: "much", "first_stage must hold numbers"),
    ],
)
def test_first_stages(given: Any, text: str) -> None:
    with pytest.raises(InvalidProblem, match=text):
        problem(first_stage=given)


@pytest.mark.parametrize(
    ("field", "given"),
    [("q", [math.nan]), ("W", [[math.inf]]), ("T", [["a"]]), ("h", [[1.0]]), ("Q", [1.0]), ("low", [2.0])],
)
def test_stages_name_the_field(field: str, given: Any) -> None:
    right: dict[str, Any] = {"q": [1.0], "W": [[1.0]], "T": [[1.0]], "h": [1.0], "Q": [[1.0]], "low": 0.0, "high": 1.0}
    with pytest.raises(InvalidProblem, match=field if field != "low" else "lower bound"):
        MilpStage(**right | {field: given})


DEGENERATE: dict[str, UncertaintySet] = {
    "no budget": Budget(2, gamma=0.0),
    "all of the budget": Budget(2, gamma=5.0),
    "one point": Box([0.25, 0.5], [0.25, 0.5]),
    "one coordinate is fixed": Box([0.0, 0.5], [1.0, 0.5]),
    "one scenario": Scenarios([[1.0, 0.0]]),
    "a polytope of one point": Polytope([[1, 1], [-1, -1]], [0, 0], low=0, high=1),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_sets_are_legal_and_quiet(name: str) -> None:
    given = problem(DEGENERATE[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = Neur2RO(given, executions=40, seconds=600, hidden=8, members=1).solve()
    corners = given.uncertainty.sample(300, 0)  # for so few entries, samples find the worst corner
    true = [max(cost(x, xi) for xi in corners) for x in ([0, 0], [0, 1], [1, 0], [1, 1])]
    assert result.worst_case == pytest.approx(min(true), abs=1e-6)


def test_a_search_that_has_tried_everything_says_so() -> None:
    result = Neur2RO(problem(Scenarios([[1.0, 0.0], [0.0, 1.0]])), executions=400, seconds=600).solve()
    assert result.stop == "exhausted"
    assert result.certificate.executions <= 4 * 2 + 3  # each decision and scenario, and three of them twice


def test_no_time_still_gives_an_allowed_decision() -> None:
    given = problem()
    result = Neur2RO(given, executions=400, seconds=1e-9).solve()
    assert result.stop == "time"
    assert given.allows(result.x)
    assert result.certificate.kind == "empirical"


def test_replicates_are_averaged_and_counted() -> None:
    rng = np.random.default_rng(0)
    noisy = problem(function=lambda x, xi: cost(x, xi) + float(rng.normal(scale=0.05)))
    with pytest.warns(UserWarning, match="for the same input"):
        result = Neur2RO(noisy, executions=160, replicates=4, seconds=600, hidden=8, members=1).solve()
    assert result.certificate.noisy
    assert result.certificate.executions <= 160
    with pytest.raises(BudgetTooSmall, match="at least 72"):
        Neur2RO(noisy, executions=71, replicates=4)
    with pytest.raises(InvalidProblem, match="replicates must be a whole number"):
        Neur2RO(noisy, executions=160, replicates=0)


@pytest.mark.filterwarnings("ignore::trace_core.nodes.decision.NoDependence")
def test_a_decision_that_does_not_matter_is_said() -> None:
    with pytest.warns(NoDependence, match="the decision"):
        Neur2RO(problem(function=lambda x, xi: float(np.asarray(xi).sum())), executions=60, seconds=600).solve()


def test_rejected_records_are_a_warning_of_their_own() -> None:
    records = [{"x": [0, 1], "xi": [0, 0], "value": 1.0}, {"x": [0, 2], "xi": [0, 0], "value": 1.0}]
    with pytest.warns(RejectedRecords, match="1 of 2 records"):
        Neur2RO(problem(), executions=40, records=records)


def test_skipping_is_refused_as_it_would_leave_scenarios_unverified() -> None:
    with pytest.raises(InvalidProblem, match="must be 'raise' or 'infeasible', got 'skip'"):
        Neur2RO(problem(), executions=40, on_error="skip")  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_costs_of_any_size(scale: float) -> None:
    result = Neur2RO(
        problem(function=lambda x, xi: scale * cost(x, xi)), executions=60, seconds=600, hidden=8, members=1
    ).solve()
    true = min(max(cost(x, xi) for xi in ([0, 0], [0, 1], [1, 0], [1, 1])) for x in ([0, 0], [0, 1], [1, 0], [1, 1]))
    assert result.worst_case == pytest.approx(scale * true, rel=0.02)


def test_exact_rows_of_large_numbers_do_not_end_the_run() -> None:
    """The main problem is built on them every sixteenth time; a maximum of costs of 1e9 needs no big M of that size."""

    @tc.bundle
    def opaque(load: Any) -> float:
        return float(1e9 * np.exp(load))

    def workflow(x: Any, xi: Any) -> Any:
        return opaque(xi[0] - x[0]) + np.maximum(1e9 * xi[1] - 2e9 * x[1], 0.0) + 1e8 * x.sum()

    with warnings.catch_warnings():
        warnings.simplefilter("error", LargeProblem)
        result = Neur2RO(problem(function=workflow), executions=80, seconds=600).solve()
    assert result.x.tolist() == [1, 1]
    assert result.worst_case == pytest.approx(1e9 + 2e8)


def test_large_problems_are_searched_without_a_milp_and_say_so() -> None:
    large = RobustProblem(decision("x", binary=300), Box(0, 1, size=300), second_stage=cost)
    with pytest.warns(LargeProblem, match="300 and 300 entries: decisions are looked for by local search alone"):
        Neur2RO(large, executions=1300)
    wide = Neur2RO(problem(n=6), executions=90, hidden=300, members=1, seconds=600)
    with pytest.warns(LargeProblem, match="whole variables"):
        wide.solve()


def test_numbers_of_any_kind_are_taken() -> None:
    torch = pytest.importorskip("torch")
    x = decision("x", continuous=2, low=torch.zeros(2), high=np.ones(2, dtype=np.float32))
    xi = Budget(gamma=torch.tensor(1.0), lower=torch.zeros(2, dtype=torch.float16), upper=[1, 1])
    made = RobustProblem(x, xi, first_stage=torch.tensor([1.0, 2.0], requires_grad=True), second_stage=cost)
    assert made.cost.tolist() == [1.0, 2.0]
    assert made.cost.dtype == np.float64
