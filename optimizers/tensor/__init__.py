"""Optimizers of tensors. Imported lazily: torch is loaded when one of the names below is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trace_core.optimizers.tensor.frugal import Frugal

_HOME = {"Frugal": "frugal"}

__all__ = ["Frugal"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"trace_core.optimizers.tensor.{_HOME[name]}"), name)
    raise AttributeError(f"module 'trace_core.optimizers.tensor' has no attribute {name!r}")
