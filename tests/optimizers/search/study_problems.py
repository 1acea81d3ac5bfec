"""Small tasks whose best values are known, and language models that answer by a rule."""

from __future__ import annotations

import json
import zlib
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


class Numbers(tc.Module):
    """Two large numbers; even examples want the one, odd ones the other."""

    def __init__(self) -> None:
        self.even = tc.node(500_000, trainable=True)
        self.odd = tc.node(500_000, trainable=True)

    @tc.bundle
    def show(self, even: int, odd: int, x: int) -> int:
        return odd if x % 2 else even

    def forward(self, x: int) -> tc.Node:
        return self.show(self.even, self.odd, x)  # type: ignore[return-value]


def nearness(output: int, x: int) -> tuple[float, str]:
    wanted = 123_456 if x % 2 else 876_543
    return 1 - abs(output - wanted) / 1_000_000, f"example {x} is off by {output - wanted}"


def by_hash() -> ScriptedLLM:
    """Answers by a hash of the prompt: whatever else a prompt says than it should shows in what comes of it."""

    def reply(messages: Any) -> str:
        prompt = "\n".join(message["content"] for message in messages)
        number = zlib.crc32(prompt.encode()) % 1_000_000
        fields = [name for name in ("even", "odd") if f'"{name}"' in prompt]  # the parameters that are asked for
        name = fields[number % 3 % len(fields)]
        return json.dumps({"reasoning": f"tried {number}", **dict.fromkeys(fields)} | {name: number})

    return ScriptedLLM(reply)
