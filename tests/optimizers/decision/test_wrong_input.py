"""What a user may get wrong in a two-stage problem is an error of ours that names the field, before anything is run."""

from __future__ import annotations

from typing import Any

import pytest

from trace_core.nodes.decision import Budget, BudgetTooSmall, InvalidProblem, Linear, SolverError, decision
from trace_core.optimizers.decision import Neur2RO, RobustProblem


def staff(**options: Any) -> RobustProblem:
    given = {
        "first_stage": [1, 1, 1],
        "second_stage": lambda x, xi: float(3 * xi.value.sum() - x.value.sum()),
        **options,
    }
    return RobustProblem(decision("staff", integer=3, low=0, high=3), Budget(2, gamma=1), **given)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"executions": "many"}, "executions must be a whole number, got 'many'"),
        ({"executions": 24.5}, "executions must be a whole number, got 24.5"),
        ({"seconds": None}, "seconds must be a number, got None"),
        ({"seconds": "10"}, "seconds must be a number, got '10'"),
        ({"gap": "x"}, "gap must be a number, got 'x'"),
        ({"seed": "a"}, "seed must be a whole number of at least 0, got 'a'"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"hidden": 0}, "hidden must be a whole number of at least 1, got 0"),
        ({"members": 0}, "members must be a whole number of at least 1, got 0"),
        ({"replicates": 0}, "replicates must be a whole number of at least 1, got 0"),
        ({"replicates": 1.5}, "replicates must be a whole number of at least 1, got 1.5"),
        ({"records": 5}, "records must be a list of executions, got 5"),
    ],
)
def test_options_of_the_optimizer(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidProblem, match=text.replace(".", r"\.")):
        Neur2RO(staff(), **{"executions": 24, **options})


def test_no_executions_and_no_problem() -> None:
    with pytest.raises(BudgetTooSmall, match="at least 20"):
        Neur2RO(staff(), executions=0)
    with pytest.raises(InvalidProblem, match="problem must be a RobustProblem, got function"):
        Neur2RO(staff)  # type: ignore[arg-type]


@pytest.mark.parametrize("decisions", [None, Budget(2, gamma=1), "staff", [1]])
def test_decisions_that_are_none(decisions: Any) -> None:
    with pytest.raises(InvalidProblem, match=r"decisions must be made by decision\(\.\.\.\), at least one; got"):
        RobustProblem(decisions, Budget(2, gamma=1), second_stage=staff)


def test_a_single_constraint_belongs_into_a_list() -> None:
    with pytest.raises(InvalidProblem, match="constraints must be a list of Linear"):
        decision("staff", integer=2, low=0, high=3, constraints=Linear([1, 1], "<=", 2))  # type: ignore[arg-type]


def test_a_first_stage_that_raises_is_chained_and_says_how_it_is_called() -> None:
    with pytest.raises(InvalidProblem, match=r"raised TypeError.*an array for each decision, of length 3") as caught:
        staff(first_stage=lambda x, y: 1.0)
    assert isinstance(caught.value.__cause__, TypeError)


def test_an_interrupt_loses_nothing_and_the_search_goes_on() -> None:
    runs = 0

    def interrupted(x: Any, xi: Any) -> float:
        nonlocal runs
        runs += 1
        if runs == 15:
            raise KeyboardInterrupt
        return float(x.value.sum() + xi.value.sum())

    optimizer = Neur2RO(staff(second_stage=interrupted, first_stage=None), executions=24)
    with pytest.raises(KeyboardInterrupt):
        optimizer.solve()
    before = optimizer.records()
    assert before
    assert optimizer.result().stop == "running"
    assert optimizer.solve().stop == "executions"
    assert runs <= 24 + 1 + 3  # the one that was interrupted, and three to look for noise
    assert optimizer.records()[: len(before)] == before


@pytest.mark.filterwarnings("ignore::trace_core.nodes.decision.NoDependence")
def test_where_every_decision_fails_the_end_is_named() -> None:
    with pytest.raises(SolverError, match=r"no decision was found .* 'executions'"):
        Neur2RO(staff(second_stage=lambda x, xi: float("inf")), executions=24).solve()
