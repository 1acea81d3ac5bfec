"""Messages on a byte stream: call id and length, then that many bytes. Stand-alone; both sides use it.

The id is drawn anew for every call, so what an earlier call left in a channel can never be taken for an answer.
"""

from __future__ import annotations

import os
import struct

HEADER = struct.Struct(">QQ")  # call id, length of the body in bytes
SLACK = 256 * 1024  # room for what surrounds a value: field names, timings, an error's text


class ChannelClosed(EOFError):
    """The other side has gone."""


class BadFrame(ValueError):
    """Something else than a message of this call, or one longer than agreed."""


def write(descriptor: int, call_id: int, *parts: bytes) -> None:
    """Write one message made of ``parts``, waiting as long as it takes."""
    whole = [HEADER.pack(call_id, sum(map(len, parts))), *parts]
    if len(parts[-1]) < 1 << 16:  # one system call rather than several
        whole = [b"".join(whole)]
    for part in whole:
        view = memoryview(part)
        while view:
            view = view[os.write(descriptor, view) :]


def read(descriptor: int, limit: int | None = None) -> tuple[int, bytes]:
    """Read one message. Raises ChannelClosed, BadFrame."""
    call_id, length = HEADER.unpack(read_exactly(descriptor, HEADER.size))
    if limit is not None and length > limit:
        raise BadFrame(f"a message of {length} bytes; at most {limit} were agreed")
    return call_id, read_exactly(descriptor, length)


def read_with_descriptors(descriptor: int, most: int) -> tuple[int, bytes, list[int]]:
    """Read one message from a socket with the descriptors that came along. Raises ChannelClosed."""
    import socket

    channel = socket.socket(fileno=descriptor)
    try:
        head, descriptors, _, _ = socket.recv_fds(channel, HEADER.size, most)
    finally:
        channel.detach()
    head += read_exactly(descriptor, HEADER.size - len(head))
    call_id, length = HEADER.unpack(head)
    return call_id, read_exactly(descriptor, length), descriptors


def read_exactly(descriptor: int, size: int) -> bytes:
    """``size`` bytes. Raises ChannelClosed."""
    parts: list[bytes] = []
    while size:
        part = os.read(descriptor, min(size, 1 << 20))
        if not part:
            raise ChannelClosed("the channel was closed in the middle of a message")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class Reader:
    """Takes bytes as they come and gives whole messages; a length is judged before a byte of the body is kept."""

    def __init__(self, call_id: int, limit: int) -> None:
        self._call_id, self._limit = call_id, limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that are complete now. Raises BadFrame."""
        self._buffer += data
        bodies: list[bytes] = []
        while len(self._buffer) >= HEADER.size:
            call_id, length = HEADER.unpack_from(self._buffer)
            if call_id != self._call_id:
                raise BadFrame("a message that does not belong to this call")
            if length > self._limit:
                raise BadFrame(f"a message of {length} bytes; at most {self._limit} were agreed")
            end = HEADER.size + length
            if len(self._buffer) < end:
                break
            bodies.append(bytes(memoryview(self._buffer)[HEADER.size : end]))
            del self._buffer[:end]
        return bodies


__all__ = [
    "HEADER",
    "SLACK",
    "BadFrame",
    "ChannelClosed",
    "Reader",
    "read",
    "read_exactly",
    "read_with_descriptors",
    "write",
]
