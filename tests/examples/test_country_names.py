"""The example that needs both halves, offline: a scripted model reads the prompt as a real one does."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import pytest

from trace_core.integrations.llm import ScriptedLLM

pytest.importorskip("torch").set_num_threads(1)
pytest.importorskip("babel")

from trace_core.examples import country_names  # noqa: E402

_SHOWN = re.compile(r"feedback: score \d: (.+?): (?:\w+), (?:right|but it is (\w+))")
_MARKS = re.compile(r"marks = (\[.*?\]|\{.*?\})")


def adds_marks(messages: list[Any]) -> str:
    """Adds letters and endings of the misjudged names in the prompt to the marks in the code shown; knows no more."""
    prompt = messages[-1]["content"]
    name = "features" if "def features(" in prompt else "rule"
    code = prompt[prompt.index(f"def {name}(") : prompt.index("# Examples")].rstrip()
    marks: Any = ast.literal_eval(_MARKS.search(code)[1])  # type: ignore[index]
    for text, language in _SHOWN.findall(prompt):
        if language:
            found = [letter for letter in text.lower() if letter.isalpha() and not letter.isascii()]
            for mark in [*found, text.lower()[-3:]]:
                if name == "features" and mark not in marks:
                    marks.append(mark)
                elif name == "rule" and found:
                    marks.setdefault(mark, language)
    written = json.dumps(marks, ensure_ascii=False)
    return f"Reason: more marks\n```python\n{_MARKS.sub(lambda _: f'marks = {written}', code)}\n```"


def test_no_country_is_in_two_parts() -> None:
    parts = country_names.load(1)
    texts = [{example["text"] for example in part} for part in parts]
    assert all(texts)
    assert len(set.union(*texts)) == sum(map(len, texts))
    assert parts == country_names.load(1) != country_names.load(2)
    assert [len(part) for part in parts[:2]] == [*country_names.SIZES]


def test_the_model_is_shown_the_code_the_names_and_the_training() -> None:
    llm = ScriptedLLM(adds_marks)
    _, events = country_names.run("both", 0, llm, proposals=2, every=4)
    assert events
    prompts = "\n".join(call.prompt for call in llm.calls)
    for shown in ("def features(text: str)", "def rule(text: str)", "but it is", "Adam, steps 1 to 4; loss"):
        assert shown in prompts


@pytest.mark.slow
def test_both_reach_what_neither_does_alone() -> None:
    scores = {}
    for setting in country_names.SETTINGS:
        scores[setting], events = country_names.run(
            setting, 0, ScriptedLLM(adds_marks), examples=16, max_prompt_tokens=4000
        )
        assert any(event.kind == "kept" for event in events) == (setting != "numeric")
    assert scores["both"] > max(scores["llm"], scores["numeric"]) + 0.03
