"""OPRO and TextGrad on the shared base."""

from __future__ import annotations

import json
from typing import Any

import trace_core as tc
from trace_core.integrations.llm import ScriptedLLM
from trace_core.optimizers import OPRO, TextGrad


@tc.bundle
def greet(prompt: str, name: str) -> str:
    """Greet somebody."""
    return f"{prompt} {name}"


def changing(**fields: Any) -> str:
    return json.dumps({"reasoning": "because", **fields})


def test_opro_shows_scored_values_and_outputs_but_no_code() -> None:
    prompt = tc.node("Hello", trainable=True, name="prompt")
    answers = iter(["Dear", "Hail"])
    llm = ScriptedLLM(lambda messages: changing(prompt=next(answers)))
    optimizer = OPRO([prompt], llm, objective="Warm greetings.")
    for score in (0.2, 0.6):
        optimizer.backward(greet(prompt, "Ann"), (score, "colder than wanted"))
        optimizer.step()
        optimizer.zero_feedback()
    assert prompt.value == "Hail"
    sent = llm.calls[1].prompt
    assert "Warm greetings." in sent
    assert "score 0.2: prompt = 'Hello'" in sent
    assert "'Dear Ann'" in sent
    assert "colder than wanted" in sent
    assert "greet(" not in sent


def test_textgrad_criticises_then_updates() -> None:
    prompt = tc.node("Hello", trainable=True, name="prompt")
    llm = ScriptedLLM(["The greeting is cold; make it warm.", changing(prompt="Dear")])
    optimizer = TextGrad([prompt], llm)
    optimizer.backward(greet(prompt, "Ann"), (0.2, "cold"))
    proposal = optimizer.step()
    assert prompt.value == "Dear"
    assert "Do not write the new value" in llm.calls[0].prompt
    assert "The greeting is cold; make it warm." in llm.calls[1].prompt
    assert proposal.attempts == 2
    assert "make it warm" in proposal.reason


def test_textgrad_improves_each_parameter_the_feedback_reached() -> None:
    prompt = tc.node("Hello", trainable=True, name="prompt")
    level = tc.node(1, trainable=True, name="level")
    unread = tc.node("unread", trainable=True, name="unread")
    llm = ScriptedLLM(["criticism one", changing(prompt="Dear"), "criticism two", changing(level=2)])
    optimizer = TextGrad([prompt, level, unread], llm)
    optimizer.backward(greet(prompt, "Ann") * level, (0.2, "cold"))
    optimizer.step()
    assert (prompt.value, level.value, unread.value) == ("Dear", 2, "unread")


def test_budgets_hold_for_the_siblings() -> None:
    answer = changing(prompt="short")
    for kind in (OPRO, TextGrad):
        prompt = tc.node("word " * 20_000, trainable=True, name="prompt")
        llm = ScriptedLLM(
            lambda messages: "long criticism " * 3000 if "Do not write" in messages[1]["content"] else answer
        )
        optimizer = kind([prompt], llm, max_prompt_tokens=1000)
        optimizer.remember({prompt: "z" * 50_000}, 0.1)
        optimizer.backward(greet(prompt, "name " * 10_000), (0.1, "feedback " * 5000))
        assert optimizer.step().status == "applied"
        assert all(optimizer.count(call.prompt) <= 1000 for call in llm.calls)
