"""Traces that may be kept: the same graph with small values, without big tensors and what autograd keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core._unwrap import map_nodes
from trace_core._values import UNSET, is_ndarray, is_tensor
from trace_core.feedback import Feedback
from trace_core.node import ExceptionNode, Node
from trace_core.parameter import Version
from trace_core.trace import Trace
from trace_core.values import Changed, now_and_then

if TYPE_CHECKING:
    from collections.abc import Callable

#: Tensors and arrays of at most so many elements keep their values.
SMALL = 64


class Sketch:
    """Stands for a tensor that was let go: its shape, type and device. Made without reading the tensor."""

    __slots__ = ("text",)

    def __init__(self, value: Any) -> None:
        shape = "x".join(str(n) for n in value.shape) or "scalar"
        kind = "tensor" if is_tensor(value) else "array"
        where = f" on {value.device}" if is_tensor(value) and str(value.device) != "cpu" else ""
        self.text = f"{kind}({shape}, {str(value.dtype).removeprefix('torch.')}{where})"

    def __repr__(self) -> str:
        return self.text


def light(trace: Trace) -> Trace:
    """A copy of the trace to look at: it can be rendered and stored, not replayed or sent backward."""
    twins: dict[Node, Node] = {}
    for node in trace.nodes:
        twins[node] = _twin(node, lambda source: twins[source] if source in twins else _leaf(source))
    feedback = trace.feedback
    if feedback.gradient is not None:
        feedback = Feedback(feedback.text, feedback.score, feedback.scores, None, feedback.example)
    return Trace(twins[trace.output], feedback, [twins[node] for node in trace.nodes], trace.unfolded)


def _twin(node: Node, link: Callable[[Node], Node]) -> Node:
    if isinstance(node, Version):
        return Version(node.parameter, _small(now_and_then(node)), node.index)
    twin = _leaf(node)
    twin.op = node.op
    twin.args = tuple([_small(map_nodes(value, link)) for value in node.args])
    extra = node._extra
    if extra is not None:
        more = twin._more()
        more.name, more.description = extra.name, extra.description
        more.reads = tuple([link(read) for read in extra.reads])
        if extra.kwargs:
            more.kwargs = {key: _small(map_nodes(value, link)) for key, value in extra.kwargs.items()}
        if extra.inner is not None:
            more.inner = _small(map_nodes(extra.inner, link))
    return twin


def _leaf(node: Node) -> Node:
    twin = ExceptionNode.__new__(ExceptionNode) if isinstance(node, ExceptionNode) else Node.__new__(Node)
    if isinstance(node, ExceptionNode) and isinstance(twin, ExceptionNode):
        twin.text = node.text
    failed = isinstance(node, ExceptionNode)  # an exception keeps its frames, and they keep everything
    twin._value, twin._snap, twin._extra = (
        RuntimeError(str(node.recorded)) if failed else _small(now_and_then(node)),
        UNSET,
        None,
    )
    twin.op, twin.args = None, ()
    return twin


def _small(value: Any) -> Any:
    """The value with big tensors and arrays sketched, at any depth of containers and records; small ones are copied."""
    if isinstance(value, Changed):
        small = _small(value.value)
        return small if isinstance(small, Sketch) else Changed(small)  # of a sketch nothing has changed
    return map_nodes(value, _small_leaf, leaves=_is_numeric)


def _is_numeric(value: Any) -> bool:
    return is_tensor(value) or is_ndarray(value)


def _small_leaf(value: Any) -> Any:
    if is_tensor(value):
        return value.detach().clone() if value.numel() <= SMALL else Sketch(value)
    return value if value.size <= SMALL else Sketch(value)
