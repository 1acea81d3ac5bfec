"""A torch module as a traced operator whose weights are Parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core._lazy import require
from trace_core.bundle import Bundle
from trace_core.module import Module
from trace_core.nodes.tensor.errors import TensorError
from trace_core.nodes.tensor.parameter import TensorParameter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trace_core.node import Node
    from trace_core.parameter import Parameter


class ModuleNode(Module):
    """See ``module_node``.

    Attributes:
        module: the torch module, unchanged; its weights are the parameters' tensors.
        name: short name of its nodes.
    """

    def __init__(self, module: Any, name: str, description: str | None) -> None:
        self.module = module
        self.name = name
        self._weights = {
            path: TensorParameter(weight, requires_grad=weight.requires_grad, name=path)
            for path, weight in module.named_parameters()
        }
        self._operator = Bundle(self._run, name=name, description=description)

    def __call__(self, *args: Any, **kwargs: Any) -> Node:
        """Run the module; one node."""
        output: Node = self._operator(*args, **kwargs)
        return output

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(torch's dotted path, TensorParameter)."""
        yield from self._weights.items()

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        # Reading the weights makes them inputs of the node; candidates among them stand in for the module's own.
        candidates = {}
        for path, parameter in self._weights.items():
            value = parameter.value
            if value is not parameter._current._value:
                candidates[path] = value
        if not candidates:
            return self.module(*args, **kwargs)
        torch = require("torch", extra="torch")
        return torch.func.functional_call(self.module, candidates, args, kwargs)


def module_node(module: Any, *, name: str | None = None, description: str | None = None) -> ModuleNode:
    """Make a ``torch.nn.Module`` a traced operator: each call records one node that depends on its weights.

    The module itself is not changed. Raises TensorError if it is none.
    """
    torch = require("torch", extra="torch")
    if not isinstance(module, torch.nn.Module):
        raise TensorError(f"module_node expects a torch.nn.Module, got {type(module).__name__}: {module!r:.80}")
    return ModuleNode(module, name or type(module).__name__.lower(), description)
