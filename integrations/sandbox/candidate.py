"""Runs one candidate on its examples and says what became of each. Stand-alone; the last thing a child process does.

What it sends is data, one message per example: a head, and behind it the encoded value, which the host decodes with its
own allow-list; or a head with ``error`` (texts). Before the first example comes ``ready``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from trace_core.integrations.sandbox import blobs, build, codec, confine, frames, tool_calls
else:
    build, codec = sys.modules["_sandbox_build"], sys.modules["_sandbox_codec"]
    confine, frames = sys.modules["_sandbox_confine"], sys.modules["_sandbox_frames"]
    blobs, tool_calls = sys.modules["_sandbox_blobs"], sys.modules["_sandbox_tool_calls"]

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

MAX_MESSAGE = 2_000  # characters of an exception's message
MAX_LINE = 300
MAX_FRAMES = 6
NEIGHBOURS = 2  # lines shown before and after the one that failed
MAX_CAUSES = 3
_STARTED = (lambda packed: len(packed).to_bytes(4, "big") + packed)(codec.pack({"started": True}))
BROKEN = 70  # exit code when the interpreter cannot even say what went wrong


class Rejected(Exception):
    """The result cannot be sent."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def serve(incoming: int, outgoing: int, guard: Any) -> None:
    """Read one request, run its examples, send what came of them. Once the request is read, this does not return.

    ``guard`` is the system call filter that is in force, or None.
    """
    if incoming == outgoing:
        call_id, data, descriptors = frames.read_with_descriptors(incoming, 1)
    else:
        (call_id, data), descriptors = frames.read(incoming), []
    streams = (sys.stdout, sys.stderr)

    def send(head: dict[str, Any], value: bytes = b"") -> None:
        for stream in streams:
            with contextlib.suppress(OSError, ValueError):  # full, or closed by the candidate
                stream.flush()
        packed = codec.pack({**head, "printed": os.fstat(1).st_size})
        frames.write(outgoing, call_id, len(packed).to_bytes(4, "big"), packed, value)

    leave = os._exit
    frames.write(outgoing, call_id, _STARTED)
    try:
        request = codec.decode(data)
        if incoming != outgoing and not request["tools"]:
            os.close(incoming)
        region = blobs.Region(descriptors[0]) if descriptors else None
        _Answer(request, send, region, tool_calls.Tools(incoming, call_id, send), guard).run()
    except BaseException:  # noqa: BLE001 - the candidate has broken the interpreter; the host sees that nothing came
        leave(BROKEN)
    leave(0)


class _Answer:
    """One request at work."""

    def __init__(
        self,
        request: dict[str, Any],
        send: Callable[..., None],
        region: blobs.Region | None,
        tools: tool_calls.Tools,
        guard: Any,
    ) -> None:
        self._request, self._send = request, send
        self._builder = build.Builder(request["table"], region, tools.function)
        self._jailed = guard is not None
        self._place: dict[str, Any] = {"setup": True}  # what an answer would be about now
        if guard is not None:
            guard.on_refusal = self._refused

    def run(self) -> None:
        """Load the source and run it on the examples."""
        request, builder = self._request, self._builder
        examples: list[bytes] = request["calls"]
        cpu: float = request["cpu"]
        confine.cap_cpu(len(examples) * (cpu + 1))
        confine.allow_cpu(cpu)
        sys.path[:] = request["path"]
        if request["modules"]:
            sys.meta_path.append(build.Finder(request["modules"]))
        try:
            function = builder.candidate(
                request["source"], request["name"], request["filename"], request["context"], request["imports"]
            )
        except BaseException as error:  # noqa: BLE001 - whatever the code raises is its outcome
            self._send({"setup": True, "error": explain(error, builder.files, self._jailed)})
            return
        if len(examples) > 1:  # with one it makes no difference where the end came
            self._send({"ready": True})
        for index, payload in enumerate(examples):
            if index:
                confine.allow_cpu(cpu)
                builder.forget_instances()
            self._place = {"index": index}
            self._example(function, payload, {"index": index})

    def _example(self, function: Any, payload: bytes, answer: dict[str, Any]) -> None:
        started = time.perf_counter()
        value = b""
        try:
            value = _run(function, self._builder.value(payload), self._request)
        except BaseException as error:  # noqa: BLE001 - whatever the code raises is its outcome
            answer["error"] = explain(error, self._builder.files, self._jailed)
        answer["seconds"] = time.perf_counter() - started
        self._send(answer, value)

    def _refused(self, tried: str) -> None:
        """A system call ends this process; say which, and where the code made it."""
        frame: Any = sys._getframe()
        found = []
        while frame is not None:
            found.append((frame.f_code, frame.f_lineno))
            frame = frame.f_back
        frames = _shown(found[::-1], self._builder.files)
        self._send({**self._place, "error": {"kind": "policy", "message": tried, "frames": frames}, "last": True})


def _run(function: Any, arguments: Any, request: dict[str, Any]) -> bytes:
    args, kwargs = arguments
    result = function(*args, **kwargs)
    if request["is_async"]:
        import asyncio

        result = asyncio.run(_finish(result))
    limit = request["max_result"]
    try:
        packed: bytes = codec.encode(result)
    except codec.NotPlain as error:
        where = f" (at result{error.path})" if error.path else ""
        raise Rejected("type", f"it is {error.what}{where}") from None
    except MemoryError:
        confine.release_reserve()
        raise Rejected("size", f"it does not fit into memory in encoded form; at most {limit} bytes") from None
    if len(packed) > limit:
        raise Rejected("size", f"it takes {len(packed)} bytes; at most {limit}")
    return packed


