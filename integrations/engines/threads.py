"""Rollouts in threads that carry the context, with a limit of time that never blocks the run."""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
import time
import warnings
from concurrent.futures import Executor, Future
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar

from trace_core.integrations.engines.errors import AbandonedWarning, EngineError, RolloutTimeout

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

R = TypeVar("R")


class _Task:
    """A call on its way. ``settle`` lets exactly one of worker and watchdog have the last word."""

    __slots__ = ("_lock", "_settled", "call", "context", "future", "worker")

    def __init__(self, future: Future[Any], context: Context, call: Callable[[], Any]) -> None:
        self.future, self.context, self.call = future, context, call
        self.worker: _Worker | None = None
        self._lock = threading.Lock()
        self._settled = False

    def settle(self) -> bool:
        with self._lock:
            first, self._settled = not self._settled, True
            return first


class ThreadEngine(Executor):
    """An executor of daemon threads. Tasks run in a copy of the submitter's context, so candidates of ``using`` hold.

    Threads cannot be killed. A task that is over its time is abandoned: its future gets RolloutTimeout, an
    AbandonedWarning is issued, another thread takes the place of its own, and neither ``shutdown`` nor the end of the
    program waits for it. To end the work itself use a ProcessEngine.

    Args:
        workers: threads at most.
        timeout: seconds that one task may run, waiting in the queue not counted; None for no limit.
    """

    shares_memory = True

    def __init__(self, workers: int = 8, *, timeout: float | None = None) -> None:
        check_limits(workers, timeout)
        self.workers, self.timeout = workers, timeout
        self._queue: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: set[_Worker] = set()
        self._idle = threading.Semaphore(0)
        self._closed = False
        self._watchdog = _Watchdog(self) if timeout is not None else None

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """See Executor.submit."""
        future: Future[R] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._queue.put(_Task(future, copy_context(), lambda: fn(*args, **kwargs)))
            if not self._idle.acquire(blocking=False) and len(self._threads) < self.workers:
                self._start()
        return future

    def _start(self) -> None:
        worker = _Worker(self)
        self._threads.add(worker)
        worker.start()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See Executor.shutdown. Abandoned tasks are not waited for."""
        with self._lock:
            self._closed = True
            if cancel_futures:
                while not self._queue.empty():
                    task = self._queue.get()
                    if task is not None:
                        task.future.cancel()
            running = list(self._threads)
            for _ in running:
                self._queue.put(None)
        if wait:
            for worker in running:
                worker.ended.wait()
        if self._watchdog is not None:
            self._watchdog.stop()

    def _abandon(self, task: _Task) -> None:
        """The time of a task is up."""
        if not task.settle():
            return
        with self._lock:
            worker = task.worker
            if worker is not None:
                worker.abandoned = True
                self._threads.discard(worker)
                worker.ended.set()
                if not self._closed or not self._queue.empty():
                    self._start()
        task.future.set_exception(RolloutTimeout(f"no result within {self.timeout:g} s (timeout)"))
        warnings.warn(
            f"a rollout ran longer than {self.timeout:g} s and was abandoned: its thread goes on in the background. "
            "A ProcessEngine ends the work",
            AbandonedWarning,
            stacklevel=2,
        )


class _Worker(threading.Thread):
    def __init__(self, engine: ThreadEngine) -> None:
        super().__init__(name="trace_core-rollout", daemon=True)
        self._engine = engine
        self.abandoned = False
        self.ended = threading.Event()

    def run(self) -> None:
        engine = self._engine
        while not self.abandoned:
            try:
                task = engine._queue.get_nowait()
            except queue.Empty:
                engine._idle.release()
                task = engine._queue.get()
            if task is None:
                break
            if task.future.set_running_or_notify_cancel():
                self._do(task)
            del task  # the result is not to live on in an idle thread
        with engine._lock:
            engine._threads.discard(self)
        self.ended.set()

    def _do(self, task: _Task) -> None:
        task.worker = self
        if self._engine._watchdog is not None:
            self._engine._watchdog.watch(task)
        try:
            result = task.context.run(task.call)
        except BaseException as error:  # noqa: BLE001 - carried over to whoever waits
            if task.settle():
                task.future.set_exception(error)
        else:
            if task.settle():
                task.future.set_result(result)


class _Watchdog(threading.Thread):
    """Knows when each running task is over its time."""

    def __init__(self, engine: ThreadEngine) -> None:
        super().__init__(name="trace_core-watchdog", daemon=True)
        self._engine = engine
        self._due: list[tuple[float, int, _Task]] = []
        self._count = itertools.count()
        self._changed = threading.Condition()
        self._stopped = False

    def watch(self, task: _Task) -> None:
        with self._changed:
            if not self.is_alive() and not self._stopped:
                self.start()
            due = time.monotonic() + (self._engine.timeout or 0.0)
            heapq.heappush(self._due, (due, next(self._count), task))
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def run(self) -> None:
        while True:
            with self._changed:
                while self._due and self._due[0][2].future.done():
                    heapq.heappop(self._due)
                if self._stopped and not self._due:
                    return
                wait = None if not self._due else self._due[0][0] - time.monotonic()
                if wait is None or wait > 0:
                    self._changed.wait(wait)
                    continue
                task = heapq.heappop(self._due)[2]
            self._engine._abandon(task)


def check_limits(workers: int, timeout: float | None) -> None:
    """Raise EngineError for what is no number of workers or seconds."""
    if workers < 1:
        raise EngineError(f"workers must be at least 1, got {workers}")
    if timeout is not None and not timeout > 0:
        raise EngineError(f"timeout must be more than 0 seconds, got {timeout}; leave it out for no limit")
