"""Limits per minute and the circuit breaker, on a clock that the tests move, and over the wire."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from fault_rows import GOOD
from hypothesis import given
from hypothesis import strategies as st
from llm_raw_server import ASK, RawServer, chat, fault

from trace_core.errors import TraceCoreError
from trace_core.integrations.llm import (
    CircuitBreaker,
    Limited,
    OpenAILLM,
    RateLimiter,
    RetryPolicy,
    ScriptedLLM,
    errors,
)
from trace_core.integrations.llm.wrapping import Clock

Make = Callable[..., tuple[OpenAILLM, RawServer]]


class FakeTime:
    """Seconds that pass only by waiting."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.waited: list[float] = []
        self.lock = threading.Lock()
        self.clock = Clock(lambda: self.seconds, self.sleep, self.asleep)

    def sleep(self, seconds: float) -> None:
        with self.lock:
            self.waited.append(seconds)
            self.seconds += seconds

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


REQUESTS = st.lists(st.tuples(st.floats(0, 90), st.integers(1, 400)), min_size=1, max_size=40)


@given(requests=REQUESTS, per_minute=st.integers(1, 8), tokens=st.integers(100, 1000))
def test_no_minute_has_more_than_allowed(requests: list[tuple[float, int]], per_minute: int, tokens: int) -> None:
    """Whatever comes when, in every window of 60 seconds; a request larger than the limit goes alone."""
    now = 0.0
    limiter = RateLimiter(per_minute, tokens, now=lambda: now)
    slots = []
    for gap, size in requests:
        now += gap
        slots.append(limiter.reserve(size))
    assert all(slot.at >= 0 for slot in slots)
    for last in slots:
        window = [slot for slot in slots if last.at - 60 + 1e-6 < slot.at <= last.at]  # but for rounding
        assert len(window) <= per_minute
        assert len(window) == 1 or sum(slot.tokens for slot in window) <= tokens


def test_nobody_waits_without_need(time: FakeTime) -> None:
    llm = Limited(ScriptedLLM("hi"), requests_per_minute=3, clock=time.clock)
    for _ in range(3):
        llm.complete(ASK)
    assert time.waited == []
    llm.complete(ASK)
    assert time.waited == [60.0]


async def test_async_calls_wait_the_same(time: FakeTime) -> None:
    llm = Limited(ScriptedLLM("hi"), requests_per_minute=2, clock=time.clock)
    await asyncio.gather(*(llm.acomplete(ASK) for _ in range(5)))
    assert time.seconds >= 120


def test_what_was_used_counts_not_what_was_estimated(time: FakeTime) -> None:
    llm = Limited(ScriptedLLM("hi"), tokens_per_minute=1000, clock=time.clock)
    for _ in range(4):  # each is estimated at more than 900 tokens and takes a few
        llm.complete(ASK, max_tokens=900)
    assert time.waited == []


def test_a_call_that_was_not_sent_gives_its_place_back(time: FakeTime) -> None:
    limiter = RateLimiter(1, now=time.clock.now)
    limiter.release(limiter.reserve(1))
    assert limiter.reserve(1).at == 0.0


def test_retries_count_and_a_refusal_slows_everybody(ask_openai: Make, time: FakeTime) -> None:
    llm, server = ask_openai(*[chat("ok")] * 3, fault(429, headers="Retry-After: 20\r\n"), chat("ok"))
    limited = Limited(llm, requests_per_minute=100, clock=time.clock)
    for _ in range(3):
        limited.complete(ASK)
    assert limited.limiter.current == (100, None)
    assert limited.complete(ASK).attempts == 2
    assert time.seconds >= 20  # the retry itself was held back as long as the server asked
    assert len(server.requests) == 5
    requests, _ = limited.limiter.current
    assert requests == 50
    time.seconds += 60
    assert limited.limiter.current[0] == 62.5
    time.seconds += 600
    assert limited.limiter.current[0] == 100


