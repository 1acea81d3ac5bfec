"""What torch asks of a node, and a fast path: operators on plain tensors, at little more than torch's own cost.

Whatever is unusual (a scope, a subclass of Tensor, an exception, a value changed in place) is left to the general path
in ``node.apply``, which does the same. torch is not imported here.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from trace_core._arrays import refuse_in_place
from trace_core._extra import Extra
from trace_core._torch import STOCHASTIC, is_default_mode, mode_now
from trace_core._values import (
    ATOMIC,
    PLAIN_ARGUMENTS,
    PLAIN_TENSORS,
    REFERENCE,
    UNSET,
    all_atomic,
    snapshot,
    tensor_mark,
)
from trace_core.context import current
from trace_core.guards import note_shape
from trace_core.node import Blank, Node, apply, leaf
from trace_core.parameter import Version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from trace_core.operators import Operator


def operands(args: Iterable[Any]) -> tuple[list[Any], list[Any]] | None:
    """(plain values, what is recorded) of arguments outside of any scope; None if one of them is unusual."""
    plain: list[Any] = []
    kept: list[Any] = []
    for arg in args:
        kind = type(arg)
        if kind in ATOMIC:
            plain.append(arg)
            kept.append(arg)
        elif kind is Node:
            value = arg._value
            kind = type(value)
            if kind in PLAIN_TENSORS:
                if value._version != arg._snap.version:
                    return None
            elif kind not in ATOMIC:
                return None
            plain.append(value)
            kept.append(arg)
        elif kind in PLAIN_TENSORS:
            plain.append(arg)
            kept.append(leaf(arg))
        elif kind is tuple or kind is list:
            if all_atomic(arg):  # shapes, dims
                plain.append(arg)
                kept.append(arg if kind is tuple else arg.copy())
                continue
            inside = operands(arg)
            if inside is None:
                return None
            plain.append(kind(inside[0]))
            kept.append(kind(inside[1]))
        elif kind in PLAIN_ARGUMENTS:
            plain.append(arg)
            kept.append(arg)
        elif kind is Version:
            plain.append(arg._value)
            kept.append(arg)
        elif isinstance(arg, Node):
            read = arg._read(None)
            value = read._value
            if type(value) not in PLAIN_TENSORS and type(value) not in ATOMIC:
                return None
            plain.append(value)
            kept.append(read)
        else:
            return None
    return plain, kept


def run(op: Operator, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Node:
    """Compute and record, outside of any scope. ``kwargs`` is handed over."""
    if len(args) == 1 and not kwargs:
        (arg,) = args
        if type(arg) is Node:
            value = arg._value
            if type(value) in PLAIN_TENSORS and value._version == arg._snap.version:
                try:
                    return made(fn(value), op, args, None)
                except Exception:  # noqa: BLE001 - done again by the general path, which reports it as ExecutionError
                    return apply(op, args, kwargs)
    found = operands(args)
    if found is None:
        return apply(op, args, kwargs)
    try:
        if not kwargs:
            return made(fn(*found[0]), op, tuple(found[1]), None)
        named = _named(kwargs)
        if named is None:
            return apply(op, args, kwargs)
        return made(fn(*found[0], **named[0]), op, tuple(found[1]), named[1])
    except Exception:  # noqa: BLE001 - done again by the general path, which reports it as an ExecutionError
        return apply(op, args, kwargs)


def _named(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """``operands`` for keyword arguments, which mostly hold no tensors."""
    for value in kwargs.values():
        if type(value) not in ATOMIC and type(value) not in PLAIN_ARGUMENTS:
            break
    else:
        return kwargs, kwargs
    found = operands(kwargs.values())
    if found is None:
        return None
    return dict(zip(kwargs, found[0], strict=True)), dict(zip(kwargs, found[1], strict=True))


def run_binary(op: Operator, fn: Callable[[Any, Any], Any], left: Node, right: Any) -> Node:
    """``run`` for two operands, of which ``left`` is a node just read whose value is a plain tensor."""
    kind = type(right)
    kept = right
    if kind is Node:
        other = right._value
        if type(other) in PLAIN_TENSORS:
            if other._version != right._snap.version:
                return apply(op, (left, right))
        elif type(other) not in ATOMIC:
            return apply(op, (left, right))
    elif kind in ATOMIC:
        other = right
    elif kind in PLAIN_TENSORS:
        other = right
        kept = leaf(right)
    elif isinstance(right, Node):
        kept = right._read(None)
        other = kept._value
        if type(other) not in PLAIN_TENSORS:
            return apply(op, (left, right))
    else:
        return run(op, fn, (left, right), None)
    try:
        value = fn(left._value, other)
    except Exception:  # noqa: BLE001 - as above
        return apply(op, (left, right))
    return made(value, op, (left, kept), None)


def run_method(op: Operator, owner: Node, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
    """``run`` for the method ``name`` of a plain tensor."""
    if type(owner) is not Node or owner._value._version != owner._snap.version:
        read = owner._read(None)
        if type(read) is not Version:
            return apply(op, (owner, name, *args), kwargs)
        owner = read
    try:
        method = getattr(owner._value, name)
        if not kwargs and (not args or all_atomic(args)):
            return made(method(*args), op, (owner, name, *args), None)
        found = operands(args)
        named = _named(kwargs)
        if found is None or named is None:
            return apply(op, (owner, name, *args), kwargs)
        return made(method(*found[0], **named[0]), op, (owner, name, *found[1]), named[1] or None)
    except Exception:  # noqa: BLE001 - as above
        return apply(op, (owner, name, *args), kwargs)


def made(value: Any, op: Operator, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Node:
    """The node for a result."""
    node: Any = Blank()
    node._value = value
    kind = type(value)
    if kind in PLAIN_TENSORS:
        node._snap = tensor_mark(value)
    elif kind in ATOMIC:
        node._snap = UNSET
    elif isinstance(value, tuple):
        node._snap = REFERENCE
    else:
        node._snap = snapshot(value)
    node.op = op
    node.args = args
    default = is_default_mode()
    if default and kwargs is None:
        node._extra = None
    else:
        node._extra = extra = Extra()
        extra.kwargs = kwargs
        if not default:
            extra.mode = mode_now()
    node.__class__ = Node
    return node  # type: ignore[no-any-return]


# ---- torch functions

_IN_PLACE = {  # what ``tensor += node`` means for the one who writes it: a new value under the old name
    "__iadd__": operator.add,
    "__isub__": operator.sub,
    "__imul__": operator.mul,
    "__itruediv__": operator.truediv,
    "__ifloordiv__": operator.floordiv,
    "__imod__": operator.mod,
    "__ipow__": operator.pow,
    "__imatmul__": operator.matmul,
    "__iand__": operator.and_,
    "__ior__": operator.or_,
    "__ixor__": operator.xor,
    "__ilshift__": operator.lshift,
    "__irshift__": operator.rshift,
}
_ordinary: dict[Any, Operator] = {}  # torch functions that neither write in place nor draw random numbers


def torch_function(cls: Any, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
    """torch's protocol: ``torch.relu(node)`` records. Raises MutationError for forms that write in place."""
    if current.get() is None:
        op = _ordinary.get(func)
        if op is not None and not (kwargs and ("out" in kwargs or kwargs.get("inplace") is True)):
            return run(op, func, args, kwargs)
    return _torch_function(func, args, kwargs)


