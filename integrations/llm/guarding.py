"""Wrappers that act on single requests: they hold one back, or refuse it, and note what became of it.

Around a GatewayLLM, however deep, they see each request with its retries; around any other LLM, each call.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TypeAlias

from trace_core.integrations.llm.errors import LLMError, Unusable
from trace_core.integrations.llm.gateway import around_attempts
from trace_core.integrations.llm.protocol import Answer, Completion, Contract, Layer, Request, Send, Usage
from trace_core.integrations.llm.wrapping import Call, Exchange, Wrapper


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request.

    Attributes:
        usage, cost: as the server reported them.
        requests: how many were sent; more than one where a call as a whole was watched.
        error: why there is no answer, if there is none.
    """

    usage: Usage = field(default_factory=Usage)
    cost: float | None = None
    requests: int = 1
    error: BaseException | None = None


Guard: TypeAlias = Generator[float | None, Outcome | None, None]
"""Yields seconds to wait, and None once the request may go; is sent the Outcome then, or closed if nothing was sent."""


class Guarded(Wrapper):
    """An LLM whose requests pass a guard. Subclasses write ``_guard``."""

    _waits = False
    """Whether the guard may wait: the first time is then outside of the call, and so of its deadline."""

    def _guard(self, request: Request, whole: bool = False) -> Guard:
        """The guard of one request; ``whole``: of a call, which may ask once more by itself."""
        raise NotImplementedError

    def _around(self, call: Call) -> Exchange:
        if not getattr(self._llm, "sends_requests", False):
            return (yield from self._guarded(call))
        first = _Ticket()
        try:
            if self._waits:
                first.guard = self._guard(_request(call))
                yield from _admitted(first.guard)
            with around_attempts(self._layer(first)):
                completion: Completion = yield call
                return completion
        finally:
            if (unused := first.take()) is not None:
                unused.close()

    def _guarded(self, call: Call) -> Exchange:
        guard = self._guard(_request(call), whole=True)
        try:
            yield from _admitted(guard)
            try:
                completion: Completion = yield call
            except BaseException as error:
                spent = error.completion if isinstance(error, Unusable) else None
                requests = error.attempts if isinstance(error, LLMError) else 1
                usage, cost = (spent.usage, spent.cost) if spent is not None else (Usage(), None)
                _tell(guard, Outcome(usage, cost, requests, error))
                raise
            _tell(guard, Outcome(completion.usage, completion.cost, completion.attempts))
            return completion
        finally:
            guard.close()

    def _layer(self, first: _Ticket) -> Layer:
        def layer(send: Send) -> Send:
            async def guarded(request: Request) -> Answer:
                guard = first.take()
                try:
                    if guard is None:
                        guard = self._guard(request)
                        for pause in _admitted(guard):
                            await self._clock.asleep(pause)
                    try:
                        answer = await send(request)
                    except BaseException as error:
                        _tell(guard, Outcome(error=error))
                        raise
                    _tell(guard, Outcome(answer.usage, answer.cost))
                    return answer
                finally:
                    if guard is not None:
                        guard.close()

            return guarded

        return layer


class _Ticket:
    """A guard that has let a request go before it was made; the first request takes it."""

    def __init__(self) -> None:
        self.guard: Guard | None = None
        self._lock = threading.Lock()

    def take(self) -> Guard | None:
        with self._lock:
            guard, self.guard = self.guard, None
        return guard


def _admitted(guard: Guard) -> Generator[float, None, None]:
    """The pauses until the guard lets the request go."""
    step = next(guard)
    while step is not None:
        yield step
        step = guard.send(None)


def _tell(guard: Guard, outcome: Outcome) -> None:
    try:
        guard.send(outcome)
    except StopIteration:
        return
    raise RuntimeError("a guard went on after its request was done")


def _request(call: Call) -> Request:
    """The request that a call will probably be."""
    contract = Contract(call.schema.__name__, call.schema.model_json_schema()) if call.schema is not None else None
    return Request(call.messages, call.n, call.temperature, call.seed, call.max_tokens, contract)
