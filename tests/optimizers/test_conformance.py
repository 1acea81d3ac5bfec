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

        return line(lambda w: TorchOptimizer(w, Frugal, lr=0.2, project=lambda name, tensor: name == "weight", density=0.5, gap=2))


class TestTargetSurrogate(OfTensors):
    def make(self) -> Any:
        pytest.importorskip("torch")
        from trace_core.optimizers import TargetSurrogate

        return line(lambda w: TargetSurrogate(w, eta="adagrad-norm"))
