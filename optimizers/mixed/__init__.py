"""One object for prompts, code, numbers and tensors: each kind to its optimizer, each on its own schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trace_core.optimizers.mixed.mixed import GradientSkipped, Mixed
    from trace_core.optimizers.mixed.part import Part
    from trace_core.optimizers.mixed.trial import Event

_HOME = {"Event": "trial", "GradientSkipped": "mixed", "Mixed": "mixed", "Part": "part"}

__all__ = ["Event", "GradientSkipped", "Mixed", "Part"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"trace_core.optimizers.mixed.{_HOME[name]}"), name)
    raise AttributeError(f"module 'trace_core.optimizers.mixed' has no attribute {name!r}")
