"""Walking the graph: what a node depends on, and the smallest graph between parameters and an output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core._values import ATOMIC
from trace_core.node import ExceptionNode, Node
from trace_core.parameter import Version

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trace_core.trace import Trace


def dependencies(node: Node, unfold: bool = False) -> list[Node]:
    """The nodes a node was computed from: arguments at any depth, then what the body read. May hold duplicates.

    With ``unfold``, a transparent bundle's node depends on the result of its recorded body instead.
    """
    extra = node._extra
    if extra is not None and unfold and extra.inner is not None:
        return _in_value(extra.inner)
    found: list[Node] = []
    for value in node.args:
        if isinstance(value, Node):
            found.append(value)
        elif type(value) not in ATOMIC:
            found.extend(_in_value(value))
    if extra is not None:
        if extra.kwargs:
            for value in extra.kwargs.values():
                if type(value) not in ATOMIC:
                    found.extend(_in_value(value))
        found.extend(extra.reads)
    return found


def _in_value(value: Any) -> list[Node]:
    from trace_core._unwrap import find_nodes

    return [value] if isinstance(value, Node) else [node for _, node in find_nodes(value)]


def named_inputs(node: Node, unfold: bool = False) -> Iterator[tuple[str, Node]]:
    """(input name, node): by the operator's parameter names; what the body read comes last, by its own name."""
    from trace_core._unwrap import find_nodes

    extra = node._extra
    if extra is not None and unfold and extra.inner is not None:
        for path, found in find_nodes(extra.inner):
            yield f"result{path}", found
        return
    seen: set[Node] = set()
    taken: set[str] = set()
    if node.op is not None:
        kwargs = (extra.kwargs if extra is not None else None) or {}
        for name, value in node.op.input_names(node.args, kwargs):
            for path, found in find_nodes(value):
                seen.add(found)
                taken.add(name + path)
                yield name + path, found
    for read in extra.reads if extra is not None else ():
        if read not in seen:
            label = read._label() or (read.op.name if read.op is not None else "value")
            name, count = label, 1
            while name in taken:
                count += 1
                name = f"{label}_{count}"
            taken.add(name)
            yield name, read


def literal_inputs(node: Node) -> list[tuple[str, Any]]:
    """All inputs in order by name, plain values included."""
    if node.op is None:
        return []
    extra = node._extra
    kwargs = (extra.kwargs if extra is not None else None) or {}
    return list(node.op.input_names(node.args, kwargs))


def node_kinds(trace: Trace) -> dict[Node, str]:
    """``parameter``, ``input``, ``op``, ``output`` or ``error`` for each node of a trace.

    An input is a leaf, or a result that depends on no parameter: how it came to be is not part of the trace.
    """
    kinds: dict[Node, str] = {}
    for node in trace.nodes:
        if isinstance(node, Version):
            kinds[node] = "parameter"
        elif isinstance(node, ExceptionNode):
            kinds[node] = "error"
        elif node is trace.output:
            kinds[node] = "output"
        elif any(kinds.get(source, "input") != "input" for source in dependencies(node, trace.unfolded)):
            kinds[node] = "op"
        else:
            kinds[node] = "input"
    return kinds


def minimal_subgraph(output: Node, unfold: bool = False) -> list[Node]:
    """The nodes between parameters and the output, topologically ordered, without duplicates; the output is last.

    Kept are the nodes that depend on a parameter and, as leaves, their other direct inputs. One iterative depth-first
    walk, O(nodes + links), whatever the depth.
    """
    reaches: dict[Node, bool] = {}
    order: list[Node] = []
    links: dict[Node, list[Node]] = {}
    stack: list[tuple[Node, bool]] = [(output, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            active = isinstance(node, Version)
            for source in links[node]:
                if reaches[source]:
                    active = True
                    break
            reaches[node] = active
            order.append(node)
        elif node not in links:
            if node.op is None and node._extra is None:  # a leaf; a module's call may have hundreds
                links[node] = []
                reaches[node] = isinstance(node, Version)
                order.append(node)
                continue
            found = links[node] = dependencies(node, unfold)
            stack.append((node, True))
            stack.extend([(source, False) for source in reversed(found) if source not in links])
    wanted = {output}
    for node in order:
        if reaches[node]:
            wanted.add(node)
            wanted.update(links[node])
    return [node for node in order if node in wanted]
