"""Optimizers: whatever has ``.step()``. Imported lazily, so that only what is used is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trace_core.optimizers.base import Dropped, Optimizer, OptimizerError, Proposal
    from trace_core.optimizers.llm.opro import OPRO
    from trace_core.optimizers.llm.optoprime import OptoPrime
    from trace_core.optimizers.llm.textgrad import TextGrad
    from trace_core.optimizers.loop import Result, optimize
    from trace_core.optimizers.mixed import Mixed, Part
    from trace_core.optimizers.search import Candidate, Search, Study, StudyResult
    from trace_core.optimizers.surrogate import TargetSurrogate
    from trace_core.optimizers.tensor.frugal import Frugal
    from trace_core.optimizers.tensor.torch_optimizer import TorchOptimizer

_HOME = {
    "Dropped": "base",
    "Optimizer": "base",
    "OptimizerError": "base",
    "Proposal": "base",
    "OPRO": "llm.opro",
    "OptoPrime": "llm.optoprime",
    "TextGrad": "llm.textgrad",
    "Result": "loop",
    "optimize": "loop",
    "Frugal": "tensor.frugal",
    "Mixed": "mixed",
    "Part": "mixed",
    "Candidate": "search",
    "Search": "search",
    "Study": "search",
    "StudyResult": "search",
    "TargetSurrogate": "surrogate",
    "TorchOptimizer": "tensor.torch_optimizer",
}

__all__ = [
    "OPRO",
    "Candidate",
    "Dropped",
    "Frugal",
    "Mixed",
    "Optimizer",
    "OptimizerError",
    "OptoPrime",
    "Part",
    "Proposal",
    "Result",
    "Search",
    "Study",
    "StudyResult",
    "TargetSurrogate",
    "TextGrad",
    "TorchOptimizer",
    "optimize",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"trace_core.optimizers.{_HOME[name]}"), name)
    raise AttributeError(f"module 'trace_core.optimizers' has no attribute {name!r}")
