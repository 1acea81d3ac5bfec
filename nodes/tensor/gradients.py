"""Gradients through a trace: autograd does the work, the trace says where it ends."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trace_core._lazy import require
from trace_core.graph import dependencies
from trace_core.nodes.tensor.errors import GradientError, GradientStopsWarning
from trace_core.nodes.tensor.finite import check_finite
from trace_core.nodes.tensor.parameter import TensorParameter

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from trace_core.node import Node
    from trace_core.parameter import Version
    from trace_core.trace import Trace

_NAMED = 8  # parameters and nodes that a message lists


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
    trace: Trace,
    parameters: Iterable[TensorParameter] | None = None,
    *,
    retain_graph: bool = False,
    release: bool = False,
    finite: bool = True,
) -> Gradients:
    """Add the output's gradient to ``grad`` of the tensor parameters in the trace: the one place that runs autograd.

    The output is a scalar tensor (a loss, to be minimised), or ``trace.feedback.gradient`` is the gradient of the loss
    at the output and has its shape. Gradients of several calls add up, as in torch.

    Args:
        trace: of the output.
        parameters: which ones gradients are for; by default all tensor parameters, and whatever else torch finds on the
            way (leaf tensors that are no parameters of the trace).
        retain_graph: keep autograd's graph, for a second backward pass through the same output.
        release: let go of the interior tensors of the trace afterwards; see ``Trace.release``.
        finite: look for NaN and Inf in output, given gradient and gradients. Costs one synchronisation with the device.

    Raises GradientError if no gradient reaches any of the parameters (it names the nodes at which gradients stop), if
    the output is no scalar and no gradient of its shape is given, and if autograd's graph is gone or was changed.
    Raises NonFiniteError if something is not finite: it names the node of the trace where NaN or Inf first appeared,
    or the parameters whose gradients have it. Gradients that this call made are then dropped. Warns with
    GradientStopsWarning if gradients reach some of the parameters and not others. Parameters with
    ``requires_grad=False`` are passed over.
    """
    torch = require("torch", extra="torch")
    chosen = None if parameters is None else set(parameters)
    versions = [
        version
        for version in trace.versions
        if isinstance(version.parameter, TensorParameter) and (chosen is None or version.parameter in chosen)
    ]
    weights = [version for version in versions if _learns(version._value)]
    output, given = trace.output, trace.feedback.gradient
    value = output._value
    if not weights:
        raise _nothing_to_learn(versions)
    if not isinstance(value, torch.Tensor) or not value.requires_grad:
        raise _unreachable(trace, find_stops(trace, weights))
    if given is None and value.numel() != 1:
        raise GradientError(
            f"expected a scalar loss, got a tensor of shape {tuple(value.shape)}: reduce it (mean, sum), or give "
            "Feedback(gradient=...) of that shape"
        )
    seed = None if given is None else torch.as_tensor(given, dtype=value.dtype, device=value.device)
    if seed is not None and seed.shape != value.shape:
        raise GradientError(f"expected a gradient of the output's shape {tuple(value.shape)}, got {tuple(seed.shape)}")
    before = [_mark(version._value.grad) for version in weights]
    _run(value, seed, retain_graph, None if chosen is None else [version._value for version in weights])
    reached = [v for v, mark in zip(weights, before, strict=True) if _mark(v._value.grad) != mark]
    if finite:
        fresh = [v for v, mark in zip(weights, before, strict=True) if mark is None]
        check_finite(trace, value.detach(), seed, reached, fresh)
    if not reached:
        raise _unreachable(trace, find_stops(trace, weights))
    found = _parameters(reached)
    missed = {v for v in weights if v.parameter not in found}
    stops = {v.parameter: node for v, node in find_stops(trace, missed).items()} if missed else {}
    if stops:
        _warn(trace, stops, len(found))
    if release:
        trace.release()
    loss = value.detach().reshape(()) if value.numel() == 1 else None
    return Gradients(loss, tuple(found), stops)


def _learns(tensor: Any) -> bool:
    """Whether gradients are wanted: of a tensor that has history (a candidate made by autograd), they pass through."""
    return bool(tensor.requires_grad and (tensor.is_leaf or tensor.retains_grad))


def _parameters(versions: Iterable[Version]) -> dict[Any, None]:
    return dict.fromkeys(version.parameter for version in versions)


def _run(value: Any, seed: Any, retain_graph: bool, inputs: list[Any] | None) -> None:
    """Autograd's backward pass. Raises GradientError for what goes wrong by the way it is used."""
    try:
        value.backward(seed, retain_graph=retain_graph, inputs=inputs)
    except RuntimeError as error:
        said = str(error)
        if "backward through the graph a second time" in said:
            raise GradientError(
                "autograd's graph behind this output is gone: an earlier backward pass used it up. Run the workflow "
                "again, or pass retain_graph=True to all passes but the last"
            ) from error
        if "modified by an inplace operation" in said:
            raise GradientError(
                "a tensor that the gradient needs was changed in place after it was used; an optimizer's step between "
                f"the workflow and backward does that. Run the workflow again. torch says: {said}"
            ) from error
        raise


