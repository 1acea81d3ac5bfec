"""Neur2RO as an optimizer, where the recourse is known."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from _robust_problems import generate

import trace_core as tc
from trace_core.nodes.decision import Box, InvalidProblem, MilpStage, ModelMismatch, decision
from trace_core.optimizers.decision import Neur2RO, RobustProblem


def knapsack() -> Any:
    return generate("WC", 6, share=0.25, spread=0.5, seed=2, top=30)


def test_solve_sets_the_decision_and_says_what_is_proven() -> None:
    problem = knapsack().problem()
    result = Neur2RO(problem).solve()
    x = problem.decisions[0]
    assert np.array_equal(x.value, result.x)
    assert result.values[x].tolist() == x.value.tolist()
    assert result.certificate.kind == "exact"
    assert result.worst_case == pytest.approx(knapsack().enumerate()[0], rel=1e-6)
    assert (result.certificate.executions, result.certificate.model_error) == (0, None)


def test_steps_lead_to_the_same_and_each_is_a_proposal() -> None:
    problem = knapsack().problem()
    optimizer = Neur2RO(problem)
    worst = []
    while not optimizer.done:
        proposal = optimizer.step()
        assert proposal.status == "applied"
        worst.append(optimizer.result().worst_case)
    assert worst == sorted(worst)  # a revenue: never worse than before
    assert worst[-1] == pytest.approx(knapsack().enumerate()[0], rel=1e-6)
    assert np.array_equal(problem.decisions[0].value, optimizer.result().x)


def test_equal_seeds_give_equal_runs() -> None:
    first, second = (Neur2RO(knapsack().problem(), seed=3).solve() for _ in range(2))
    assert [(r.bound, r.worst_case, r.what) for r in first.history] == [
        (r.bound, r.worst_case, r.what) for r in second.history
    ]


def test_state_is_plain_and_goes_on() -> None:
    problem = knapsack().problem()
    optimizer = Neur2RO(problem)
    optimizer.step()
    optimizer.step()
    before = optimizer.result()
    state = json.loads(json.dumps(optimizer.state_dict()))
    other = Neur2RO(knapsack().problem())
    other.load_state_dict(state)
    assert other.result().worst_case == before.worst_case
    assert other.result().certificate.upper == before.certificate.upper
    assert other.solve().worst_case == pytest.approx(knapsack().enumerate()[0], rel=1e-6)
    another = Neur2RO(generate("WC", 6, share=0.25, spread=0.5, seed=9, top=30).problem())
    with pytest.raises(tc.StateError, match="another problem"):
        another.load_state_dict(state)


def test_a_second_stage_beside_the_recourse_is_executed_to_check_it() -> None:
    given = knapsack()
    right = given.problem(recourse=given.stage(), second_stage=tc.bundle(given.second_stage))
    assert Neur2RO(right).solve().certificate.kind == "exact"
    wrong = given.problem(recourse=given.stage(), second_stage=lambda x, xi: given.second_stage(x, xi) + 1)
    with pytest.raises(ModelMismatch) as caught:
        Neur2RO(wrong).solve()
    assert caught.value.found == pytest.approx(caught.value.expected + 1)


def test_a_reaction_that_is_not_the_best_is_found_out() -> None:
    given = knapsack()
    stage = given.stage()
    stage.reaction = lambda x, xi: np.zeros(12)
    with pytest.raises(ModelMismatch, match="reaction given to MilpStage"):
        Neur2RO(given.problem(recourse=stage)).solve()


@pytest.mark.parametrize("options", [{"seconds": 0}, {"seconds": float("nan")}, {"gap": -1}, {"gap": 1}])
def test_options_are_checked(options: dict[str, Any]) -> None:
    x, stage = decision("x", binary=1), MilpStage(q=[1.0], W=[[1.0]], T=[[1.0]], h=[1.0], Q=[[1.0]])
    with pytest.raises(InvalidProblem):
        Neur2RO(RobustProblem(x, Box(0, 1, size=1), recourse=stage), **options)


def test_importing_the_package_loads_nothing_heavy() -> None:
    look = (
        "import sys, trace_core.optimizers.decision; "
        "print([m for m in ('numpy', 'highspy', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
