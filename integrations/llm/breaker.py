"""A circuit breaker: after several failed calls in a row nothing is sent for a while, then one call tries."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from trace_core.integrations.llm.errors import BadRequest, CircuitOpen, LLMError, Transient
from trace_core.integrations.llm.wrapping import Call, Clock, Exchange, Wrapper

if TYPE_CHECKING:
    from trace_core.integrations.llm.protocol import LLM, Completion

_log = logging.getLogger(__name__)


class CircuitBreaker(Wrapper):
    """An LLM that fails at once, with CircuitOpen and without a request, while its server is away.

    Only transient errors count (the server failed, lost connections, time-outs, limits), each after its retries: an
    answer that is refused or of no use shows that the server is there, and so does an error of the request itself.

    Args:
        llm: a model by name or object.
        failures: so many in a row open the circuit.
        cooldown: seconds until one call may try; doubled by each try that fails.
        longest: upper limit of it, in seconds.

    Attributes:
        state: ``closed`` (calls go through), ``open``, or ``trying`` (one call is under way to find out).
    """

    def __init__(
        self,
        llm: LLM | str,
        *,
        failures: int = 5,
        cooldown: float = 30.0,
        longest: float = 600.0,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(llm, clock=clock)
        if failures < 1 or not cooldown > 0:
            raise BadRequest(f"failures must be from 1 and cooldown above 0, got {failures} and {cooldown:g}")
        self._limit, self._cooldown, self._longest = failures, cooldown, longest
        self._lock = threading.Lock()
        self._failed = 0
        self._pause = cooldown
        self._until = 0.0
        self.state = "closed"

    def _around(self, call: Call) -> Exchange:
        trying = self._enter()
        try:
            completion: Completion = yield call
        except Transient as error:
            self._failure(error, trying)
            raise
        except LLMError:
            self._success()
            raise
        except BaseException:  # interrupted, or never sent: nothing was learned
            if trying:
                with self._lock:
                    self.state = "open"
            raise
        self._success()
        return completion

    def _enter(self) -> bool:
        with self._lock:
            if self.state == "closed":
                return False
            left = self._until - self._clock.now()
            if self.state == "open" and left <= 0:
                self.state = "trying"
                return True
            when = f"in {left:.0f} s" if left > 0 else "when the call that tries now is done"
            raise CircuitOpen(
                f"not sent: {self._failed} calls in a row have failed; the next one goes through {when}",
                model=self.model,
                retry_after=max(0.0, left),
            )

    def _failure(self, error: Transient, trying: bool) -> None:
        with self._lock:
            self._failed += 1
            if trying:
                self._pause = min(self._longest, 2 * self._pause)
            elif self.state != "closed" or self._failed < self._limit:
                return
            self.state = "open"
            self._until = self._clock.now() + max(self._pause, error.retry_after or 0.0)
        _log.warning("%s: %d calls in a row failed; nothing is sent for %.0f s", self.model, self._failed, self._pause)

    def _success(self) -> None:
        with self._lock:
            self._failed, self._pause, self.state = 0, self._cooldown, "closed"
