"""The cheap part of a trace as a function of the parameters, and the check that it is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core._lazy import require
from trace_core._values import is_ndarray, is_tensor
from trace_core.errors import ReplayError
from trace_core.graph import dependencies
from trace_core.nodes.tensor.replay import TensorReplay
from trace_core.optimizers.base import OptimizerError
from trace_core.parameter import Version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from trace_core.node import Node
    from trace_core.nodes.tensor import TensorParameter
    from trace_core.trace import Trace


class Replay:
    """parameters -> one target; parameters that the target does not depend on may be among those given."""

    def __init__(self, trace: Trace, node: Node, parameters: Sequence[TensorParameter]) -> None:
        self._trace, self._node = trace, node
        try:
            self._run = TensorReplay(trace, parameters, node)
        except ReplayError as error:
            raise OptimizerError(f"{trace.names()[node]} cannot be the target: {error}") from error
        self._mine = set(self._run.parameters)

    def __call__(self, values: Mapping[TensorParameter, Any]) -> Any:
        """The target for these values, differentiable."""
        return self._run({parameter: value for parameter, value in values.items() if parameter in self._mine})

    def here(self, values: Mapping[TensorParameter, Any]) -> Any:
        """The recorded target, without history.

        Raises ReplayError if a run with the parameters unchanged gives another: then it is no function of them.
        Raises OptimizerError if no gradient reaches it in a run.
        """
        torch = require("torch", extra="torch")
        recorded = self._node._value.detach()
        with torch.enable_grad():
            now = self({parameter: value.clone().requires_grad_() for parameter, value in values.items()})
        if not now.requires_grad:
            raise OptimizerError(
                f"{self._trace.names()[self._node]} cannot be the target: no gradient reaches it when it is run again. "
                "Run the workflow without torch.no_grad(), or name a target nearer to the parameters"
            )
        now = now.detach()
        slack = 100 * torch.finfo(recorded.dtype).eps
        size = float(recorded.abs().max()) if recorded.numel() else 0.0
        if now.shape == recorded.shape and torch.allclose(now, recorded, rtol=slack, atol=slack * size):
            return recorded
        names = self._trace.names()
        raise ReplayError(
            f"running the trace again up to {names[self._node]} with unchanged parameters does not give the recorded "
            f"value (largest difference {float((now - recorded).abs().max()):.3g}): something in it is random or keeps "
            "a state in a way that cannot be put back. Make it a function of its inputs, or put it behind the target"
        )


def _before(node: Node) -> Iterable[Node]:
    stack, seen = [node], {node}
    while stack:
        current = stack.pop()
        yield current
        for source in dependencies(current):
            if source not in seen:
                seen.add(source)
                stack.append(source)


def examples(trace: Trace, nodes: Sequence[Node]) -> list[Any]:
    """What tells the data of two runs apart: shapes and sums of the arrays that the targets were made of."""
    found: list[Any] = [] if trace.feedback.example is None else [trace.feedback.example]
    for node in dict.fromkeys(before for target in nodes for before in _before(target)):
        if isinstance(node, Version):
            continue
        kwargs = (node._extra.kwargs if node._extra is not None else None) or {}
        for value in [*node.args, *kwargs.values()] if node.op is not None else [node._value]:
            if is_tensor(value) or is_ndarray(value):
                data = require("torch", extra="torch").as_tensor(value).detach().double()
                found.append([list(data.shape), float(data.sum()), float(data.square().sum())])
    return found
