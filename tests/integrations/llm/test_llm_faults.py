"""What each fault on the wire becomes, and how many requests it costs."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from llm_raw_server import ASK, RawServer, Received, chat, fault, http, payload

from trace_core.errors import TraceCoreError
from trace_core.integrations.llm import OpenAILLM, RetryPolicy, errors

Make = Callable[..., tuple[OpenAILLM, RawServer]]


def reset(connection: socket.socket, received: Received) -> None:
    """Close with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def drop_in_body(connection: socket.socket, received: Received) -> None:
    connection.sendall(
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n{"choices": ['
    )


def drop_in_headers(connection: socket.socket, received: Received) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Ty")


def hang_until_closed(connection: socket.socket, received: Received) -> None:
    connection.recv(1)


def test_happy_path(ask_openai: Make) -> None:
    llm, server = ask_openai(chat("hello"))
    answer = llm.complete(ASK, temperature=0.5, seed=7, max_tokens=20)
    assert (answer.text, answer.texts, answer.parsed) == ("hello", ("hello",), None)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.cached_tokens) == (11, 3, 8)
    assert (answer.cost, answer.model, answer.finish_reason, answer.attempts) == (None, "served-model", "stop", 1)
    assert answer.seconds > 0
    assert server.requests[0].line == "POST /v1/chat/completions HTTP/1.1"
    assert server.requests[0].body == {
        "model": "some-model",
        "messages": ASK,
        "temperature": 0.5,
        "seed": 7,
        "max_tokens": 20,
    }


FATAL = [
    (fault(401, "bad key"), errors.AuthenticationFailed, 401),
    (fault(403, "not yours"), errors.AuthenticationFailed, 403),
    (fault(404, "no such model"), errors.NotFound, 404),
    (fault(400, "bad temperature"), errors.BadRequest, 400),
    (fault(422, "bad shape"), errors.BadRequest, 422),
    (fault(402, "pay first"), errors.QuotaExceeded, 402),
    (fault(429, "no credit", code="insufficient_quota"), errors.QuotaExceeded, 429),
    (fault(429, "no credit", type="insufficient_quota"), errors.QuotaExceeded, 429),
]


@pytest.mark.parametrize(("response", "kind", "status"), FATAL)
def test_fatal_faults_stop_at_once(
    response: bytes, kind: type[errors.Fatal], status: int, ask_openai: Make, pauses: list[float]
) -> None:
    llm, server = ask_openai(response)
    with pytest.raises(kind) as caught:
        llm.complete(ASK)
    error = caught.value
    assert isinstance(error, errors.Fatal)
    assert isinstance(error, TraceCoreError)
    assert (error.provider, error.model, error.status, error.attempts) == ("openai", "some-model", status, 1)
    assert len(server.requests) == 1
    assert pauses == []


TRANSIENT: list[tuple[str, Any, int | None]] = [
    ("500", fault(500), 500),
    ("502 with HTML", http("<html>bad gateway</html>", 502, kind="text/html"), 502),
    ("503", fault(503), 503),
    ("529", fault(529, "overloaded"), 529),
    ("408", fault(408), 408),
    ("reset", reset, None),
    ("closed without a byte", b"", None),
    ("dropped in the headers", drop_in_headers, None),
    ("dropped in the body", drop_in_body, None),
    ("error object with status 200", http({"error": {"message": "overloaded", "code": 503}}), 503),
]


@pytest.mark.parametrize(("act", "status"), [t[1:] for t in TRANSIENT], ids=[t[0] for t in TRANSIENT])
def test_transient_faults_are_retried_four_times(
    act: Any, status: int | None, ask_openai: Make, pauses: list[float]
) -> None:
    llm, server = ask_openai(act)
    with pytest.raises(errors.Transient) as caught:
        llm.complete(ASK)
    assert type(caught.value) is errors.Transient
    assert (caught.value.status, caught.value.attempts) == (status, 5)
    assert "5 requests sent" in str(caught.value)
    assert len(server.requests) == 5
    assert len(pauses) == 4
    assert pauses[3] > pauses[0]


def test_connection_refused_is_transient(no_waiting: RetryPolicy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    llm = OpenAILLM("m", base_url=f"http://127.0.0.1:{port}/v1", retry=no_waiting)
    with pytest.raises(errors.Transient, match="connection failed"):
        llm.complete(ASK)


def test_backoff_is_exponential_with_jitter(ask_openai: Make, pauses: list[float]) -> None:
    llm, _ = ask_openai(fault(500))
    for _ in range(3):
        with pytest.raises(errors.Transient):
            llm.complete(ASK)
    runs = [pauses[:4], pauses[4:8], pauses[8:]]
    for run in runs:
        assert all(0.5 * 2**i <= pause <= 0.5 * 2**i + 0.5 for i, pause in enumerate(run))
    assert len({tuple(run) for run in runs}) == 3


def test_retry_after_is_honoured(ask_openai: Make, pauses: list[float]) -> None:
    llm, _ = ask_openai(fault(429, headers="Retry-After: 17\r\n"), chat("ok"))
    assert llm.complete(ASK).attempts == 2
    assert pauses == [17.0]


def test_retry_after_does_not_shorten_the_backoff(ask_openai: Make, pauses: list[float]) -> None:
    llm, _ = ask_openai(fault(429, headers="Retry-After: 0\r\n"), chat("ok"))
    llm.complete(ASK)
    assert pauses[0] >= 0.5


@pytest.mark.parametrize("form", ["ms", "date"])
def test_other_forms_of_retry_after(form: str, ask_openai: Make, pauses: list[float]) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    header = "retry-after-ms: 20000\r\n" if form == "ms" else f"Retry-After: {later}\r\n"
    llm, _ = ask_openai(fault(429, headers=header), chat("ok"))
    llm.complete(ASK)
    assert 15 < pauses[0] <= 40


@pytest.mark.parametrize("value", ["nan", "inf", "-3", "soon", "Thu, 99 Foo 2020"])
def test_a_senseless_retry_after_is_ignored(value: str, ask_openai: Make, pauses: list[float]) -> None:
    llm, _ = ask_openai(fault(429, headers=f"Retry-After: {value}\r\n"), chat("ok"))
    llm.complete(ASK)
    assert 0.5 <= pauses[0] <= 1.0


def test_a_too_long_retry_after_is_not_waited_for(ask_openai: Make, pauses: list[float]) -> None:
    llm, server = ask_openai(fault(429, headers="Retry-After: 600\r\n"))
    with pytest.raises(errors.RateLimited, match=r"wait 600 s.*max_wait") as caught:
        llm.complete(ASK)
    assert (caught.value.retry_after, caught.value.attempts) == (600.0, 1)
    assert pauses == []
    assert len(server.requests) == 1


def test_list_content_is_joined(ask_openai: Make) -> None:
    llm, _ = ask_openai(chat([{"type": "text", "text": "one "}, {"type": "image"}, {"type": "text", "text": "two"}]))
    assert llm.complete(ASK).text == "one two"


def test_an_endless_answer_is_not_read_to_its_end(ask_openai: Make) -> None:
    sent = 0
    stopped = threading.Event()

    def flood(connection: socket.socket, received: Received) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        block = b'"' + b"x" * 65536
        try:
            while sent < 400_000_000:
                connection.sendall(block)
                sent += len(block)
        finally:
            stopped.set()

    llm, _ = ask_openai(flood, retry=RetryPolicy(malformed=0))
    with pytest.raises(errors.Malformed, match="longer than"):
        llm.complete(ASK)
    assert stopped.wait(20)
    assert sent < 100_000_000


def test_a_long_text_is_cut(ask_openai: Make) -> None:
    llm, _ = ask_openai(chat("x" * 1_500_000))
    answer = llm.complete(ASK)
    assert (len(answer.text), answer.finish_reason) == (1_000_000, "length")


def test_characters_that_nothing_can_store_are_replaced(ask_openai: Make) -> None:
    body = json.dumps(payload("a\ud800b\0c\U0001f600"))
    llm, _ = ask_openai(http(body))
    text = llm.complete(ASK).text
    assert text == "a\ufffdb\ufffdc\U0001f600"
    text.encode("utf-8")


def test_text_cut_by_max_tokens_is_returned(ask_openai: Make) -> None:
    llm, server = ask_openai(chat("del", finish="length"))
    answer = llm.complete(ASK, max_tokens=1)
    assert (answer.text, answer.finish_reason, len(server.requests)) == ("del", "length", 1)


def test_no_text_before_the_limit_gets_twice_the_room_once(ask_openai: Make) -> None:
    llm, server = ask_openai(chat("", finish="length"), chat("done"))
    assert llm.complete(ASK, max_tokens=8).text == "done"
    assert [request.body["max_tokens"] for request in server.requests] == [8, 16]
    llm, server = ask_openai(chat("", finish="length"))
    with pytest.raises(errors.Truncated, match="max_tokens"):
        llm.complete(ASK, max_tokens=8)
    assert len(server.requests) == 2
    llm, server = ask_openai(chat(None, finish="length"))
    with pytest.raises(errors.Truncated):
        llm.complete(ASK)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "usage",
    [None, {}, [], "many", {"prompt_tokens": float("nan"), "completion_tokens": None}, {"prompt_tokens": -4}],
)
def test_missing_or_senseless_usage_is_unknown(usage: object, ask_openai: Make) -> None:
    body = payload("ok")
    body["usage"] = usage
    llm, _ = ask_openai(http(json.dumps(body)))
    answer = llm.complete(ASK)
    assert answer.usage.prompt_tokens is None
    assert answer.usage.completion_tokens is None
    assert answer.cost is None


def test_redirects_are_refused(ask_openai: Make, serve: Callable[..., RawServer]) -> None:
    other = serve(chat("never"))
    llm, server = ask_openai(http(b"", 307, f"Location: {other.url}/chat/completions\r\n"))
    with pytest.raises(errors.BadRequest, match="redirect"):
        llm.complete(ASK)
    assert (len(server.requests), len(other.requests)) == (1, 0)


def test_a_hanging_server_is_transient(ask_openai: Make) -> None:
    llm, server = ask_openai(hang_until_closed, attempt_timeout=0.2)
    with pytest.raises(errors.Transient, match="attempt_timeout") as caught:
        llm.complete(ASK)
    assert not isinstance(caught.value, errors.Deadline)
    assert (caught.value.attempts, len(server.requests)) == (5, 5)


def test_a_slow_drip_meets_the_deadline(ask_openai: Make) -> None:
    dripping = threading.Event()
    ended = threading.Event()

    def drip(connection: socket.socket, received: Received) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
        connection.settimeout(0.02)
        try:
            while True:
                connection.sendall(b" ")
                dripping.set()
                try:
                    if connection.recv(1) == b"":
                        return
                except TimeoutError:
                    continue
        finally:
            ended.set()

    llm, server = ask_openai(drip, deadline=0.5)
    with pytest.raises(errors.Deadline, match=r"0\.5 s") as caught:
        llm.complete(ASK)
    assert dripping.is_set()
    assert isinstance(caught.value, errors.Transient)
    assert (caught.value.provider, caught.value.attempts, len(server.requests)) == ("openai", 1, 1)
    assert ended.wait(10), "the connection must be closed when the deadline has passed"


def test_the_deadline_covers_the_pauses(ask_openai: Make) -> None:
    import asyncio

    async def forever(seconds: float) -> None:
        await asyncio.Event().wait()

    llm, _ = ask_openai(fault(500), retry=RetryPolicy(sleep=forever), deadline=0.3)
    with pytest.raises(errors.Deadline):
        llm.complete(ASK)


def test_a_parameter_the_model_does_not_know_is_left_out_from_then_on(ask_openai: Make) -> None:
    unknown = fault(400, "Unsupported value", code="unsupported_value", param="temperature")
    llm, server = ask_openai(unknown, chat("one"), chat("two"))
    assert llm.complete(ASK, temperature=0.0, seed=1).text == "one"
    assert llm.complete(ASK, temperature=0.0, seed=1).text == "two"
    assert ["temperature" in request.body for request in server.requests] == [True, False, False]
    assert all(request.body["seed"] == 1 for request in server.requests)


def test_the_newer_name_of_max_tokens_is_found(ask_openai: Make) -> None:
    unknown = fault(400, "use max_completion_tokens", code="unsupported_parameter", param="max_tokens")
    llm, server = ask_openai(unknown, chat("one"))
    assert llm.complete(ASK, max_tokens=5).text == "one"
    assert server.requests[1].body["max_completion_tokens"] == 5
    assert "max_tokens" not in server.requests[1].body
