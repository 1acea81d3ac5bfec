"""A worker process of ProcessEngine: imports functions by name, calls them with data, sends data back."""

from __future__ import annotations

import importlib
import socket
import struct
import sys
from typing import Any

from trace_core.integrations.engines._frames import packed, received, unpacked
from trace_core.integrations.engines.errors import EngineError
from trace_core.tracebacks import describe


def _send(connection: socket.socket, data: bytes) -> None:
    connection.sendall(struct.pack("!I", len(data)) + data)


def _function(spec: str) -> Any:
    module, _, name = spec.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def answer(frame: bytes) -> bytes:
    """The reply to one call."""
    try:
        call = unpacked(frame)
        return packed({"result": _function(call["fn"])(*call["args"], **call["kwargs"])})
    except EngineError as error:
        return packed({"error": str(error)})
    except Exception as error:  # noqa: BLE001 - told to the other side, which raises it
        return packed({"error": describe("rollout", error)})


def main() -> None:
    """Serve until the other side is gone."""
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        _send(connection, b"ready")
        while (frame := received(connection, lambda: None)) is not None:
            _send(connection, answer(frame))


if __name__ == "__main__":
    main()
