"""Ray behind the executor protocol."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, TypeVar

from trace_core._lazy import require
from trace_core.integrations.engines._frames import packed, unpacked
from trace_core.integrations.engines.errors import EngineError, RolloutCrash, RolloutTimeout
from trace_core.integrations.engines.processes import importable
from trace_core.integrations.engines.threads import check_limits
from trace_core.pool import ContextThreadPool

if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")


class RayEngine(Executor):
    """An executor of Ray tasks (extra ``ray``), on the cluster that ``ray.init`` of the caller has joined.

    ``submit`` takes an importable function and data, as ProcessEngine does. The workers need the modules: give Ray a
    ``runtime_env`` where they are not installed. A task over its time is cancelled by force, which ends its worker.

    Args:
        workers: tasks at once.
        timeout: seconds one task may take, its waiting for a worker included; None for no limit.
        options: for Ray's ``.options``, such as ``num_cpus``.

    Raises MissingExtra without ray, EngineError where ``ray.init`` was not called.
    """

    shares_memory = False

    def __init__(
        self, workers: int = 8, *, timeout: float | None = None, options: dict[str, Any] | None = None
    ) -> None:
        check_limits(workers, timeout)
        self._ray = require("ray", extra="ray")
        if not self._ray.is_initialized():
            raise EngineError("RayEngine needs a running Ray: call ray.init() first, for a local or a remote cluster")
        self.workers, self.timeout = workers, timeout
        self._remote = self._ray.remote(_call).options(max_retries=0, **(options or {}))
        self._pool = ContextThreadPool(workers, thread_name_prefix="trace_core-ray")

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """See Executor.submit."""
        call = packed({"fn": importable(fn), "args": list(args), "kwargs": kwargs})
        return self._pool.submit(self._run, call)

    def _run(self, call: bytes) -> Any:
        reference = self._remote.remote(call)
        try:
            answer = self._ray.get(reference, timeout=self.timeout)
        except self._ray.exceptions.GetTimeoutError:
            self._ray.cancel(reference, force=True)
            raise RolloutTimeout(f"no result within {self.timeout:g} s (timeout); its worker was ended") from None
        except self._ray.exceptions.WorkerCrashedError as error:
            raise RolloutCrash(f"the process of the rollout ended without an answer: {error}") from error
        reply = unpacked(answer)
        if "error" in reply:
            raise EngineError(f"in the worker process: {reply['error']}")
        return reply["result"]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See Executor.shutdown. Ray itself goes on: it is the caller's."""
        self._pool.shutdown(wait, cancel_futures=cancel_futures)


def _call(frame: bytes) -> bytes:
    from trace_core.integrations.engines._worker import answer

    return answer(frame)
