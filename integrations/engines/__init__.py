"""Where rollouts run: executors of concurrent.futures (PEP 3148). Loaded lazily.

``ThreadEngine`` (the ordinary one), ``AsyncEngine`` for coroutines, ``ProcessEngine`` to end what hangs, ``RayEngine``
for a cluster. ``dask.distributed``'s ``client.get_executor()`` is one as it is. Any other Executor will do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trace_core.integrations.engines.errors import AbandonedWarning as AbandonedWarning
    from trace_core.integrations.engines.errors import EngineError as EngineError
    from trace_core.integrations.engines.errors import RolloutCrash as RolloutCrash
    from trace_core.integrations.engines.errors import RolloutTimeout as RolloutTimeout
    from trace_core.integrations.engines.processes import ProcessEngine as ProcessEngine
    from trace_core.integrations.engines.ray_engine import RayEngine as RayEngine
    from trace_core.integrations.engines.tasks import AsyncEngine as AsyncEngine
    from trace_core.integrations.engines.threads import ThreadEngine as ThreadEngine

_HOME = {
    "errors": ("AbandonedWarning", "EngineError", "RolloutCrash", "RolloutTimeout"),
    "processes": ("ProcessEngine",),
    "ray_engine": ("RayEngine",),
    "tasks": ("AsyncEngine",),
    "threads": ("ThreadEngine",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
