"""A run through every fault, with every client library at its most talkative and a server that repeats the key: the key
is in the request's header, and nowhere else."""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fault_rows import ROWS, Row
from llm_raw_server import ASK, CANARY, RawServer

import trace_core as tc
from trace_core.integrations.llm import (
    LLM,
    Cached,
    Cassette,
    CircuitBreaker,
    Limited,
    LLMError,
    Metered,
    Recorded,
)
from trace_core.integrations.store import Ledger
from trace_core.nodes import LLMCall
from trace_core.optimizers import OptoPrime, optimize
from trace_core.optimizers.report import write_run_page
from trace_core.trace import Trace

LOGGERS = ("trace_core", "openai", "LiteLLM", "httpx", "httpx2", "httpcore", "httpcore2", "aiohttp", "asyncio")
# So long that a message that is cut after 60 characters is cut inside of the key.
BEFORE = "x" * 45


def repeating(act: Any) -> Any:
    """The response with the key in its error message or page."""
    if not isinstance(act, bytes) or len(act) > 1_000_000:
        return act
    head, _, body = act.partition(b"\r\n\r\n")
    body = body.replace(b'"message": "', f'"message": "wrong key {CANARY}, '.encode())
    body = body.replace(b'"refusal": "', f'"refusal": "not with {CANARY}, '.encode())
    body = body.replace(b"<html>", f"<html>{BEFORE}{CANARY}".encode())
    return re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(body), head) + b"\r\n\r\n" + body


# Every response that can repeat the key, and one of each kind that cannot.
SILENT = ("reset", "closed without a byte", "null content", "usage missing", "truncated JSON body")
CHOSEN = [
    row
    for row in ROWS
    if row.name in SILENT or any(repeating(act) is not act and CANARY.encode() in repeating(act) for act in row.acts)
]


@pytest.fixture
def everything(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Every logger at DEBUG, and caught here even where a library keeps its records to itself."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    caplog.set_level(logging.DEBUG)
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.propagate = True
    yield
    for logger, (level, propagate) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate = propagate


def all_of(error: BaseException) -> Iterator[str]:
    """What a log, a debugger or a crash reporter would show, the whole chain included."""
    yield from traceback.format_exception(error)
    link: BaseException | None = error
    while link is not None:
        yield from (str(link), repr(link), repr(link.args), repr(vars(link)))
        link = link.__cause__ or link.__context__


@pytest.mark.parametrize("row", CHOSEN, ids=[row.name for row in CHOSEN])
def test_the_key_is_nowhere(
    row: Row,
    ask: Callable[[Row], tuple[LLM, RawServer]],
    tmp_path: Path,
    everything: None,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    llm, server = ask(replace(row, acts=[repeating(act) for act in row.acts]))
    shown: list[str] = []
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        recorder = Recorded(
            Cached(Limited(CircuitBreaker(llm)), ledger), Cassette(tmp_path / "cassette.json", "record")
        )
        meter = Metered(recorder)
        try:
            shown.append(meter.complete(ASK).text)
        except LLMError as error:
            shown += all_of(error)
        word = tc.node("no", trainable=True, name="word")
        call = LLMCall(meter)
        traces: list[Trace] = []

        def metric(output: Any, example: Any) -> tuple[float, str]:
            return 0.0, "say something else"

        optimizer = OptoPrime({"word": word}, llm=meter)
        kept = optimizer.memory.add_traces

        def spy(found: Any, names: Any) -> None:
            traces.extend(found)
            kept(found, names)

        optimizer.memory.add_traces = spy  # type: ignore[method-assign]
        run = ledger.new_run("canary", fingerprint={}, config={})
        result = optimize(
            lambda text: call(word, text), metric, ["a"], optimizer=optimizer, steps=1, max_outages=1, run=run
        )
        write_run_page(run, tmp_path / "report.html")
    shown += [repr(meter), meter.describe(), str(meter.total), repr(result.history), repr(result.failures)]
    shown += all_of(result.error) if result.error is not None else ()
    shown += [json.dumps(trace.to_dict(), default=repr) for trace in traces]
    shown += [trace.render(budget=4000) for trace in traces]
    shown += [path.read_bytes().decode("utf-8", "replace") for path in tmp_path.iterdir()]
    shown += [caplog.text, *capfd.readouterr()]
    assert server.requests
    assert all(request.headers["authorization"] == f"Bearer {CANARY}" for request in server.requests)
    leaks = [text[max(0, text.find("sk-canary") - 200) :][:400] for text in shown if "sk-canary" in text]
    assert not leaks, leaks[0]
