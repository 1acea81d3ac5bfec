"""A numeric step as a proposal: gradients of given traces, and what applying it takes over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from trace_core.nodes.tensor import TensorParameter, send_gradients
from trace_core.optimizers.base import OptimizerError, Proposal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from trace_core.optimizers.base import Optimizer
    from trace_core.trace import Trace


class Stepped(NamedTuple):
    """The state after a step that was not done on the parameters themselves.

    Attributes:
        owner: whose step it is, and ``steps``: how many it had done before.
        optimizer: the twin that did it.
        losses, outputs, norm: what the owner's history is to say of it.
    """

    owner: Optimizer
    steps: int
    optimizer: Any
    losses: tuple[Any, ...]
    outputs: int
    norm: Any


class StepProposal(Proposal):
    """A proposal that knows the optimizer's state after it."""

    __slots__ = ("after",)

    def __init__(self, values: Mapping[Any, Any], after: Stepped, *, reason: str) -> None:
        super().__init__(values, reason=reason, step=True)
        self.after = after


def without_errors(traces: Sequence[Trace] | None) -> tuple[Sequence[Trace] | None, Proposal | None]:
    """(traces whose output is no error, None); (the traces, an empty proposal that says so) if there is no other."""
    if not traces:
        return traces, None
    good = [trace for trace in traces if trace.error is None]
    if good:
        return good, None
    first = str(traces[0].error).strip().split("\n", 1)[0]
    return traces, Proposal({}, reason=f"all {len(traces)} outputs are errors, which have no gradient: {first}")


def fresh_gradients(
    traces: Sequence[Trace], parameters: AbstractSet[TensorParameter]
) -> tuple[dict[TensorParameter, Any], dict[TensorParameter, Any], list[Any]]:
    """(the tensor that was read, its gradient) of each parameter the traces reach, and the scalar losses.

    ``grad`` of all tensors is left as it was. Raises OptimizerError if the traces read different values.
    """
    starts: dict[TensorParameter, Any] = {}
    for trace in traces:
        for version in trace.versions:
            parameter = version.parameter
            if not isinstance(parameter, TensorParameter) or parameter not in parameters:
                continue
            if starts.setdefault(parameter, version._value) is not version._value:
                raise OptimizerError(
                    f"the traces were recorded with different values of {parameter.name}: propose from the traces "
                    "of one candidate at a time"
                )
    kept = {parameter: tensor.grad for parameter, tensor in starts.items()}
    losses = []
    try:
        for tensor in starts.values():
            tensor.grad = None
        for trace in traces:
            sent = send_gradients(trace, starts, retain_graph=True)
            if sent.loss is not None:
                losses.append(sent.loss)
        return starts, {p: tensor.grad for p, tensor in starts.items() if tensor.grad is not None}, losses
    finally:
        for parameter, tensor in starts.items():
            tensor.grad = kept[parameter]
