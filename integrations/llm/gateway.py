"""The common part of all LLMs that talk to a server: composition, deadlines, samples, blocking and async calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from trace_core.integrations.accounting import accounted
from trace_core.integrations.llm import errors
from trace_core.integrations.llm.conversation import Dialogue, checked_messages, converse
from trace_core.integrations.llm.loop import shared_loop
from trace_core.integrations.llm.protocol import (
    Answer,
    Backend,
    Completion,
    Contract,
    Layer,
    Message,
    Request,
    Send,
    Usage,
)
from trace_core.integrations.llm.retry import RetryPolicy, retrying

if TYPE_CHECKING:
    from typing import Self

    from pydantic import BaseModel


class _Counter:
    """Requests sent during one call. Shared by the tasks of its samples."""

    def __init__(self) -> None:
        self.sent = 0


_counter: ContextVar[_Counter | None] = ContextVar("trace_core_llm_requests", default=None)
_callers_layers: ContextVar[tuple[Layer, ...]] = ContextVar("trace_core_llm_layers", default=())


@contextmanager
def around_attempts(layer: Layer) -> Iterator[None]:
    """Put ``layer`` around each request that calls in this context send, retries included, inside layers given before.

    Wrappers that must see single requests use it; it reaches every GatewayLLM (``sends_requests``) beneath them.
    """
    token = _callers_layers.set((*_callers_layers.get(), layer))
    try:
        yield
    finally:
        _callers_layers.reset(token)


class GatewayLLM:
    """An LLM made of a backend and layers around it. Thread-safe. Satisfies the ``LLM`` protocol.

    One call passes, from outside in: total deadline, the conversation (schema, repair), ``around_call`` layers, the
    accounts of the run (ledger and budget), retries, ``around_attempt`` layers, attempt time-out, backend. A cache or a
    recorder belongs around the call, a rate limit or a meter around the attempt. The first layer of a list is the
    outermost.

    Args:
        backend: the provider's wire format.
        retry: see RetryPolicy.
        deadline: seconds allowed for one call in total: retries, pauses and repairs included.
        attempt_timeout: seconds allowed for one request until its last byte.
        around_call: layers that see each request once.
        around_attempt: layers that see each attempt.
    """

    sends_requests = True
    """Whether ``around_attempts`` reaches it."""

    is_local = False
    """Whether the model runs on this machine: it is small then, and optimizers ask it for less at a time."""

    def __init__(
        self,
        backend: Backend,
        *,
        retry: RetryPolicy | None = None,
        deadline: float = 300.0,
        attempt_timeout: float = 120.0,
        around_call: Sequence[Layer] = (),
        around_attempt: Sequence[Layer] = (),
    ) -> None:
        self.model = backend.model
        self._backend = backend
        self._deadline = deadline
        self._attempt_timeout = attempt_timeout
        send: Send = self._attempt
        accounts = accounted(backend.model, free=self.is_local)
        for layer in [*around_call, accounts, retrying(retry or RetryPolicy()), *around_attempt][::-1]:
            send = layer(send)
        self._send_one = send
        self._one_sample_only = False
        self._unenforced: set[type[BaseModel]] = set()

    # --- the LLM protocol -------------------------------------------------------------------------------------------

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
        """See LLM.complete."""
        request = self._request(messages, n, temperature, seed, max_tokens)
        return shared_loop().run(self._call(request, schema, repair))

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
        """See LLM.complete."""
        request = self._request(messages, n, temperature, seed, max_tokens)
        return await asyncio.wrap_future(shared_loop().submit(self._call(request, schema, repair)))

    def count_tokens(self, text: str) -> int | None:
        """See LLM.count_tokens."""
        return self._backend.count_tokens(text)

    def describe(self) -> str:
        """One line for people: which model, where it runs."""
        return self._backend.describe()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.describe()}>"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        """The same object: a copied workflow goes on using the same connections."""
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} holds a key and open connections and is not pickled: pass its name to the other "
            "process and call resolve_llm(name) there"
        )

    # --- one call ---------------------------------------------------------------------------------------------------

    def _request(
        self,
        messages: Sequence[Message],
        n: int,
        temperature: float | None,
        seed: int | None,
        max_tokens: int | None,
    ) -> Request:
        if n < 1:
            raise errors.BadRequest(f"n: expected at least 1 sample, got {n}")
        if max_tokens is not None and max_tokens < 1:
            raise errors.BadRequest(f"max_tokens: expected at least 1, got {max_tokens}")
        return Request(checked_messages(messages), n, temperature, seed, max_tokens)

    async def _call(self, request: Request, schema: type[BaseModel] | None, repair: bool) -> Completion:
        counter = _Counter()
        _counter.set(counter)
        try:
            await self._backend.prepare()
            started = time.monotonic()
            dialogue = converse(request, schema, self._contract(schema), repair)
            completion = await self._in_time(self._drive(dialogue, schema))
        except errors.LLMError as error:
            error.provider = error.provider or self._backend.provider
            error.model = error.model or self.model
            error.attempts = counter.sent
            raise
        return replace(
            completion,
            model=completion.model or self.model,
            attempts=counter.sent,
            seconds=time.monotonic() - started,
        )

    async def _in_time(self, work: Coroutine[Any, Any, Completion]) -> Completion:
        try:
            async with asyncio.timeout(self._deadline) as clock:
                return await work
        except TimeoutError:
            if not clock.expired():
                raise
        raise errors.Deadline(f"no usable answer within {self._deadline:g} s in total (deadline)")

    def _contract(self, schema: type[BaseModel] | None) -> Contract | None:
        if schema is None or schema in self._unenforced:
            return None
        return self._backend.contract(schema)

    async def _drive(self, dialogue: Dialogue, schema: type[BaseModel] | None) -> Completion:
        """Run the exchange. A schema that this server refused to enforce and then took in words is remembered."""
        refused = False
        try:
            request = next(dialogue)
            while True:
                try:
                    answer = await self._collect(request)
                except errors.LLMError as error:
                    refused = refused or (request.contract is not None and isinstance(error, errors.BadRequest))
                    request = dialogue.throw(error)
                else:
                    if refused and schema is not None and request.contract is None:
                        self._unenforced.add(schema)
                    request = dialogue.send(answer)
        except StopIteration as stop:
            completion: Completion = stop.value
            return completion

    # --- samples ----------------------------------------------------------------------------------------------------

    async def _collect(self, request: Request) -> Answer:
        """An Answer with exactly ``request.n`` samples, from as many requests as the server needs for that."""
        if request.n == 1:
            return await self._send_one(request)
        limit = 1 if self._one_sample_only else self._backend.max_samples()
        if limit is not None and limit < request.n:
            return await self._in_parts(request, 0, limit)
        try:
            answer = await self._send_one(request)
        except errors.BadRequest as refusal:
            if refusal.status not in (400, 422):
                raise
            answer = await self._in_parts(request, 0, 1)  # many servers know only n=1
            self._one_sample_only = True
            return answer
        got = len(answer.samples)
        return answer if got >= request.n else _joined([answer, await self._in_parts(request, got, 1)])

    async def _in_parts(self, request: Request, done: int, limit: int) -> Answer:
        """The samples from number ``done`` on, at most ``limit`` in each request, all requests at once."""
        parts = [
            replace(
                request,
                n=min(limit, request.n - first),
                seed=None if request.seed is None else request.seed + first,
            )
            for first in range(done, request.n, limit)
        ]
        tasks = [asyncio.ensure_future(self._send_one(part)) for part in parts]
        try:
            return _joined(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _attempt(self, request: Request) -> Answer:
        send: Send = self._send
        for layer in reversed(_callers_layers.get()):
            send = layer(send)
        return await send(request)

    async def _send(self, request: Request) -> Answer:
        counter = _counter.get()
        if counter is not None:
            counter.sent += 1
        try:
            async with asyncio.timeout(self._attempt_timeout) as clock:
                return await self._backend.send(request)
        except TimeoutError:
            if not clock.expired():
                raise
        raise errors.Transient(f"no complete answer within {self._attempt_timeout:g} s (attempt_timeout)")


def _joined(answers: Sequence[Answer]) -> Answer:
    usage, cost = Usage(0, 0, 0), 0.0 if all(answer.cost is not None for answer in answers) else None
    for answer in answers:
        usage = usage + answer.usage
        cost = None if cost is None else cost + (answer.cost or 0.0)
    samples = tuple(sample for answer in answers for sample in answer.samples)
    return Answer(samples, usage, cost, answers[0].model)
