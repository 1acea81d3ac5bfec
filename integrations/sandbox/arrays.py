"""Arrays and tensors as bytes and back: numpy and torch are used if they are there, never imported for a look.

Stand-alone. Each is its type and shape, packed, and then its elements; or, if it is big and there is a store, a note of
where in the store the elements lie.
"""

from __future__ import annotations

import math
import re
import sys
from typing import TYPE_CHECKING, Any

import msgpack

if TYPE_CHECKING:
    from trace_core.integrations.sandbox.blobs import Region, Store

ARRAY, SCALAR, TENSOR, STORED = range(35, 39)  # extension codes
BIG = 256 * 1024  # bytes from which an array goes to the store, where there is one
_DTYPE = re.compile(r"[<>|=](b1|[iufcUS][1-9][0-9]{0,8}|[mM]8(\[[0-9a-zA-Zμ]{1,12}\])?)")
_TENSOR_DTYPES = frozenset(
    ("float64", "float32", "float16", "bfloat16", "complex64", "complex128", "uint8", "int8", "int16", "int32", "int64")
) | {"bool"}


class CodecError(ValueError):
    """Bytes that are not an encoded value."""


def is_numpy(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "generic"):
        return False
    if type(value) is numpy.ndarray or (isinstance(value, numpy.generic) and type(value).__module__ == "numpy"):
        return _DTYPE.fullmatch(value.dtype.str) is not None
    return False


def is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    if torch is None or type(value) is not getattr(torch, "Tensor", None):
        return False
    return (
        not value.requires_grad
        and value.device.type == "cpu"
        and value.layout is torch.strided
        and str(value.dtype).removeprefix("torch.") in _TENSOR_DTYPES
    )


def describe_tensor(value: Any, name: str) -> str:
    if value.requires_grad:
        return f"a {name} that requires grad: gradients do not cross, so pass value.detach()"
    if value.device.type != "cpu":
        return f"a {name} on {value.device}: only those on the CPU cross, so pass value.cpu()"
    return f"a {name} of dtype {value.dtype}, layout {value.layout}"


def replace_big(item: Any, store: Store) -> Any:
    """A note of where in the store a big array lies from now on; None for anything else."""
    if is_numpy(item) or is_tensor(item):
        store.used.add("torch" if is_tensor(item) else "numpy")
        if item.nbytes < BIG or not store.enabled:
            return None
        if is_numpy(item) and type(item) is sys.modules["numpy"].ndarray:
            numpy = sys.modules["numpy"]
            data = numpy.ascontiguousarray(item).reshape(-1).view(numpy.uint8)
            note = (ARRAY, item.dtype.str, list(item.shape), store.put(item, data), item.nbytes)
            return msgpack.ExtType(STORED, msgpack.packb(note))
        if is_tensor(item):
            _, data = tensor_parts(item)
            dtype = str(item.dtype).removeprefix("torch.")
            note = (TENSOR, dtype, list(item.shape), store.put(item, data), data.nbytes)
            return msgpack.ExtType(STORED, msgpack.packb(note))
    return None


def tensor_parts(item: Any) -> tuple[bytes, Any]:
    """Type and shape, packed; and the elements as bytes in a numpy array."""
    head: bytes = msgpack.packb((str(item.dtype).removeprefix("torch."), list(item.shape)))
    flat = item.contiguous().resolve_conj().resolve_neg().reshape(-1)
    return head, flat.view(sys.modules["torch"].uint8).numpy()


def replace_array(item: Any) -> Any:
    numpy = sys.modules["numpy"]
    is_array = type(item) is numpy.ndarray
    head = msgpack.packb((item.dtype.str, list(item.shape)))
    return msgpack.ExtType(ARRAY if is_array else SCALAR, len(head).to_bytes(2, "big") + head + item.tobytes())


def rebuild_array(payload: bytes) -> Any:
    import numpy

    start = 2 + int.from_bytes(payload[:2], "big")
    dtype_text, shape = msgpack.unpackb(payload[2:start])
    if not isinstance(dtype_text, str) or not _DTYPE.fullmatch(dtype_text):
        raise CodecError("an array of a type that cannot be sent")
    dtype = numpy.dtype(dtype_text)
    if 0 in shape:
        return numpy.empty(shape, dtype)
    made = numpy.ndarray(shape, dtype, buffer=bytearray(memoryview(payload)[start:]))
    if made.nbytes != len(payload) - start:
        raise CodecError("an array whose length does not fit its shape")
    return made


def replace_tensor(item: Any) -> Any:
    """A tensor for which ``is_tensor`` holds, as an extension value."""
    head, data = tensor_parts(item)
    return msgpack.ExtType(TENSOR, len(head).to_bytes(2, "big") + head + data.tobytes())


def rebuild_tensor(payload: bytes) -> Any:
    start = 2 + int.from_bytes(payload[:2], "big")
    dtype, shape = msgpack.unpackb(payload[2:start])
    return _tensor(dtype, shape, bytearray(memoryview(payload)[start:]))


def _tensor(dtype: Any, shape: Any, buffer: Any) -> Any:
    if dtype not in _TENSOR_DTYPES or not all(type(size) is int and size >= 0 for size in shape):
        raise CodecError("a tensor of a type that cannot be sent")
    import torch

    kind = getattr(torch, dtype)
    if math.prod(shape) * kind.itemsize != len(buffer):
        raise CodecError("a tensor whose length does not fit its shape")
    if not len(buffer):
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(buffer, dtype=kind).reshape(shape)


def rebuild_stored(payload: bytes, region: Region) -> Any:
    code, dtype, shape, place, size = msgpack.unpackb(payload)
    view = region.view(place, size)
    if code == TENSOR:
        return _tensor(dtype, shape, view)
    import numpy

    return numpy.ndarray(shape, numpy.dtype(dtype), buffer=view)


__all__ = [
    "ARRAY",
    "SCALAR",
    "STORED",
    "TENSOR",
    "CodecError",
    "describe_tensor",
    "is_numpy",
    "is_tensor",
    "rebuild_array",
    "rebuild_stored",
    "rebuild_tensor",
    "replace_array",
    "replace_big",
    "replace_tensor",
]
