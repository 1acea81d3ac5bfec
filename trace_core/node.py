"""Node: a value and how it came to be. The graph is the links between nodes; there is no registry."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from trace_core._arrays import ArrayProtocols
from trace_core._conversions import Conversions
from trace_core._extra import Extra
from trace_core._signatures import OperatorSignatures
from trace_core._torch import is_default_mode, mode_now
from trace_core._values import (
    ATOMIC,
    PLAIN_TENSORS,
    UNSET,
    ByReference,
    Released,
    changed_since,
    is_ndarray,
    is_tensor,
    snapshot,
    tensor_mark,
    without_history,
)
from trace_core.context import body_frame, current
from trace_core.errors import ExecutionError, MutationError
from trace_core.guards import note_outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from trace_core.context import Frame
    from trace_core.feedback import Feedback, FeedbackLike
    from trace_core.operators import Operator
    from trace_core.trace import Trace


class Blank:
    """The fields of a node, while it is being made: filled in at C speed, then it becomes a Node by its ``__class__``.

    Node.__setattr__ refuses assignments, and going through it, or through the slots' descriptors, costs a call for each
    field, which is half of what recording an operator costs.
    """

    __slots__ = ("__weakref__", "_extra", "_snap", "_value", "args", "op")

    _value: Any
    _snap: Any
    op: Operator | None
    args: tuple[Any, ...]
    _extra: Extra | None


class Node(Blank, ArrayProtocols, Conversions, OperatorSignatures):
    """A value in the graph of a traced workflow.

    Arithmetic, comparison, indexing, attribute access, method calls and iteration on a node give nodes. ``bool``,
    ``len``, ``int``, ``float``, ``str`` and ``in`` leave the graph and answer as the value would. ``==`` gives a node;
    the hash is the identity; ``node in nodes``, ``nodes.remove(node)``, ``index`` and ``count`` look for that very
    node. A node is immutable: in-place changes raise MutationError.

    Attributes:
        value: the value itself (alias ``data``).
        op: the operator that made it; None for a leaf.
    """

    __slots__ = ()

    def __init__(self, value: Any, *, name: str | None = None, description: str | None = None) -> None:
        plain, recorded = unwrap(value)
        self._value = plain
        self._snap = UNSET if type(plain) in ATOMIC else snapshot(plain)
        self._extra = None
        if plain is value or recorded is value:
            self.op = None
            self.args = ()
        else:  # a container that held nodes: the data holds their values, the graph keeps the links
            from trace_core.operators import PACK

            self.op = PACK
            self.args = (recorded,)
        frame = current.get()
        if frame is not None and frame.reads is not None:
            frame.note_made(self)
        if name is not None or description is not None:
            extra = self._more()
            extra.name, extra.description = name, description

    # ---- reading

    @property
    def value(self) -> Any:
        """The value. Inside an operator's body the read makes this node a dependency of the operator."""
        frame = current.get()
        value = self._value if frame is None else self._read(frame)._value
        return value if type(value) is not Released else value.refuse()

    @property
    def data(self) -> Any:
        """Alias of ``value``."""
        return self.value

    @property
    def recorded(self) -> Any:
        """The value as it was when recorded, even if a mutable ``value`` was changed later."""
        return self._value if self._snap is UNSET or isinstance(self._snap, ByReference) else self._snap

    @property
    def inputs(self) -> dict[str, Node]:
        """Direct dependencies by input name: arguments first, then what the body read by itself."""
        from trace_core.graph import named_inputs

        return dict(named_inputs(self))

    def _read(self, frame: Frame | None) -> Node:
        """The node that a read of this one gives in ``frame``; notes the read for a running body."""
        node = self if self._snap is UNSET else self._now()
        if frame is None:
            return node
        if frame.overlay is not None:
            node = frame.overlay.get(self, self)
        if frame.reads is not None:
            frame.reads[node] = None
        return node

    def _now(self) -> Node:
        """This node, or, if its value was changed in place since it was recorded, one for what it has become."""
        if not changed_since(self._value, self._snap):
            return self
        later = self._more().later
        if later is None or changed_since(later._value, later._snap):
            from trace_core.operators import CHANGED

            later = self._more().later = make(self._value, CHANGED, (self,))
        return later

    def _more(self) -> Extra:
        extra = self._extra
        if extra is None:
            extra = self._extra = Extra()
        return extra

    # ---- going backward

    def backward(self, feedback: FeedbackLike | Feedback = "") -> Trace:
        """Send feedback (text, a score, ``(score, text)``, a Feedback) to every parameter this value depends on.

        Returns the Trace, which is also appended to ``parameter.feedback`` of each parameter reached. Warns with
        UnreachedWarning if there is none. Raises FeedbackError if the feedback cannot be used.
        """
        from trace_core.trace import Trace

        return Trace.of(self, feedback).deposit()

    def clone(self) -> Node:
        """A node with a copy of the value, still linked to this one."""
        from trace_core.operators import CLONE

        return apply(CLONE, (self,))

    def detach(self) -> Node:
        """A leaf with the same value and no history; a tensor is detached from autograd as well."""
        return Node(without_history(self.value))

    # ---- Python protocols

    __hash__ = object.__hash__  # identity; at C speed, as every walk over a graph hashes its nodes

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._read(current.get())._value!r})"

    def __contains__(self, item: object) -> bool:
        from trace_core.operators import CONTAINS

        return bool(apply(CONTAINS, (self, item)))

    def __copy__(self) -> Node:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Node:
        """An independent leaf: the value is copied, the history is not."""
        import copy

        return Node(copy.deepcopy(self.value, memo), name=self._label(), description=self._about())

    def __reduce__(self) -> Any:
        return _rebuild, (self.value, self._label(), self._about())

    def _label(self) -> str | None:
        return None if self._extra is None else self._extra.name

    def _about(self) -> str | None:
        return None if self._extra is None else self._extra.description

    @property
    def name(self) -> Any:
        """The name given to this node; without one, a ``name`` that the value itself has, as a node; else None."""
        return self._own_or_attribute("name", self._label())

    @property
    def description(self) -> Any:
        """The description given to this node; without one, a ``description`` that the value itself has; else None."""
        return self._own_or_attribute("description", self._about())

    def _own_or_attribute(self, attribute: str, own: str | None) -> Any:
        if own is not None or type(self._value) in ATOMIC or not hasattr(self._value, attribute):
            return own
        from trace_core.operators import get_attribute

        return get_attribute(self, attribute)

    # ---- recorded protocols that are not in the operator table

    def __iter__(self) -> Iterator[Any]:
        from trace_core.operators import iterate

        return iterate(self)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        from trace_core.operators import CALL

        return apply(CALL, (self, *args), kwargs)

    def __setattr__(self, attribute: str, value: Any) -> None:
        if attribute in _SLOTS:
            _set(self, attribute, value)
        elif attribute in ("value", "data"):
            raise MutationError(
                "a node's value cannot be set: a Node is immutable, so that its trace stays true. "
                "Make a new one with tc.node(...), or use a Parameter and parameter.update(...)"
            )
        else:
            raise MutationError(
                f"cannot set attribute {attribute!r} on a Node: nodes are immutable. Change the object before it "
                f"becomes a node, or return the changed object from a bundle"
            )

    def __setitem__(self, key: object, value: object) -> None:
        raise MutationError(
            "item assignment on a Node: nodes are immutable. Build a new value, e.g. {**node, key: value} or "
            "node[:i] + [value] + node[i + 1:], or do it inside a bundle that returns the new value"
        )

    def __delitem__(self, key: object) -> None:
        raise MutationError("item deletion on a Node: nodes are immutable. Build a new value without the item")


