"""Tensors in a traced workflow: parameters, modules, gradients. Imported lazily: torch is loaded on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trace_core.nodes.tensor.errors import GradientError, GradientStopsWarning, NonFiniteError, TensorError
    from trace_core.nodes.tensor.gradients import Gradients, send_gradients
    from trace_core.nodes.tensor.module import ModuleNode, module_node
    from trace_core.nodes.tensor.parameter import TensorParameter, tensor
    from trace_core.nodes.tensor.replay import TensorReplay

_HOME = {
    "GradientError": "errors",
    "GradientStopsWarning": "errors",
    "Gradients": "gradients",
    "ModuleNode": "module",
    "NonFiniteError": "errors",
    "TensorError": "errors",
    "TensorParameter": "parameter",
    "TensorReplay": "replay",
    "module_node": "module",
    "send_gradients": "gradients",
    "tensor": "parameter",
}

__all__ = [
    "GradientError",
    "GradientStopsWarning",
    "Gradients",
    "ModuleNode",
    "NonFiniteError",
    "TensorError",
    "TensorParameter",
    "TensorReplay",
    "module_node",
    "send_gradients",
    "tensor",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"trace_core.nodes.tensor.{_HOME[name]}"), name)
    raise AttributeError(f"module 'trace_core.nodes.tensor' has no attribute {name!r}")
