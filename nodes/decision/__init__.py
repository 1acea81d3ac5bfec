"""Robust decisions: decision vectors, uncertainty sets, stages that react. Lazy: numpy comes on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trace_core.nodes.decision.errors import (
        BadOutcome,
        BudgetTooSmall,
        DecisionError,
        Infeasible,
        InfeasibleFirstStage,
        InvalidProblem,
        LargeProblem,
        ModelMismatch,
        NoDependence,
        NoisySecondStage,
        RejectedRecords,
        SolverError,
    )
    from trace_core.nodes.decision.milp import Model, Solution
    from trace_core.nodes.decision.parameter import DecisionParameter, Linear, decision
    from trace_core.nodes.decision.polytope import Ellipsoid, Polytope
    from trace_core.nodes.decision.stage import MilpStage
    from trace_core.nodes.decision.uncertainty import Box, Budget, Scenarios, UncertaintySet

_HOME = {
    "BadOutcome": "errors",
    "Box": "uncertainty",
    "Budget": "uncertainty",
    "BudgetTooSmall": "errors",
    "DecisionError": "errors",
    "DecisionParameter": "parameter",
    "Ellipsoid": "polytope",
    "Infeasible": "errors",
    "InfeasibleFirstStage": "errors",
    "InvalidProblem": "errors",
    "LargeProblem": "errors",
    "Linear": "parameter",
    "MilpStage": "stage",
    "Model": "milp",
    "ModelMismatch": "errors",
    "NoDependence": "errors",
    "NoisySecondStage": "errors",
    "Polytope": "polytope",
    "RejectedRecords": "errors",
    "Scenarios": "uncertainty",
    "Solution": "milp",
    "SolverError": "errors",
    "UncertaintySet": "uncertainty",
    "decision": "parameter",
}

__all__ = [
    "BadOutcome",
    "Box",
    "Budget",
    "BudgetTooSmall",
    "DecisionError",
    "DecisionParameter",
    "Ellipsoid",
    "Infeasible",
    "InfeasibleFirstStage",
    "InvalidProblem",
    "LargeProblem",
    "Linear",
    "MilpStage",
    "Model",
    "ModelMismatch",
    "NoDependence",
    "NoisySecondStage",
    "Polytope",
    "RejectedRecords",
    "Scenarios",
    "Solution",
    "SolverError",
    "UncertaintySet",
    "decision",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        from trace_core._lazy import require

        require("numpy", extra="milp")
        return getattr(import_module(f"trace_core.nodes.decision.{_HOME[name]}"), name)
    raise AttributeError(f"module 'trace_core.nodes.decision' has no attribute {name!r}")
