"""Every fault of a provider, sent byte for byte, and what it becomes: for a call, a step of an optimizer, and a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
from fault_rows import GOOD, IDS, OPENAI, ROWS, VALUE, Row
from llm_raw_server import ASK, RawServer

import trace_core as tc
from trace_core.integrations.llm import LLM, errors
from trace_core.optimizers import OptoPrime, optimize
from trace_core.optimizers.loop import Result

LONG = "say something else, and say it shortly; " * 300  # a prompt with something to leave out
Ask: TypeAlias = Callable[[Row], tuple[LLM, RawServer]]


def named(name: str) -> Row:
    return ROWS[IDS.index(name)]


def test_the_client_is_the_one_meant() -> None:
    assert str(OPENAI) == os.environ.get("TRACE_CORE_TESTED_OPENAI", "2")


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_call(row: Row, ask: Ask) -> None:
    llm, server = ask(row)
    if row.error is None:
        llm.complete(ASK).text.encode("utf-8")
    else:
        with pytest.raises(row.error) as caught:
            llm.complete(ASK)
        assert type(caught.value) is row.error
        assert caught.value.attempts == row.requests
    assert len(server.requests) == row.requests


def optimizer(llm: LLM) -> OptoPrime:
    word = tc.node("no", trainable=True, name="word")

    @tc.bundle
    def say(text: str) -> str:
        """Say it."""
        return text

    made = OptoPrime({"word": word}, llm=llm)
    made.backward(say(word), (0.0, LONG))
    return made


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_step_of_an_optimizer(row: Row, ask: Ask) -> None:
    """Nothing but what must stop a run leaves step(); what failed is data."""
    llm, server = ask(row)
    chosen = optimizer(llm)
    parameter = chosen.parameters[0]
    if row.error is not None and issubclass(row.error, errors.Fatal):
        with pytest.raises(row.error):
            chosen.step()
    else:
        proposal = chosen.step()
        if row.error is None:
            assert parameter.value == (
                VALUE if "in a value" not in row.name or len(row.acts) > 1 else "a\ufffdb\ufffdc"
            )
            assert proposal.error is None
        else:
            assert (proposal.status, parameter.value) == ("empty", "no")
            assert type(proposal.error) is row.error
            assert row.error.__name__ in proposal.reason
            assert proposal.attempts == len(server.requests)
    assert len(server.requests) == (row.requests if row.step is None else row.step)


@pytest.mark.parametrize("name", [row.name for row in ROWS if row.name.startswith("usage")])
def test_unknown_usage_is_an_unknown_cost(name: str, ask: Ask) -> None:
    llm, _ = ask(named(name))
    answer = llm.complete(ASK)
    assert None in (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    assert answer.cost is None


def test_a_long_answer_is_cut(ask: Ask) -> None:
    llm, _ = ask(named("20 MB"))
    answer = llm.complete(ASK)
    assert (len(answer.text), answer.finish_reason) == (1_000_000, "length")


def test_an_endless_answer_is_not_read_to_its_end(ask: Ask) -> None:
    sent = 0

    def flood(connection: Any, received: object) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        block = b'"' + b"x" * 1_000_000
        while sent < 2_000_000_000:
            connection.sendall(block)
            sent += len(block)

    llm, server = ask(Row("flood", [flood], errors.Malformed, 2))
    with pytest.raises(errors.Malformed, match="longer than"):
        llm.complete(ASK)
    assert len(server.requests) == 2
    assert sent < 200_000_000


def test_more_room_is_twice_the_room(ask: Ask) -> None:
    llm, server = ask(named("cut at the length limit"))
    optimizer(llm).step()
    first, second = (request.body["max_tokens"] for request in server.requests)
    assert second == 2 * first


def run(llm: LLM, steps: int = 6) -> Result:
    word = tc.node("no", trainable=True, name="word")

    @tc.bundle
    def say(text: str, number: int) -> str:
        """Say it."""
        return f"{text} {number}"

    return optimize(
        lambda number: say(word, number),
        lambda output, number: (0.0, LONG),
        [1, 2],
        optimizer=OptoPrime({"word": word}, llm=llm),
        steps=steps,
        max_outages=2,
    )


# One row of each kind: the rest differ in what comes before the loop, which the tests above look at.
RUNS = [
    "429, Retry-After: 600",
    "429 again and again",
    "401",
    "403",
    "404",
    "400",
    "429 insufficient_quota",
    "redirect loop",
    "503",
    "reset",
    "drip",
    "HTML with 200",
    "null content",
    "refusal",
    "no text before the length limit",
    "context_length_exceeded",
]


@pytest.mark.parametrize("name", RUNS)
def test_a_run(name: str, ask: Ask) -> None:
    """What stops at once stops in the first step, an outage after ``max_outages`` in a row; the rest goes on."""
    row = named(name)
    llm, server = ask(row)
    result = run(llm)
    one = row.requests if row.step is None else row.step
    assert row.error is not None
    if row.stops == "at once":
        assert (result.stopped, type(result.error), len(server.requests)) == ("error", row.error, one)
        assert result.steps == 0
    elif row.stops == "in a row":
        assert (result.stopped, type(result.error)) == ("error", errors.Unavailable)
        assert len(server.requests) == 2 * one
        assert row.error.__name__ in str(result.error)
    else:
        assert (result.stopped, result.steps, result.error) == ("steps", 6, None)
        assert len(server.requests) == 6 * one
        rejected = [event for event in result.history if event.kind == "rejected"]
        assert len(rejected) == 6
        assert all(row.error.__name__ in event.note for event in rejected)


def test_an_outage_that_passes_is_survived(ask: Ask) -> None:
    llm, _ = ask(Row("away for a while", [*named("503").acts * 6, GOOD], None, 7))
    result = run(llm, steps=3)
    assert (result.stopped, result.steps) == ("steps", 3)
    assert [event.kind for event in result.history].count("gated") == 2
