"""Where a value leaves the graph (``if node``, ``len(node)``, ``int(node)``), an operator fails, or a generator ends.

The answer is remembered, so that a replay that would have answered otherwise is refused, instead of following the
recorded path to a wrong value.
"""

from __future__ import annotations

import operator
from _thread import allocate_lock
from typing import TYPE_CHECKING, Any

from trace_core._values import ATOMIC, is_tensor
from trace_core.context import current
from trace_core.errors import ReplayError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from trace_core.node import Node

_CONVERT: dict[str, Callable[[Any], Any]] = {
    "bool": bool,
    "len": len,
    "int": int,
    "float": float,
    "complex": complex,
    "index": operator.index,
    "shape": lambda value: tuple(value.shape) if hasattr(value, "shape") else len(value),
    "error": lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
}
_lock = allocate_lock()
_KEPT = 64  # tests remembered per node; the latest win
_REACH = 16  # steps from a tested value back to the nodes that remember the test
SELF = object()  # stands for the parameter in a test of it against constants
STORED = "tested"  # in a trace made from data: there was a test, and what it was is not known


def leave(node: Node, how: str) -> Any:
    """The node's value converted to plain Python. Raises ExecutionError, with a node, if it cannot be converted."""
    frame = current.get()
    read = node._read(frame)
    try:
        answer = _CONVERT[how](read._value)
    except Exception as error:
        from trace_core.node import failure
        from trace_core.operators import Operator

        raise failure(Operator(how, _CONVERT[how]), (read,), None, (), error, frame) from error
    if frame is None or frame.reads is None:  # inside an operator's body the question is asked again by a replay
        if how == "len" and _is_sized_by_shape(read._value):
            note_shape(read, read._value)
        else:
            _remember(read, how, answer)
    return answer


#: Operators whose results have a shape that depends on the data.
_DATA_SHAPED = frozenset({"argwhere", "getitem", "masked_select", "method", "nonzero", "unique", "unique_consecutive"})


def note_shape(node: Node, value: Any) -> None:
    """Remember that the shape of a tensor was looked at.

    It is asked again at that node. Only where it depends on data do the nodes it was made of remember it as well: this
    links them in a cycle, and would keep their tensors until the next collection.
    """
    op = node.op
    if op is None:
        return
    frame = current.get()
    if frame is not None and frame.reads is not None:
        return
    if op.name in _DATA_SHAPED and _is_data_shaped(node):
        _remember(node, "shape", _CONVERT["shape"](value))
        return
    extra = node._more()
    if extra.guards is None:
        extra.guards = {}
    extra.guards["shape"] = _CONVERT["shape"](value)


def _is_sized_by_shape(value: Any) -> bool:
    """Whether the length follows from shapes: of a tensor, and of what ``split`` and the like give."""
    return is_tensor(value) or (isinstance(value, tuple) and bool(value) and all(map(is_tensor, value)))


def _is_data_shaped(node: Node) -> bool:
    from trace_core.graph import dependencies

    if node.op is not None and node.op.name == "getitem":
        return any(str(getattr(source._value, "dtype", "")) == "torch.bool" for source in dependencies(node))
    return node.op is not None and (node.op.name != "method" or node.args[1] in _DATA_SHAPED)


def note_outcome(node: Node, op: Any, how: str, value: Any) -> None:
    """Remember an outcome that is no value of the workflow, so that a replay asks for it again.

    ``op`` on the inputs of ``node`` gave ``value``: the error of a failed operator, which the workflow may have caught,
    or the number of items of a generator. What is remembered is a node of its own: errors hold on to whole call stacks.
    """
    from trace_core.node import make

    answer = _CONVERT[how](value)
    twin = make(answer, op, node.args)
    extra = node._extra
    if extra is not None and (extra.kwargs or extra.reads):
        more = twin._more()
        more.kwargs, more.reads = extra.kwargs, extra.reads
    _remember(twin, how, answer)


def _remember(node: Node, how: str, answer: Any) -> None:
    from trace_core.graph import dependencies
    from trace_core.parameter import Version

    if isinstance(node, Version):
        _condition(node, None, (), how, answer)
        return
    if node.op is None:
        return
    extra = node._more()
    if extra.guards is None:
        extra.guards = {}
    extra.guards[how] = answer
    # The tested value is often a temporary (``y > 0``) that no output depends on: what it was made of remembers it.
    pending, seen = [node], {node}
    for _ in range(_REACH):
        if not pending:
            return
        for source in dependencies(pending.pop()):
            if source in seen:
                continue
            seen.add(source)
            if not isinstance(source, Version):
                _watch(source, node)
                if source.op is not None:
                    pending.append(source)
            elif how != "float" and (_hidden(node) or not _condition(source, node.op, node.args, how, answer)):
                _watch(source, node)


def _hidden(node: Node) -> bool:
    """Whether the operator's result depends on more than its positional arguments."""
    extra = node._extra
    return extra is not None and bool(extra.kwargs or extra.reads)


