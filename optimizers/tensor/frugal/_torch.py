"""torch where it is installed, so that the modules beside this one can be imported where it is not.

``frugal/__init__.py`` asks for torch before it hands out a name; what stands in here is never used by then.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from trace_core._lazy import require


class _Absent:
    def __getattr__(self, name: str) -> Any:
        return getattr(require("torch", extra="torch"), name)


torch: Any
OptimizerBase: Any
try:
    torch = import_module("torch")
    OptimizerBase = torch.optim.Optimizer
except ModuleNotFoundError:
    torch = _Absent()
    OptimizerBase = object
