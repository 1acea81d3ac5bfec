"""Target surrogates: one expensive question at an interior node, many cheap steps by replay. Imported lazily."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trace_core.optimizers.surrogate.eta import (
        AdaGradNorm,
        BarzilaiBorwein,
        Constant,
        EtaRule,
        Exponential,
        InverseSqrt,
        LineSearch,
    )
    from trace_core.optimizers.surrogate.exact import GaussNewton
    from trace_core.optimizers.surrogate.inner import LBFGS, Adam, Armijo, GradientDescent
    from trace_core.optimizers.surrogate.optimizer import TargetSurrogate
    from trace_core.optimizers.surrogate.oracles import Answer
    from trace_core.optimizers.surrogate.text import TextTarget

_HOME = {
    "AdaGradNorm": "eta",
    "Adam": "inner",
    "Answer": "oracles",
    "Armijo": "inner",
    "BarzilaiBorwein": "eta",
    "Constant": "eta",
    "EtaRule": "eta",
    "Exponential": "eta",
    "GaussNewton": "exact",
    "GradientDescent": "inner",
    "InverseSqrt": "eta",
    "LBFGS": "inner",
    "LineSearch": "eta",
    "TargetSurrogate": "optimizer",
    "TextTarget": "text",
}

__all__ = [
    "LBFGS",
    "AdaGradNorm",
    "Adam",
    "Answer",
    "Armijo",
    "BarzilaiBorwein",
    "Constant",
    "EtaRule",
    "Exponential",
    "GaussNewton",
    "GradientDescent",
    "InverseSqrt",
    "LineSearch",
    "TargetSurrogate",
    "TextTarget",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"trace_core.optimizers.surrogate.{_HOME[name]}"), name)
    raise AttributeError(f"module 'trace_core.optimizers.surrogate' has no attribute {name!r}")
