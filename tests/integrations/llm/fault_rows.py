"""The faults of a provider as bytes on the wire, and what each is to become. One list for every client."""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from llm_raw_server import Received, chat, fault, http, payload

from trace_core.integrations.llm import errors

OPENAI = int(version("openai").partition(".")[0])
CLIENTS = ["openai", "litellm"] if OPENAI == 2 else ["openai"]  # litellm does not take openai 3
VALUE = "yes"
PROPOSAL = json.dumps({"reasoning": "it is better", "word": VALUE})
KEYLESS = json.dumps({"reasoning": "it is better", "word": "a\ud800b\0c"})


@dataclass
class Row:
    """One fault.

    Attributes:
        acts: what the server does with each request in turn; the last is repeated.
        error: the class of the error; None where the answer is used all the same.
        requests: how many are sent for one call, and with ``step`` for one step of an optimizer where that differs.
        stops: whether it ends a run: ``at once``, ``in a row`` (after several steps), or ``""``.
        options: of the client.
    """

    name: str
    acts: list[Any]
    error: type[errors.LLMError] | None
    requests: int
    stops: str = ""
    step: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


def reset(connection: socket.socket, received: Received) -> None:
    """Close with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def drop_in_body(connection: socket.socket, received: Received) -> None:
    connection.sendall(
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n{"choices": ['
    )


def drop_in_headers(connection: socket.socket, received: Received) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Ty")


def hang(connection: socket.socket, received: Received) -> None:
    connection.recv(1)


def drip(connection: socket.socket, received: Received) -> None:
    """A byte now and then, until the client hangs up."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
    connection.settimeout(0.02)
    while True:
        connection.sendall(b" ")
        try:
            if connection.recv(1) == b"":
                return
        except TimeoutError:
            continue


def in_a_circle(connection: socket.socket, received: Received) -> None:
    here = f"http://{received.headers['host']}{received.line.split()[1]}"
    connection.sendall(http(b"", 307, f"Location: {here}\r\n"))


def without_usage(**usage: Any) -> bytes:
    body = payload(PROPOSAL)
    del body["usage"]
    return http(json.dumps(body | usage))


