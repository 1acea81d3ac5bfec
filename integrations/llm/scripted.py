"""An LLM that answers from a script: for tests and examples without network and without chance."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from trace_core.integrations.accounting import enter
from trace_core.integrations.llm import errors
from trace_core.integrations.llm.conversation import checked_messages, converse
from trace_core.integrations.llm.parsing import clean_text
from trace_core.integrations.llm.protocol import Answer, Completion, Contract, Message, Request, Sample, Usage

if TYPE_CHECKING:
    from pydantic import BaseModel

    Reply: TypeAlias = "str | Mapping[str, object] | BaseModel | Sample | BaseException | type[BaseException]"
    Script: TypeAlias = "Callable[[list[Message]], Reply] | Sequence[Reply] | Mapping[str, Reply | Sequence[Reply]]"

_UNTRANSLATED = Contract("scripted", {})  # so that the script sees the caller's own messages, without added words


@dataclass(frozen=True, slots=True)
class ScriptedCall:
    """One request as the script saw it. A repair is a request of its own."""

    messages: list[Message]
    schema: type[BaseModel] | None
    n: int
    temperature: float | None
    seed: int | None
    max_tokens: int | None

    @property
    def prompt(self) -> str:
        """All contents, joined by blank lines."""
        return "\n\n".join(message["content"] for message in self.messages)


class ScriptedLLM:
    """Answers from a function, a list or a dict. Thread-safe. Satisfies the ``LLM`` protocol.

    A reply is a text, a dict or pydantic object (sent as JSON), a ``Sample`` (text and finish reason), or an exception
    (class or object), which is raised. Schemas are parsed and repaired as for a real model; nothing is retried.

    Args:
        responses: a function of the messages; or replies given one after the other; or a dict from a piece of text to
            the reply (or list of replies) for prompts that contain it, where "" fits every prompt. One text alone
            answers every request.
        usage: tokens reported for each request; None = estimated from the texts.
        cost: US dollars reported for each request.
        latency: seconds each request takes.
        model: name of the model.

    Attributes:
        calls: every request, in order of arrival.
    """

    def __init__(
        self,
        responses: Script,
        *,
        usage: Usage | None = None,
        cost: float | None = 0.0,
        latency: float = 0.0,
        model: str = "scripted",
    ) -> None:
        self.model = model
        self.calls: list[ScriptedCall] = []
        self._usage = usage
        self._cost = cost
        self._latency = latency
        self._lock = threading.Lock()
        self._reply = _reader(responses, self._lock)

    def complete(
        self,
        messages: Sequence[Message],
        *,
        schema: type[BaseModel] | None = None,
        n: int = 1,
        temperature: float | None = None,
        seed: int | None = None,
        max_tokens: int | None = None,
        repair: bool = True,
    ) -> Completion:
        """See LLM.complete. The script runs in the calling thread."""
        turns = self._turns(messages, schema, n, temperature, seed, max_tokens, repair)
        try:
            while True:
                next(turns)
                if self._latency > 0:
                    time.sleep(self._latency)
        except StopIteration as stop:
            completion: Completion = stop.value
            return completion

    async def acomplete(
        self,
        messages: Sequence[Message],
        *,
        schema: type[BaseModel] | None = None,
        n: int = 1,
        temperature: float | None = None,
        seed: int | None = None,
        max_tokens: int | None = None,
        repair: bool = True,
    ) -> Completion:
        """See LLM.complete. The script runs in the calling task; only the latency is waited for."""
        turns = self._turns(messages, schema, n, temperature, seed, max_tokens, repair)
        try:
            while True:
                next(turns)
                await asyncio.sleep(self._latency)
        except StopIteration as stop:
            completion: Completion = stop.value
            return completion

    def count_tokens(self, text: str) -> int | None:
        """A plain estimate: one token for four characters."""
        return _estimate(text)

    def describe(self) -> str:
        """One line for people."""
        return f"scripted answers ({self.model})"

    def __repr__(self) -> str:
        return f"<ScriptedLLM {self.model}, {len(self.calls)} calls>"

    def _turns(
        self,
        messages: Sequence[Message],
        schema: type[BaseModel] | None,
        n: int,
        temperature: float | None,
        seed: int | None,
        max_tokens: int | None,
        repair: bool,
    ) -> Generator[None, None, Completion]:
        """The exchange; it yields once before each request, for the driver to wait the latency."""
        started, attempts = time.monotonic(), 0
        try:
            request = Request(checked_messages(messages), n, temperature, seed, max_tokens)
            dialogue = converse(request, schema, _UNTRANSLATED, repair)
            request = next(dialogue)
            while True:
                try:
                    entry = enter(request, self.model, usd=self._cost)
                    if entry is not None and entry.answer is not None:
                        answer = entry.answer
                    else:
                        attempts += 1
                        with entry or nullcontext():
                            yield
                            answer = self._answer(request if entry is None else entry.request, schema)
                            if entry is not None:
                                entry.settle(answer)
                except errors.LLMError as error:
                    request = dialogue.throw(error)
                else:
                    request = dialogue.send(answer)
        except StopIteration as stop:
            completion: Completion = stop.value
            return replace(completion, model=self.model, attempts=attempts, seconds=time.monotonic() - started)
        except errors.LLMError as error:
            error.provider, error.model = error.provider or "scripted", error.model or self.model
            error.attempts = error.attempts or attempts
            raise

    def _answer(self, request: Request, schema: type[BaseModel] | None) -> Answer:
        messages: list[Message] = [{"role": m["role"], "content": m["content"]} for m in request.messages]
        call = ScriptedCall(messages, schema, request.n, request.temperature, request.seed, request.max_tokens)
        with self._lock:
            self.calls.append(call)
        samples = tuple(_sample(self._reply(messages)) for _ in range(request.n))
        usage = self._usage
        if usage is None:
            usage = Usage(_estimate(call.prompt), sum(_estimate(sample.text) for sample in samples), 0)
        return Answer(samples, usage, self._cost, self.model)


def _estimate(text: str) -> int:
    return -(-len(text) // 4)


def _sample(reply: Reply) -> Sample:
    """The reply as a generated text, or raised."""
    if isinstance(reply, BaseException) or (isinstance(reply, type) and issubclass(reply, BaseException)):
        raise reply
    if isinstance(reply, Sample):
        return Sample(clean_text(reply.text), reply.finish_reason)
    if isinstance(reply, str):
        return Sample(clean_text(reply))
    if isinstance(reply, Mapping):
        return Sample(json.dumps(reply))
    if hasattr(reply, "model_dump_json"):
        return Sample(reply.model_dump_json())
    raise errors.ScriptError(
        "a scripted reply is a str, dict, pydantic object, Sample or exception; "
        f"the script gave {type(reply).__name__}: {reply!r:.80}"
    )


def _reader(responses: Script, lock: threading.Lock) -> Callable[[list[Message]], Reply]:
    """The script as a function of the messages."""
    if isinstance(responses, str):
        return lambda messages: responses
    if isinstance(responses, Mapping):
        return _by_prompt(responses, lock)
    if isinstance(responses, Sequence):
        return _in_order(responses, "the script", lock)
    if callable(responses):
        return responses
    raise errors.ScriptError(
        f"responses: expected a function, a list, a dict or a str, got {type(responses).__name__}", provider="scripted"
    )


def _in_order(replies: Sequence[Reply], name: str, lock: threading.Lock) -> Callable[[list[Message]], Reply]:
    rest: Iterator[Reply] = iter(list(replies))
    total = len(replies)

    def reply(messages: list[Message]) -> Reply:
        with lock:
            for following in rest:
                return following
        raise errors.ScriptError(f"{name} has {total} replies and all are used up: add more, or give a function")

    return reply


def _by_prompt(
    replies: Mapping[str, Reply | Sequence[Reply]], lock: threading.Lock
) -> Callable[[list[Message]], Reply]:
    def constant(value: Reply) -> Callable[[list[Message]], Reply]:
        return lambda messages: value

    table: dict[str, Callable[[list[Message]], Reply]] = {}
    for key, value in replies.items():
        if isinstance(value, Sequence) and not isinstance(value, str):
            table[key] = _in_order(value, f"the list for {key!r}", lock)
        else:
            table[key] = constant(value)

    def reply(messages: list[Message]) -> Reply:
        prompt = "\n\n".join(message["content"] for message in messages)
        for key, answer in table.items():
            if key in prompt:
                return answer(messages)
        raise errors.ScriptError(
            f"no key of the script occurs in the prompt; keys: {list(table)}; prompt: {prompt[:200]!r}"
        )

    return reply
