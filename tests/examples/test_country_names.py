"""The example that needs both halves, offline: a scripted model reads the prompt as a real one does."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import pytest

import trace_core as tc
from trace_core.integrations.llm import ScriptedLLM

pytest.importorskip("torch").set_num_threads(1)
pytest.importorskip("babel")

from trace_core.examples import country_names  # noqa: E402

_SHOWN = re.compile(r"feedback: score \d: (.+?): \w+, but it is (\w+)")
_CURRENT = re.compile(r"# Current value\nmarks_(\w+) = (.*)\n")


def adds_marks(messages: list[Any]) -> str:
    """Adds special letters, else the ending, of the misjudged names of the language asked about; knows no more."""
    prompt = messages[-1]["content"]
    language, now = _CURRENT.search(prompt).groups()  # type: ignore[union-attr]
    marks = ast.literal_eval(now)
    for text in [text for text, right in _SHOWN.findall(prompt) if right == language]:
        special = [letter for letter in text.lower() if letter.isalpha() and not letter.isascii()]
        marks = list(dict.fromkeys([*(special or [text.lower()[-2:]]), *marks]))[:8]
    while len(marks) < 4:  # the answer must have four
        marks.append("qwxyz"[: len(marks) + 2])
    return json.dumps({"reasoning": "more marks", f"marks_{language}": marks}, ensure_ascii=False)


def test_no_country_is_in_two_parts() -> None:
    parts = country_names.load(1)
    texts = [{example["text"] for example in part} for part in parts]
    assert all(texts)
    assert len(set.union(*texts)) == sum(map(len, texts))
    assert parts == country_names.load(1) != country_names.load(2)
    assert [len(part) for part in parts[:2]] == [*country_names.SIZES]


def test_the_model_is_shown_the_marks_the_names_and_the_training() -> None:
    llm = ScriptedLLM(adds_marks)
    events = country_names.run("both", 0, llm, proposals=2, every=4)[1]
    assert events
    prompts = "\n".join(call.prompt for call in llm.calls)
    for shown in ("marks_German = []", "votes('", "but it is", "Adam, steps 1 to 4; loss"):
        assert shown in prompts


def test_marks_are_checked() -> None:
    marks = country_names.CountryNames().marks["German"]
    for wrong in (["ß"] * 9, ["straßen"], [""], "ß"):
        with pytest.raises(tc.ParameterError, match="up to 8 marks"):
            marks.update(wrong)


@pytest.mark.slow
def test_both_reach_what_neither_does_alone() -> None:
    scores = {}
    for setting in country_names.SETTINGS:
        shown = {"examples": 12, "max_prompt_tokens": 4000}
        llm = ScriptedLLM(adds_marks)
        scores[setting], events, _ = country_names.run(setting, 0, llm, proposals=12, every=10, **shown)
        assert any(event.kind == "kept" for event in events) == (setting != "numeric")
    assert scores["both"] > max(scores["llm"], scores["numeric"]) + 0.03
