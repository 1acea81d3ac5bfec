"""The study as a user sees it: what it finds, what it leaves alone, what it tells."""

from __future__ import annotations

import pytest
from study_problems import Shift, closeness, offsets

from trace_core.integrations.budget import Budget
from trace_core.optimizers import OptimizerError, OptoPrime, Search, Study
from trace_core.optimizers.search import Event

EXAMPLES = list(range(8))


def test_a_study_finds_better_values_and_applies_them_only_when_told() -> None:
    workflow = Shift()
    told: list[Event] = []
    study = Study(
        workflow,
        closeness,
        EXAMPLES,
        optimizer=OptoPrime(workflow, offsets(1, -4, 3)),
        steps=5,
        callbacks=[told.append],
    )
    result = study.run()
    assert (result.start_score, result.score, result.stopped) == (pytest.approx(0.7), 1.0, "perfect")
    assert result.changed == {"offset": (0, 3)}
    assert workflow.offset.value == 0
    study.apply_best()
    assert workflow.offset.value == 3
    assert [event.kind for event in told if event.kind != "evaluated"] == [
        *("started", "chosen", "proposed", "accepted", "new_best"),
        *("chosen", "proposed", "rejected"),
        *("chosen", "proposed", "accepted", "new_best", "ended"),
    ]
    assert [event.describe() for event in result.history if event.kind == "rejected"] == [
        "candidate 2.0 rejected (gate): minibatch 0.800 -> 0.300"
    ]
    assert [(c.id, c.parents, c.status) for c in result.candidates] == [
        ("0", (), "start"),
        ("1.0", ("0",), "accepted"),
        ("2.0", ("1.0",), "rejected"),
        ("3.0", ("1.0",), "accepted"),
    ]


def test_a_study_that_nothing_would_end_is_refused() -> None:
    workflow = Shift()
    with pytest.raises(OptimizerError, match=r"give budget=Budget\(metric_calls=...\), steps= or seconds="):
        Study(workflow, closeness, EXAMPLES, optimizer=OptoPrime(workflow, offsets(1)))


def test_the_budget_of_metric_calls_is_never_passed_and_the_best_comes_back() -> None:
    for limit in range(7, 44):
        workflow, budget = Shift(), Budget(metric_calls=limit)
        study = Study(
            workflow,
            closeness,
            EXAMPLES,
            test=[1, 2],
            optimizer=OptoPrime(workflow, offsets(1, 2)),
            search=Search(perfect=None),
            budget=budget,
            steps=2,
        )
        result = study.run()
        assert budget.spent.metric_calls <= limit
        assert result.stopped == ("budget" if limit < 40 else "steps")
        if limit >= 12:
            assert result.test_start == pytest.approx(0.7)
            assert result.score == pytest.approx(0.7 if limit < 26 else 0.8 if limit < 40 else 0.9)


def test_unknown_names_are_refused_with_the_valid_ones() -> None:
    workflow = Shift()
    with pytest.raises(OptimizerError, match="pareto, best, epsilon, topk, beam, ucb, multi, latest"):
        Study(workflow, closeness, EXAMPLES, optimizer=OptoPrime(workflow, offsets(1)), search="magic", steps=1)
