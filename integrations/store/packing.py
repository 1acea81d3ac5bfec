"""Values as JSON text and, for their arrays, safetensors bytes; and back. Reading runs no code."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from trace_core._codec import Lossy, decode, encode
from trace_core._lazy import require
from trace_core._values import is_ndarray, is_tensor
from trace_core.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable

_ARRAY = "\0array"  # key of what stands for an array; no JSON text that came from outside has it by chance


def pack(value: Any, what: str = "a value") -> tuple[str, bytes | None]:
    """(JSON text, bytes of the arrays or None). Raises StateError naming what cannot be kept exactly."""
    arrays: dict[str, Any] = {}

    def swap(item: Any) -> Any:
        if is_ndarray(item) or is_tensor(item):
            if str(item.dtype).removeprefix("torch.") not in _NAMES.values():
                raise StateError(f"{what} holds an array of type {item.dtype}, which cannot be kept")
            name = str(len(arrays))
            arrays[name] = item
            return {_ARRAY: name, "tensor": is_tensor(item), "shape": list(item.shape)}
        return item

    try:
        text = json.dumps(encode(_mapped(value, swap), exact=True), allow_nan=False, separators=(",", ":"))
    except Lossy as lossy:
        raise StateError(
            f"{what} holds a {lossy}, which cannot be kept as data: expected JSON values, containers, and arrays"
        ) from lossy
    return text, _to_bytes(arrays, what) if arrays else None


def unpack(text: str, arrays: bytes | None = None) -> Any:
    """What was packed. Raises StateError if it is damaged."""
    try:
        value = decode(json.loads(text))
    except ValueError as error:
        raise StateError(f"a stored value is damaged: {error}") from error
    if arrays is None:
        return value
    library = require("safetensors", extra="torch")
    found = {name: (spec, data) for name, data, spec in _entries(library, arrays)}

    def swap(item: Any) -> Any:
        if isinstance(item, dict) and _ARRAY in item:
            dtype, data = found[item[_ARRAY]]
            return _to_array(data, dtype, item["shape"], item["tensor"])
        return item

    return _mapped(value, swap)


def _mapped(value: Any, swap: Callable[[Any], Any]) -> Any:
    changed = swap(value)
    if changed is not value:
        return changed
    kind = type(value)
    if kind is dict:
        return {key: _mapped(item, swap) for key, item in value.items()}
    if kind is list or kind is tuple:
        return kind(_mapped(item, swap) for item in value)
    return value


def _to_bytes(arrays: dict[str, Any], what: str) -> bytes:
    try:
        if any(is_tensor(value) for value in arrays.values()):
            torch, library = require("torch", extra="torch"), require("safetensors.torch", extra="torch")
            data: bytes = library.save(
                {n: torch.as_tensor(v).detach().cpu().contiguous().clone() for n, v in arrays.items()}
            )
            return data
        import numpy

        library = require("safetensors.numpy", extra="torch")
        data = library.save({name: numpy.ascontiguousarray(value) for name, value in arrays.items()})
        return data
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(f"{what}: arrays of these types cannot be kept: {error}") from error


def _entries(library: Any, data: bytes) -> list[tuple[str, Any, str]]:
    try:
        return [(name, spec["data"], spec["dtype"]) for name, spec in library.deserialize(data)]
    except Exception as error:  # the library has exceptions of its own for damaged data
        raise StateError(f"stored arrays are damaged: {error}") from error


def _to_array(data: Any, dtype: str, shape: list[int], tensor: bool) -> Any:
    if tensor:
        torch = require("torch", extra="torch")
        kind = getattr(torch, _NAMES[dtype])
        flat = torch.frombuffer(bytearray(data), dtype=kind) if len(data) else torch.empty(0, dtype=kind)
        return flat.reshape(shape)
    import numpy

    return numpy.frombuffer(bytearray(data), dtype=_NAMES[dtype]).reshape(shape)


_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "I32": "int32",
    "U32": "uint32",
    "I64": "int64",
    "U64": "uint64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}
