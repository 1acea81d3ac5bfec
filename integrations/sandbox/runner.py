"""``ProcessRunner``: proposed code in a child process, as data in and data out."""

from __future__ import annotations

import os
import threading
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from trace_core.errors import CandidateError, RunnerError
from trace_core.integrations.sandbox import codec
from trace_core.integrations.sandbox.launch import Settings, Transcript
from trace_core.integrations.sandbox.report import Outcome, Reporter
from trace_core.integrations.sandbox.request import Request, pack_request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from trace_core.integrations.sandbox.launch import Jail
    from trace_core.integrations.sandbox.zygote import Zygote

MEBIBYTE = 1024 * 1024
_ATTEMPTS = 3  # to hand a call to a worker that turns out to be gone


class Code(Protocol):
    """Source text of a function, with what is needed to call it."""

    @property
    def source(self) -> str:
        """The function, with its own helpers and imports beside it."""
        ...

    @property
    def name(self) -> str:
        """The function to call."""
        ...

    @property
    def filename(self) -> str:
        """How its frames are labelled, such as ``<code plan v3>``."""
        ...

    @property
    def is_async(self) -> bool:
        """Whether it is ``async def``."""
        ...


class ProcessRunner:
    """Runs proposed code in a process of its own: one fork of a clean worker per call.

    Whatever the code does - loops, crashes, eats memory, prints without end, starts processes - ends as a
    CandidateError of that call; this process and the next call are not touched. NOT a security boundary: the code is
    the same user, with the same files and network, and can import what this interpreter can.

    Arguments, context and results cross as copies of plain data (no pickle): what the code changes in them is not seen
    here. Functions and classes of the user's own cross by their source, those of installed packages by import; other
    objects as attribute bags.

    Safe for use from many threads at once and after ``os.fork``. The worker starts with the first call and leaves with
    this object, or with this process.

    Args:
        timeout: seconds of wall-clock time per call; per example for ``call_many``.
        memory_mb: MiB of private memory the code may add to what the worker holds.
        max_output_bytes: bytes it may print, and write to any one file.
        max_result_bytes: bytes of one encoded result.
        cpu_seconds: CPU time per call over all threads, rounded up; by default ``timeout``.
        fork: False starts a new interpreter for every call, as is always done where there is no fork.
        max_disk_bytes: bytes that its files may hold in all.
        imports: top-level modules it may import, besides those this program has imported; None for any.
        tools: functions of this process that it may call by name. They run here, unprotected, on what it gives them.
    """

    def __init__(
        self,
        *,
        timeout: float = 10.0,
        memory_mb: int = 1024,
        max_output_bytes: int = 16 * MEBIBYTE,
        max_result_bytes: int = 32 * MEBIBYTE,
        cpu_seconds: float | None = None,
        fork: bool | None = None,
        max_disk_bytes: int = 256 * MEBIBYTE,
        imports: Iterable[str] | None = None,
        tools: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        given = {
            "timeout": timeout,
            "memory_mb": memory_mb,
            "max_output_bytes": max_output_bytes,
            "max_result_bytes": max_result_bytes,
            "max_disk_bytes": max_disk_bytes,
            "cpu_seconds": timeout if cpu_seconds is None else cpu_seconds,
        }
        for name, number in given.items():
            if not 0 < number < float("inf"):
                raise ValueError(f"{name} must be a positive finite number, got {number!r}")
        self._settings = Settings(
            timeout,
            given["cpu_seconds"],
            memory_mb,
            max_output_bytes,
            max_result_bytes,
            disk_bytes=max_disk_bytes,
            imports=None if imports is None else frozenset(imports),
            jail=self._jail(),
        )
        self._tools = dict(tools or {})
        self._fork = _can_fork() if fork is None else fork
        if self._fork and not _can_fork():
            raise RunnerError("this system cannot fork; leave fork=None")
        self._lock = threading.Lock()
        self._workers: dict[bool, Zygote] = {}  # with torch, without: a fork of so much memory takes long
        self._closed = False
        self._layers: dict[str, Any] | None = None
        _runners.add(self)

    @property
    def tier(self) -> str:
        """``process``."""
        return "process"

    def _jail(self) -> Jail | None:
        """What of the kernel's layers is put around candidates; the process tier has none of them."""
        return None

    def call(self, code: Code, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, context: Mapping[str, Any]) -> Any:
        """Call the function and return its result.

        Raises CandidateError (see ``sandbox.errors``) if the code fails, CannotCross if an argument cannot be sent,
        RunnerError if no process can be had.
        """
        return self.call_many(code, [(args, kwargs)], context=context)[0].unwrap()

    def call_many(
        self, code: Code, calls: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]], *, context: Mapping[str, Any]
    ) -> list[Outcome]:
        """Call the function on many examples in one process; one Outcome for each, in order.

        The source is executed once, so its module-level state is shared between the examples; arguments are not. An
        example that ends the process costs a new process for those after it. Raises CannotCross, RunnerError.
        """
        self._before_call()
        return self._run(code, calls, context, self._settings)

    def _before_call(self) -> None:
        """A chance to refuse."""

    def _run(
        self,
        code: Code,
        calls: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]],
        context: Mapping[str, Any],
        settings: Settings,
    ) -> list[Outcome]:
        tools = {**self._tools, **(getattr(code, "tools", None) or {})}
        request = pack_request(code, calls, context, settings, tools, self._fork)
        reporter = Reporter(code.name, self._settings)
        outcomes: list[Outcome] = []
        try:
            while len(outcomes) < len(calls):
                left = len(calls) - len(outcomes)
                body = request.body(len(outcomes), settings)
                outcomes += self._outcomes(body, left, request, reporter)
        finally:
            request.store.close()
        return outcomes

    def describe(self) -> dict[str, Any]:
        """What protects this process from a candidate, as seen by a probe that ran in a candidate's place just now.

        ``layers`` are those that were seen at work, ``absent`` those that this tier or this system does not have.
        """
        if self._layers is None:
            from trace_core.integrations.sandbox.probe import probe

            self._layers = probe(self, self._settings, self._fork)
        return dict(self._layers)

    def close(self) -> None:
        """End the worker and all that runs on it. Calls that are under way, and later ones, raise RunnerError."""
        with self._lock:
            self._closed = True
            workers = list(self._workers.values())
            self._workers.clear()
        for worker in workers:
            worker.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError(f"a {type(self).__name__} belongs to its process; make another one where it is needed")

    def _outcomes(self, body: bytes, examples: int, request: Request, reporter: Reporter) -> list[Outcome]:
        """The outcomes of at least one example."""
        if not self._fork:
            from trace_core.integrations.sandbox.fresh import Fresh

            self._check_open()
            return reporter.outcomes(Fresh(self._settings).converse(body, examples, request), examples)
        for _ in range(_ATTEMPTS):
            worker = self._shared_worker("torch" in request.preload)
            seen = worker.converse(body, examples, request)
            if not seen.lost:
                return reporter.outcomes(seen, examples)
            self._check_open()
            self._discard(worker)
            if seen.answers:  # what was answered before the worker went counts
                return reporter.outcomes(seen, len(seen.answers))
            if seen.forked:
                return self._alone(body, examples, request, reporter)
            request = replace(request, preload=())  # perhaps an import hung or killed the worker
        raise RunnerError(f"the worker process ended {_ATTEMPTS} times before it took a call")

    def _alone(self, body: bytes, examples: int, request: Request, reporter: Reporter) -> list[Outcome]:
        """Run a call again whose worker died under it, away from everybody else's.

        The worker may have died for any reason, another call's doing among them. If it dies once more with only this
        call on it, this code is what kills it.
        """
        from trace_core.integrations.sandbox.zygote import Zygote

        worker = Zygote(self._settings)
        try:
            seen: Transcript = worker.converse(body, examples, request)
        finally:
            worker.destroy()
        if seen.lost and not seen.answers:
            self._check_open()
            return [Outcome(error=reporter.supervisor_killed())]
        return reporter.outcomes(seen, len(seen.answers) if seen.lost else examples)

    def _shared_worker(self, with_torch: bool) -> Zygote:
        from trace_core.integrations.sandbox.zygote import Zygote

        with self._lock:
            self._check_open()
            worker = self._workers.get(with_torch)
            if worker is not None and not worker.alive:
                worker.stop()
                worker = None
            if worker is None:
                worker = self._workers[with_torch] = Zygote(self._settings)
            return worker

    def _discard(self, worker: Zygote) -> None:
        """Never use a worker again that was lost to a call, even if its process is not quite gone yet."""
        with self._lock:
            for key, shared in list(self._workers.items()):
                if shared is worker:
                    del self._workers[key]
        worker.destroy()

    def _check_open(self) -> None:
        if self._closed:
            raise RunnerError(f"this {type(self).__name__} is closed")

    def _after_fork(self) -> None:
        """In a forked copy of this process: the worker belongs to the original; start another when one is needed."""
        self._lock = threading.Lock()
        workers = list(self._workers.values())
        self._workers = {}
        for worker in workers:
            worker.abandon()


def _can_fork() -> bool:
    return hasattr(os, "fork") and hasattr(os, "memfd_create" if os.uname().sysname == "Linux" else "wait4")


_runners: weakref.WeakSet[ProcessRunner] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for runner in list(_runners):
        runner._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

__all__ = ["CandidateError", "Code", "Outcome", "ProcessRunner", "codec"]
