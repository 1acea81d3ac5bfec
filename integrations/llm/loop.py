"""One event loop in a background thread, on which all requests run.

So a blocking call works where a loop is already running (notebooks), from any number of threads, and one pool of
connections serves them all. The caller's context variables are seen by the coroutine.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any, TypeVar, cast

from trace_core.integrations.llm.errors import LLMError

T = TypeVar("T")


class BackgroundLoop:
    """An event loop that runs in a daemon thread from its creation to the end of the process."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="trace_core-llm", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start ``work`` in a copy of the caller's context. Cancelling the future cancels the work."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` and wait for it. An interrupt (Ctrl-C) of the waiting thread cancels it."""
        if threading.current_thread() is self._thread:
            work.close()
            raise LLMError("complete() was called from code that serves LLM calls itself: use acomplete() there")
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """Run blocking ``work`` beside the loop. Unlike a pool's thread, it does not hold up the end of the program."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if outcome.done():  # the waiting call was cancelled
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(cast(T, result))

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - carried over to the waiting coroutine, which raises it
            loop.call_soon_threadsafe(deliver, None, error)
        else:
            loop.call_soon_threadsafe(deliver, result, None)

    threading.Thread(target=copy_context().run, args=(run,), name="trace_core-llm-work", daemon=True).start()
    return await outcome


_lock = threading.Lock()
_shared: BackgroundLoop | None = None


def shared_loop() -> BackgroundLoop:
    """The loop of this process."""
    global _shared
    with _lock:
        if _shared is None:
            _shared = BackgroundLoop()
        return _shared


def _forget() -> None:
    """A forked child has the object but not the thread: it makes its own."""
    global _lock, _shared
    _lock = threading.Lock()
    _shared = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
