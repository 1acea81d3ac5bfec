"""Robust decisions as one part of several: beside a language model's prompt."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import trace_core as tc
from trace_core.integrations.llm import ScriptedLLM
from trace_core.nodes.decision import Box, DecisionError, MilpStage, decision
from trace_core.optimizers import OptoPrime
from trace_core.optimizers.decision import Neur2RO, RobustProblem
from trace_core.optimizers.mixed import Mixed, Part


class Desk:
    """Staff is hired; a prompt says how fast one of them works; customers come."""

    def __init__(self) -> None:
        self.staff = decision("staff", binary=3)
        self.style = tc.node("slow", trainable=True, name="style", constraint=["slow", "fast"])

        @tc.bundle
        def serve(staff: Any, style: Any, customers: Any) -> float:
            speed = 2.0 if style == "fast" else 1.0
            left = np.maximum(customers.sum() - speed * (staff @ [1.0, 1.5, 0.5]), 0.0)
            return float(staff @ [0.4, 0.9, 0.4] + 2.0 * left)

        self.serve = serve

    def __call__(self, staff: Any, customers: Any) -> Any:
        return self.serve(staff, self.style, customers)

    def worst(self, staff: Any) -> float:
        """Costs grow with the customers: all three come."""
        return float(self(np.asarray(staff), np.ones(3)).value)


def parts(desk: Desk, executions: int = 90) -> tuple[Mixed, Neur2RO]:
    problem = RobustProblem(desk.staff, Box(0, 1, size=3, name="customers"), second_stage=desk)
    robust = Neur2RO(problem, executions=executions, seconds=600, hidden=8, members=2)
    llm = ScriptedLLM([json.dumps({"reasoning": "Haste helps.", "style": "fast"})] * 9)
    words = Part(OptoPrime([desk.style], llm=llm), every=30, budget=1)
    return Mixed({"words": words, "robust": robust}), robust


def go(desk: Desk, mixed: Mixed, robust: Neur2RO, steps: int) -> None:
    for _ in range(steps):
        if robust.done:
            return
        mixed.zero_feedback()
        cost = desk(desk.staff, robust.next_scenario())
        mixed.backward(cost, "what the day has cost")
        mixed.step()


def best_of(desk: Desk) -> list[float]:
    every = [list(map(float, f"{k:03b}")) for k in range(8)]
    return min(every, key=desk.worst)


def test_learned_mode_beside_a_prompt() -> None:
    desk = Desk()
    slow = best_of(desk)
    mixed, robust = parts(desk)
    go(desk, mixed, robust, 200)
    assert robust.done
    assert desk.style.value == "fast"
    result = robust.result()
    assert result.certificate.kind == "empirical"
    assert result.certificate.executions <= 90
    assert result.x.tolist() == best_of(desk) != slow  # what was executed with the other prompt is no answer
    assert result.worst_case == pytest.approx(desk.worst(result.x))


def test_a_state_in_the_middle_goes_on_the_same() -> None:
    desks = [Desk(), Desk()]
    (mixed, robust), (other, robust_too) = map(parts, desks)
    go(desks[0], mixed, robust, 40)
    state = json.loads(json.dumps(mixed.state_dict()))
    other.load_state_dict(state)
    desks[1].style.update(desks[0].style.value)  # values of parameters are no part of a state
    go(desks[0], mixed, robust, 100)
    go(desks[1], other, robust_too, 100)
    first, second = ([(r["x"], r["xi"], r["value"]) for r in each.records()] for each in (robust, robust_too))
    assert second == first
    assert robust_too.result().x.tolist() == robust.result().x.tolist()


def test_a_run_with_another_decision_is_refused() -> None:
    desk = Desk()
    mixed, robust = parts(desk)
    xi = robust.next_scenario()
    desk.staff.update(1 - desk.staff.value)
    with pytest.raises(DecisionError, match=r"was run with staff = .*, next_scenario\(\) had set it to"):
        mixed.backward(desk(desk.staff, xi))


def test_a_run_that_was_not_asked_for_is_refused() -> None:
    desk = Desk()
    mixed, _ = parts(desk)
    with pytest.raises(DecisionError, match="call next_scenario"):
        mixed.backward(desk(desk.staff, np.ones(3)))


def test_outputs_of_other_parts_are_no_executions() -> None:
    desk = Desk()
    mixed, robust = parts(desk)
    robust.next_scenario()
    mixed.backward(tc.bundle(lambda style: f"we are {style}", name="slogan")(desk.style), "nice")
    assert robust.records() == []


def test_exact_mode_beside_a_prompt() -> None:
    """Fixed cost 2 each; a customer is served by an open depot for 4, 5 or 6; one price may rise by 6."""
    depots = decision("open", binary=3)
    style = tc.node("dull", trainable=True, name="style")
    stage = MilpStage(
        q=[4, 5, 6],
        Q=6 * np.eye(3),
        W=np.concatenate([np.eye(3), -np.ones((1, 3))]),
        T=np.concatenate([-np.eye(3), np.zeros((1, 3))]),
        h=[0, 0, 0, -1],
        integer=True,
        high=1.0,
    )
    problem = RobustProblem(depots, Box(0, 1, size=3), first_stage=[2, 2, 2], recourse=stage)
    alone = Neur2RO(problem, seconds=30).solve()
    depots.update([0, 0, 0])
    robust = Neur2RO(problem, seconds=30)
    writer = ScriptedLLM([json.dumps({"reasoning": "livelier", "style": "lively"})] * 20)
    mixed = Mixed({"words": OptoPrime([style], llm=writer), "robust": robust})
    report = tc.bundle(lambda depots, style: f"{style}: {depots}", name="report")
    for _ in range(12):
        mixed.zero_feedback()
        mixed.backward(report(depots, style), "which depots are open?")
        mixed.step()  # the parts take turns
    assert robust.done
    result = robust.result()
    assert (result.certificate.kind, result.worst_case) == ("exact", pytest.approx(alone.worst_case))
    assert style.value == "lively"
    assert np.array_equal(depots.value, result.x)