def _watch(source: Node, tested: Node) -> None:
    with _lock:  # parameters and inputs are shared by threads
        extra = source._more()
        if extra.watchers is None:
            extra.watchers = [tested]
        elif extra.watchers[-1] is not tested:
            extra.watchers.append(tested)
            del extra.watchers[:-_KEPT]


def _condition(version: Node, op: Any, args: tuple[Any, ...], how: str, answer: Any) -> bool:
    """A test of a parameter against constants: the question is kept, not the tested node. False if it is no such test.

    ``float`` is no test: it is how parameters and losses are logged.
    """
    if any(value is not version and type(value) not in ATOMIC for value in args) or (
        op is not None and not any(value is version for value in args)
    ):
        return False
    question = (how, op, tuple([SELF if value is version else value for value in args]))
    try:
        hash(question)
    except TypeError:  # a slice among the constants cannot be a key
        return False
    with _lock:
        extra = version._more()
        if extra.guards is None:
            extra.guards = {}
        if how != "float" and (len(extra.guards) < _KEPT or question in extra.guards):
            extra.guards[question] = answer
    return True


def _ask(how: str, value: Any) -> Any:
    if how == STORED:
        raise ReplayError(
            "the workflow tested a value that now changes, and the test is not in the stored trace: run the workflow"
        )
    try:
        return _CONVERT[how](value)
    except Exception:  # noqa: BLE001 - the conversion is user code; that it fails now is the other answer
        return None


def mark_tested(node: Node) -> None:
    """Note that a path was chosen by what was made of the node, and that how is not known any more."""
    from trace_core.parameter import Version

    extra = node._more()
    extra.guards = {**(extra.guards or {}), (STORED, None, ()) if isinstance(node, Version) else STORED: True}


def check_answers(old: Node, new: Node) -> None:
    """Refuse to go on where a result was converted and the new one would be converted to something else."""
    guards = old._extra.guards if old._extra is not None else None
    for how, before in (guards or {}).items():
        now = _ask(how, new._value)
        if now != before:
            raise _other_path(how, old, before, now)


def check_conditions(version: Node, candidate: Node) -> None:
    """The same for tests of a parameter against constants."""
    guards = version._extra.guards if version._extra is not None else None
    for (how, op, args), before in list((guards or {}).items()):  # a copy: other threads may be testing
        value = candidate._value
        if op is not None:
            try:
                value = op.fn(*[value if item is SELF else item for item in args])
            except Exception as error:  # noqa: BLE001 - as above
                value = error if how == "error" else None
        now = _ask(how, value)
        if now != before:
            raise _other_path(how, version, before, now)


def check_watchers(nodes: Iterable[Node], new: Mapping[Node, Node], target: Node, inner: bool) -> None:
    """The same for temporaries made of the given nodes.

    What is made of the target cannot have led to it if the target is an ``inner`` node; of an output it may have been
    what ended a loop. ``float`` of an output is how it is logged.
    """
    later = set(target._extra.watchers or ()) if target._extra is not None else set()
    done: set[Node] = set(later) if inner else set()
    known: dict[Node, Node] = dict(new)
    unchanged: set[Node] = set()
    for node in nodes:
        watchers = node._extra.watchers if node._extra is not None else None
        for tested in tuple(watchers or ()):  # a copy: other threads may be testing
            if tested in done or _same_call(tested, target):  # that the target failed is its result
                continue
            done.add(tested)
            _recompute(tested, known, unchanged)
            guards = tested._extra.guards if tested._extra is not None else None
            for how, before in (guards or {}).items() if tested in known else ():
                if how == "float" and tested in later:
                    continue
                now = _ask(how, known[tested]._value)
                if now != before:
                    raise _other_path(how, tested, before, now)


def _recompute(tested: Node, known: dict[Node, Node], unchanged: set[Node]) -> None:
    """Put what the tested value would be now into ``known``, if anything it was made of has changed."""
    from trace_core.context import no_trace
    from trace_core.errors import ExecutionError
    from trace_core.graph import dependencies
    from trace_core.node import Node
    from trace_core.replay import rerun_with

    stack = [(tested, False)]
    while stack:
        node, expanded = stack.pop()
        if node in known or node in unchanged:
            continue
        sources = dependencies(node)
        if not expanded:
            stack.append((node, True))
            stack.extend([(source, False) for source in sources])
        elif node.op is None or not any(source in known for source in sources):
            unchanged.add(node)
        else:
            try:
                with no_trace():
                    result = rerun_with(node, known)
            except ExecutionError as error:
                result = error.node
            if not isinstance(result, Node):
                raise ReplayError(
                    f"a test in the workflow depends on {node.op.name!r}, which is async: run the workflow instead"
                )
            known[node] = result


def _same_call(left: Node, right: Node) -> bool:
    return left.op is right.op and left.args is right.args and left.op is not None


def _other_path(how: str, node: Node, before: Any, now: Any) -> ReplayError:
    name = node.op.name if node.op is not None else node._label() or "node"
    what = f"the error of {name!r}" if how == "error" else f"{how}() of {name!r}"
    return ReplayError(
        f"{what} was {before!r:.60} when recorded and would now be {now!r:.60}: it left the graph there, "
        "so the rest of the trace may no longer be what the workflow would do; run the workflow instead"
    )
