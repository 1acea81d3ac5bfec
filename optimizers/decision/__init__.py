"""Robust decisions in two stages. Imported lazily: numpy, the solver and torch come on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trace_core.optimizers.decision.exact import ExactSolver, NoRobustDecision
    from trace_core.optimizers.decision.neur2ro import Neur2RO
    from trace_core.optimizers.decision.problem import RobustProblem
    from trace_core.optimizers.decision.result import Certificate, RobustResult
    from trace_core.optimizers.decision.setnet import NetworkFileError, SetNetwork, StrangeInstance
    from trace_core.optimizers.decision.setsolver import SetSolver
    from trace_core.optimizers.decision.settrain import SetData, train_set_network

_HOME = {
    "Certificate": "result",
    "ExactSolver": "exact",
    "NetworkFileError": "setnet",
    "Neur2RO": "neur2ro",
    "NoRobustDecision": "exact",
    "RobustProblem": "problem",
    "RobustResult": "result",
    "SetData": "settrain",
    "SetNetwork": "setnet",
    "SetSolver": "setsolver",
    "StrangeInstance": "setnet",
    "train_set_network": "settrain",
}

__all__ = [
    "Certificate",
    "ExactSolver",
    "NetworkFileError",
    "Neur2RO",
    "NoRobustDecision",
    "RobustProblem",
    "RobustResult",
    "SetData",
    "SetNetwork",
    "SetSolver",
    "StrangeInstance",
    "train_set_network",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        from trace_core._lazy import require

        require("numpy", extra="milp")
        return getattr(import_module(f"trace_core.optimizers.decision.{_HOME[name]}"), name)
    raise AttributeError(f"module 'trace_core.optimizers.decision' has no attribute {name!r}")
