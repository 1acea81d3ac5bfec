"""Running recorded operators again with new values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core._torch import PLAIN, as_recorded, autocast_now
from trace_core._unwrap import map_nodes
from trace_core._values import UNSET, ByReference, restore
from trace_core.context import current, substituting
from trace_core.errors import ReplayError
from trace_core.graph import dependencies, minimal_subgraph
from trace_core.guards import check_answers, check_conditions, check_watchers
from trace_core.node import ExceptionNode, Node
from trace_core.parameter import Parameter, Version
from trace_core.release import is_released

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Mapping

    from trace_core.operators import Operator
    from trace_core.trace import Trace


def replay(trace: Trace, changes: Mapping[Any, Any], until: Node | None) -> Node:
    """See Trace.replay."""
    steps = _steps(trace, changes, until)
    try:
        awaitable = next(steps)
        while True:
            awaitable = steps.send(_wait_for(awaitable))
    except StopIteration as end:
        result: Node = end.value
        return result


async def areplay(trace: Trace, changes: Mapping[Any, Any], until: Node | None) -> Node:
    """See Trace.areplay."""
    steps = _steps(trace, changes, until)
    try:
        awaitable = next(steps)
        while True:
            awaitable = steps.send(await awaitable)
    except StopIteration as end:
        result: Node = end.value
        return result


def _wait_for(awaitable: Any) -> Any:
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:

        async def wait() -> Any:
            return await awaitable

        return asyncio.run(wait())
    awaitable.close()
    raise ReplayError("the trace has async operators and an event loop is running: use `await trace.areplay(...)`")


def _steps(trace: Trace, changes: Mapping[Any, Any], until: Node | None) -> Generator[Any, Any, Node]:
    """Replay as a generator that hands out what must be awaited; its return value is the new node."""
    # Bodies of transparent bundles are run as a whole: what they decide inside must be decided again.
    nodes = minimal_subgraph(trace.output) if trace.unfolded else trace.nodes
    target = trace.output if until is None else until
    if isinstance(target, Parameter):
        raise ReplayError("until= must be a computed node of the trace, not a parameter")
    if target not in set(nodes):
        raise ReplayError(
            "until= is not a node of this trace (it keeps what lies between parameters and output, not what is within "
            "a transparent bundle)"
        )
    new = _first_values(nodes, changes)
    for node in nodes:
        if node in new and isinstance(node, Version):
            check_conditions(node, new[node])
    for node in to_rerun(nodes, target, new):
        result = rerun_with(node, new)
        if hasattr(result, "__await__") and not isinstance(result, Node):
            result = yield result
        if node is not target and not isinstance(
            result, ExceptionNode
        ):  # nothing can be decided on the target before it is there
            check_answers(node, result)
        new[node] = result
    needed = _needed(nodes, target)
    check_watchers([node for node in nodes if node in needed], new, target, inner=target is not trace.output)
    return new.get(target, target)


def to_rerun(nodes: list[Node], target: Node, changed: Collection[Node]) -> list[Node]:
    """The nodes to be run again for the target's new value, in order.

    These are what depends on something changed, and what that needs of values that were let go of.
    """
    affected = set(changed)
    for node in nodes:
        if node.op is not None and node not in affected and not affected.isdisjoint(dependencies(node)):
            affected.add(node)
    wanted, needed = [], {target}
    for node in reversed(nodes):
        if node not in needed or node.op is None or node in changed:
            continue
        if node in affected or is_released(node._value):
            wanted.append(node)
            needed.update(dependencies(node))
    return wanted[::-1]


def _first_values(nodes: list[Node], changes: Mapping[Any, Any]) -> dict[Node, Node]:
    """The nodes that stand for changed parameters and inputs."""
    new: dict[Node, Node] = {}
    inside = set(nodes)
    for key, value in changes.items():
        if isinstance(key, Parameter):
            versions = [node for node in nodes if isinstance(node, Version) and node.parameter is key]
            if not versions:
                raise ReplayError(f"parameter {key._title()} is not in this trace")
            candidate = key._candidate(value)
            new.update(dict.fromkeys(versions, candidate))
        elif isinstance(key, Node) and key in inside:
            new[key] = value._read(current.get()) if isinstance(value, Node) else Node(value)
        else:
            raise ReplayError(f"a key of the changes is not in this trace: {key!r:.80}")
    return new


def _needed(nodes: list[Node], target: Node) -> set[Node]:
    """The target and everything it depends on."""
    needed = {target}
    for node in reversed(nodes):
        if node in needed:
            needed.update(dependencies(node))
    return needed


def rerun_with(node: Node, new: Mapping[Node, Node]) -> Any:
    """Run a node's operator again: changed inputs as in ``new``, others with their recorded values."""

    def stand_in(source: Node) -> Node:
        return new[source] if source in new else fresh(source)

    op = node.op
    if op is None:
        return node
    extra = node._extra
    args = tuple([map_nodes(_unused(value, op.name), stand_in) for value in node.args])
    given = (extra.kwargs if extra is not None else None) or {}
    kwargs = {name: map_nodes(_unused(value, op.name), stand_in) for name, value in given.items()}
    pinned: dict[Node, Node] = {}
    for read in extra.reads if extra is not None else ():
        pinned[read.parameter if isinstance(read, Version) else read] = stand_in(read)
    mode = extra.mode if extra is not None else None
    if mode is not None or autocast_now():
        with as_recorded(mode or PLAIN):
            return _rerun(op, args, kwargs, pinned)
    return _rerun(op, args, kwargs, pinned)


