"""What belongs to one run of a study: its limits, and what its threads say."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any

from trace_core.errors import TraceCoreError

if TYPE_CHECKING:
    from trace_core.optimizers.search.ticket import Work


class Limits:
    """When a run ends: ``steps`` tickets, ``seconds``; evaluations to keep back for the test examples."""

    def __init__(self, steps: int | None, seconds: float | None, kept_back: int) -> None:
        self.steps, self.seconds, self.kept_back = steps, seconds, kept_back


class Session:
    """What belongs to one call of ``go``: threads that outlive it after an interrupt disturb no later one."""

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.done: dict[int, Work] = {}
        self.working: set[int] = set()
        self.closing = False


class Closing(TraceCoreError):
    """The run is over: work in flight goes no further."""
