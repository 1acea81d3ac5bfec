"""Plain data: which values need no protection, and how others are kept as they were when recorded."""

from __future__ import annotations

import sys
from collections import deque
from typing import Any, Final

#: Types whose values cannot change and hold no nodes.
ATOMIC: Final = frozenset({int, float, str, bool, type(None), bytes, complex, range, type, slice, type(Ellipsis)})

#: A container with more elements than this (counted at all depths), or an array with more bytes, is kept by reference.
MAX_ELEMENTS: Final = 10_000
MAX_BYTES: Final = 1 << 16


#: torch.Tensor and torch.nn.Parameter, once torch is in use: their operators run no code of users.
PLAIN_TENSORS: Final[set[type]] = set()
#: ATOMIC, and once torch is in use the types of its functions' arguments that cannot change and hold no nodes.
SIMPLE: Final[set[Any]] = set(ATOMIC)


def _note_torch() -> None:
    torch: Any = sys.modules["torch"]
    PLAIN_TENSORS.update((torch.Tensor, torch.nn.Parameter))
    SIMPLE.update((torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format))


class Unset:
    """Says that a node's value needed no snapshot: it cannot change."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset()


class ByReference:
    """Says that a value was too big or too opaque to be copied when it was recorded.

    ``version`` is a tensor's own change counter at that moment (reading it touches no data), or a container's length.
    ``place`` is the address of a parameter's tensor: torch gives a tensor other data without counting (``.data = ...``,
    ``module.to(device)``).
    """

    __slots__ = ("place", "version")

    def __init__(self, version: int | None = None, place: int | None = None) -> None:
        self.version = version
        self.place = place

    def changed(self, value: Any) -> bool | None:
        """True where the value is seen to have changed since, False where a tensor's counter says that it has not.

        None where it cannot be known.
        """
        if self.version is None:
            return None
        if is_tensor(value):
            return bool(value._version != self.version or (self.place is not None and self.place != value.data_ptr()))
        return True if len(value) != self.version else None


REFERENCE: Final = ByReference()
#: The marks of tensors by their change counter; made once, as nearly all tensors have a small one.
MARKS: Final = [ByReference(version) for version in range(64)]


def tensor_mark(tensor: Any) -> ByReference:
    """The mark for a tensor. Reads its change counter, no data."""
    try:
        version: int = tensor._version
        return MARKS[version] if version < 64 else ByReference(version)
    except RuntimeError:  # inference tensors keep no counter
        return REFERENCE


class Released:
    """Stands for a tensor that was let go of (``Trace.release``): what it was is known, its data is not.

    Computing with it raises ReleasedError.
    """

    __slots__ = ("device", "dtype", "shape")

    def __init__(self, tensor: Any) -> None:
        self.shape = tuple(tensor.shape)
        self.dtype = tensor.dtype
        self.device = tensor.device

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape)) or "scalar"
        where = "" if str(self.device) == "cpu" else f" on {self.device}"
        return f"tensor({shape}, {str(self.dtype).removeprefix('torch.')}{where}: released)"

    def refuse(self, *_: object, **__: object) -> Any:
        """Raise ReleasedError."""
        from trace_core.errors import ReleasedError

        raise ReleasedError(
            f"the value of this node, a {self!r}, was let go of by Trace.release or backward(release=True): read it "
            "before, or compute it again with trace.replay(until=node)"
        )

    __bool__ = __float__ = __int__ = __len__ = __iter__ = __getitem__ = __array__ = refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __matmul__ = __rmatmul__ = refuse

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.refuse()


class _TooBig(Exception):
    pass


def is_ndarray(value: Any) -> bool:
    """Whether value is a numpy array, without importing numpy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def is_tensor(value: Any) -> bool:
    """Whether value is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def without_history(value: Any) -> Any:
    """A tensor as autograd's ``detach`` gives it; any other value as it is."""
    return value.detach() if is_tensor(value) else value


def copy_of_tensor(value: Any) -> Any:
    """A tensor with memory of its own; any other value as it is."""
    return value.detach().clone() if is_tensor(value) else value


def snapshot(value: Any) -> Any:
    """UNSET if the value cannot change, a copy if it is small plain data, else a ByReference mark."""
    if type(value) in ATOMIC:
        return UNSET
    if type(value) in PLAIN_TENSORS:
        return tensor_mark(value)
    if is_tensor(value):
        if not PLAIN_TENSORS:
            _note_torch()
        return tensor_mark(value)
    try:
        copied = _copy(value, [MAX_ELEMENTS])
    except (_TooBig, RecursionError):  # too long or nested too deep (cycles)
        return ByReference(len(value)) if isinstance(value, list | dict | set) else REFERENCE
    return (
        UNSET if copied is value and type(value) in _IMMUTABLE_CONTAINERS else REFERENCE if copied is value else copied
    )


