"""What goes to and from a worker process: frames of JSON behind their length."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

from trace_core._codec import Lossy, decode, encode
from trace_core.integrations.engines.errors import EngineError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

LIMIT = 256 * 1024 * 1024  # bytes of one frame


def packed(data: Any) -> bytes:
    """``data`` as bytes. Raises EngineError naming what is no data."""
    try:
        text = json.dumps(encode(data, exact=True), separators=(",", ":")).encode("utf-8", "surrogatepass")
    except Lossy as lossy:
        raise EngineError(
            f"only data crosses to another process: expected JSON values, containers and small arrays, got a {lossy}"
        ) from lossy
    if len(text) > LIMIT:
        raise EngineError(f"a message to or from a worker process may have {LIMIT} bytes, got {len(text)}")
    return text


def unpacked(frame: bytes) -> Any:
    """What was packed."""
    return decode(json.loads(frame.decode("utf-8", "surrogatepass")))


def received(connection: socket.socket, before: Callable[[], None]) -> bytes | None:
    """The next frame; None if the other side is gone. ``before`` is called before each read and may raise."""
    head = _exactly(connection, 4, before)
    if head is None:
        return None
    (length,) = struct.unpack("!I", head)
    return None if length > LIMIT else _exactly(connection, length, before)


def _exactly(connection: socket.socket, count: int, before: Callable[[], None]) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        before()
        chunk = connection.recv(min(count - len(data), 1 << 20))
        if not chunk:
            return None
        data += chunk
    return bytes(data)
