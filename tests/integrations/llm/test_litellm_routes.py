"""Providers that litellm reaches with its own client: Anthropic, Ollama, vLLM, as bytes on the wire."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pytest
from fault_rows import OPENAI, drop_in_body, hang
from llm_raw_server import ASK, CANARY, Act, RawServer, chat, fault, http

import trace_core as tc
from trace_core.integrations.accounting import account
from trace_core.integrations.budget import Budget
from trace_core.integrations.llm import LiteLLM, RetryPolicy, errors
from trace_core.optimizers import OptoPrime

pytestmark = pytest.mark.skipif(find_spec("litellm") is None or OPENAI != 2, reason="needs litellm")


def anthropic(text: str, stop: str = "end_turn") -> bytes:
    usage = {"input_tokens": 11, "output_tokens": 3}
    content = [{"type": "text", "text": text}]
    kind = {"id": "m", "type": "message", "role": "assistant", "model": "claude-haiku-4-5"}
    return http({**kind, "content": content, "stop_reason": stop, "stop_sequence": None, "usage": usage})


def ollama(text: str, stop: str = "stop") -> bytes:
    message = {"role": "assistant", "content": text}
    counts = {"prompt_eval_count": 11, "eval_count": 3}
    return http({"model": "m", "created_at": "x", "message": message, "done": True, "done_reason": stop, **counts})


@dataclass
class Route:
    """One way through litellm: how its server answers, and how it says what went wrong."""

    model: str
    path: str
    header: str
    good: Callable[[str], bytes]
    bad: Callable[[int, str], bytes]
    base: str = ""


ROUTES = {
    "anthropic": Route(
        "anthropic/claude-haiku-4-5",
        "/v1/messages",
        "x-api-key",
        anthropic,
        lambda status, headers: http({"type": "error", "error": {"type": "x", "message": "no"}}, status, headers),
    ),
    "ollama": Route(
        "ollama_chat/some-model",
        "/api/chat",
        "authorization",
        ollama,
        lambda status, headers: http({"error": "no"}, status, headers),
    ),
    "vllm": Route(
        "hosted_vllm/some-model",
        "/v1/chat/completions",
        "authorization",
        chat,
        lambda status, headers: fault(status, "no", headers),
        "/v1",
    ),
}
Ask = Callable[..., tuple[LiteLLM, RawServer]]


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest) -> Route:
    return ROUTES[request.param]


@pytest.fixture
def ask(route: Route, serve: Callable[..., RawServer], no_waiting: RetryPolicy) -> Ask:
    def make(*acts: Act, **options: Any) -> tuple[LiteLLM, RawServer]:
        server = serve(*acts)
        base = server.url.removesuffix("/v1") + route.base
        return LiteLLM(route.model, api_key=CANARY, base_url=base, retry=no_waiting, **options), server

    return make


def test_an_answer_with_its_tokens(route: Route, ask: Ask) -> None:
    llm, server = ask(route.good("hello"))
    with account(budget=(budget := Budget(tokens=10_000))):
        answer = llm.complete(ASK, max_tokens=9)
    assert (answer.text, answer.finish_reason, answer.attempts) == ("hello", "stop", 1)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (11, 3)
    assert budget.spent.tokens == 14
    assert server.requests[0].line.split()[1] == route.path
    assert CANARY in server.requests[0].headers[route.header]


def test_retry_after(route: Route, ask: Ask, pauses: list[float]) -> None:
    llm, server = ask(route.bad(429, "Retry-After: 21\r\n"), route.good("ok"))
    assert llm.complete(ASK).text == "ok"
    assert pauses == [21.0]
    assert len(server.requests) == 2


HTML = http("<html>login</html>", kind="text/html")
FAULTS: dict[str, tuple[Callable[[Route], Act], type[errors.LLMError], int]] = {
    "429, Retry-After: 600": (lambda route: route.bad(429, "Retry-After: 600\r\n"), errors.WaitTooLong, 1),
    "429 again and again": (lambda route: route.bad(429, ""), errors.RateLimited, 5),
    "401": (lambda route: route.bad(401, ""), errors.AuthenticationFailed, 1),
    "403": (lambda route: route.bad(403, ""), errors.AuthenticationFailed, 1),
    "404": (lambda route: route.bad(404, ""), errors.NotFound, 1),
    "400": (lambda route: route.bad(400, ""), errors.BadRequest, 1),
    "500": (lambda route: route.bad(500, ""), errors.Transient, 5),
    "503": (lambda route: route.bad(503, ""), errors.Transient, 5),
    "529": (lambda route: route.bad(529, ""), errors.Transient, 5),
    "dropped in the body": (lambda route: drop_in_body, errors.Transient, 5),
    "truncated JSON": (lambda route: http(b'{"choices": [{"mess'), errors.Malformed, 2),
    "empty body": (lambda route: http(b""), errors.Malformed, 2),
    "HTML with 200": (lambda route: HTML, errors.Malformed, 2),
    "a list": (lambda route: http([1]), errors.Malformed, 2),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault(name: str, route: Route, ask: Ask) -> None:
    act, kind, requests = FAULTS[name]
    llm, server = ask(act(route))
    with pytest.raises(errors.LLMError) as caught:
        llm.complete(ASK)
    assert type(caught.value) is kind
    assert caught.value.attempts == len(server.requests) == requests
    assert CANARY not in f"{caught.value} {caught.value.args} {vars(caught.value)}"


def test_no_answer_in_time(ask: Ask) -> None:
    llm, _ = ask(hang, attempt_timeout=0.4)
    with pytest.raises(errors.Transient, match="attempt_timeout") as caught:
        llm.complete(ASK)
    assert caught.value.attempts == 5


def test_nothing_leaves_a_step(route: Route, ask: Ask) -> None:
    """An outage is data for the optimizer; after it, an answer is used."""
    word = tc.node("no", trainable=True, name="word")

    @tc.bundle
    def say(text: str) -> str:
        """Say it."""
        return text

    llm, server = ask(*[route.bad(500, "")] * 5, route.good('{"reasoning": "r", "word": "yes"}'))
    optimizer = OptoPrime({"word": word}, llm=llm)
    optimizer.backward(say(word), (0.0, "say something else"))
    away = optimizer.step()
    assert (away.status, type(away.error), word.value) == ("empty", errors.Transient, "no")
    assert optimizer.step().status != "empty"
    assert word.value == "yes"
    asked = [request.line.split()[1] for request in server.requests]
    assert asked == [route.path] * 6