class ExceptionNode(Node):
    """Stands for the output of an operator that raised; ``value`` is the exception, ``text`` the marked report."""

    __slots__ = ("text",)
    text: str


_SLOTS = frozenset(
    {"_value", "_snap", "op", "args", "_extra", "text", "parameter", "index", "compiled"}
)  # of Node, ExceptionNode and Version: everything that may be assigned
_set = object.__setattr__


def _rebuild(value: Any, name: str | None, description: str | None) -> Node:
    return Node(value, name=name, description=description)


def make(value: Any, op: Operator | None, args: tuple[Any, ...]) -> Node:
    """A node outside of any frame: the fast path."""
    node: Any = Blank()
    node._value = value
    node._snap = UNSET if type(value) in ATOMIC else snapshot(value)
    node.op = op
    node.args = args
    node._extra = None
    node.__class__ = Node
    return node  # type: ignore[no-any-return]


def leaf(tensor: Any) -> Node:
    """A node for a plain tensor that came without one: the record then tells if it is changed in place later."""
    node: Any = Blank()
    node._value = tensor
    node._snap = tensor_mark(tensor)
    node.op = None
    node.args = ()
    node._extra = None
    node.__class__ = Node
    return node  # type: ignore[no-any-return]


def unwrap(value: Any) -> tuple[Any, Any]:
    """Split what a user passes into (plain, recorded).

    ``plain`` has every node replaced by its value, at any depth of list, tuple, dict, set, dataclass and pydantic
    model. ``recorded`` is what the graph keeps: nodes stay (a parameter becomes the version read), small mutable
    containers are copied, so that the record stays true when they change. Both are ``value`` itself where nothing is
    to be done.
    """
    kind = type(value)
    if kind in ATOMIC:
        return value, value
    if kind in PLAIN_TENSORS:
        return value, leaf(value)
    if isinstance(value, Node):
        node = value._read(current.get())
        plain = node._value
        return (plain if type(plain) is not Released else plain.refuse()), node
    if isinstance(value, _CONTAINERS) or hasattr(kind, "__dataclass_fields__") or hasattr(kind, "__pydantic_fields__"):
        from trace_core._unwrap import unwrap_container

        return unwrap_container(value)
    if kind is bytearray or is_ndarray(value):
        kept = snapshot(value)
        return value, value if isinstance(kept, ByReference) else kept
    if is_tensor(value):
        return value, make(value, None, ())
    return value, value


