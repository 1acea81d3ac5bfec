"""Letting go of the tensors inside a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core._unwrap import is_record, map_nodes, record_fields
from trace_core._values import ATOMIC, UNSET, Released, is_tensor
from trace_core.graph import node_kinds

if TYPE_CHECKING:
    from trace_core.node import Node
    from trace_core.trace import Trace


def release(trace: Trace) -> int:
    """See Trace.release."""
    kinds = node_kinds(trace)
    count = sum(release_value(node) for node in trace.nodes if kinds[node] == "op")
    for node in trace.nodes:
        inner = node._extra.inner if node._extra is not None else None
        if inner is not None and not trace.unfolded:
            count += _release_body(node, inner)
    return count


def _release_body(node: Node, inner: Any) -> int:
    """The nodes of a transparent bundle's body, up to its arguments."""
    from trace_core.graph import _in_value, dependencies

    outside = set(dependencies(node))
    pending, seen, count = _in_value(inner), set(outside), 0
    while pending:
        found = pending.pop()
        if found in seen or found.op is None:
            continue
        seen.add(found)
        count += release_value(found)
        pending += dependencies(found)
    return count


def release_value(node: Node) -> int:
    """Put marks in place of the tensors in a computed node's value. Returns 1 if there were any, else 0."""
    if node.op is None:
        return 0
    value = without_tensors(node._value)
    if value is node._value:
        return 0
    node._value, node._snap = value, UNSET
    return 1


def is_released(value: Any) -> bool:
    """Whether a value is, or a container directly holds, a tensor that was let go of."""
    kind = type(value)
    if kind is Released:
        return True
    if kind in ATOMIC or is_tensor(value):
        return False
    if isinstance(value, dict):
        return any(is_released(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(is_released(item) for item in value)
    return is_record(kind) and any(is_released(item) for item in record_fields(value).values())


def without_tensors(value: Any) -> Any:
    """``value`` with Released marks for tensors at any depth of plain containers; itself if there are none."""
    return map_nodes(value, Released, leaves=is_tensor)
