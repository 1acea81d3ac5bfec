"""Limits for requests and tokens per minute on this side of the wire, so that a server's own are seldom met.

The window slides: in no 60 seconds are more admitted than allowed. A refusal (HTTP 429) makes everybody wait as long as
the server asks, and lowers the limits for a while; each quiet minute raises them again.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from trace_core.integrations.llm.errors import BadRequest, RateLimited, WaitTooLong
from trace_core.integrations.llm.guarding import Guard, Guarded

if TYPE_CHECKING:
    from trace_core.integrations.llm.protocol import LLM, Request
    from trace_core.integrations.llm.wrapping import Clock

WINDOW = 60.0
_ENOUGH = 10  # requests in the window from which a limit is learned
_SLOWER, _FASTER = 0.5, 1.25
_UNLIMITED_AFTER = 100.0  # a learned limit that has grown so many times is none any more


class Slot:
    """A place in the stream of requests: not before ``at`` (seconds of the clock)."""

    __slots__ = ("at", "tokens")

    def __init__(self, at: float, tokens: int) -> None:
        self.at, self.tokens = at, tokens


class RateLimiter:
    """Gives requests their times. Thread-safe; one object may serve several models that share an account.

    Args:
        requests_per_minute: at most so many; None = no limit until the server refuses one.
        tokens_per_minute: prompt and answer tokens together; None = no limit. A request that is larger goes alone.
        max_wait: a pause that a server asks for is waited for up to so many seconds.
        now: the clock, in seconds.
    """

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        *,
        max_wait: float = 60.0,
        now: Callable[[], float] | None = None,
    ) -> None:
        import time

        for name, limit in (("requests_per_minute", requests_per_minute), ("tokens_per_minute", tokens_per_minute)):
            if limit is not None and not (math.isfinite(limit) and limit > 0):
                raise BadRequest(f"{name}: expected a number above 0 or None, got {limit!r}")
        self.requests_per_minute, self.tokens_per_minute = requests_per_minute, tokens_per_minute
        self.max_wait = max_wait
        self.now = now or time.monotonic
        self._lock = threading.Lock()
        self._slots: deque[Slot] = deque()
        self._blocked_until = -math.inf
        self._share = 1.0  # of the limits that is in force
        self._learned: float | None = None  # requests per minute, where no limit was given and the server refused
        self._first_learned = 1.0
        self._changed = -math.inf

    def reserve(self, tokens: int) -> Slot:
        """The next place for a request of about ``tokens`` tokens. Raises WaitTooLong while a long block lasts."""
        with self._lock:
            now = self.now()
            self._recover(now)
            self._check(now)
            while self._slots and self._slots[0].at <= now - WINDOW:
                self._slots.popleft()
            slot = Slot(self._earliest(now, tokens), tokens)
            self._slots.append(slot)
            return slot

    def pause(self, slot: Slot) -> float:
        """Seconds until the request may go. Ask again after waiting: the server may have blocked meanwhile."""
        with self._lock:
            now = self.now()
            self._check(now)
            return max(0.0, max(slot.at, self._blocked_until) - now)

    def settle(self, slot: Slot, tokens: int | None, requests: int = 1) -> None:
        """Put what a request really took in place of its estimate."""
        with self._lock:
            if tokens is not None:
                slot.tokens = tokens
            for _ in range(1, requests):
                self._slots.append(Slot(max(self.now(), self._slots[-1].at if self._slots else slot.at), 0))

    def release(self, slot: Slot) -> None:
        """Give a place back that was not used."""
        with self._lock:
            if slot in self._slots:
                self._slots.remove(slot)

    def refused(self, slot: Slot, retry_after: float | None) -> None:
        """The server answered this request with "too many": everybody waits, and the limits are halved."""
        with self._lock:
            now = self.now()
            self._blocked_until = max(self._blocked_until, now + (retry_after or 0.0))
            if slot.at < self._changed:
                return  # it was under way before the limits were lowered
            if self.requests_per_minute is None and self._learned is None:
                recent = sum(s.at > now - WINDOW for s in self._slots)
                if recent < _ENOUGH:  # so few tell nothing of a rate
                    return
                self._learned = self._first_learned = float(recent)
            self._share = max(0.01, self._share * _SLOWER)
            self._changed = now

    @property
    def current(self) -> tuple[float | None, float | None]:
        """Requests and tokens per minute that are allowed now; None = no limit."""
        with self._lock:
            self._recover(self.now())
            return self._limits()

    def _limits(self) -> tuple[float | None, float | None]:
        requests = self.requests_per_minute if self.requests_per_minute is not None else self._learned
        return (
            None if requests is None else max(1.0, requests * self._share),
            None if self.tokens_per_minute is None else self.tokens_per_minute * self._share,
        )

    def _recover(self, now: float) -> None:
        while now - self._changed >= WINDOW and (self._share < 1.0 or self._learned is not None):
            self._changed += WINDOW
            if self._share < 1.0:
                self._share = min(1.0, self._share * _FASTER)
            elif self._learned is not None:
                self._learned *= _FASTER
                if self._learned > _UNLIMITED_AFTER * self._first_learned:
                    self._learned = None

    def _check(self, now: float) -> None:
        wait = self._blocked_until - now
        if wait > self.max_wait:
            raise WaitTooLong(
                f"the server asked to wait, and {wait:.0f} s are left, more than max_wait={self.max_wait:.0f} s: "
                "go on later",
                retry_after=wait,
            )

    def _earliest(self, now: float, tokens: int) -> float:
        requests_limit, tokens_limit = self._limits()
        at = max(now, self._blocked_until, self._slots[-1].at if self._slots else -math.inf)
        count, total = len(self._slots), sum(slot.tokens for slot in self._slots)
        for slot in self._slots:  # oldest first: each that leaves the window makes room
            if slot.at > at - WINDOW:
                enough = requests_limit is None or count + 1 <= requests_limit
                if enough and (tokens_limit is None or total + tokens <= tokens_limit):
                    break
                at = slot.at + WINDOW
            count, total = count - 1, total - slot.tokens
        return at


class Limited(Guarded):
    """An LLM whose requests keep to limits per minute. See RateLimiter.

    Around a GatewayLLM, retries count and a refusal of one request slows all of them; around any other LLM, calls do.

    Args:
        llm: a model by name or object.
        requests_per_minute, tokens_per_minute, max_wait: see RateLimiter.
        limiter: one to share among several models, instead of the three.
    """

    _waits = True

    def __init__(
        self,
        llm: LLM | str,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        max_wait: float = 60.0,
        limiter: RateLimiter | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(llm, clock=clock)
        self.limiter = limiter or RateLimiter(
            requests_per_minute, tokens_per_minute, max_wait=max_wait, now=self._clock.now
        )

    def _guard(self, request: Request, whole: bool = False) -> Guard:
        from trace_core.integrations.accounting import estimate_of

        limiter = self.limiter
        slot = limiter.reserve(estimate_of(request, self.model, 0.0, lambda model: None).tokens)
        sent = False
        try:
            while (pause := limiter.pause(slot)) > 0:
                yield pause
            outcome = yield None
            sent = True
        finally:
            if not sent:
                limiter.release(slot)
        if outcome is None:
            return
        if isinstance(outcome.error, RateLimited):
            limiter.refused(slot, outcome.error.retry_after)
        used = (outcome.usage.prompt_tokens, outcome.usage.completion_tokens)
        known = [count for count in used if count is not None]
        limiter.settle(slot, sum(known) if len(known) == len(used) else None, outcome.requests)
