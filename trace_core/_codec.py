"""Values as JSON data and back. What is no data is kept as its text, and says so; decoding runs no code.

Plain JSON values stand for themselves. Everything else is a dict with the key ``$`` that names what it is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from trace_core._values import is_ndarray, is_tensor
from trace_core.errors import ReplayError, StateError
from trace_core.node import Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_ARRAY = 1_000  # elements; a bigger array is kept as its summary
_MAX_DEPTH = 60
_MAX_REPR = 2_000
_DTYPE = re.compile(r"(bool|u?int(8|16|32|64)|b?float(16|32|64)|bool_)\Z")


class StoredObject:
    """Stands for a value that was no data: only its type and text are known. Computing with it is refused."""

    __slots__ = ("text", "type_name")

    def __init__(self, type_name: str, text: str) -> None:
        self.type_name = type_name
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def _refuse(self, *_: object) -> Any:
        raise ReplayError(f"a value of type {self.type_name} was stored as text only; nothing can be computed from it")

    # What object would answer by itself must not pass for the value's answer.
    __eq__ = __ne__ = __bool__ = __str__ = __format__ = _refuse
    __hash__ = object.__hash__


class StoredRecord(dict[Any, Any]):
    """The fields of a stored dataclass, pydantic model or dict subclass."""

    type_name = ""


class StoredSequence(list[Any]):
    """The items of a stored named tuple or list subclass."""

    type_name = ""


class Lossy(Exception):
    """A value that cannot be kept exactly, where that was asked for."""


def type_name(value: object) -> str:
    """Module and name of the value's type, the module only if it is not builtins."""
    kind = type(value)
    if isinstance(value, StoredObject | StoredRecord | StoredSequence):
        return value.type_name
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def encode(value: Any, link: Callable[[Node], Any] | None = None, *, exact: bool = False, _depth: int = 0) -> Any:
    """``value`` as JSON data.

    Args:
        value: anything.
        link: what stands for a node inside the value.
        exact: raise Lossy for what ``decode`` could not give back as it was.
    """

    def inner(item: Any) -> Any:
        return encode(item, link, exact=exact, _depth=_depth + 1)

    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -(1 << 200) < value < 1 << 200 else {"$": "int", "hex": hex(value)}
    if kind is float:
        return value if value - value == 0 else {"$": "float", "value": repr(value)}
    if isinstance(value, Node):
        return link(value) if link is not None else inner(value.recorded)
    if _depth < _MAX_DEPTH:
        container = _container(value, kind, inner, exact)
        if container is not None:
            return container
        if is_ndarray(value) or is_tensor(value):
            array = _array(value)
            if array is not None:
                return array
    if exact:
        raise Lossy(type_name(value))
    return _opaque(value)


def _container(value: Any, kind: type, inner: Callable[[Any], Any], exact: bool) -> Any:
    if kind is list:
        return [inner(item) for item in value]
    if kind is dict:
        if all(type(key) is str for key in value) and "$" not in value:
            return {key: inner(item) for key, item in value.items()}
        return {"$": "dict", "items": [[inner(key), inner(item)] for key, item in value.items()]}
    if kind in _SEQUENCES:
        items: Iterable[Any] = value if kind is tuple else sorted(value, key=repr)  # sets: the same text every time
        return {"$": kind.__name__, "items": [inner(item) for item in items]}
    if kind is bytes:
        return {"$": "bytes", "hex": value.hex()}
    if kind is complex:
        return {"$": "complex", "parts": [inner(value.real), inner(value.imag)]}
    if kind is range or kind is slice:
        return {"$": kind.__name__, "parts": [inner(value.start), inner(value.stop), inner(value.step)]}
    if exact:
        return None
    if isinstance(value, list | tuple):
        return {"$": "sequence", "type": type_name(value), "items": [inner(item) for item in value]}
    if isinstance(value, dict):
        return {
            "$": "record",
            "type": type_name(value),
            "items": [[inner(k), inner(item)] for k, item in value.items()],
        }
    if not isinstance(value, type) and (hasattr(kind, "__dataclass_fields__") or hasattr(kind, "__pydantic_fields__")):
        if hasattr(kind, "__trace_core_module__"):
            return None
        from trace_core._unwrap import record_fields

        fields = record_fields(value).items()
        return {"$": "record", "type": type_name(value), "items": [[name, inner(item)] for name, item in fields]}
    if type(value).__module__ == "numpy" and hasattr(value, "item") and not is_ndarray(value):
        item = value.item()
        return inner(item) if type(item) in (bool, int, float, complex, str) else None
    return None


