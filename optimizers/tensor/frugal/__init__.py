"""FRUGAL: an optimizer that keeps moments for a part of each weight only (arXiv 2411.07837).

At every step the gradient is split in two. One part - whole tensors, or some rows, columns or entries, or a low-rank
subspace of each - is updated by a rule with state (AdamW), the rest by a rule without (the sign of the gradient). Every
``gap`` steps another part is chosen. The state shrinks with the ``density`` of the chosen part; the update still
reaches every entry.

    optimizer = Frugal.from_module(model, lr=1e-3, density=0.25)      # embeddings, norms, head: AdamW throughout
    optimizer = Frugal([{"params": bulk, "project": True}, {"params": rest, "project": False}], lr=1e-3)

torch is imported when one of the names below is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trace_core.optimizers.tensor.frugal.memory import StateBytes
    from trace_core.optimizers.tensor.frugal.optimizer import Frugal
    from trace_core.optimizers.tensor.frugal.options import FrugalError
    from trace_core.optimizers.tensor.frugal.schedules import GrowingGap, LinearDensity, Progress
    from trace_core.optimizers.tensor.frugal.selection import default_project, groups_of, is_projected_name

_HOME = {
    "Frugal": "optimizer",
    "FrugalError": "options",
    "GrowingGap": "schedules",
    "LinearDensity": "schedules",
    "Progress": "schedules",
    "StateBytes": "memory",
    "default_project": "selection",
    "groups_of": "selection",
    "is_projected_name": "selection",
}

__all__ = [
    "Frugal",
    "FrugalError",
    "GrowingGap",
    "LinearDensity",
    "Progress",
    "StateBytes",
    "default_project",
    "groups_of",
    "is_projected_name",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        from trace_core._lazy import require

        require("torch", extra="torch")
        return getattr(import_module(f"trace_core.optimizers.tensor.frugal.{_HOME[name]}"), name)
    raise AttributeError(f"module 'trace_core.optimizers.tensor.frugal' has no attribute {name!r}")