def changed_since(value: Any, kept: Any, whole: bool = False) -> bool:
    """Whether ``value`` is seen to have been changed in place since ``kept = snapshot(value)``.

    A look at the length or a tensor's counter; with ``whole``, at every element, if there are not very many.
    """
    if isinstance(kept, ByReference):
        return kept.changed(value) is True
    kind = type(value)
    if kind is list or kind is dict or kind is set or kind is bytearray:
        return bool(len(value) != len(kept) or (whole and len(value) <= _COMPARED and not _same(value, kept)))
    return whole and not _same(value, kept)


_COMPARED: Final = 256  # a parameter is read often: longer containers are only counted


def _same(value: Any, kept: Any) -> bool:
    """Whether a copy made by ``_copy`` still equals its original; what was not copied is the same anyway."""
    if value is kept:
        return True
    kind = type(value)
    if kind is not type(kept):
        return False
    if kind in ATOMIC or kind is bytearray or kind is set:
        return bool(value == kept)
    if isinstance(value, list | tuple | deque):
        return len(value) == len(kept) and all(map(_same, value, kept))
    if isinstance(value, dict):
        return value.keys() == kept.keys() and all(_same(item, kept[key]) for key, item in value.items())
    if is_ndarray(value):
        return bool(value.shape == kept.shape and value.tobytes() == kept.tobytes())
    if hasattr(kind, "__dataclass_fields__") or hasattr(kind, "__pydantic_fields__"):
        from trace_core._unwrap import record_fields

        now, then = record_fields(value), record_fields(kept)
        return now.keys() == then.keys() and all(_same(item, then[name]) for name, item in now.items())
    return True


def restore(kept: Any) -> Any:
    """A fresh copy of a snapshot, so that whoever gets it cannot change the record."""
    try:
        return _copy(kept, [sys.maxsize])
    except RecursionError:
        return kept


_IMMUTABLE_CONTAINERS: Final = frozenset({tuple, frozenset})


def all_atomic(items: Any) -> bool:
    """Whether every element is of an atomic type; one pass at C speed."""
    return ATOMIC.issuperset(map(type, items))


def _copy(value: Any, budget: list[int]) -> Any:
    """Copy plain data deeply; return the very value where it is immutable or opaque."""
    kind = type(value)
    if kind in ATOMIC:
        return value
    if kind is list or kind is tuple or kind is set or kind is frozenset or kind is dict or kind is bytearray:
        budget[0] -= len(value)
        if budget[0] < 0:
            raise _TooBig
        if kind is list:
            return list(value) if all_atomic(value) else [_copy(item, budget) for item in value]
        if kind is dict:
            if all_atomic(value.values()):
                return dict(value)
            return {key: _copy(item, budget) for key, item in value.items()}
        if kind is tuple:
            if all_atomic(value):
                return value
            copied = tuple([_copy(item, budget) for item in value])
            return value if all(a is b for a, b in zip(copied, value, strict=True)) else copied
        return value if kind is frozenset else kind(value)
    if is_ndarray(value):
        if value.nbytes > MAX_BYTES or value.dtype.hasobject:
            raise _TooBig
        return value.copy()
    fields = getattr(kind, "__dataclass_fields__", None)
    if fields is not None:
        return _copy_fields(value, fields, budget)
    if hasattr(kind, "__pydantic_fields__"):
        update = {
            name: _copy(getattr(value, name), budget) for name in kind.__pydantic_fields__ if hasattr(value, name)
        }
        return value.model_copy(update=update)
    if isinstance(value, list | dict | set | deque) and not hasattr(kind, "__trace_core_module__"):
        return _copy_subclass(value, budget)
    return value


def _copy_subclass(value: Any, budget: list[int]) -> Any:
    """A copy of an OrderedDict, defaultdict, Counter, deque and the like, by its own copy function."""
    import copy

    budget[0] -= len(value)
    if budget[0] < 0:
        raise _TooBig
    try:
        duplicate = copy.copy(value)
        if isinstance(value, dict):
            for key, item in value.items():
                dict.__setitem__(duplicate, key, _copy(item, budget))
        elif isinstance(value, list):
            list.__setitem__(duplicate, slice(None), [_copy(item, budget) for item in value])
    except (_TooBig, RecursionError):
        raise
    except Exception:  # noqa: BLE001 - a class that cannot be copied: kept by reference
        return value
    return duplicate


def _copy_fields(value: Any, fields: Any, budget: list[int]) -> Any:
    """A dataclass instance with copied fields; the very instance if it is frozen and its fields cannot change."""
    import copy

    budget[0] -= len(fields)
    if budget[0] < 0:
        raise _TooBig
    if hasattr(type(value), "__trace_core_module__"):  # an object with a life of its own, not data
        return value
    new = {name: _copy(getattr(value, name), budget) for name in fields if hasattr(value, name)}
    frozen = type(value).__dataclass_params__.frozen
    if frozen and all(item is getattr(value, name) for name, item in new.items()):
        return value
    duplicate = copy.copy(value)
    for name, item in new.items():
        object.__setattr__(duplicate, name, item)
    return duplicate
