"""Tensors in a traced workflow: parameters, modules, gradients. Imported lazily: torch is loaded on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trace_core.nodes.tensor.errors import GradientError, NonFiniteError, TensorError
    from trace_core.nodes.tensor.gradients import Gradients, send_gradients
    from trace_core.nodes.tensor.module import ModuleNode, module_node
    from trace_core.nodes.tensor.parameter import TensorParameter, tensor

_HOME = {
    "GradientError": "errors",
    "Gradients": "gradients",
    "ModuleNode": "module",
    "NonFiniteError": "errors",
    "TensorError": "errors",
    "TensorParameter": "parameter",
    "module_node": "module",
    "send_gradients": "gradients",
    "tensor": "parameter",
}

__all__ = [
    "GradientError",
    "Gradients",
    "ModuleNode",
    "NonFiniteError",
    "TensorError",
    "TensorParameter",
    "module_node",
    "send_gradients",
    "tensor",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"trace_core.nodes.tensor.{_HOME[name]}"), name)
    raise AttributeError(f"module 'trace_core.nodes.tensor' has no attribute {name!r}")
