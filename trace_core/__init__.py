"""Trace a Python workflow as a graph while it runs, and let optimizers improve its parameters from feedback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core import operators as _operators  # noqa: F401 - gives Node its operators
from trace_core._version import __version__
from trace_core.bundle import Bundle, bundle
from trace_core.context import no_trace, using
from trace_core.errors import (
    CandidateError,
    ExecutionError,
    FeedbackError,
    MissingExtra,
    MutationError,
    ParameterError,
    ReleasedError,
    ReplayError,
    RunnerError,
    SourceError,
    StateError,
    TraceCoreError,
)
from trace_core.feedback import Feedback
from trace_core.module import Module, model
from trace_core.node import ExceptionNode, Node
from trace_core.parameter import Parameter, node
from trace_core.trace import Trace, UnreachedWarning

if TYPE_CHECKING:
    from trace_core.code import CodeParameter
    from trace_core.constraints import Anything, Choices, Constraint, Predicate, Range, Regex
    from trace_core.pool import ContextThreadPool

_LAZY = {
    "CodeParameter": "code",
    "Anything": "constraints",
    "Choices": "constraints",
    "Constraint": "constraints",
    "Predicate": "constraints",
    "Range": "constraints",
    "Regex": "constraints",
    "ContextThreadPool": "pool",
}

__all__ = [
    "Anything",
    "Bundle",
    "CandidateError",
    "Choices",
    "CodeParameter",
    "Constraint",
    "ContextThreadPool",
    "ExceptionNode",
    "ExecutionError",
    "Feedback",
    "FeedbackError",
    "MissingExtra",
    "Module",
    "MutationError",
    "Node",
    "Parameter",
    "ParameterError",
    "Predicate",
    "Range",
    "Regex",
    "ReleasedError",
    "ReplayError",
    "RunnerError",
    "SourceError",
    "StateError",
    "Trace",
    "TraceCoreError",
    "UnreachedWarning",
    "__version__",
    "bundle",
    "model",
    "no_trace",
    "node",
    "using",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"trace_core.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'trace_core' has no attribute {name!r}")