_CONTAINERS = (list, tuple, dict, set, frozenset, deque)


def apply(op: Operator, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Node:
    """Run a recorded operator: unwrap the inputs, compute, link. Raises ExecutionError if it raises.

    User code that runs inside (methods of objects, ufuncs over objects) may read further nodes: these become inputs.
    """
    outer = current.get()
    plain_args: list[Any] = []
    recorded: list[Any] = []
    for value in args:
        plain, kept = unwrap(value)
        plain_args.append(plain)
        recorded.append(kept)
    plain_kwargs: dict[str, Any] = {}
    recorded_kwargs: dict[str, Any] | None = None
    if kwargs:
        recorded_kwargs = {}
        for key, value in kwargs.items():
            plain_kwargs[key], recorded_kwargs[key] = unwrap(value)
    frame = body_frame(outer)
    token = current.set(frame)
    try:
        result = op.fn(*plain_args, **plain_kwargs)
        if type(result) not in ATOMIC and type(result) not in PLAIN_TENSORS:
            result = unwrap(result)[0]
    except Exception as error:
        reads = frame.external_reads()
        raise failure(op, tuple(recorded), recorded_kwargs, reads, error, outer) from error
    finally:
        current.reset(token)
    return link(result, op, tuple(recorded), recorded_kwargs, frame.external_reads(), outer)


def link(
    value: Any,
    op: Operator,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    reads: tuple[Node, ...],
    outer: Frame | None,
    kind: type[Node] = Node,
) -> Node:
    """The result node of an operator, in whatever scope: linked, or a leaf under ``no_trace``."""
    tracing = outer is None or outer.tracing
    node: Any = Blank() if kind is Node else object.__new__(kind)
    node._value = value
    node._snap = UNSET if type(value) in ATOMIC else snapshot(value)
    node.op = op if tracing else None
    node.args = args if tracing else ()
    node._extra = None
    if kind is Node:
        node.__class__ = Node
    if tracing:
        if kwargs or reads:
            extra = node._more()
            extra.kwargs = kwargs
            extra.reads = reads
        if PLAIN_TENSORS and not is_default_mode():
            node._more().mode = mode_now()
    if outer is not None and outer.reads is not None:
        for read in reads:  # arguments were noted when they were unwrapped; what the body read must reach the outer one
            outer.reads[read] = None
        outer.note_made(node)
    return node  # type: ignore[no-any-return]


def failure(
    op: Operator,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    reads: tuple[Node, ...],
    error: Exception,
    outer: Frame | None,
) -> ExecutionError:
    """The ExecutionError for an operator that raised; also an instance of the exception's own type where possible."""
    from trace_core.tracebacks import execution_error

    node: Any = link(error, op, args, kwargs, reads, outer, ExceptionNode)
    if node.op is not None and (outer is None or outer.reads is None):
        note_outcome(node, op, "error", error)
    return execution_error(op, node, error)