def test_a_limit_is_learned_where_none_was_given(ask_openai: Make, time: FakeTime) -> None:
    llm, _ = ask_openai(*[chat("ok")] * 20, fault(429), chat("ok"))
    limited = Limited(llm, clock=time.clock)
    for _ in range(21):
        limited.complete(ASK)
    requests, _ = limited.limiter.current
    assert requests is not None
    assert 10 <= requests <= 21
    time.seconds += 36_000
    assert limited.limiter.current == (None, None)


def test_a_long_pause_is_not_waited_for(ask_openai: Make, time: FakeTime) -> None:
    llm, server = ask_openai(fault(429, headers="Retry-After: 600\r\n"), chat("ok"))
    limited = Limited(llm, clock=time.clock)
    for _ in range(2):
        with pytest.raises(errors.WaitTooLong):
            limited.complete(ASK)
    assert len(server.requests) == 1  # the second one was not sent
    time.seconds += 600
    assert limited.complete(ASK).text == "ok"


def test_models_may_share_a_limiter_and_threads_may_share_both(time: FakeTime) -> None:
    limiter = RateLimiter(10, now=time.clock.now)
    models = [Limited(ScriptedLLM("hi"), limiter=limiter, clock=time.clock) for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: models[i % 2].complete(ASK), range(40)))
    assert len(models[0]._llm.calls) + len(models[1]._llm.calls) == 40  # type: ignore[attr-defined]
    assert time.seconds >= 180


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf")])
def test_limits_that_are_none_are_refused(limit: float) -> None:
    with pytest.raises(TraceCoreError, match="requests_per_minute"):
        RateLimiter(limit)


# --- circuit breaker -------------------------------------------------------------------------------------------------


def test_after_failures_in_a_row_nothing_is_sent_and_then_one_tries(
    ask_openai: Make, time: FakeTime, pauses: list[float]
) -> None:
    once = RetryPolicy(transient=0)
    llm, server = ask_openai(*[fault(503)] * 4, GOOD, retry=once)
    breaker = CircuitBreaker(llm, failures=3, cooldown=30, clock=time.clock)
    for _ in range(3):
        with pytest.raises(errors.Transient):
            breaker.complete(ASK)
    assert breaker.state == "open"
    with pytest.raises(errors.CircuitOpen, match="3 calls in a row") as caught:
        breaker.complete(ASK)
    assert (len(server.requests), caught.value.attempts, caught.value.retry_after) == (3, 0, 30.0)
    time.seconds += 30
    with pytest.raises(errors.Transient):  # the one that tries fails: twice the pause
        breaker.complete(ASK)
    time.seconds += 59
    with pytest.raises(errors.CircuitOpen):
        breaker.complete(ASK)
    time.seconds += 1
    breaker.complete(ASK)
    assert (breaker.state, len(server.requests)) == ("closed", 5)


def test_only_one_call_tries(time: FakeTime) -> None:
    inside: list[str] = []

    def script(messages: object) -> str | BaseException:
        if len(inside) == 1:
            inside.append("trying")
            with pytest.raises(errors.CircuitOpen):
                breaker.complete(ASK)
            return "back"
        inside.append("failed")
        return errors.Transient("away")

    breaker = CircuitBreaker(ScriptedLLM(script), failures=1, clock=time.clock)
    with pytest.raises(errors.Transient):
        breaker.complete(ASK)
    time.seconds += 31
    assert breaker.complete(ASK).text == "back"
    assert inside == ["failed", "trying"]


@pytest.mark.parametrize("kind", [errors.Refused, errors.Malformed, errors.BadRequest, errors.ContextTooLong])
def test_answers_and_bad_requests_are_no_outage(kind: type[errors.LLMError]) -> None:
    breaker = CircuitBreaker(ScriptedLLM(lambda messages: kind("no")), failures=1)
    for _ in range(3):
        with pytest.raises(kind):
            breaker.complete(ASK)
    assert breaker.state == "closed"


async def test_a_breaker_in_coroutines(time: FakeTime) -> None:
    breaker = CircuitBreaker(ScriptedLLM(lambda messages: errors.Transient("away")), failures=2, clock=time.clock)
    await asyncio.gather(*(breaker.acomplete(ASK) for _ in range(2)), return_exceptions=True)
    with pytest.raises(errors.CircuitOpen):
        await breaker.acomplete(ASK)
