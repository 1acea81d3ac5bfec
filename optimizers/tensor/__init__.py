"""Optimizers of tensors. Imported lazily: torch is loaded when one of the names below is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trace_core.optimizers.tensor.frugal import Frugal
    from trace_core.optimizers.tensor.history import StepRecord
    from trace_core.optimizers.tensor.torch_optimizer import TorchOptimizer

_HOME = {"Frugal": "frugal", "StepRecord": "history", "TorchOptimizer": "torch_optimizer"}

__all__ = ["Frugal", "StepRecord", "TorchOptimizer"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"trace_core.optimizers.tensor.{_HOME[name]}"), name)
    raise AttributeError(f"module 'trace_core.optimizers.tensor' has no attribute {name!r}")
