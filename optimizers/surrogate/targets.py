"""Where to cut a trace: the target nodes, whose upstream is cheap to run again and whose downstream is the oracle.

A legal cut is a set of tensor nodes, none of which depends on another, that every way from the parameters to the
feedback passes through. Among the legal ones, the nearest to the feedback whose upstream is cheap is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from trace_core._lazy import require
from trace_core.graph import dependencies
from trace_core.node import Node
from trace_core.optimizers.base import OptimizerError
from trace_core.parameter import Parameter, Version

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from trace_core.trace import Trace

#: An upstream is cheap if it took at most this share of the time between parameters and feedback.
CHEAP = 0.25
#: Behind a cut that leaves no more than these to do there is nothing worth a question: they are known to be linear.
_LINEAR = frozenset(["add", "sub", "neg", "pos", "mean", "sum", "getitem", "reshape", "view", "squeeze", "stack"])
_WIDEST = 256

Target: TypeAlias = "Node | str | Any"


@dataclass(frozen=True)
class Cut:
    """A possible target.

    Attributes:
        nodes: the nodes of the cut.
        entries: numbers in them.
        upstream: seconds noted for what depends on the parameters and would be run again for each inner step.
        downstream: seconds noted for the rest, the oracle.
        refused: why it is not used, empty if it can be.
    """

    nodes: tuple[Node, ...]
    entries: int
    upstream: float
    downstream: float
    refused: str = ""


@dataclass(frozen=True)
class Choice:
    """The targets of one trace, and how they were found.

    Attributes:
        nodes: the chosen nodes.
        cuts: what was looked at, the nearest to the feedback first; empty where the user named the target.
        reason: in words.
    """

    nodes: tuple[Node, ...]
    cuts: tuple[Cut, ...]
    reason: str

    def explain(self, trace: Trace) -> str:
        """A table for people."""
        names = trace.names()

        def name(nodes: Sequence[Node]) -> str:
            shown = ", ".join(names[node] for node in nodes[:4])
            return shown if len(nodes) <= 4 else f"{shown} and {len(nodes) - 4} more"

        lines = [f"target: {name(self.nodes)} ({self.reason})"]
        if self.cuts:
            rows = [("candidate", "entries", "upstream", "downstream", "")]
            rows += [
                (
                    name(cut.nodes),
                    str(cut.entries) if cut.entries else "",
                    _milliseconds(cut.upstream),
                    _milliseconds(cut.downstream),
                    "chosen" if set(cut.nodes) == set(self.nodes) else cut.refused or "could be used",
                )
                for cut in self.cuts
            ]
            widths = [max(len(row[column]) for row in rows) for column in range(4)]
            lines += ["  " + "  ".join([*(row[c].ljust(widths[c]) for c in range(4)), row[4]]).rstrip() for row in rows]
        return "\n".join(lines)


def choose(trace: Trace, parameters: Iterable[Parameter], target: Any = None) -> Choice:
    """The targets of a trace.

    Args:
        trace: with at least one of the parameters in it.
        parameters: those to be improved.
        target: nodes of the trace, or names of operators or nodes, or bundles; None to look for the best.

    Raises OptimizerError if what is named cannot be a target, or if nothing can; it says why.
    """
    active = _active(trace, set(parameters))
    if target is None:
        return _found(trace, active)
    names = trace.names()
    given = list(target) if isinstance(target, list | tuple) else [target]
    nodes = tuple(node for node in trace.nodes if any(_is_meant(node, item, names) for item in given))
    known = ", ".join(names[node] for node in active if not isinstance(node, Version))
    if not nodes:
        wanted = ", ".join(repr(item) if isinstance(item, str) else repr(item)[:60] for item in given)
        raise OptimizerError(f"target {wanted} is not in the trace: expected one of {known}")
    cut = _judge(trace, nodes, active, named=True)
    missed = _way_around(trace, nodes, active)
    if cut.refused or missed is not None:
        why = cut.refused or f"the parameters also reach the feedback through {names[missed]}"  # type: ignore[index]
        raise OptimizerError(
            f"{', '.join(names[n] for n in nodes)} cannot be the target: {why}. Name another node, or several"
        )
    return Choice(nodes, (), "named")


def _found(trace: Trace, active: dict[Node, set[Node]]) -> Choice:
    cuts = [_judge(trace, nodes, active) for nodes in _frontiers(trace, active)]
    usable = [cut for cut in cuts if not cut.refused]
    if not usable:
        names = trace.names()
        reasons = "; ".join(f"{', '.join(names[n] for n in cut.nodes[:3])}: {cut.refused}" for cut in cuts[:6])
        raise OptimizerError(
            f"no target was found between the parameters and {names[trace.output]} ({reasons or 'nothing is there'}). "
            "A target is a node that holds a floating point tensor, that the parameters reach with gradients, and that "
            "is not the loss itself: record it as a node of its own, or go backward from it"
        )
    cheap = [cut for cut in usable if cut.upstream <= CHEAP * (cut.upstream + cut.downstream)]
    if cheap:
        return Choice(cheap[0].nodes, tuple(cuts), "the nearest to the feedback whose upstream is cheap")
    best = min(usable, key=lambda cut: cut.upstream)
    return Choice(
        best.nodes, tuple(cuts), "the cheapest upstream; it takes more than the oracle, so a surrogate hardly pays here"
    )


def _is_meant(node: Node, item: Any, names: dict[Node, str]) -> bool:
    if isinstance(item, Node):
        return item is node
    name = item if isinstance(item, str) else getattr(item, "name", None)
    if not isinstance(name, str) or isinstance(node, Version):
        return False
    return name in (names[node], node._label(), node.op.name if node.op is not None else None)


def _active(trace: Trace, parameters: set[Parameter]) -> dict[Node, set[Node]]:
    """The nodes that depend on the parameters, in order, each with those of its inputs that do."""
    active: dict[Node, set[Node]] = {}
    for node in trace.nodes:
        if isinstance(node, Version):
            if node.parameter in parameters:
                active[node] = set()
            continue
        sources = {source for source in dependencies(node, trace.unfolded) if source in active}
        if sources:
            active[node] = sources
    return active


def _frontiers(trace: Trace, active: dict[Node, set[Node]]) -> list[tuple[Node, ...]]:
    """Cuts, the nearest to the feedback first: at each place of an order, what is before it and needed behind it.

    Of the many orders in which the nodes could have come, two are looked at: the recorded one, and the one in which
    each comes as soon as it can, where parameters are used up early.
    """
    depth: dict[Node, int] = {}
    for node, sources in active.items():
        depth[node] = 1 + max((depth[source] for source in sources), default=0)
    found: dict[frozenset[Node], tuple[Node, ...]] = {}
    for order in (list(active), sorted(active, key=depth.__getitem__)):
        last_use = {node: index for index, user in enumerate(order) for node in active[user]}
        last_use[trace.output] = len(order)
        alive: list[Node] = []
        for index, node in enumerate(order):
            alive = [earlier for earlier in alive if last_use[earlier] > index]
            if last_use.get(node, -1) > index:
                alive.append(node)
            if len(alive) <= _WIDEST and not any(isinstance(member, Version) for member in alive):
                found.setdefault(frozenset(alive), tuple(alive))
    sizes = {key: len(_upstream(nodes, active)) for key, nodes in found.items()}
    return [found[key] for key in sorted(found, key=sizes.__getitem__, reverse=True)]


def _judge(trace: Trace, nodes: tuple[Node, ...], active: dict[Node, set[Node]], named: bool = False) -> Cut:
    upstream = _upstream(nodes, active)
    seconds = trace.seconds
    before = sum(seconds.get(node, 0.0) for node in upstream)
    total = sum(seconds.get(node, 0.0) for node in active)
    entries = sum(int(node._value.numel()) for node in nodes if hasattr(node._value, "numel"))
    behind = [node for node in active if node not in upstream]
    return Cut(nodes, entries, before, total - before, _objection(trace, nodes, active, behind, named))


def _objection(
    trace: Trace, nodes: tuple[Node, ...], active: dict[Node, set[Node]], behind: list[Node], named: bool
) -> str:
    torch = require("torch", extra="torch")
    for node in nodes:
        value = node._value
        if node not in active:
            return "it does not depend on the parameters"
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return f"holds a {type(value).__name__}, no floating point tensor"
        if isinstance(node, Version):
            return "it is a parameter"
        if not value.requires_grad and not named:
            return "no gradient reaches it from the parameters"
        if len(nodes) > 1 and _upstream((node,), active) & (set(nodes) - {node}):
            return "one of the nodes depends on another"
    about_it = trace.feedback.gradient is not None or trace.feedback.text or trace.output not in nodes
    if not about_it and not named and trace.output._value.numel() == 1:
        return "it is the loss itself"
    if not named and behind and all(_is_linear(node, active) for node in behind):
        return "only sums are left behind it"
    return ""


def _is_linear(node: Node, active: dict[Node, set[Node]]) -> bool:
    if node.op is None:
        return True
    name = node.args[1] if node.op.name == "method" and len(node.args) > 1 else node.op.name
    if name in ("mul", "truediv", "div"):
        return len(active[node]) == 1 and (name == "mul" or node.args[1] not in active[node])
    return name in _LINEAR


def _upstream(nodes: Iterable[Node], active: dict[Node, set[Node]]) -> set[Node]:
    seen: set[Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(active.get(node, ()))
    return seen


def _way_around(trace: Trace, nodes: tuple[Node, ...], active: dict[Node, set[Node]]) -> Node | None:
    """A node on a way from a parameter to the output that avoids the cut: the first behind the parameter."""
    stack, seen, cut = [trace.output], set(), set(nodes)
    while stack:
        node = stack.pop()
        if node in seen or node in cut:
            continue
        seen.add(node)
        for source in active.get(node, ()):
            if isinstance(source, Version):
                return node
            stack.append(source)
    return None


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms" if seconds else "< 0.1 ms"
