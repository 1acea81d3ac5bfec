"""A workflow and a metric that ask language models, importable by worker processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import trace_core as tc
from trace_core.integrations.llm import OpenAILLM, rollout
from trace_core.nodes import LLMCall

JUDGE = OpenAILLM("judge-model")


class Verdict(BaseModel):
    """What the judge says."""

    score: float


class Asking(tc.Module):
    """Asks by name, by object, twice the same, in a named sample, and with answers that are kept for the run."""

    def __init__(self) -> None:
        self.prompt = tc.node("say", trainable=True)
        self.by_name = LLMCall("openai/test-model")
        self.kept = LLMCall("openai/test-model", cache=True)
        self.own = OpenAILLM("own-model")

    @tc.bundle
    def again(self, text: str) -> str:
        """Two equal requests at one place, and one in a sample."""
        ask: Any = [{"role": "user", "content": f"again {text[:4]}"}]
        found = [self.own.complete(ask).text, self.own.complete(ask).text]
        with rollout("sample"):
            found.append(self.own.complete(ask).text)
        return " ".join([text, *found])

    def forward(self, x: Any) -> tc.Node:
        return self.again(self.by_name(self.prompt, f"{x} one") + self.kept(self.prompt, "for all"))


class Asking1(tc.Module):
    """One call."""

    def __init__(self) -> None:
        self.prompt = tc.node("say", trainable=True)
        self.llm = LLMCall("openai/test-model")

    def forward(self, x: Any) -> tc.Node:
        return self.llm(self.prompt, str(x))


class Peeking(Asking1):
    """Gives all that this process can see of itself, its parent's environment left out."""

    @tc.bundle
    def look(self, text: str) -> str:
        """Everything."""
        seen = [repr(dict(os.environ)), repr(vars(self.llm.llm)), repr(vars(JUDGE)), repr(vars(JUDGE._backend))]
        for name in ("environ", "cmdline"):
            seen.append(Path("/proc/self", name).read_bytes().decode("utf-8", "replace"))
        return "\n".join([text, str(os.getpid()), *seen])

    def forward(self, x: Any) -> tc.Node:
        return self.look(super().forward(x))


def judge(output: str, x: Any) -> tuple[float, str]:
    """By a model, with a schema."""
    ask: Any = [{"role": "user", "content": f"judge {x}"}]
    verdict: Any = JUDGE.complete(ask, schema=Verdict).parsed
    return verdict.score, f"{len(output)} letters"


def length(output: str, x: Any) -> float:
    return min(1.0, len(output) / 100)


asked_function = tc.node("say", trainable=True, name="asked_function")
_ask = LLMCall("openai/test-model")


def function(x: Any) -> tc.Node:
    """Has no attributes: its parameters are found by running it."""
    return _ask(asked_function, str(x))
