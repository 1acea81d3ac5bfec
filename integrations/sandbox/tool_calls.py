"""What a candidate may ask of its host while it runs: the tools it was granted by name. Stand-alone.

A call goes to the host as a message and waits for the answer there. Nothing is granted that the host did not name.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from trace_core.integrations.sandbox import codec, frames
else:
    codec, frames = sys.modules["_sandbox_codec"], sys.modules["_sandbox_frames"]

if TYPE_CHECKING:
    from collections.abc import Callable


class ToolError(RuntimeError):
    """A tool raised, or was called with what cannot be sent to it."""


class Tools:
    """The candidate's end of the channel. ``send(head, value)`` writes one message."""

    def __init__(self, incoming: int, call_id: int, send: Callable[..., None]) -> None:
        self._incoming, self._id, self._send = incoming, call_id, send
        self._lock = threading.Lock()  # one question at a time

    def function(self, name: str) -> Callable[..., Any]:
        """What the candidate sees under a tool's name."""

        def tool(*args: Any, **kwargs: Any) -> Any:
            return self._ask(name, args, kwargs)

        tool.__name__ = tool.__qualname__ = name
        return tool

    def _ask(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            packed = codec.encode((args, kwargs))
        except codec.NotPlain as error:
            raise ToolError(f"{name}(): an argument is {error.what}; what can be sent: {codec.ALLOWED}") from None
        with self._lock:
            self._send({"tool": name}, packed)
            while True:
                call_id, body = frames.read(self._incoming)
                if call_id == self._id:
                    break
        size = int.from_bytes(body[:4], "big")
        head = codec.decode(body[4 : 4 + size])
        if "error" in head:
            raise ToolError(f"{name}() failed: {head['error']}")
        return codec.decode(body[4 + size :])


__all__ = ["ToolError", "Tools"]
