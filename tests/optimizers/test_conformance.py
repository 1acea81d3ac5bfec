"""Every optimizer of the package in a study: the suite that users inherit, on problems of a few milliseconds."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

import trace_core as tc
from trace_core.integrations.llm import ScriptedLLM
from trace_core.optimizers import OPRO, OptoPrime, TextGrad
from trace_core.optimizers.conformance import OptimizerConformance

# ---- language models


class Words(tc.Module):
    """Three words, each asked for by every third example; the right ones are known to the metric alone."""

    def __init__(self) -> None:
        self.first = tc.node("...", trainable=True)
        self.second = tc.node("...", trainable=True)

    @tc.bundle
    def answer(self, word: str, example: int) -> str:
        return word

    def forward(self, example: int) -> Any:
        return self.answer(self.second if example % 2 else self.first, example)


WANTED = ("abc", "bca")


def spelled(output: str, example: int) -> tuple[float, str]:
    wanted = WANTED[example % 2]
    right = [a == b for a, b in zip(output, wanted, strict=True)]
    if all(right):
        return 1.0, "right"
    wrong = right.index(False)
    return sum(right) / 3, f"{('first', 'second')[example % 2]}: letter {wrong} must be {wanted[wrong]}"


def speller() -> ScriptedLLM:
    """Reads the prompt and does what the feedback in it says, for the parameters that are asked for."""

    def reply(messages: Any) -> str:
        prompt = "\n".join(message["content"] for message in messages)
        said = re.findall(r"(first|second): letter (\d) must be (\w)", prompt)
        criticism = "; ".join(f"{name}: letter {place} must be {letter}" for name, place, letter in said)
        if "Do not write the new value" in prompt:
            return criticism
        words = dict(re.findall(r"(first|second) = '([a-z.]{3})'", prompt))
        answer = {name: words[name] for name in re.findall(r'"(first|second)"', prompt) if name in words}
        for name, place, letter in said:
            if name in answer:
                answer[name] = answer[name][: int(place)] + letter + answer[name][int(place) + 1 :]
        return json.dumps({"reasoning": criticism, **answer})

    return ScriptedLLM(reply)


class OfWords(OptimizerConformance):
    kind: Any = None

    def make(self) -> Any:
        workflow = Words()
        return workflow, self.kind(workflow, speller(), seed=1), spelled, range(4), range(10, 14)


class TestOptoPrime(OfWords):
    kind = OptoPrime


class TestOPRO(OfWords):
    kind = OPRO


class TestTextGrad(OfWords):
    kind = TextGrad


# ---- tensors


def line(make: Any) -> Any:
    """Fit y = 2 x0 - x1 + 0.5 by least squares; ``make(workflow)`` is the optimizer."""
    torch = pytest.importorskip("torch")
    from trace_core.nodes.tensor import TensorParameter

    class Line(tc.Module):
        def __init__(self) -> None:
            self.weight = TensorParameter(torch.zeros(1, 2))
            self.bias = TensorParameter(torch.zeros(1))

        @tc.bundle
        def loss(self, predicted: Any, x: Any) -> Any:
            return (predicted - (2 * x[:, :1] - x[:, 1:] + 0.5)).square().mean()

        def forward(self, x: Any) -> Any:
            return self.loss(torch.nn.functional.linear(x, self.weight, self.bias), x)

    draw = torch.Generator().manual_seed(0)
    x = [torch.randn(6, 2, generator=draw) for _ in range(8)]
    workflow = Line()
    return workflow, make(workflow), lambda loss, example: -float(loss.detach()), x[:4], x[4:]


class OfTensors(OptimizerConformance):
    failure_score = -1e6


class TestTorchOptimizer(OfTensors):
    def make(self) -> Any:
        from functools import partial

        from trace_core.optimizers import TorchOptimizer

        torch = pytest.importorskip("torch")
        decay = partial(torch.optim.lr_scheduler.StepLR, step_size=2)
        return line(lambda w: TorchOptimizer(w, torch.optim.Adam, lr=0.2, scheduler=decay, clip_norm=1.0))


class TestFrugal(OfTensors):
    def make(self) -> Any:
        pytest.importorskip("torch")
        from trace_core.optimizers import Frugal, TorchOptimizer

        return line(
            lambda w: TorchOptimizer(
                w, Frugal, lr=0.2, project=lambda name, tensor: name == "weight", density=0.5, gap=2
            )
        )


class TestTargetSurrogate(OfTensors):
    def make(self) -> Any:
        pytest.importorskip("torch")
        from trace_core.optimizers import TargetSurrogate

        return line(lambda w: TargetSurrogate(w, eta="adagrad-norm"))


# ---- decisions


class OfDecisions(OptimizerConformance):
    """Which of three depots to open, before one of three prices rises. An example is a set of scenarios."""

    failure_score = -1e6
    learned = False

    def make(self) -> Any:
        np = pytest.importorskip("numpy")
        pytest.importorskip("highspy")
        from trace_core.nodes.decision import Box, MilpStage, decision
        from trace_core.optimizers.decision import Neur2RO, RobustProblem

        depots = decision("open", binary=3)

        def cost(opened: Any, rise: Any) -> float:
            """Of serving one customer from the cheapest open depot, or from afar for 20."""
            return float(np.where(np.asarray(opened) > 0.5, np.array([4.0, 5.0, 6.0]) + 6 * rise, 20.0).min())

        @tc.bundle
        def worst(opened: Any, rises: Any) -> float:
            return float(2 * np.sum(opened)) + max(cost(opened, rise) for rise in rises)

        stage = MilpStage(  # one of the open depots serves, or the fourth one, which is always open
            q=[4, 5, 6, 20],
            Q=np.concatenate([6 * np.eye(3), np.zeros((1, 3))]),
            W=np.concatenate([np.eye(4)[:3], -np.ones((1, 4))]),
            T=np.concatenate([-np.eye(3), np.zeros((1, 3))]),
            h=[0, 0, 0, -1],
            integer=True,
            high=1.0,
        )
        given: Any = {"second_stage": tc.bundle(cost)} if self.learned else {"recourse": stage}
        problem = RobustProblem(depots, Box(0, 1, size=3), first_stage=[2, 2, 2], **given)
        more: Any = {"executions": 24, "hidden": 8, "members": 2} if self.learned else {}
        robust = Neur2RO(problem, seconds=600, **more)
        scenarios = [np.eye(3)[:1], np.eye(3)[1:], np.ones((1, 3)), np.zeros((1, 3))]
        return (
            lambda rises: worst(depots, rises),
            self.held(robust),
            lambda spent, rises: -spent,
            scenarios,
            [np.concatenate(scenarios)],
        )

    def held(self, robust: Any) -> Any:
        return robust


class TestNeur2RO(OfDecisions):
    pass


def test_neur2ro_executes_the_second_stage_itself_in_a_study() -> None:
    class Learned(OfDecisions):
        learned = True
        steps = 2

    Learned().test_a_study_gives_the_best_it_saw()


# ---- several at once


class OfParts(OfTensors):
    """A prompt that names the unit, and a weight that is fitted in it."""

    on_change = "keep"
    steps = 5

    def make(self) -> Any:
        torch = pytest.importorskip("torch")
        from trace_core.nodes.tensor import TensorParameter
        from trace_core.optimizers import Mixed, Part, TorchOptimizer

        class Plan(tc.Module):
            def __init__(self) -> None:
                self.unit = tc.node("feet", trainable=True, constraint=["feet", "metres", "miles"])
                self.weight = TensorParameter(torch.zeros(2))

            @tc.bundle
            def loss(self, predicted: Any, unit: str, x: Any) -> Any:
                scale = {"feet": 0.3, "metres": 1.0, "miles": 50.0}[unit]
                return (scale * predicted - 3 * x.sum()).square()

            def forward(self, x: Any) -> Any:
                return self.loss((self.weight * x).sum(), self.unit, x)

        def metric(loss: Any, x: Any) -> tuple[float, str]:
            return -float(loss.detach()), "the plan is in other units"

        def reply(messages: Any) -> str:
            prompt = messages[-1]["content"]
            return json.dumps({"reasoning": "units", "unit": "miles" if "miles" not in prompt else "metres"})

        workflow = Plan()
        words = OptoPrime([("unit", workflow.unit)], ScriptedLLM(reply))
        numbers = TorchOptimizer([("weight", workflow.weight)], torch.optim.Adam, lr=0.3)
        mixed = Mixed({"words": Part(words, every=2), "numbers": numbers}, on_change=self.on_change)
        draw = torch.Generator().manual_seed(0)
        x = [torch.randn(2, generator=draw) for _ in range(6)]
        return workflow, mixed, metric, x[:3], x[3:]


class TestMixed(OfParts):
    def test_proposals_are_gated_and_steps_are_taken(self) -> None:
        study = self._study(self._problem())
        study.run()
        told = [(c.changed, c.note) for c in study.candidates[1:]]
        assert {changed for changed, _ in told} == {("unit",), ("weight",)}
        assert all(note.startswith("not gated") == (changed == ("weight",)) for changed, note in told)


class TestMixedOfDecisions(OfDecisions):
    def held(self, robust: Any) -> Any:
        from trace_core.optimizers import Mixed

        return Mixed({"robust": robust})
