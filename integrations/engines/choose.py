"""An engine by name, for the command line."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from trace_core._lazy import require
from trace_core.integrations.engines.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor

NAMES = ("threads", "processes", "dask", "ray")


@contextlib.contextmanager
def engine_named(name: str | None, workers: int, timeout: float | None) -> Iterator[Executor | None]:
    """The engine called ``name``, for the time of the context; None for none, with a time limit ``threads``.

    ``dask`` and ``ray`` are started on this machine.

    Raises EngineError for another name, and for a time limit on dask, which cannot end what runs.
    """
    if name is None and timeout is None:
        yield None
        return
    if name == "dask":
        if timeout is not None:
            raise EngineError("dask cannot end a task that runs: use threads, processes or ray with a time limit")
        distributed = require("distributed", extra="dask")
        client = distributed.Client(n_workers=workers, threads_per_worker=1, dashboard_address=None)
        with client, client.get_executor() as executor:
            yield executor
        return
    engine: Executor
    if name in (None, "threads"):
        from trace_core.integrations.engines.threads import ThreadEngine

        engine = ThreadEngine(workers, timeout=timeout)
    elif name == "processes":
        from trace_core.integrations.engines.processes import ProcessEngine

        engine = ProcessEngine(workers, timeout=timeout)
    elif name == "ray":
        from trace_core.integrations.engines.ray_engine import RayEngine

        require("ray", extra="ray").init(num_cpus=workers, include_dashboard=False, ignore_reinit_error=True)
        engine = RayEngine(workers, timeout=timeout)
    else:
        raise EngineError(f"there is no engine {name!r}; there are: {', '.join(NAMES)}")
    with engine:
        yield engine
