"""The example that needs both halves, offline: a scripted model reads the prompt as a real one does."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from trace_core.integrations.llm import ScriptedLLM

pytest.importorskip("torch").set_num_threads(1)
pytest.importorskip("babel")

from trace_core.examples import country_names  # noqa: E402

_SHOWN = re.compile(r"feedback: score \d: (.+?): \w+, but it is (\w+)")
_CURRENT = re.compile(r'# Current value\nrules = (?:""")?(.*?)(?:""")?\n# Examples', re.DOTALL)


def adds_rules(messages: list[Any]) -> str:
    """Adds a rule for the special letters, else the ending, of each misjudged name in the prompt; knows no more."""
    prompt = messages[-1]["content"]
    rules = country_names.read_rules(_CURRENT.search(prompt)[1])  # type: ignore[index]
    for text, language in _SHOWN.findall(prompt):
        special = [letter for letter in text.lower() if letter.isalpha() and not letter.isascii()]
        for mark in special or [text.lower()[-2:]]:
            rules.setdefault(mark, language)
    lines = [f"{mark} = {language}" for mark, language in list(rules.items())[-30:]]
    return json.dumps({"reasoning": "more marks", "rules": "\n".join(lines)}, ensure_ascii=False)


def test_no_country_is_in_two_parts() -> None:
    parts = country_names.load(1)
    texts = [{example["text"] for example in part} for part in parts]
    assert all(texts)
    assert len(set.union(*texts)) == sum(map(len, texts))
    assert parts == country_names.load(1) != country_names.load(2)
    assert [len(part) for part in parts[:2]] == [*country_names.SIZES]


def test_the_model_is_shown_the_rules_the_names_and_the_training() -> None:
    llm = ScriptedLLM(adds_rules)
    events = country_names.run("both", 0, llm, proposals=2, every=4)[1]
    assert events
    prompts = "\n".join(call.prompt for call in llm.calls)
    for shown in ("ß = German", "votes('", "but it is", "Adam, steps 1 to 4; loss"):
        assert shown in prompts


def test_rules_are_read_leniently() -> None:
    text = 'ß = German, "ñ": Spanish; ł = Polish\nthe rest = unknown'
    assert country_names.read_rules(text) == {"ß": "German", "ñ": "Spanish", "ł": "Polish"}
    assert not country_names.has_rules("no rule")


@pytest.mark.slow
def test_both_reach_what_neither_does_alone() -> None:
    scores = {}
    for setting in country_names.SETTINGS:
        llm = ScriptedLLM(adds_rules)
        scores[setting], events, _ = country_names.run(setting, 0, llm, examples=12, max_prompt_tokens=4000)
        assert any(event.kind == "kept" for event in events) == (setting != "numeric")
    assert scores["both"] > max(scores["llm"], scores["numeric"]) + 0.03