def _mark(gradient: Any) -> tuple[int, int] | None:
    return None if gradient is None else (id(gradient), gradient._version)


def find_stops(trace: Trace, weights: Collection[Version]) -> dict[Any, Node]:
    """For each version, the first node (in topological order) that depends on it and takes no gradient.

    Where there is none, although gradients do not arrive, an operator cuts them off inside: the first node that depends
    on the version. Linear in the size of the trace.
    """
    first_stop: dict[Node, int] = {}  # node -> place of the first node downstream of it that takes no gradient
    first_user: dict[Node, int] = {}
    for place in range(len(trace.nodes) - 1, -1, -1):
        node = trace.nodes[place]
        below = first_stop.get(node) if _takes_gradient(node._value) else place
        for source in dependencies(node, trace.unfolded):
            first_user[source] = place  # users come in descending order of place: the last one stands
            if below is not None and below < first_stop.get(source, len(trace.nodes)):
                first_stop[source] = below
    stops = {}
    for version in weights:
        place = first_stop.get(version, first_user.get(version, len(trace.nodes) - 1))
        stops[version] = trace.nodes[place]
    return stops


def _takes_gradient(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_takes_gradient(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_takes_gradient(item) for item in value)
    fields = getattr(type(value), "__dataclass_fields__", None)
    if fields is not None and not isinstance(value, type):
        return any(_takes_gradient(getattr(value, name, None)) for name in fields)
    return bool(getattr(value, "requires_grad", False))


# ---- messages


def _nothing_to_learn(versions: Sequence[Version]) -> GradientError:
    if not versions:
        return GradientError("no gradient can be sent: the output depends on no tensor parameter")
    names = _listed([version._label() or "without a name" for version in versions])
    return GradientError(
        f"no gradient can be sent: the tensor parameters in the trace ({names}) are frozen (requires_grad=False)"
    )


def _unreachable(trace: Trace, stops: dict[Any, Node]) -> GradientError:
    wanted = set(stops.values())
    places = tuple([node for node in trace.nodes if node in wanted])
    where = _listed([_place(trace, node) for node in places])
    return GradientError(
        f"no gradient reaches the tensor parameters: gradients stop at {where}. Give the feedback on a differentiable "
        "loss, or a Feedback(gradient=...) at a tensor nearer the parameters",
        places,
    )


def _warn(trace: Trace, stops: dict[Any, Node], reached: int) -> None:
    names = trace.names()
    by_place: dict[Node, list[str]] = {}
    called = {version.parameter: names[version] for version in trace.versions}
    for parameter, node in stops.items():
        by_place.setdefault(node, []).append(called[parameter])
    parts = [f"{_listed(parameters)} at {_place(trace, node)}" for node, parameters in by_place.items()]
    warnings.warn(
        f"gradients reach {reached} tensor parameter{'s' * (reached != 1)}, and stop on the way to others: "
        f"{_listed(parts, '; ')}. These will not learn from it",
        GradientStopsWarning,
        stacklevel=3,
    )


def _listed(items: Sequence[str], between: str = ", ") -> str:
    more = len(items) - _NAMED
    return between.join(items[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _place(trace: Trace, node: Node) -> str:
    torch = require("torch", extra="torch")
    value = node._value
    what = type(value).__name__
    if isinstance(value, torch.Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        if value.requires_grad:
            what = "it does not hand gradients on to its input"
        elif value.is_floating_point() or value.is_complex():
            what = f"a {kind} tensor without history: made under torch.no_grad, or detached"
        else:
            what = f"a {kind} tensor: not differentiable"
    else:
        what = f"a value of type {what}: autograd does not pass it"
    return f"{trace.names()[node]} ({what})"
