"""Counting calls, tokens and cost of a language model."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trace_core.integrations.llm.protocol import LLM, Completion


class Metered:
    """An LLM that counts what another LLM does. Safe from many threads at once.

    Attributes:
        calls: completed calls; ``failed`` those that raised.
        prompt_tokens, completion_tokens: sums of what the servers reported.
        cost: US dollars; None once a call's cost was unknown.
    """

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._lock = Lock()
        self.model = llm.model
        self.calls = self.failed = self.prompt_tokens = self.completion_tokens = 0
        self.cost: float | None = 0.0

    def complete(self, messages: Any, **options: Any) -> Completion:
        """See LLM.complete."""
        try:
            return self._count(self._llm.complete(messages, **options))
        except Exception as error:
            self._count_failure(error)
            raise

    async def acomplete(self, messages: Any, **options: Any) -> Completion:
        """See LLM.acomplete."""
        try:
            return self._count(await self._llm.acomplete(messages, **options))
        except Exception as error:
            self._count_failure(error)
            raise

    def _count(self, completion: Completion) -> Completion:
        with self._lock:
            self.calls += 1
            self._add(completion)
        return completion

    def _count_failure(self, error: Exception) -> None:
        with self._lock:
            self.failed += 1
            completion = getattr(error, "completion", None)
            if completion is not None:  # an answer that did not fit was paid for, too
                self._add(completion)

    def _add(self, completion: Completion) -> None:
        self.prompt_tokens += completion.usage.prompt_tokens or 0
        self.completion_tokens += completion.usage.completion_tokens or 0
        self.cost = None if self.cost is None or completion.cost is None else self.cost + completion.cost

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.completion_tokens

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._llm, name)
