"""Stand-in for nodes.tensor.TensorReplay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core._lazy import require

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trace_core.node import Node
    from trace_core.parameter import Parameter
    from trace_core.trace import Trace


class TensorReplay:
    def __init__(self, trace: Trace, parameters: Any = None, until: Node | None = None, mode: str = "eager") -> None:
        self.trace, self.until = trace, until
        torch = require("torch", extra="torch")
        self._rng = torch.get_rng_state()
        self._modules = []
        for node in trace.nodes:
            owner = getattr(getattr(node.op, "fn", None), "__self__", None)
            module = getattr(owner, "module", None)
            if isinstance(module, torch.nn.Module) and module not in self._modules:
                self._modules.append(module)

    def __call__(self, values: Mapping[Parameter, Any]) -> Any:
        torch = require("torch", extra="torch")
        outside = torch.get_rng_state()
        buffers = [(b, b.detach().clone()) for m in self._modules for b in m.buffers()]
        torch.set_rng_state(self._rng)
        try:
            return self.trace.replay(values, until=self.until)._value
        finally:
            torch.set_rng_state(outside)
            for b, kept in buffers:
                with torch.no_grad():
                    b.copy_(kept)
