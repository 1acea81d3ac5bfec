"""Answers that cannot be used: asked for again at most twice, within the budget, then dropped with the reason."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

import trace_core as tc
from trace_core.integrations.llm import OpenAILLM, ScriptedLLM
from trace_core.integrations.llm.errors import Transient
from trace_core.optimizers import OPRO, OptoPrime, TextGrad


class Words(tc.Module):
    def __init__(self) -> None:
        self.prompt = tc.node("short", trainable=True, constraint=tc.Regex("[a-z ]+"))
        self.count = tc.node(3, trainable=True, constraint=tc.Range(1, 9, integer=True))

    @tc.bundle(trainable=True)
    def clip(self, text: str, size: int) -> str:
        """Clip."""
        return text[:size]

    def forward(self, text: str) -> tc.Node:
        return self.clip(self.prompt + text, self.count)


def answer(**fields: Any) -> str:
    return json.dumps({"reasoning": "because", "prompt": None, "count": None, "clip": None, **fields})


BAD = {
    "empty": "",
    "no JSON": "I would rather not.",
    "no fields": "{}",
    "unknown key": answer(code="x = 1"),
    "cut off": '{"reasoning": "because", "prompt": "a very lo',
    "wrong type": answer(count="many"),
    "not finite": answer(count=float("nan")),
    "constraint": answer(count=10),
    "pattern": answer(prompt="NO!"),
    "syntax error": answer(clip="def clip(self, text, size):\n    return text["),
    "changed signature": answer(clip="def clip(self, text):\n    return text"),
    "changed name": answer(clip="def cut(self, text, size):\n    return text"),
    "runs at once": answer(clip="import os\nos.abort()\ndef clip(self, text, size):\n    return text"),
    "a list": "[1, 2]",
    "nested too deeply": "[" * 5000,
    "long": "word " * 20_000,
    "no text": "\x00\x00",
}
GOOD = answer(prompt="long")


class Server:
    """Speaks the chat completions protocol on the loopback address, in its strict form or without schemas."""

    def __init__(self, replies: list[str]) -> None:
        self.requests: list[dict[str, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append(body)
                text = replies[min(len(server.requests), len(replies)) - 1]
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
                usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
                data = json.dumps({"model": body["model"], "choices": [choice], "usage": usage}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


Model = Callable[[list[str]], tuple[Any, Callable[[], int]]]


@pytest.fixture(params=["scripted", "server"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    """Makes a model that gives these answers, and a function that counts the requests."""
    opened: list[Server] = []

    def make(replies: list[str]) -> tuple[Any, Callable[[], int]]:
        if request.param == "scripted":
            llm = ScriptedLLM(replies)
            return llm, lambda: len(llm.calls)
        if "" in replies:
            pytest.skip("where nothing comes, the gateway asks once more by itself")
        server = Server(replies)
        opened.append(server)
        return OpenAILLM("m", base_url=server.url, api_key="none"), lambda: len(server.requests)

    yield make
    for server in opened:
        server.close()


def given_feedback(words: Words, optimizer: OptoPrime) -> None:
    optimizer.zero_feedback()
    optimizer.backward(words(" text"), (0.2, "too short"))


@pytest.mark.parametrize("bad", BAD.values(), ids=list(BAD))
def test_a_bad_answer_is_never_applied_and_dropped_after_two_repairs(model: Model, bad: str) -> None:
    words = Words()
    before = words.state_dict()
    llm, sent = model([bad, bad, bad, GOOD])
    optimizer = OptoPrime(words, llm)
    given_feedback(words, optimizer)
    proposal = optimizer.step()
    assert words.state_dict() == before
    assert (proposal.status, proposal.values, proposal.attempts, sent()) == ("empty", {}, 3, 3)
    assert len(proposal.dropped) == 3
    assert all(item.reason for item in proposal.dropped)
    assert proposal.dropped[-1].reason in proposal.reason
    assert proposal.prompt_tokens
    assert optimizer.step().values == {words.prompt: "long"}


@pytest.mark.parametrize("bad", BAD.values(), ids=list(BAD))
def test_a_repaired_answer_is_applied_and_the_refused_one_on_record(model: Model, bad: str) -> None:
    words = Words()
    llm, sent = model([bad, bad, GOOD])
    optimizer = OptoPrime(words, llm)
    given_feedback(words, optimizer)
    proposal = optimizer.step()
    assert (proposal.status, proposal.attempts, sent()) == ("applied", 3, 3)
    assert words.prompt.value == "long"
    assert len(proposal.dropped) == 2


BROKEN = answer(prompt="long", clip="def clip(self, text, size):\n    return text[")
MENDED = answer(clip="def clip(self, text, size):\n    return text[: size + 1]\n")


def test_what_is_valid_is_kept_while_the_rest_is_asked_for_again() -> None:
    words = Words()
    llm = ScriptedLLM([BROKEN, MENDED])
    optimizer = OptoPrime(words, llm)
    given_feedback(words, optimizer)
    proposal = optimizer.step()
    assert proposal.values.keys() == {words.prompt, words.clip.code}
    assert words(" text").value == "long"
    assert [item.name for item in proposal.dropped] == ["clip"]
    assert "syntax error in line 2" in llm.calls[1].messages[-1]["content"]


def test_a_model_that_fails_during_a_repair_does_not_lose_what_was_valid() -> None:
    words = Words()
    optimizer = OptoPrime(words, ScriptedLLM([BROKEN, Transient("away")]))
    given_feedback(words, optimizer)
    proposal = optimizer.step()
    assert proposal.values == {words.prompt: "long"}
    assert "Transient" in proposal.dropped[-1].reason


def parameters(kind: str) -> tuple[list[tc.Parameter], tc.Node]:
    """Parameters and an output that are hard to describe in few tokens."""
    if kind == "long text":
        text = tc.node("x" * 50_000, trainable=True, name="text")
        return [text], text + "y"
    if kind == "long name":
        number = tc.node(1, trainable=True, name="n" * 3000, description="d" * 50_000)
        return [number], number + 1
    if kind == "many":
        many = [tc.node(float(i), trainable=True, name=f"p{i}", description="a knob " * 9) for i in range(300)]
        return many, tc.bundle(lambda *values: sum(values))(*many)
    if kind == "long rule":
        text = tc.node("a", trainable=True, name="text", constraint=tc.Regex("a|" + "b" * 20_000))
        return [text], text + "y"
    if kind == "array":
        array = tc.node(np.ones((80, 80)), trainable=True, name="array")
        return [array], array @ array
    mapping = tc.node({f"k{i}": [i] * 3 for i in range(3000)}, trainable=True, name="mapping")
    return [mapping], tc.bundle(lambda mapping: len(mapping))(mapping)


@pytest.mark.parametrize("kind", ["long text", "long name", "many", "long rule", "array", "mapping"])
@pytest.mark.parametrize("optimizer_class", [OptoPrime, OPRO, TextGrad])
@pytest.mark.parametrize("focus", [None, 1])
def test_every_request_keeps_to_the_budget_repairs_included(kind: str, optimizer_class: Any, focus: int | None) -> None:
    shown, output = parameters(kind)
    trace = tc.Trace.of(output, (0.1, "bad " * 20_000))
    for budget in (200, 2000):
        replies = iter(list(BAD.values()) * 10_000)
        llm = ScriptedLLM(lambda messages, replies=replies: next(replies))  # type: ignore[misc]
        optimizer = optimizer_class(shown, llm, max_prompt_tokens=budget, focus=focus)
        proposals = [optimizer.propose([trace])[0] for _ in range(2)]
        for call in llm.calls:
            size = sum(optimizer.count(message["content"]) for message in call.messages)
            if call.schema is not None:
                size += optimizer.count(json.dumps(call.schema.model_json_schema(), separators=(",", ":")))
            assert size <= budget
        assert all(proposal.reason for proposal in proposals)
        assert llm.calls or "raise max_prompt_tokens" in proposals[0].reason
        if budget == 2000:
            assert llm.calls
