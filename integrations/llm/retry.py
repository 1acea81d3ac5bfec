"""When a failed request is sent again, and when not. The client libraries' own retries are switched off."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from trace_core.integrations.llm.errors import Deadline, LLMError, Malformed, RateLimited, Transient, WaitTooLong
from trace_core.integrations.llm.protocol import Answer, Layer, Request, Send


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how patiently to retry.

    Attributes:
        transient: retries after server errors, lost connections, time-outs and rate limits.
        malformed: retries after an answer without any usable text.
        first: the first pause, in seconds; it doubles with every retry, and up to as much is added as jitter.
        longest: upper limit of one pause the server did not ask for, in seconds.
        max_wait: longest pause a server may ask for (Retry-After), in seconds; beyond it WaitTooLong is raised at once.
        sleep: how to pause; tests put in one that returns at once.
    """

    transient: int = 4
    malformed: int = 1
    first: float = 0.5
    longest: float = 30.0
    max_wait: float = 60.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    def backoff(self, retry: int) -> float:
        """Pause in seconds before retry number ``retry`` (from 1); jitter keeps callers from returning all at once."""
        return min(self.longest, self.first * 2.0 ** (retry - 1)) + random.uniform(0, self.first)


class _Judge:
    """Decides for one request; counts each kind of failure on its own."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._left = {Transient: policy.transient, Malformed: policy.malformed}

    def again(self, error: BaseException) -> bool:
        if isinstance(error, Deadline):
            return False
        if isinstance(error, LLMError) and error.retry_after is not None and error.retry_after > self._policy.max_wait:
            return False
        for kind in self._left:
            if isinstance(error, kind):
                self._left[kind] -= 1
                return self._left[kind] >= 0
        return False


def retrying(policy: RetryPolicy) -> Layer:
    """The layer that sends again after failures that may pass."""

    def layer(send: Send) -> Send:
        async def send_with_retries(request: Request) -> Answer:
            from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_never

            def pause(state: RetryCallState) -> float:
                error = state.outcome.exception() if state.outcome is not None else None
                asked = error.retry_after if isinstance(error, LLMError) else None
                return max(policy.backoff(state.attempt_number), asked or 0.0)

            retry = AsyncRetrying(
                sleep=policy.sleep,
                stop=stop_never,
                wait=pause,
                retry=retry_if_exception(_Judge(policy).again),
                reraise=True,
            )
            try:
                return await retry(send, request)
            except RateLimited as error:
                asked = error.retry_after
                if asked is None or asked <= policy.max_wait:
                    raise
                too_long = WaitTooLong(
                    f"{error.args[0]}; the server asks to wait {asked:.0f} s, more than max_wait={policy.max_wait:.0f} "
                    "s: go on later, or raise RetryPolicy(max_wait=...)",
                    status=error.status,
                    retry_after=asked,
                )
            raise too_long

        return send_with_retries

    return layer