def _torch_function(func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
    from trace_core.operators import foreign

    name = getattr(func, "__name__", "")
    if name in _IN_PLACE:
        return apply(foreign(_IN_PLACE[name]), args, kwargs)
    if name == "__setitem__" or (name.endswith("_") and not name.startswith("_")):
        raise refuse_in_place(f"torch function {name!r}")
    if kwargs:
        if kwargs.get("out") is not None:
            raise refuse_in_place(f"torch function {name!r} with out=")
        if kwargs.get("inplace") is True:
            raise refuse_in_place(f"torch function {name!r} with inplace=True")
    op = foreign(func)
    if name in STOCHASTIC:
        from trace_core._random_ops import random_operator

        drawing = random_operator(op, args, kwargs)
        return run(drawing, func, args, kwargs) if current.get() is None else apply(drawing, args, kwargs)
    if len(_ordinary) < _KNOWN:
        _ordinary[func] = op
    return apply(op, args, kwargs)


_KNOWN = 4096
Node.__torch_function__ = classmethod(torch_function)  # type: ignore[attr-defined]


# ---- attributes of tensors

#: Attributes that are tensors.
TENSOR_VALUED = frozenset({"H", "T", "imag", "mH", "mT", "real"})
#: Attributes and methods that say what sort of tensor it is: plain values, as for a tensor.
METADATA = frozenset(
    {
        "device",
        "dim",
        "dtype",
        "element_size",
        "get_device",
        "grad_fn",
        "is_complex",
        "is_contiguous",
        "is_cpu",
        "is_cuda",
        "is_floating_point",
        "is_inference",
        "is_leaf",
        "is_meta",
        "is_nested",
        "is_quantized",
        "is_signed",
        "is_sparse",
        "itemsize",
        "layout",
        "nbytes",
        "ndim",
        "ndimension",
        "nelement",
        "numel",
        "requires_grad",
        "retains_grad",
        "shape",
        "size",
        "storage_offset",
        "stride",
    }
)


def metadata(node: Node, value: Any, name: str) -> Any:
    """An attribute of a tensor that holds no data, or the method that gives it. A replay checks the shape."""
    note_shape(node, value)
    return getattr(value, name)
