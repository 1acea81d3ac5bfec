"""The operators of plain Python on nodes: one table, from which Node's methods are made."""

from __future__ import annotations

import math
import operator
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from trace_core._fast import METADATA, TENSOR_VALUED, metadata, run_attribute, run_binary, run_method
from trace_core._fast import run as run_fast
from trace_core._torch import STOCHASTIC
from trace_core._values import ATOMIC, PLAIN_TENSORS, is_ndarray, is_tensor
from trace_core.context import current
from trace_core.errors import ReplayError
from trace_core.guards import leave
from trace_core.membership import looks_for_node
from trace_core.mutating import refuse_mutation
from trace_core.node import Node, apply, make

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


class OperatorLike(Protocol):
    """What a node's ``op`` offers: a name, a way to write it, a way to run it again."""

    name: str
    description: str | None

    def rerun(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Node:
        """Run on new inputs (nodes or values) and record the result."""
        ...

    def input_names(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """The inputs by name, in order."""
        ...


class Operator:
    """A named pure function on values.

    Attributes:
        name: short lower-case name, e.g. ``add``; the stem of the names nodes get in a rendered trace.
        fn: the plain function.
        form: how it is written in a pseudo-program, with ``{0}``, ``{1}`` for the inputs; None for ``name(a, b)``.
    """

    __slots__ = ("description", "fn", "form", "name")

    def __init__(
        self, name: str, fn: Callable[..., Any], form: str | None = None, description: str | None = None
    ) -> None:
        self.name = name
        self.fn = fn
        self.form = form
        self.description = description

    def __repr__(self) -> str:
        return f"<operator {self.name}>"

    def rerun(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Node:
        """Run on new inputs and record the result."""
        return apply(self, args, kwargs)

    def input_names(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """Positional inputs are called a, b, c ... as they have no names of their own."""
        named = [(chr(97 + index) if index < 26 else f"arg{index}", value) for index, value in enumerate(args)]
        return named + list(kwargs.items())


#: name -> (function, how it is written). Each gets the forward method ``__name__`` and, if binary, ``__rname__``.
BINARY: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "add": (operator.add, "{0} + {1}"),
    "sub": (operator.sub, "{0} - {1}"),
    "mul": (operator.mul, "{0} * {1}"),
    "matmul": (operator.matmul, "{0} @ {1}"),
    "truediv": (operator.truediv, "{0} / {1}"),
    "floordiv": (operator.floordiv, "{0} // {1}"),
    "mod": (operator.mod, "{0} % {1}"),
    "divmod": (divmod, "divmod({0}, {1})"),
    "pow": (operator.pow, "{0} ** {1}"),
    "lshift": (operator.lshift, "{0} << {1}"),
    "rshift": (operator.rshift, "{0} >> {1}"),
    "and": (operator.and_, "{0} & {1}"),
    "xor": (operator.xor, "{0} ^ {1}"),
    "or": (operator.or_, "{0} | {1}"),
}
COMPARE: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "lt": (operator.lt, "{0} < {1}"),
    "le": (operator.le, "{0} <= {1}"),
    "gt": (operator.gt, "{0} > {1}"),
    "ge": (operator.ge, "{0} >= {1}"),
    "eq": (operator.eq, "{0} == {1}"),
    "ne": (operator.ne, "{0} != {1}"),
}
UNARY: dict[str, tuple[Callable[[Any], Any], str]] = {
    "neg": (operator.neg, "-{0}"),
    "pos": (operator.pos, "+{0}"),
    "invert": (operator.invert, "~{0}"),
    "abs": (abs, "abs({0})"),
    "floor": (math.floor, "floor({0})"),
    "ceil": (math.ceil, "ceil({0})"),
    "trunc": (math.trunc, "trunc({0})"),
}


def _method(item: Any, name: str, /, *args: Any, **kwargs: Any) -> Any:
    return getattr(item, name)(*args, **kwargs)


def _call(function: Any, /, *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _copy(value: Any) -> Any:
    import copy

    return value.clone() if is_tensor(value) else copy.deepcopy(value)  # a tensor's copy keeps its gradient


GETITEM = Operator("getitem", operator.getitem, "{0}[{1}]")
GETATTR = Operator("getattr", getattr, "{0}.{1}")
METHOD = Operator("method", _method, "{0}.{1}(*)")
CALL = Operator("call", _call, "{0}(*)")
ITER = Operator("iter", list, "list({0})")
REVERSED = Operator("reversed", lambda value: list(reversed(value)), "reversed({0})")
PACK = Operator("pack", lambda value: value, "{0}")
CLONE = Operator("clone", _copy, "copy({0})")
CONTAINS = Operator("contains", operator.contains, "{1} in {0}")
ROUND = Operator("round", round, "round({0}, {1})")
POW3 = Operator("pow", pow, "pow({0}, {1}, {2})")


class _Changed(Operator):
    """What a node's value became when somebody changed it in place between two uses."""

    __slots__ = ()

    def rerun(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Node:
        """Refused: what changed the value is not in the graph."""
        raise ReplayError(
            "a value was changed in place between two uses, by what is not in the graph: run the workflow instead"
        )


CHANGED = _Changed("changed", lambda value: value, "changed({0})")

#: Operators that a stored trace may name: rebuilding a trace from data can re-execute these and no others.
BY_NAME: dict[str, Operator] = {op.name: op for op in (GETITEM, GETATTR, ITER, REVERSED, PACK, CLONE, CONTAINS, ROUND)}
BY_NAME["pow3"] = POW3
BY_NAME["changed"] = CHANGED


_TRUSTED = ATOMIC - {type}  # classes may have operators of their own


def _forward(op: Operator) -> Callable[[Node, Any], Node]:
    fn = op.fn

    def method(self: Node, other: Any) -> Node:
        if current.get() is not None:
            return apply(op, (self, other))
        left = self if type(self) is Node else self._read(None)
        if type(left._value) in PLAIN_TENSORS:
            return run_binary(op, fn, left, other)
        kind = type(other)
        if kind is Node:
            operand = other._value
        elif kind in ATOMIC:
            operand = other
        elif isinstance(other, Node):
            other = other._read(None)
            operand = other._value
        else:
            return apply(op, (self, other))
        if type(left._value) not in _TRUSTED or type(operand) not in _TRUSTED:  # the value's own code may read nodes
            return apply(op, (self, other))
        try:
            value = fn(left._value, operand)
        except Exception:  # noqa: BLE001 - done again by the general path, which reports it as an ExecutionError
            return apply(op, (self, other))
        return make(value, op, (left, other))

    return method


def _backward(op: Operator) -> Callable[[Node, Any], Node]:
    def method(self: Node, other: Any) -> Node:
        if PLAIN_TENSORS and current.get() is None and type(self._value) in PLAIN_TENSORS:
            return run_fast(op, op.fn, (other, self), None)
        return apply(op, (other, self))

    return method


def _unary(op: Operator) -> Callable[[Node], Node]:
    def method(self: Node) -> Node:
        if PLAIN_TENSORS and current.get() is None and type(self._value) in PLAIN_TENSORS:
            return run_fast(op, op.fn, (self,), None)
        return apply(op, (self,))

    return method


def _equal(op: Operator) -> Callable[[Node, Any], Any]:
    record = _forward(op)

    def method(self: Node, other: Any) -> Any:
        if isinstance(other, Node) and looks_for_node(sys._getframe(1)):
            return self is other
        return record(self, other)

    return method


def _pow(record: Callable[[Node, Any], Node]) -> Callable[..., Node]:
    def method(self: Node, other: Any, modulo: Any = None) -> Node:
        return record(self, other) if modulo is None else apply(POW3, (self, other, modulo))

    return method


def _round(self: Node, digits: Any = None) -> Node:
    return apply(ROUND, (self,) if digits is None else (self, digits))


# ---- attributes and methods of the value

_DELIBERATELY_ABSENT = ("_repr_", "_ipython_", "_pytest")


class BoundMethod:
    """``node.method``, to be called: ``text.upper()`` records one operator and gives a node."""

    __slots__ = ("_name", "_owner")

    _owner: Node
    _name: str

    def __call__(self, /, *args: Any, **kwargs: Any) -> Node:
        owner, name = self._owner, self._name
        if PLAIN_TENSORS and type(owner._value) in PLAIN_TENSORS:
            if name not in STOCHASTIC:
                if current.get() is None:
                    return run_method(METHOD, owner, name, args, kwargs)
            else:
                from trace_core._random_ops import random_operator

                inputs = (owner, name, *args)
                return apply(random_operator(METHOD, inputs, kwargs), inputs, kwargs)
        return apply(METHOD, (owner, name, *args), kwargs)

    @property
    def value(self) -> Any:
        """The plain method, or whatever callable the attribute holds."""
        return getattr(self._owner.value, self._name)

    def __getattr__(self, attribute: str) -> Any:  # a callable object may have attributes of its own
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        return getattr(apply(GETATTR, (self._owner, self._name)), attribute)

    def __repr__(self) -> str:
        return f"<method {self._name} of {self._owner!r}>"


def _bound(owner: Node, name: str) -> BoundMethod:
    method = BoundMethod()  # filled in here: a constructor of its own takes as long as all the rest
    method._owner = owner
    method._name = name
    return method


def _keep_at_hand(name: str) -> None:
    """Give Node a property for a method of tensors, or an attribute that is one. It answers as ``get_attribute`` does.

    A property is found at once; ``__getattr__`` is asked only after a search that fails, and an exception made of that.
    """

    def get(node: Node) -> Any:
        if type(node) is Node and type(node._value) in PLAIN_TENSORS:
            method = BoundMethod()  # ``_bound`` written out
            method._owner = node
            method._name = name
            return method
        return get_attribute(node, name)

    def get_tensor(node: Node) -> Any:
        if type(node) is Node and type(node._value) in PLAIN_TENSORS and current.get() is None:
            return run_attribute(GETATTR, node, name)
        return get_attribute(node, name)

    if not hasattr(Node, name):
        setattr(Node, name, property(get_tensor if name in TENSOR_VALUED else get))


def get_attribute(node: Node, name: str) -> Any:
    """Attribute access on a node: a method to call, or the attribute as a node; of tensors, plain metadata."""
    if (name.startswith("__") and name.endswith("__")) or name.startswith(_DELIBERATELY_ABSENT):
        raise AttributeError(f"{type(node).__name__} has no attribute {name!r}")
    frame = current.get()
    read = node if frame is None else node._read(frame)
    value = read._value
    if type(value) in PLAIN_TENSORS:
        if name in METADATA:
            return metadata(read, value, name)
        if name in TENSOR_VALUED and frame is None:
            _keep_at_hand(name)
            return run_fast(GETATTR, getattr, (node, name), None)
    try:
        attribute = getattr(value, name)
    except Exception:
        apply(GETATTR, (node, name))  # raises it again as an ExecutionError, which is of the same kind too
        raise
    if isinstance(attribute, Node):  # a parameter or node kept by an object: its own place in the graph
        return attribute
    if callable(attribute):
        refuse_mutation(value, name)
        if type(value) in PLAIN_TENSORS:
            _keep_at_hand(name)
        return _bound(node, name)
    return apply(GETATTR, (node, name))


@lru_cache(maxsize=4096)
def foreign(function: Any, name: str | None = None) -> Operator:
    """The operator for a numpy or torch function; the same object for the same function."""
    given: str = name or getattr(function, "__name__", None) or type(function).__name__
    return Operator(given.strip("_"), function)


def iterate(node: Node) -> Iterator[Any]:
    """The items as nodes. What cannot be indexed (dict, set, views, iterators) is listed once, as a node of its own."""
    frame = current.get()
    value = (node if frame is None else node._read(frame))._value
    indexable = isinstance(value, list | tuple | str | bytes) or is_ndarray(value) or is_tensor(value)
    source = node if indexable else apply(ITER, (node,))
    count = leave(source, "len")
    for index in range(count):
        yield apply(GETITEM, (source, index))


def _install() -> None:
    """Give Node its methods, from the table."""

    def put(dunder: str, method: Any) -> None:
        method.__name__ = dunder
        method.__qualname__ = f"Node.{dunder}"
        setattr(Node, dunder, method)

    for name, (function, form) in {**BINARY, **COMPARE}.items():
        op = BY_NAME[name] = Operator(name, function, form)
        put(f"__{name}__", _equal(op) if name == "eq" else _forward(op))
        if name in BINARY:
            put(f"__r{name}__", _backward(op))
    for name, (unary, form) in UNARY.items():
        BY_NAME[name] = Operator(name, unary, form)
        put(f"__{name}__", _unary(BY_NAME[name]))
    put("__getitem__", _forward(GETITEM))
    put("__reversed__", _unary(REVERSED))
    Node.__getattr__ = get_attribute  # type: ignore[method-assign, assignment]
    put("__pow__", _pow(_forward(BY_NAME["pow"])))
    put("__round__", _round)


_install()
