"""Answers that are kept: the same request is paid for once."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from trace_core.integrations.llm.canonical import describe_call, digest, pack, unpack
from trace_core.integrations.llm.protocol import Completion, Usage
from trace_core.integrations.llm.wrapping import Call, Exchange, Wrapper

if TYPE_CHECKING:
    from trace_core.integrations.llm.protocol import LLM


class ResponseStore(Protocol):
    """Where answers are kept: a Ledger, or anything else with these two methods. Thread-safe."""

    def get_response(self, key: str) -> str | None:
        """What was put under ``key``, or None."""
        ...

    def put_response(self, key: str, value: str) -> None:
        """Keep ``value`` under ``key``; an older one is replaced."""
        ...


class _Rollout:
    def __init__(self, name: str) -> None:
        self.name = name
        self._seen: dict[str, int] = {}
        self._lock = threading.Lock()

    def number(self, key: str) -> int:
        """How many equal requests there were before in this rollout."""
        with self._lock:
            number = self._seen[key] = self._seen.get(key, -1) + 1
        return number


_rollout: ContextVar[_Rollout | None] = ContextVar("trace_core_llm_rollout", default=None)


@contextmanager
def rollout(name: str | int) -> Iterator[None]:
    """Requests inside get answers of their own: those kept outside, or under another name, are not used.

    So a workflow can be sampled several times in spite of a cache, and each sample again be repeated: equal requests in
    one rollout are told apart by their number, and the same name gives the same answers. Rollouts may be nested.
    """
    outer = _rollout.get()
    token = _rollout.set(_Rollout(str(name) if outer is None else f"{outer.name}/{name}"))
    try:
        yield
    finally:
        _rollout.reset(token)


class Cached(Wrapper):
    """An LLM that asks each request once and keeps the answer.

    What is kept is a whole completion, after retries and repairs; failures are not. A kept answer has no tokens, no
    cost, and ``attempts == 0``. The key is the request (model, messages, schema, n, temperature, seed, max_tokens) with
    the ``rollout`` it is made in: without one, equal requests get equal answers, at any temperature.

    Args:
        llm: a model by name or object.
        store: where answers are kept.

    Attributes:
        hits, misses: calls answered from the store, and those that were not.
    """

    def __init__(self, llm: LLM | str, store: ResponseStore) -> None:
        super().__init__(llm)
        self._store = store
        self._lock = threading.Lock()
        self.hits = self.misses = 0

    def _around(self, call: Call) -> Exchange:
        key = self._key(call)
        kept = self._read(key, call)
        with self._lock:
            self.hits += kept is not None
            self.misses += kept is None
        if kept is not None:
            return kept
        completion: Completion = yield call
        self._store.put_response(key, json.dumps(pack(completion)))
        return completion

    def _key(self, call: Call) -> str:
        key = digest(describe_call(call, self.model))
        here = _rollout.get()
        return key if here is None else digest([key, here.name, here.number(key)])

    def _read(self, key: str, call: Call) -> Completion | None:
        text = self._store.get_response(key)
        if text is None:
            return None
        try:
            kept = unpack(json.loads(text), call.schema)
        except (ValueError, KeyError, TypeError, IndexError):
            return None  # of another version of the library: asked anew, and replaced
        if call.schema is not None and kept.parsed is None:
            return None
        return replace(kept, usage=Usage(0, 0, 0), cost=0.0, attempts=0)
