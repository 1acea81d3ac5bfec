"""The litellm backend, through its OpenAI-compatible route to a server of ours. No network, no doubled retries."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec

import pytest
from llm_raw_server import ASK, RawServer, chat, fault
from pydantic import BaseModel

from trace_core.integrations.llm import LiteLLM, RetryPolicy

# Looked for, not imported: the import must be the library's, which keeps it off the network.
pytestmark = pytest.mark.skipif(find_spec("litellm") is None, reason="needs litellm")


class Answer(BaseModel):
    word: str


Make = Callable[..., tuple[LiteLLM, RawServer]]


@pytest.fixture
def ask_litellm(serve: Callable[..., RawServer], no_waiting: RetryPolicy) -> Make:
    def make(*acts: bytes, model: str = "openai/gpt-4.1-mini") -> tuple[LiteLLM, RawServer]:
        server = serve(*acts)
        return LiteLLM(model, api_key="sk-some-key", base_url=server.url, retry=no_waiting), server

    return make


def test_happy_path_with_a_price(ask_litellm: Make) -> None:
    llm, server = ask_litellm(chat("hello", model="gpt-4.1-mini"))
    answer = llm.complete(ASK, temperature=0.0, max_tokens=9, seed=3)
    assert (answer.text, answer.finish_reason, answer.attempts) == ("hello", "stop", 1)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.cached_tokens) == (11, 3, 8)
    assert answer.cost is not None
    assert 0 < answer.cost < 0.001
    sent = server.requests[0].body
    assert (sent["model"], sent["temperature"], sent["max_tokens"], sent["seed"]) == ("gpt-4.1-mini", 0.0, 9, 3)


def test_an_unknown_model_has_an_unknown_price(ask_litellm: Make) -> None:
    llm, _ = ask_litellm(chat("hello", model="home-made"), model="openai/home-made")
    assert llm.complete(ASK).cost is None


def test_retry_after(ask_litellm: Make, pauses: list[float]) -> None:
    llm, _ = ask_litellm(fault(429, headers="Retry-After: 21\r\n"), chat("ok"))
    assert llm.complete(ASK).text == "ok"
    assert pauses == [21.0]


def test_schema(ask_litellm: Make) -> None:
    llm, server = ask_litellm(chat('{"word": "hi"}'))
    assert llm.complete(ASK, schema=Answer).parsed == Answer(word="hi")
    assert server.requests[0].body["response_format"]["json_schema"]["strict"] is True


def test_a_provider_without_schemas_is_asked_in_words(ask_litellm: Make) -> None:
    llm, server = ask_litellm(chat('{"word": "hi"}'), model="openai/home-made")
    assert llm.complete(ASK, schema=Answer).parsed == Answer(word="hi")
    sent = server.requests[0].body
    assert ("response_format" in sent) or ("JSON schema" in sent["messages"][-1]["content"])


def test_samples(ask_litellm: Make) -> None:
    llm, server = ask_litellm(chat("a", "b"))
    assert llm.complete(ASK, n=2).texts == ("a", "b")
    assert server.requests[0].body["n"] == 2


def test_tokens_are_counted_offline(ask_litellm: Make) -> None:
    llm, _ = ask_litellm(chat("x"))
    assert llm.count_tokens("hello world") == 2


def test_the_import_stays_off_the_network_and_happens_late(tmp_path: object) -> None:
    code = """
import socket, sys
def refuse(*a, **k): raise SystemExit("network used: %r" % (a,))
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from trace_core.integrations.llm import LiteLLM
llm = LiteLLM("openai/gpt-4.1-mini", api_key="sk-x")
assert "litellm" not in sys.modules
llm.count_tokens("x")
assert "litellm" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=str(tmp_path))
    assert done.returncode == 0, done.stderr
