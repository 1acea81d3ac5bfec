"""The host's side of tools: runs what a candidate may call by name, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core.errors import RunnerError
from trace_core.integrations.sandbox import codec
from trace_core.integrations.sandbox.errors import CannotCross

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_CALLS = 10_000  # per process of a candidate: an endless loop of them is no use to anybody
MAX_MESSAGE = 2_000


class ToolServer:
    """Answers the calls of one candidate. Tools run in the thread that made the call, outside of any sandbox."""

    def __init__(self, tools: Mapping[str, Callable[..., Any]]) -> None:
        self._tools = tools
        self._calls = 0

    def answer(self, body: bytes) -> bytes:
        """The body of the answer to a candidate's message.

        What a tool raises is told to the candidate by type and message. Raises CodecError for a message that is none,
        CannotCross for a tool's result that is no data, and passes what is no candidate's business: a RunnerError, and
        what is no Exception.
        """
        size = int.from_bytes(body[:4], "big")
        name = codec.decode(body[4 : 4 + size])["tool"]
        self._calls += 1
        tool = self._tools.get(name) if isinstance(name, str) else None
        if tool is None:
            return _failed(f"there is no tool of that name; there are {sorted(self._tools)}")
        if self._calls > MAX_CALLS:
            return _failed(f"more than {MAX_CALLS} calls of tools")
        arguments = codec.decode(body[4 + size :], containers_limit=codec.MAX_CONTAINERS)
        if not (isinstance(arguments, tuple) and len(arguments) == 2 and isinstance(arguments[0], tuple)):
            raise codec.CodecError("a call of a tool without arguments")
        args, kwargs = arguments
        try:
            result = tool(*args, **kwargs)
        except RunnerError:
            raise
        except Exception as error:  # noqa: BLE001 - told to the candidate, whose call it was
            return _failed(f"{type(error).__name__}: {error}"[:MAX_MESSAGE])
        try:
            packed = codec.encode(result)
        except codec.NotPlain as error:
            raise CannotCross(
                f"the tool {name!r} returned {error.what}, which cannot be sent to proposed code; what can: "
                f"{codec.ALLOWED}"
            ) from error
        return _message({}, packed)


def _failed(text: str) -> bytes:
    return _message({"error": text})


def _message(head: dict[str, Any], value: bytes = b"") -> bytes:
    packed = codec.pack(head)
    return len(packed).to_bytes(4, "big") + packed + value


__all__ = ["ToolServer"]
