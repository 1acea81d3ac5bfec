"""Fixtures of the gateway's tests: servers on loopback, and a retry policy that does not wait."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trace_core.integrations.llm import LLM, LiteLLM, OpenAILLM, RetryPolicy

sys.path.append(str(Path(__file__).parent))  # for the helper beside this file; importlib mode adds no folders

from fault_rows import CLIENTS, Row
from llm_raw_server import CANARY, Act, RawServer


@pytest.fixture
def serve() -> Iterator[Callable[..., RawServer]]:
    """serve(act, act, ...) starts a server; it is stopped after the test."""
    servers: list[RawServer] = []

    def start(*acts: Act) -> RawServer:
        servers.append(RawServer(acts))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def pauses() -> list[float]:
    """The pauses that ``no_waiting`` was asked for, in seconds."""
    return []


@pytest.fixture
def no_waiting(pauses: list[float]) -> RetryPolicy:
    """The default retry policy with a clock that does not tick."""

    async def note(seconds: float) -> None:
        pauses.append(seconds)

    return RetryPolicy(sleep=note)


@pytest.fixture
def ask_openai(serve: Callable[..., RawServer], no_waiting: RetryPolicy) -> Callable[..., tuple[OpenAILLM, RawServer]]:
    """ask_openai(act, ..., **options) gives an OpenAILLM and the server it talks to."""

    def make(*acts: Act, **options: Any) -> tuple[OpenAILLM, RawServer]:
        server = serve(*acts)
        defaults: dict[str, Any] = {"api_key": CANARY, "base_url": server.url, "retry": no_waiting}
        return OpenAILLM("some-model", **{**defaults, **options}), server

    return make


@pytest.fixture(params=CLIENTS)
def ask(
    request: pytest.FixtureRequest, serve: Callable[..., RawServer], no_waiting: RetryPolicy
) -> Callable[[Row], tuple[LLM, RawServer]]:
    """ask(row) gives a model that gets this row's answers, and its server; once for each client library."""

    import openai

    openai.DefaultAsyncHttpxClient()  # the first import and the first TLS context take longer than some time-outs here

    def make(row: Row) -> tuple[LLM, RawServer]:
        server = serve(*row.acts)
        options: dict[str, Any] = {"api_key": CANARY, "base_url": server.url, "retry": no_waiting, **row.options}
        if request.param == "litellm":
            return LiteLLM("openai/gpt-4.1-mini", **options), server
        return OpenAILLM("some-model", **options), server

    return make