async def _finish(awaitable: Any) -> Any:
    return await awaitable


# --- saying what went wrong ------------------------------------------------------------------------------------------


def explain(error: BaseException, files: dict[str, list[str]], jailed: bool = False) -> dict[str, Any]:
    """Kind, type, message and text of an exception; the text shows only frames of the sources in ``files``."""
    if isinstance(error, build.ImportRefused):
        return {"kind": "policy", "message": _message(error), "frames": _frames(error.__traceback__, files)}
    if jailed and isinstance(error, PermissionError):
        tried = headline(type(error).__name__, _message(error))
        return {"kind": "policy", "message": tried, "frames": _frames(error.__traceback__, files)}
    if isinstance(error, Rejected):
        return {"kind": "result", "reason": error.reason, "message": str(error)}
    if isinstance(error, MemoryError):
        confine.release_reserve()
        return {"kind": "memory", "message": _message(error), "frames": _frames(error.__traceback__, files)}
    if isinstance(error, SystemExit):
        code = error.code
        return {
            "kind": "exit",
            "code": code if isinstance(code, int) else (0 if code is None else 1),
            "message": "" if code is None or isinstance(code, int) else _message(error),
            "frames": _frames(error.__traceback__, files),
        }
    kind = type(error).__name__
    if isinstance(error, SyntaxError) and isinstance(error.filename, str) and error.filename in files:
        shown = _marked(files[error.filename], error.lineno or 1, error.filename)
        return {"kind": "syntax", "type": kind, "message": _cut(str(error.msg), MAX_MESSAGE), "frames": [shown]}
    if isinstance(error, OSError) and error.errno == errno.EFBIG:  # the signal was ignored
        return {"kind": "output", "frames": _frames(error.__traceback__, files)}
    return {
        "kind": "exception",
        "type": kind,
        "message": _message(error),
        "frames": [*_frames(error.__traceback__, files), *_causes(error, files)],
    }


def _message(error: BaseException) -> str:
    try:
        return _cut(str(error), MAX_MESSAGE)
    except BaseException as problem:  # noqa: BLE001 - an exception whose __str__ fails is the candidate's own
        return f"(its message cannot be read: {type(problem).__name__})"


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = (limit - 20) // 2
    return f"{text[:half]} …[{len(text) - 2 * half} characters]… {text[-half:]}"


def headline(kind: str, message: str) -> str:
    """``Type: message``, or the type alone."""
    return f"{kind}: {message}" if message else kind


def _frames(traceback: TracebackType | None, files: dict[str, list[str]]) -> list[str]:
    """The frames of the known sources, outermost first, each with its failing line marked."""
    steps = []
    while traceback is not None:
        steps.append((traceback.tb_frame.f_code, traceback.tb_lineno))
        traceback = traceback.tb_next
    return _shown(steps, files)


def _shown(steps: list[tuple[Any, int]], files: dict[str, list[str]]) -> list[str]:
    """As ``_frames``, from code objects and lines."""
    found = []
    for code, line in steps:
        if code.co_filename in files:
            name = "module level" if code.co_name == "<module>" else code.co_qualname.replace("<locals>.", "")
            found.append((code.co_filename, name, line))
    return shown(found, files)


def shown(found: list[tuple[str, str, int]], files: dict[str, list[str]]) -> list[str]:
    """Frames given by file name, function and line, each with its line marked; those in the middle may be left out."""
    texts = [_marked(files[filename], line, filename, name) for filename, name, line in found[:2]]
    rest = found[2:]
    if len(rest) > MAX_FRAMES - 2:
        texts.append(f"  ({len(rest) - MAX_FRAMES + 2} frames in between are left out)")
        rest = rest[2 - MAX_FRAMES :]
    return [*texts, *(_marked(files[filename], line, filename, name) for filename, name, line in rest)]


def _marked(lines: list[str], line: int, filename: str, name: str = "") -> str:
    """A line of a source with its neighbours, itself marked."""
    title = f"  {name + ', ' if name else ''}line {line} of {filename}:"
    first, last = max(1, line - NEIGHBOURS), min(len(lines), line + NEIGHBOURS)
    shown = [
        f"{'-->' if number == line else '   '} {number:>3} | {_cut(lines[number - 1].rstrip(), MAX_LINE)}"
        for number in range(first, last + 1)
    ]
    return "\n".join([title, *shown])


def _causes(error: BaseException, files: dict[str, list[str]]) -> list[str]:
    """What the exception came from, and what a group holds."""
    parts: list[str] = []
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions[:MAX_CAUSES]:
            parts.append(f"  among them {headline(type(inner).__name__, _message(inner))}")
            parts.extend(_frames(inner.__traceback__, files)[-1:])
    for _ in range(MAX_CAUSES):
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if cause is None:
            break
        error = cause
        parts.append(f"  caused by {headline(type(cause).__name__, _message(cause))}")
        parts.extend(_frames(cause.__traceback__, files)[-1:])
    return parts


__all__ = ["Rejected", "explain", "headline", "serve", "shown"]
