"""What torch asks of a node, and a fast path: operators on plain tensors, at little more than torch's own cost.

Whatever is unusual (a scope, a subclass of Tensor, an exception, a value changed in place) is left to the general path
in ``node.apply``, which does the same. torch is not imported here.
"""

from __future__ import annotations

import operator
from types import MethodType
from typing import TYPE_CHECKING, Any

from trace_core import _torch
from trace_core._arrays import refuse_in_place
from trace_core._extra import Extra
from trace_core._torch import STOCHASTIC, mode_now
from trace_core._values import (
    ATOMIC,
    MARKS,
    PLAIN_TENSORS,
    REFERENCE,
    SIMPLE,
    UNSET,
    snapshot,
    tensor_mark,
)
from trace_core.context import current
from trace_core.guards import note_shape
from trace_core.node import Blank, Node, apply, leaf
from trace_core.parameter import Version

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from trace_core.operators import Operator


def operands(args: Collection[Any]) -> tuple[list[Any], list[Any]] | None:
    """(plain values, what is recorded) of arguments outside of any scope; None if one of them is unusual."""
    plain = [*args]
    kept = plain.copy()
    for index, arg in enumerate(args):  # most stay what they are
        kind = type(arg)
        if kind is Node:
            plain[index] = value = arg._value
            kind = type(value)
            if kind in PLAIN_TENSORS:
                if value._version != arg._snap.version:
                    return None
            elif kind not in ATOMIC:
                return None
        elif kind in SIMPLE:
            pass
        elif kind in PLAIN_TENSORS:
            kept[index] = leaf(arg)
        elif kind is tuple or kind is list:
            for item in arg:
                if type(item) not in SIMPLE:
                    inside = operands(arg)
                    if inside is None:
                        return None
                    if kind is list:
                        plain[index], kept[index] = inside
                    else:
                        plain[index], kept[index] = tuple(inside[0]), tuple(inside[1])
                    break
            else:
                if kind is list:  # shapes, dims
                    kept[index] = arg.copy()
        else:
            if not isinstance(arg, Node):
                return None
            kept[index] = read = arg if kind is Version else arg._read(None)
            plain[index] = value = read._value
            kind = type(value)
            if kind not in PLAIN_TENSORS and kind not in ATOMIC:
                return None
    return plain, kept


def run(op: Operator, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Node:
    """Compute and record, outside of any scope. ``kwargs`` is handed over."""
    first: Any = args[0] if args else None
    kind = type(first)
    try:
        if kind is Node:
            value = first._value
            if type(value) in PLAIN_TENSORS:
                if len(args) == 1:
                    if value._version != first._snap.version:
                        return apply(op, args, kwargs)
                    if not kwargs:
                        return made(fn(value), op, args)
                    named = _named(kwargs)
                    if named is not None:
                        return made(fn(value, **named[0]), op, args, named[1])
                elif len(args) == 2 and not kwargs:
                    return run_binary(op, fn, first, args[1])
        elif (kind is list or kind is tuple) and len(args) == 1 and not kwargs:  # cat, stack
            found = operands(first)
            if found is not None:
                return made(fn(kind(found[0])), op, (kind(found[1]),))
    except Exception:  # noqa: BLE001 - done again by the general path, which reports it as an ExecutionError
        return apply(op, args, kwargs)
    return _run_any(op, fn, args, kwargs)


def _run_any(op: Operator, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Node:
    try:
        found = operands(args)
        if found is not None:
            if not kwargs:
                return made(fn(*found[0]), op, tuple(found[1]))
            named = _named(kwargs)
            if named is not None:
                return made(fn(*found[0], **named[0]), op, tuple(found[1]), named[1])
    except Exception:  # noqa: BLE001 - as above
        return apply(op, args, kwargs)
    return apply(op, args, kwargs)


def _named(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """``operands`` for keyword arguments, which mostly hold no tensors."""
    for value in kwargs.values():
        if type(value) not in SIMPLE:
            found = operands(kwargs.values())
            return found and (dict(zip(kwargs, found[0], strict=True)), dict(zip(kwargs, found[1], strict=True)))
    return kwargs, kwargs


def run_binary(op: Operator, fn: Callable[[Any, Any], Any], left: Node, right: Any) -> Node:
    """``run`` for two operands, of which the value of ``left``, as read, is a plain tensor."""
    kind = type(right)
    other = kept = right
    try:
        value = left._value
        if value._version != left._snap.version:
            return apply(op, (left, right))
        if kind is Node:
            other = right._value
            kind = type(other)
            if kind in PLAIN_TENSORS:
                if other._version != right._snap.version:
                    return apply(op, (left, right))
            elif kind not in ATOMIC:
                return apply(op, (left, right))
        elif kind in ATOMIC:
            pass
        elif kind in PLAIN_TENSORS:
            kept = leaf(right)
        elif isinstance(right, Node):
            kept = right._read(None)  # sees for itself whether it was changed
            other = kept._value
            if type(other) not in PLAIN_TENSORS:
                return apply(op, (left, right))
        else:
            return _run_any(op, fn, (left, right), None)
        return made(fn(value, other), op, (left, kept))
    except Exception:  # noqa: BLE001 - as above
        return apply(op, (left, right))


def run_method(op: Operator, owner: Node, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
    """``run`` for the method ``name`` of a plain tensor."""
    try:
        read = owner if type(owner) is Node else owner._read(None)
        value = read._value
        if read is not owner or value._version == read._snap.version:
            plain = kept = args
            for arg in args:
                if type(arg) not in SIMPLE:
                    found = operands(args)
                    if found is None:
                        return apply(op, (owner, name, *args), kwargs)
                    plain, kept = found  # type: ignore[assignment]
                    break
            if not kwargs:
                return made(getattr(value, name)(*plain), op, (read, name, *kept))
            named = _named(kwargs)
            if named is not None:
                return made(getattr(value, name)(*plain, **named[0]), op, (read, name, *kept), named[1])
    except Exception:  # noqa: BLE001 - as above
        return apply(op, (owner, name, *args), kwargs)
    return apply(op, (owner, name, *args), kwargs)


def run_attribute(op: Operator, owner: Node, name: str) -> Node:
    """``run`` for an attribute of a plain tensor that is a tensor."""
    try:
        value = owner._value
        if value._version == owner._snap.version:
            return made(getattr(value, name), op, (owner, name))
    except Exception:  # noqa: BLE001 - as above
        return apply(op, (owner, name))
    return apply(op, (owner, name))


def made(value: Any, op: Operator, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Node:
    """The node for a result."""
    node: Any = Blank()
    node._value = value
    kind = type(value)
    if kind in PLAIN_TENSORS:
        try:
            node._snap = MARKS[value._version]
        except (IndexError, RuntimeError):
            node._snap = tensor_mark(value)
    elif kind in ATOMIC:
        node._snap = UNSET
    elif isinstance(value, tuple):
        node._snap = REFERENCE
    else:
        node._snap = snapshot(value)
    node.op = op
    node.args = args
    default = _torch.is_grad_enabled() and not _torch.is_autocast_on()
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
    op = _ordinary.get(func)
    if op is not None and current.get() is None:
        writes = kwargs and ("out" in kwargs or kwargs.get("inplace") is True)
        if not writes:
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
# Bound once: torch asks a class method two or three times per call, and each time a new object would be made.
Node.__torch_function__ = MethodType(torch_function, Node)  # type: ignore[attr-defined]


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
