"""Rate sentences from product reviews as people did: a workflow with a prompt, a function and a number to improve.

The data are sentences from Amazon product reviews with the mean rating of 20 people, from -4 (very negative) to +4
(very positive); see data/review_sentences/README.md for origin and licence.
"""

from __future__ import annotations

import json
import random
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import trace_core as tc
from trace_core.nodes import LLMCall
from trace_core.optimizers.search import PairedTest

if TYPE_CHECKING:
    from trace_core.integrations.llm import LLM
    from trace_core.node import Node

ABOUT = (
    "task: rate sentences from product reviews from -4 to +4 as 20 people did; the language model reads the mood "
    "(prompt), a function reads its reply (code), a number says how much a mood is worth"
)
OPTIMIZER: dict[str, Any] = {
    "objective": "The workflow should rate each text as people did.",
    "memory": 3,
    "max_prompt_tokens": 1500,
    "max_answer_tokens": 160,
    "temperature": 0.8,
    "examples": 3,
}
#: Ratings by people and a small model are noisy: minibatches are large, and the best must gain more than chance gives.
SEARCH: dict[str, Any] = {"batch_size": 8, "proposals": 3, "patience": 6, "leading": PairedTest(0.1)}
SECONDS = 240.0
SIZES = (12, 12, 24)


class ReviewRater(tc.Module):
    """text -> rating: ask a model for the mood, read its reply, scale it."""

    def __init__(self, llm: LLM | str | None = None) -> None:
        self.prompt = tc.node(
            "Is this positive or negative?",
            trainable=True,
            description="the message that the language model gets before each text",
        )
        self.strength = tc.node(
            0.5,
            trainable=True,
            constraint=tc.Range(0, 4),
            description="how many points a positive or negative text is worth",
        )
        self.llm = LLMCall(llm, max_tokens=6, cache=True)

    @tc.bundle(trainable=True)
    def read_polarity(self, reply: str) -> int:
        """Turn the reply, maybe a whole sentence, into +1 (positive), -1 (negative) or 0 (unclear)."""
        return 1 if reply == "positive" else 0

    def forward(self, text: str) -> Node:
        """The rating, a number from -4 to 4."""
        reply = self.llm(self.prompt, text)
        rating: Node = self.read_polarity(reply) * self.strength
        return rating


def metric(rating: Any, example: dict[str, Any]) -> tuple[float, str]:
    """1 for the people's rating, 0 for four or more points off; the text says in which direction."""
    error = float(rating) - example["rating"]
    score = max(0.0, 1 - abs(error) / 4)
    how = "good" if abs(error) <= 0.5 else f"too {'high' if error > 0 else 'low'} by {abs(error):.1f}"
    return score, f"people rated this {example['rating']:+.1f}, the workflow said {float(rating):+.1f}: {how}"


def load(seed: int) -> tuple[list[Any], list[Any], list[Any]]:
    """Training, validation and held-out examples, drawn by ``seed``."""
    text = (
        files("trace_core.examples").joinpath("data", "review_sentences", "reviews.jsonl").read_text(encoding="utf-8")
    )
    examples = [json.loads(line) for line in text.splitlines()]
    random.Random(seed).shuffle(examples)
    first, second, third = SIZES
    return examples[:first], examples[first : first + second], examples[first + second : first + second + third]
