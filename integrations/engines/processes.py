"""Rollouts in processes of their own, which are killed with everything they started when their time is up."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, TypeVar

from trace_core.integrations.engines._frames import packed, received, unpacked
from trace_core.integrations.engines.errors import EngineError, RolloutCrash, RolloutTimeout
from trace_core.integrations.engines.threads import check_limits

if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")


class ProcessEngine(Executor):
    """An executor of worker processes, each in a process group of its own. Only data crosses, as JSON; no pickle.

    ``submit`` takes an importable function and arguments that are data (JSON values, tuples, small arrays); so is the
    result. Workers are started by exec, so they share no memory, locks or connections with this process; they have its
    environment and working directory, and keep what they have imported. When a task is over its time the whole group is
    killed with SIGKILL, the future gets RolloutTimeout, and the next task finds a new worker. This keeps hanging
    and crashing workflows from the run; it does not confine them.

    Args:
        workers: processes at most.
        timeout: seconds that one task may run, the start of its worker not counted; None for no limit.
    """

    shares_memory = False

    def __init__(self, workers: int = 2, *, timeout: float | None = None) -> None:
        check_limits(workers, timeout)
        if os.name == "nt":
            raise EngineError("ProcessEngine needs process groups, which Windows does not have: use a ThreadEngine")
        self.workers, self.timeout = workers, timeout
        self._queue: queue.SimpleQueue[tuple[Future[Any], bytes] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._slots: list[_Slot] = []
        self._closed = False

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """See Executor.submit. Raises EngineError for what cannot be imported and arguments that are no data."""
        call = packed({"fn": importable(fn), "args": list(args), "kwargs": kwargs})
        future: Future[R] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._queue.put((future, call))
            if len(self._slots) < self.workers:
                self._slots.append(_Slot(self))
                self._slots[-1].start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See Executor.shutdown. The workers end; without ``wait`` after their present tasks."""
        with self._lock:
            self._closed = True
            if cancel_futures:
                while not self._queue.empty():
                    item = self._queue.get()
                    if item is not None:
                        item[0].cancel()
            for _ in self._slots:
                self._queue.put(None)
        if wait:
            for slot in self._slots:
                slot.join()


class _Slot(threading.Thread):
    """Place for one worker: hands it tasks, kills it, starts the next."""

    def __init__(self, engine: ProcessEngine) -> None:
        super().__init__(name="trace_core-process", daemon=True)
        self._engine = engine
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def run(self) -> None:
        while (item := self._engine._queue.get()) is not None:
            future, call = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = self._ask(call)
            except BaseException as error:  # noqa: BLE001 - carried over to whoever waits
                future.set_exception(error)
            else:
                future.set_result(result)
        self._kill()

    def _ask(self, call: bytes) -> Any:
        connection = self._connection()
        timeout = self._engine.timeout
        due = None if timeout is None else time.monotonic() + timeout
        try:
            connection.sendall(struct.pack("!I", len(call)) + call)
            answer = received(connection, lambda: _readable(connection, due))
        except TimeoutError:
            self._kill()
            raise RolloutTimeout(f"no result within {timeout:g} s (timeout); its processes were killed") from None
        except OSError:
            answer = None
        if answer is None:
            code = self._kill()
            how = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            raise RolloutCrash(f"the process of the rollout ended without an answer ({how})")
        reply = unpacked(answer)
        if "error" in reply:
            raise EngineError(f"in the worker process: {reply['error']}")
        return reply["result"]

    def _connection(self) -> socket.socket:
        """A worker that has said it is ready. Its start is not the task's time."""
        if self._socket is not None and self._process is not None and self._process.poll() is None:
            return self._socket
        self._kill()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trace_core.integrations.engines._worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._socket = ours
        if received(ours, lambda: None) is None:
            self._kill()
            raise EngineError("a worker process could not be started; its messages are on stderr")
        return ours

    def _kill(self) -> int | None:
        """End the worker with its whole group; its exit code."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        process, self._process = self._process, None
        if process is None:
            return None
        code = process.poll()
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is empty already
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return code if code is not None else process.returncode


def _readable(connection: socket.socket, due: float | None) -> None:
    """Wait for bytes; TimeoutError when it is ``due``."""
    wait = None if due is None else max(0.0, due - time.monotonic())
    if not select.select([connection], [], [], wait)[0]:
        raise TimeoutError


def importable(fn: Callable[..., Any]) -> str:
    """``module:name`` of a function. Raises EngineError if it cannot be imported by that."""
    module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", "<object>")
    found: Any = sys.modules.get(module or "")
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not fn or module == "__main__":
        raise EngineError(
            f"a function for another process must be importable, got {module}.{name}: define it at the top of a module "
            "that is not the main program"
        )
    return f"{module}:{name}"
