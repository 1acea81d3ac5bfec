"""What a language model that fails does to a run: its own model's failures, and those of the workflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import trace_core as tc
from trace_core.integrations.engines import ThreadEngine
from trace_core.integrations.llm import LLMError, ScriptedLLM
from trace_core.integrations.llm.errors import (
    AuthenticationFailed,
    ContextTooLong,
    Deadline,
    Refused,
    Transient,
    Unavailable,
    WaitTooLong,
)
from trace_core.nodes import LLMCall
from trace_core.optimizers import OptoPrime, optimize
from trace_core.optimizers.base import OptimizerError
from trace_core.optimizers.loop import Result

BETTER = {"reasoning": "r", "word": "yes"}


def run(workflow: ScriptedLLM, optimizer: ScriptedLLM, **options: Any) -> Result:
    word = tc.node("no", trainable=True, name="word")
    call = LLMCall(workflow)
    return optimize(
        lambda text: call(word, text),
        lambda output, example: float("yes" in output),
        ["a", "b"],
        optimizer=OptoPrime({"word": word}, llm=optimizer),
        steps=4,
        **options,
    )


def echo(messages: list[Any]) -> str:
    return str(messages[0]["content"])


def failing(times: int, error: LLMError, then: Callable[[list[Any]], Any]) -> ScriptedLLM:
    left = [times]

    def reply(messages: list[Any]) -> Any:
        left[0] -= 1
        return type(error)(str(error)) if left[0] >= 0 else then(messages)

    return ScriptedLLM(reply)


@pytest.mark.parametrize("engine", [None, ThreadEngine(2)], ids=["here", "threads"])
def test_an_outage_of_the_workflow_is_no_score(engine: Any) -> None:
    """The example is run again; a candidate is not judged by it, and the optimizer does not see it."""
    result = run(failing(2, Transient("away"), echo), ScriptedLLM(lambda messages: BETTER), engine=engine)
    assert (result.stopped, result.score, result.failures) == ("perfect", 1.0, {})


@pytest.mark.parametrize("engine", [None, ThreadEngine(2)], ids=["here", "threads"])
def test_a_workflow_whose_model_stays_away_stops_the_run(engine: Any) -> None:
    workflow = failing(99, Transient("away"), echo)
    result = run(workflow, ScriptedLLM([]), engine=engine, max_outages=2)
    assert (result.stopped, type(result.error)) == ("error", Unavailable)
    assert "no example could be had from the language model 2 times in a row" in str(result.error)
    assert 2 <= len(workflow.calls) <= 3


def test_a_deadline_is_a_result_until_there_are_too_many() -> None:
    result = run(failing(1, Deadline("slow"), echo), ScriptedLLM(lambda messages: BETTER))
    assert result.score == 1.0
    assert list(result.failures.values()) == [1]
    result = run(failing(99, Deadline("slow"), echo), ScriptedLLM(lambda messages: BETTER))
    assert (result.stopped, type(result.error)) == ("error", Unavailable)


def test_failures_in_a_row_are_counted_and_an_answer_ends_the_row() -> None:
    script: list[Any] = [Transient("a"), Transient("b"), {"reasoning": "r", "word": "maybe"}, Transient("c"), BETTER]
    result = run(ScriptedLLM(echo), ScriptedLLM(script), max_outages=3)
    assert (result.stopped, result.steps) == ("steps", 4)
    result = run(ScriptedLLM(echo), ScriptedLLM([Transient("a"), Transient("b")]), max_outages=2)
    assert (result.stopped, type(result.error), result.steps) == ("error", Unavailable, 1)


def test_refusals_are_no_outage() -> None:
    result = run(ScriptedLLM(echo), ScriptedLLM(lambda messages: Refused("I will not")), max_outages=1)
    assert (result.stopped, result.steps) == ("steps", 4)


def test_a_long_pause_and_a_wrong_key_stop_at_once() -> None:
    for error in (WaitTooLong("600 s"), AuthenticationFailed("wrong key")):
        llm = ScriptedLLM([error])
        result = run(ScriptedLLM(echo), llm)
        assert (result.stopped, result.error, len(llm.calls)) == ("error", error, 1)


def test_a_judge_that_is_away_is_no_error_of_the_metric() -> None:
    judge = ScriptedLLM([Transient("away"), *["1"] * 9])
    word = tc.node("no", trainable=True, name="word")
    result = optimize(
        lambda text: word + text,
        lambda output, example: float(judge.complete([{"role": "user", "content": output}]).text),
        ["a"],
        optimizer=OptoPrime({"word": word}, llm=ScriptedLLM([])),
    )
    assert (result.stopped, result.score) == ("perfect", 1.0)


def test_max_outages_is_at_least_one() -> None:
    with pytest.raises(OptimizerError, match="max_outages must be at least 1"):
        run(ScriptedLLM(echo), ScriptedLLM([]), max_outages=0)


# --- prompts that are too long ---------------------------------------------------------------------------------------


def too_long_above(limit: int) -> ScriptedLLM:
    """A model whose context window has so many characters."""

    def reply(messages: list[Any]) -> Any:
        size = sum(len(message["content"]) for message in messages)
        return ContextTooLong(f"{size} characters") if size > limit else BETTER

    return ScriptedLLM(reply)


def asked(llm: ScriptedLLM) -> OptoPrime:
    word = tc.node("no", trainable=True, name="word")
    optimizer = OptoPrime({"word": word}, llm=llm)
    optimizer.backward(word + "!", (0.0, "say something else, shortly; " * 700))
    return optimizer


@pytest.mark.parametrize(("window", "requests"), [(100_000, 1), (14_000, 2), (3_000, 3)])
def test_a_prompt_is_halved_at_most_twice_and_what_helped_is_kept(window: int, requests: int) -> None:
    llm = too_long_above(window)
    optimizer = asked(llm)
    before = optimizer.max_prompt_tokens
    proposal = optimizer.step()
    assert (proposal.status, len(llm.calls), proposal.attempts) == ("applied", requests, requests)
    sizes = [sum(len(m["content"]) for m in call.messages) for call in llm.calls]
    assert sizes == sorted(sizes, reverse=True)
    assert (optimizer.max_prompt_tokens < before) is (requests > 1)
    resumed = asked(llm)
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.max_prompt_tokens == optimizer.max_prompt_tokens
    resumed.step()
    assert len(llm.calls) == requests + 1  # the next prompt is short from the start


def test_a_prompt_that_stays_too_long_is_no_proposal_and_changes_nothing() -> None:
    llm = too_long_above(100)
    optimizer = asked(llm)
    before = optimizer.max_prompt_tokens
    proposal = optimizer.step()
    assert (proposal.status, len(llm.calls), proposal.attempts) == ("empty", 3, 3)
    assert isinstance(proposal.error, ContextTooLong)
    assert optimizer.max_prompt_tokens == before
