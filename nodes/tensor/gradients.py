"""Gradients through a trace: autograd does the work, the trace says where it ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trace_core._lazy import require
from trace_core.graph import dependencies
from trace_core.nodes.tensor.errors import GradientError, NonFiniteError
from trace_core.nodes.tensor.parameter import TensorParameter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trace_core.node import Node
    from trace_core.trace import Trace


@dataclass(frozen=True)
class Gradients:
    """What a backward pass did.

    Attributes:
        loss: the output's value as a 0-dim tensor without history; None if the output is not a scalar.
        reached: parameters whose gradient was added to.
        stops: for each parameter that the trace reaches and gradients do not, the node where they stop.
    """

    loss: Any
    reached: tuple[TensorParameter, ...]
    stops: dict[TensorParameter, Node] = field(default_factory=dict)


def send_gradients(
    trace: Trace, parameters: Iterable[TensorParameter] | None = None, *, retain_graph: bool = False
) -> Gradients:
    """Add the output's gradient to ``grad`` of the tensor parameters in the trace.

    The output is a scalar tensor (a loss, to be minimised), or ``trace.feedback.gradient`` is the gradient of the loss
    at the output and has its shape.

    Raises GradientError if no gradient reaches any of the parameters; it names the nodes at which gradients stop.
    Raises NonFiniteError if the output or the given gradient is not finite; it names the first such node.
    """
    torch = require("torch", extra="torch")
    chosen = None if parameters is None else set(parameters)
    weights = {
        version: version.parameter
        for version in trace.versions
        if isinstance(version.parameter, TensorParameter) and (chosen is None or version.parameter in chosen)
    }
    output, given = trace.output, trace.feedback.gradient
    value = output._value
    stops = {weights[version]: node for version, node in _stops(trace, weights).items()}
    if not isinstance(value, torch.Tensor) or not value.requires_grad or not weights:
        raise _unreachable(trace, weights.values(), stops)
    if given is None and value.numel() != 1:
        raise GradientError(
            f"expected a scalar loss, got a tensor of shape {tuple(value.shape)}: reduce it (mean, sum), or give "
            "Feedback(gradient=...) of that shape"
        )
    seed = None if given is None else torch.as_tensor(given, dtype=value.dtype, device=value.device)
    if seed is not None and seed.shape != value.shape:
        raise GradientError(f"expected a gradient of the output's shape {tuple(value.shape)}, got {tuple(seed.shape)}")
    for what, tensor in (("the output", value.detach()), ("the given gradient", seed)):
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            raise _non_finite(trace, what)
    before = {version: _mark(version._value.grad) for version in weights}
    value.backward(seed, retain_graph=retain_graph)
    reached = [weights[v] for v, mark in before.items() if _mark(v._value.grad) != mark]
    if not reached:
        raise _unreachable(trace, weights.values(), stops)
    loss = value.detach().reshape(()) if value.numel() == 1 else None
    return Gradients(loss, tuple(reached), {p: node for p, node in stops.items() if p not in reached})


def _mark(gradient: Any) -> tuple[int, int] | None:
    return None if gradient is None else (id(gradient), gradient._version)


def _stops(trace: Trace, weights: Iterable[Node]) -> dict[Any, Node]:
    """For each version, the first node that depends on it and takes no gradient."""
    alive: dict[Node, set[Node]] = {version: {version} for version in weights}
    stops: dict[Any, Node] = {}
    for node in trace.nodes:
        sources: set[Node] = set()
        for source in dependencies(node, trace.unfolded):
            sources |= alive.get(source, set())
        if not sources:
            continue
        if _takes_gradient(node._value):
            alive[node] = sources
        else:
            for version in sources:
                stops.setdefault(version, node)
    return stops


def _takes_gradient(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_takes_gradient(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_takes_gradient(item) for item in value)
    return bool(getattr(value, "requires_grad", False))


def _unreachable(trace: Trace, weights: Iterable[TensorParameter], stops: dict[TensorParameter, Node]) -> GradientError:
    names = trace.names()
    places = dict.fromkeys(stops.values())
    if not list(weights):
        return GradientError("no gradient can be sent: the output depends on no tensor parameter")
    where = ", ".join(f"{names[node]} (a {type(node._value).__name__})" for node in places)
    return GradientError(
        f"no gradient reaches the tensor parameters: gradients stop at {where or names[trace.output]}. Give the "
        "feedback on a differentiable loss, or a Feedback(gradient=...) at a tensor nearer the parameters",
        tuple(places),
    )


def _non_finite(trace: Trace, what: str) -> NonFiniteError:
    torch = require("torch", extra="torch")
    names = trace.names()
    for node in trace.nodes:
        value = node._value
        if isinstance(value, torch.Tensor) and not bool(torch.isfinite(value).all()):
            return NonFiniteError(f"{what} is not finite: NaN or Inf first appeared in {names[node]}", node)
    return NonFiniteError(f"{what} is not finite, while every tensor of the trace is")
