"""Small tasks whose best values are known, and language models that answer by a rule."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any

import trace_core as tc
from trace_core.integrations.llm import ScriptedLLM


class Shift(tc.Module):
    """x -> x + offset; the right offset is 3."""

    def __init__(self) -> None:
        self.offset = tc.node(0, trainable=True)

    def forward(self, x: Any) -> tc.Node:
        return self.offset + x


def closeness(output: Any, x: int) -> tuple[float, str]:
    error = output - (x + 3)
    return 1 - abs(error) / 10, f"off by {error}"


def offsets(*values: int) -> ScriptedLLM:
    return ScriptedLLM([json.dumps({"reasoning": "r", "offset": value}) for value in values])


class Letters(tc.Module):
    """Three words, each asked for by every third example; the right ones are known to the metric alone."""

    def __init__(self) -> None:
        self.first = tc.node("....", trainable=True)
        self.second = tc.node("....", trainable=True)
        self.third = tc.node("....", trainable=True)

    @tc.bundle
    def answer(self, word: str, example: int) -> str:
        return word

    def forward(self, example: int) -> tc.Node:
        word = (self.first, self.second, self.third)[example % 3]
        return self.answer(word, example)  # type: ignore[return-value]


WANTED = ("abcd", "bcda", "cdab")


def letters(output: str, example: int) -> tuple[float, str]:
    wanted = WANTED[example % 3]
    right = [a == b for a, b in zip(output, wanted, strict=True)]
    if all(right):
        return 1.0, "right"
    wrong = right.index(False)
    return sum(right) / 4, f"word {example % 3}: letter {wrong} must be {wanted[wrong]}"


def by_rule(wait: Callable[[str], None] = lambda prompt: None) -> ScriptedLLM:
    """Does what the feedback in the prompt says, for the first wrong word it finds; every third time it errs."""
    lock = threading.Lock()

    def reply(messages: Any) -> str:
        prompt = messages[-1]["content"]
        wait(prompt)
        with lock:
            return json.dumps(answer(prompt))

    def answer(prompt: str) -> dict[str, Any]:
        found = re.search(r"word (\d): letter (\d) must be (\w)", prompt)
        if found is None:
            return {"reasoning": "nothing to do"}
        number, at, letter = int(found[1]), int(found[2]), found[3]
        name = ("first", "second", "third")[number]
        current = re.findall(rf"{name} = ['\"]([a-z.]{{4}})['\"]", prompt)
        word = current[-1] if current else "...."
        if sum(map(ord, prompt)) % 3 == 0:
            letter = "z"
        return {"reasoning": f"letter {at}", name: word[:at] + letter + word[at + 1 :]}

    return ScriptedLLM(reply)