def refusal() -> bytes:
    message = {"role": "assistant", "content": None, "refusal": "I will not"}
    return http({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


GOOD = chat(PROPOSAL)
TRANSIENT = {"error": errors.Transient, "requests": 5, "stops": "in a row"}
FATAL = {"requests": 1, "stops": "at once"}
MALFORMED = {"error": errors.Malformed, "requests": 2, "stops": "in a row"}
USED: dict[str, Any] = {"error": None, "requests": 1}


def rows() -> list[Row]:
    """The table."""
    server = [
        ("500", fault(500)),
        ("502 with HTML", http("<html>bad gateway</html>", 502, kind="text/html")),
        ("503", fault(503)),
        ("529", fault(529, "overloaded")),
        ("408", fault(408)),
        ("reset", reset),
        ("closed without a byte", b""),
        ("dropped in the headers", drop_in_headers),
        ("dropped in the body", drop_in_body),
    ]
    unusable = [
        ("empty body", http(b"")),
        ("truncated JSON body", http(b'{"choices": [{"mess')),
        ("bad UTF-8", http(b'{"choices": "\xff\xfe"}')),
        ("HTML with 200", http("<html>login</html>", kind="text/html")),
        ("a list", http([1])),
        ("a number", http(b"7")),
        ("no choices key", http({"id": "x"})),
        ("no choices", http({"choices": []})),
        ("null choices", http({"choices": None})),
        ("choices are text", http({"choices": ["hi"]})),
        ("no message", http({"choices": [{"finish_reason": "stop"}]})),
        ("null content", chat(None)),
        ("blank content", chat("  \n")),
        ("number content", chat(5)),
        ("empty list content", chat([])),
    ]
    refused = [
        ("refusal", refusal()),
        ("content filter", chat("", finish="content_filter")),
        ("content filter in mid-answer", chat("half an ans", finish="content_filter")),
        ("content filter on the prompt", fault(400, "filtered", code="content_filter")),
    ]
    too_long = [
        ("context_length_exceeded", fault(400, "too long", code="context_length_exceeded")),
        ("context size in words", fault(400, "This model's maximum context length is 8192 tokens")),
    ]
    fatal: list[tuple[str, bytes, type[errors.LLMError]]] = [
        ("401", fault(401, "bad key"), errors.AuthenticationFailed),
        ("403", fault(403, "not yours"), errors.AuthenticationFailed),
        ("404", fault(404, "no such model"), errors.NotFound),
        ("429 insufficient_quota", fault(429, "no credit", code="insufficient_quota"), errors.QuotaExceeded),
        ("429 insufficient_quota as type", fault(429, "no", type="insufficient_quota"), errors.QuotaExceeded),
        ("402", fault(402, "pay first"), errors.QuotaExceeded),
    ]
    usages: list[tuple[str, bytes]] = [
        ("usage missing", without_usage()),
        ("usage null", without_usage(usage=None)),
        ("usage NaN", without_usage(usage={"prompt_tokens": float("nan"), "completion_tokens": None})),
        ("usage a list", without_usage(usage=[])),
        ("usage negative", without_usage(usage={"prompt_tokens": -4, "completion_tokens": 1})),
    ]
    cut = chat(PROPOSAL[:-4], finish="length")
    return [
        Row("429, Retry-After: 1", [fault(429, headers="Retry-After: 1\r\n"), GOOD], None, 2),
        Row(
            "429, Retry-After: 600",
            [fault(429, headers="Retry-After: 600\r\n")],
            errors.WaitTooLong,
            requests=1,
            stops="at once",
        ),
        Row("429 again and again", [fault(429)], errors.RateLimited, 5, "in a row"),
        *[Row(name, [act], kind, **FATAL) for name, act, kind in fatal],
        Row("400", [fault(400, "bad shape")], errors.BadRequest, **FATAL, step=2),  # once more, schema in words
        Row("422", [fault(422, "bad shape")], errors.BadRequest, **FATAL, step=2),
        Row("redirect loop", [in_a_circle], errors.BadRequest, **FATAL),
        *[Row(name, [act], **TRANSIENT) for name, act in server],
        Row("hang", [hang], **TRANSIENT, options={"attempt_timeout": 1.5}),
        Row("drip", [drip], errors.Deadline, 1, "in a row", options={"deadline": 0.4}),
        *[Row(name, [act], **MALFORMED) for name, act in unusable],
        *[Row(f"{name}, then an answer", [act, GOOD], None, 2) for name, act in (*server[5:], *unusable[:5])],
        *[Row(name, [act], errors.Refused, 1) for name, act in refused],
        Row("no text before the length limit", [chat("", finish="length")], errors.Truncated, 1, step=2),
        Row("cut at the length limit", [cut, GOOD], None, 1, step=2),
        *[Row(name, [act], **USED) for name, act in usages],
        Row("list content", [chat([{"type": "text", "text": p} for p in (PROPOSAL[:9], PROPOSAL[9:])])], **USED),
        Row("lone surrogate and NUL", [http(json.dumps(payload("a\ud800b\0c"))), GOOD], None, 1, step=2),
        Row("lone surrogate and NUL in a value", [http(json.dumps(payload(KEYLESS)))], **USED),
        Row("NaN in a value", [chat('{"reasoning": "r", "word": NaN}'), GOOD], None, 1, step=2),
        Row("Infinity in a value", [chat('{"reasoning": "r", "word": -Infinity}'), GOOD], None, 1, step=2),
        Row("20 MB", [chat("x" * 20_000_000), GOOD], None, 1, step=2),
        *[Row(name, [act], errors.ContextTooLong, 1, step=3) for name, act in too_long],
    ]


ROWS = rows()
IDS = [row.name for row in ROWS]
