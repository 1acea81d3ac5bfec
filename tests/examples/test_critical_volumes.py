"""The example that needs both halves, offline: a scripted model reads the prompt as a real one does."""

from __future__ import annotations

import json
from typing import Any

import pytest

import trace_core as tc
from trace_core.integrations.llm import ScriptedLLM

pytest.importorskip("torch").set_num_threads(1)

from trace_core.examples import critical_volumes  # noqa: E402

MENDED = """import re

def atoms(self, formula):
    return {symbol: int(count or 1) for symbol, count in re.findall(r"([A-Z][a-z]?)(\\d*)", formula)}
"""


def mends(messages: list[Any]) -> str:
    """Breaks the function at first, then reads from the prompt that counts are wrong; knows no sizes."""
    prompt = messages[-1]["content"]
    if "failed" not in prompt and "raised" not in prompt and "returned {'C': 1" not in prompt:
        return "```python\ndef atoms(self, formula):\n    return 1 / 0\n```\nReason: nothing to be seen"
    if "new code" not in prompt:
        return json.dumps({"reasoning": "a guess", "sizes": [25.0] * len(critical_volumes.ELEMENTS)})
    return f"```python\n{MENDED}```\nReason: numbers were not read"


def test_no_formula_is_in_two_parts() -> None:
    parts = critical_volumes.load(1)
    formulas = [{example["formula"] for example in part} for part in parts]
    assert all(formulas)
    assert sum(map(len, formulas)) == len(set.union(*formulas))
    assert sum(map(len, parts)) == 382
    assert parts == critical_volumes.load(1) != critical_volumes.load(2)


def test_the_model_is_shown_the_calls_the_feedback_and_the_training() -> None:
    llm = ScriptedLLM(mends)
    critical_volumes.run("both", 0, llm, proposals=2, every=4)
    prompts = "\n".join(call.prompt for call in llm.calls)
    for shown in ("```python\ndef atoms(self, formula: str)", "atoms('", "measured", "Adam, steps 1 to 4; loss"):
        assert shown in prompts


def test_counts_of_unknown_symbols_do_not_count() -> None:
    workflow = critical_volumes.CriticalVolumes()
    assert workflow.volume({"C": 2, "Xx": 5}).value.item() == 2 * critical_volumes.FIRST_SIZE
    with pytest.raises(tc.ExecutionError, match="attribute 'get'"):
        workflow.volume([1])


@pytest.mark.slow
def test_both_reach_what_neither_does_alone() -> None:
    scores = {}
    for setting in critical_volumes.SETTINGS:
        llm = ScriptedLLM(mends)
        scores[setting], events, _ = critical_volumes.run(setting, 0, llm, proposals=2, every=20)
        assert any(event.kind == "kept" for event in events) == (setting == "both")
    assert scores["both"] > max(scores["llm"], scores["numeric"]) + 0.1