def _rerun(op: Operator, args: tuple[Any, ...], kwargs: dict[str, Any], pinned: dict[Node, Node]) -> Any:
    if not pinned and current.get() is None:
        return op.rerun(args, kwargs)
    with substituting(pinned):
        result = op.rerun(args, kwargs)
    return _Pending(result, pinned) if hasattr(result, "__await__") and not isinstance(result, Node) else result


def _unused(value: Any, name: str) -> Any:
    """The value, unless it is an iterator or holds one: what it gave is gone. Raises ReplayError."""
    parts = (value, *value) if type(value) in (list, tuple) else (value,)
    for part in parts:
        if hasattr(type(part), "__next__"):
            raise ReplayError(
                f"{name!r} was given an iterator ({type(part).__name__}), and that is used up now: run the workflow "
                "again, or pass a list"
            )
    return value


def fresh(node: Node) -> Node:
    """The node itself, or a stand-in with the recorded value where the live one may have been changed since.

    Raises ReplayError if the value was too big to be copied and is seen to have changed.
    """
    if isinstance(node._snap, ByReference) and node._snap.changed(node._value):
        raise changed_in_place(node)
    if node._snap is UNSET:
        return node
    if isinstance(node._snap, ByReference):
        if node.op is None:
            _unused(node._value, node._label() or "an operator")
        return node
    value = restore(node._snap)
    if isinstance(node, Version):  # the copy must still lead to its parameter
        return Version(node.parameter, value, node.index)
    stand_in = Node.__new__(Node)
    stand_in._value, stand_in._snap, stand_in._extra = value, node._snap, node._extra
    stand_in.op, stand_in.args = node.op, node.args
    return stand_in


def changed_in_place(node: Node) -> ReplayError:
    """The error for a value that was kept by reference and is not what it was."""
    name = node._label() or (node.op.name if node.op is not None else type(node._value).__name__)
    return ReplayError(
        f"the value of {name!r} was changed in place since it was recorded, and was not copied: what it was is lost. "
        "Give it a value in the changes, or run the workflow again"
    )


class _Pending:
    """A coroutine to be awaited with what its body reads pinned; may be closed without ever being awaited."""

    def __init__(self, coroutine: Any, pinned: Mapping[Node, Node]) -> None:
        self._coroutine = coroutine
        self._pinned = pinned

    def __await__(self) -> Any:
        return self._run().__await__()

    async def _run(self) -> Any:
        with substituting(self._pinned):
            return await self._coroutine

    def close(self) -> None:
        """Drop it."""
        self._coroutine.close()
