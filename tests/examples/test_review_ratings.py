"""The demo's workflow, offline: a scripted model stands in for both roles and follows simple rules."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trace_core.examples import review_ratings
from trace_core.integrations.llm import ScriptedLLM
from trace_core.optimizers import OptoPrime, Search, Study
from trace_core.optimizers.search.acceptance import sign_flip

RATINGS = {
    example["text"]: example["rating"] for seed in range(9) for part in review_ratings.load(seed) for example in part
}
BETTER_CODE = (
    "def read_polarity(self, reply):\n"
    "    reply = reply.lower()\n"
    "    return 1 if 'positive' in reply else -1 if 'negative' in reply else 0\n"
)


def reads_mood(messages: list[Any]) -> str:
    """One word if the instruction asks for one, else a sentence that does not fit the six tokens allowed."""
    mood = "negative" if RATINGS[messages[1]["content"]] < 0 else "positive"
    return mood if "one word" in messages[0]["content"] else f"The mood is {mood}."


def improves(messages: list[Any]) -> str:
    task = messages[-1]["content"]
    if "for the variable prompt" in task:
        answer: dict[str, Any] = {"prompt": "Answer with one word: positive or negative."}
    elif "Write a better read_polarity" in task:
        answer = {"read_polarity": BETTER_CODE}
    else:
        answer = {"strength": [1.0, 1.6, 2.5]}
    return json.dumps({"reasoning": "too close to zero", **answer})


def test_examples_are_split_without_overlap_and_by_seed() -> None:
    parts = review_ratings.load(1)
    assert [len(part) for part in parts] == list(review_ratings.SIZES)
    ids = [example["id"] for part in parts for example in part]
    assert len(set(ids)) == len(ids)
    assert parts == review_ratings.load(1)
    assert parts != review_ratings.load(2)


@pytest.mark.parametrize(
    ("rating", "score", "word"), [(-2.0, 1.0, "good"), (2.0, 0.0, "too high by 4.0"), (-3.0, 0.75, "too low")]
)
def test_metric_says_how_far_and_in_which_direction(rating: float, score: float, word: str) -> None:
    came, text = review_ratings.metric(rating, {"rating": -2.0})
    assert came == pytest.approx(score)
    assert word in text


def test_a_study_with_the_demos_settings_improves_the_held_out_score() -> None:
    """And a candidate is the best only if its gain is more than chance gives."""
    workflow = review_ratings.ReviewRater(ScriptedLLM(reads_mood))
    train, validation, held_out = review_ratings.load(0)
    optimizer = OptoPrime(workflow, ScriptedLLM(improves), focus=1, **review_ratings.OPTIMIZER)
    study = Study(
        lambda example: workflow(example["text"]),
        review_ratings.metric,
        train,
        validation,
        held_out,
        optimizer=optimizer,
        search=Search(**review_ratings.SEARCH),
        steps=6,
    )
    result = study.run()
    assert result.test_start is not None
    assert result.test_score is not None
    assert result.test_score > result.test_start
    bests = [study.candidates[0]]
    for candidate in study.candidates[1:]:
        if any(event.kind == "new_best" and event.candidate == candidate.id for event in result.history):
            gains = [candidate.scores[i] - bests[-1].scores[i] for i in range(len(validation))]
            assert sign_flip(gains) <= 0.1
            bests.append(candidate)
    assert len(bests) > 1
