"""Rollouts as tasks of an event loop: for workflows that are coroutines and wait for language models."""

from __future__ import annotations

import asyncio
import inspect
from concurrent.futures import Executor, Future
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar

from trace_core.integrations.engines.errors import RolloutTimeout
from trace_core.integrations.engines.threads import ThreadEngine, check_limits
from trace_core.integrations.llm.loop import BackgroundLoop

if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")


class AsyncEngine(Executor):
    """An executor whose tasks are coroutines on one event loop in a thread of its own.

    ``submit`` takes a coroutine function; a plain function runs in a thread beside the loop, with the same limit. Tasks
    run in a copy of the submitter's context. A coroutine that is over its time is cancelled where it waits; one that
    does not wait blocks the loop, which no limit can help: that is what processes are for.

    Args:
        limit: tasks at once.
        timeout: seconds that one task may run; None for no limit.
    """

    shares_memory = True

    def __init__(self, limit: int = 64, *, timeout: float | None = None) -> None:
        check_limits(limit, timeout)
        self.limit, self.timeout = limit, timeout
        self._loop = BackgroundLoop()
        self._free = asyncio.Semaphore(limit)
        self._threads = ThreadEngine(limit, timeout=timeout)
        self._open: set[Future[Any]] = set()
        self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See Executor.submit; the future has what the coroutine returns."""
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if not inspect.iscoroutinefunction(fn):
            return self._threads.submit(fn, *args, **kwargs)
        future = copy_context().run(self._loop.submit, self._limited(fn, args, kwargs))
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        return future

    async def _limited(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        async with self._free:
            try:
                async with asyncio.timeout(self.timeout) as clock:
                    return await fn(*args, **kwargs)
            except TimeoutError:
                if not clock.expired():
                    raise
        raise RolloutTimeout(f"no result within {self.timeout:g} s (timeout)")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See Executor.shutdown."""
        from concurrent.futures import wait as wait_for

        self._closed = True
        if cancel_futures:
            for future in list(self._open):
                future.cancel()
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        if wait:
            wait_for(list(self._open))
            self._loop.loop.call_soon_threadsafe(self._loop.loop.stop)
