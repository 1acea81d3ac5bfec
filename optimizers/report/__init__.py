"""A run as one self-contained HTML page. Loaded lazily."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trace_core.optimizers.report.page import run_page as run_page
    from trace_core.optimizers.report.page import write_run_page as write_run_page

_HOME = {"run_page": "page", "write_run_page": "page"}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
