"""A thread pool that carries the tracing context."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

R = TypeVar("R")


class ContextThreadPool(ThreadPoolExecutor):
    """A thread pool whose tasks run in a copy of the submitter's context.

    The standard pool starts every task in an empty context: an overlay set with ``using`` would be lost silently.
    """

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """Like ``Executor.submit``; the call sees the context variables of this moment."""
        return super().submit(copy_context().run, fn, *args, **kwargs)