_SEQUENCES = frozenset({tuple, set, frozenset})


def _array(value: Any) -> dict[str, Any] | None:
    """Shape, type and nested lists of a small array of numbers; None for others."""
    tensor = is_tensor(value)
    dtype = str(value.dtype).removeprefix("torch.")
    size = value.numel() if tensor else value.size
    if size > MAX_ARRAY or _DTYPE.match(dtype) is None or (tensor and dtype.startswith("uint") and dtype != "uint8"):
        return None
    plain = value.detach().cpu() if tensor else value
    kind = "tensor" if tensor else "array"
    return {"$": kind, "dtype": dtype, "shape": list(value.shape), "data": encode(plain.reshape(-1).tolist())}


def _opaque(value: Any) -> dict[str, Any]:
    from trace_core.values import render_value

    text = value.text if isinstance(value, StoredObject) else render_value(value, _MAX_REPR)
    return {"$": "object", "type": type_name(value), "repr": text}


def decode(data: Any, node: Callable[[Any], Any] | None = None) -> Any:
    """The value for what ``encode`` gave. Raises StateError if the data is something else."""
    if isinstance(data, list):
        return [decode(item, node) for item in data]
    if not isinstance(data, dict):
        if data is None or isinstance(data, str | int | float):
            return data
        raise StateError(f"expected JSON data, got {type(data).__name__}")
    if "$" not in data:
        return {key: decode(item, node) for key, item in data.items()}
    tag = data["$"]
    try:
        if tag == "node" and node is not None:
            return node(data["index"])
        return _DECODERS[tag](data, node)
    except StateError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise StateError(f"a stored value of kind {tag!r:.40} is damaged: {type(error).__name__}: {error}") from error


def _items(data: dict[str, Any], node: Any) -> list[Any]:
    return [decode(item, node) for item in data["items"]]


def _pairs(data: dict[str, Any], node: Any) -> list[tuple[Any, Any]]:
    return [(decode(key, node), decode(item, node)) for key, item in data["items"]]


def _parts(data: dict[str, Any]) -> list[Any]:
    return [decode(part) for part in data["parts"]]


def _float(data: dict[str, Any], node: Any) -> float:
    text = data["value"]
    if text not in ("nan", "inf", "-inf"):
        raise StateError(f"expected nan, inf or -inf, got {text!r:.40}")
    return float(text)


def _typed(value: Any, data: dict[str, Any]) -> Any:
    value.type_name = str(data["type"])
    return value


def _decode_array(data: dict[str, Any], node: Any) -> Any:
    from importlib import import_module

    name, shape = str(data["dtype"]), [int(n) for n in data["shape"]]
    values = decode(data["data"])
    if _DTYPE.match(name) is None or not all(isinstance(v, int | float) for v in values):
        raise StateError(f"expected an array of numbers, got type {name!r:.40}")
    try:
        library = import_module("torch" if data["$"] == "tensor" else "numpy")
    except ImportError:
        text = ", ".join(map(str, values[:6]))
        return StoredObject(data["$"], f"{data['$']}({'x'.join(map(str, shape))}, {name}: [{text}])")
    if data["$"] == "tensor":
        return library.tensor(values, dtype=getattr(library, name)).reshape(shape)
    return library.array(values, dtype=name).reshape(shape)


_DECODERS: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "int": lambda data, node: int(data["hex"], 16),
    "float": _float,
    "tuple": lambda data, node: tuple(_items(data, node)),
    "set": lambda data, node: set(_items(data, node)),
    "frozenset": lambda data, node: frozenset(_items(data, node)),
    "dict": lambda data, node: dict(_pairs(data, node)),
    "bytes": lambda data, node: bytes.fromhex(data["hex"]),
    "complex": lambda data, node: complex(*_parts(data)),
    "range": lambda data, node: range(*_parts(data)),
    "slice": lambda data, node: slice(*_parts(data)),
    "sequence": lambda data, node: _typed(StoredSequence(_items(data, node)), data),
    "record": lambda data, node: _typed(StoredRecord(_pairs(data, node)), data),
    "array": _decode_array,
    "tensor": _decode_array,
    "object": lambda data, node: StoredObject(str(data["type"]), str(data["repr"])),
}
