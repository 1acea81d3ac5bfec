"""A learned run taken up in the middle goes on as if it had not been interrupted."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest

import trace_core as tc
from trace_core.nodes.decision import Box, Budget, Infeasible, Scenarios, decision
from trace_core.optimizers.decision import Neur2RO, RobustProblem

BUDGET = 46
MOMENTS = (0, 7, 21, 30, 39, BUDGET)  # executions made before a run is taken up; and all of them


@tc.bundle
def waiting(load: Any) -> float:
    return float(np.exp(1.5 * load))


def structured(x: Any, xi: Any) -> Any:
    return 2.0 * waiting(xi[0] - 0.5 * x[0]) + waiting(xi[1] - x[1]) + np.maximum(xi[2] - x[2], 0.0)


def whole(x: Any, xi: Any) -> float:
    x, xi = np.asarray(x), np.asarray(xi)
    return float(np.exp(xi @ (1.5 - x)) + x @ [0.3, 0.4, 0.5])


def sometimes_impossible(x: Any, xi: Any) -> float:
    if np.asarray(x).sum() < np.asarray(xi).sum() - 0.8:
        raise Infeasible
    return whole(x, xi)


def problem(function: Any, xi: Any = None, **options: Any) -> RobustProblem:
    return RobustProblem(decision("x", binary=3), xi or Budget(3, gamma=1.5), second_stage=function, **options)


CASES: dict[str, Any] = {
    "one network": lambda: problem(whole),
    "one network per node": lambda: problem(structured, first_stage=[0.5, 0.3, 0.6]),
    "infeasible reactions": lambda: problem(sometimes_impossible),
    "scenarios": lambda: problem(whole, Scenarios(np.random.default_rng(0).uniform(size=(30, 3)))),
    "a revenue": lambda: problem(lambda x, xi: -whole(x, xi), Box(0, 1, size=3), sense="max"),
}


def plain(optimizer: Neur2RO) -> list[Any]:
    return [(r["x"], r["xi"], r["value"]) for r in optimizer.records()]


@pytest.mark.parametrize("name", CASES)
def test_the_same_executions_follow(name: str) -> None:
    make, options = CASES[name], {"executions": BUDGET, "seconds": 600.0, "seed": 3, "hidden": 8, "members": 2}
    first, states = Neur2RO(make(), **options), []
    for before, after in itertools.pairwise(MOMENTS):
        states.append(json.loads(json.dumps(first.state_dict())))
        for _ in range(after - before):
            first._solver.round()
    expected = first.solve()
    for state in states:
        second = Neur2RO(make(), **options)
        second.load_state_dict(state)
        found = second.solve()
        assert plain(second) == plain(first)
        assert found.x.tolist() == expected.x.tolist()
        assert (found.worst_case, found.stop, found.infeasible) == (
            expected.worst_case,
            expected.stop,
            expected.infeasible,
        )
        assert [r.what for r in found.history] == [r.what for r in expected.history]
        assert found.certificate.executions == expected.certificate.executions <= BUDGET


def test_in_steps_the_same_scenario_is_asked_for_again() -> None:
    serve = tc.bundle(whole)
    runs = []
    for _ in range(2):
        made = problem(serve)
        runs.append((made.decisions[0], Neur2RO(made, executions=40, seconds=600)))
    (x, first), (y, second) = runs
    for _ in range(20):
        first.backward(serve(x, first.next_scenario()))
        first.step()
    waiting_for = first.next_scenario().value
    second.load_state_dict(first.state_dict())
    assert np.array_equal(second.next_scenario().value, waiting_for)
    assert np.array_equal(y.value, x.value)


def test_more_executions_may_be_given_to_a_run_that_has_ended() -> None:
    first = Neur2RO(problem(whole), executions=30, seconds=600)
    before = first.solve()
    assert before.stop == "executions"
    second = Neur2RO(problem(whole), executions=60, seconds=600)
    second.load_state_dict(first.state_dict())
    assert not second.done
    after = second.solve()
    assert before.certificate.executions <= 30 < after.certificate.executions <= 60
