"""The text of an ExecutionError: what failed, and the failing line marked in each frame of the user's code."""

from __future__ import annotations

import os
import sys
from functools import cache, lru_cache
from types import GetSetDescriptorType, MemberDescriptorType
from typing import TYPE_CHECKING, Any

from trace_core.errors import CandidateError, ExecutionError

if TYPE_CHECKING:
    from types import CodeType, FrameType, TracebackType

    from trace_core.node import ExceptionNode, Node

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_CONTEXT_LINES = 2
_MAX_FRAMES = 6
_CALLED_FROM = "  called from"


def execution_error(op: Any, node: ExceptionNode, error: Exception) -> ExecutionError:
    """The error to raise for ``error`` in ``op``; its text is kept on the node."""
    node.text = describe(op.name, error)
    original = error.exception if isinstance(error, ExecutionError) else error
    return _make(node, original, node.text)


def _make(node: Node, original: BaseException, text: str) -> ExecutionError:
    try:
        kind: Any = type(original)
        return _error_class(kind)(node, original, text)
    except Exception:  # noqa: BLE001 - an exception class that cannot be combined, such as ExceptionGroup
        return ExecutionError(node, original, text)


@cache
def _error_class(kind: Any) -> type[ExecutionError]:
    """A class that is an ExecutionError and also of the original kind, so that ``except KeyError`` still catches it.

    What the original keeps in fields of its own (``errno``, ``name``, ``__slots__``) is read from the original.
    """
    if issubclass(kind, StopIteration | StopAsyncIteration | SyntaxError | ExecutionError) or not issubclass(
        kind, Exception
    ):
        kind = Exception  # these mean something to the interpreter itself
    fields = {
        name: _field(name)
        for base in kind.__mro__
        if base not in (Exception, BaseException, object)
        for name, member in base.__dict__.items()
        if type(member) in _FIELDS and not name.startswith("__")
    }
    builtin: Any = next(base for base in kind.__mro__ if not base.__flags__ & _HEAP_TYPE)
    body = {
        **fields,
        "__module__": ExecutionError.__module__,
        "__new__": lambda cls, *args: builtin.__new__(cls),
        "__init__": _init,
        "__str__": _text,
        "__getattr__": _from_original,
        "__reduce__": _reduce,
    }
    name = "ExecutionError" if kind is Exception else f"ExecutionError[{kind.__name__}]"
    try:
        return type(name, (ExecutionError,) if kind is Exception else (ExecutionError, kind), body)
    except TypeError:  # two C layouts that do not combine, or a class that cannot be subclassed
        return ExecutionError if kind is Exception else _error_class(Exception)


def _field(name: str) -> property:
    # It can be set: Python itself notes ``name`` and ``obj`` on an AttributeError that passes by.
    return property(
        lambda self: getattr(self.exception, name), lambda self, value: setattr(self.exception, name, value)
    )


_FIELDS = (MemberDescriptorType, GetSetDescriptorType)
_HEAP_TYPE = 1 << 9  # set for classes made by a class statement


def _init(self: ExecutionError, node: Node, exception: BaseException, text: str) -> None:
    self.args = (text,)  # the original class's own __init__ may want other arguments
    self.node = node
    self.exception = exception


def _text(self: ExecutionError) -> str:
    return str(self.args[0]) if self.args else ""


def _from_original(self: ExecutionError, attribute: str) -> Any:
    if attribute in ("exception", "node") or attribute.startswith("__"):
        raise AttributeError(attribute)
    return getattr(self.exception, attribute)


def _reduce(self: ExecutionError) -> Any:
    return _make, (self.node, self.exception, str(self))


def describe(name: str, error: BaseException) -> str:
    """``Type: message``, then each frame of user code with its failing line marked, outermost first."""
    if isinstance(error, ExecutionError):
        inner = str(error)
        text = inner if inner.startswith("(in ") else f"(in {name}) {inner}"
        if text.count(_CALLED_FROM) >= _MAX_FRAMES:
            return text
        return text + "".join(f"\n{_CALLED_FROM}\n{_marked(*frame)}" for frame in _user_frames(error.__traceback__)[:1])
    if isinstance(error, CandidateError):
        return str(error)
    head = headline(error)
    parts = [f"(in {name}) {head}"]
    frames = _user_frames(error.__traceback__)
    if isinstance(error, SyntaxError) and error.text:
        parts.append(f"  line {error.lineno}: {error.text.rstrip()}")
    if len(frames) > _MAX_FRAMES:
        skipped = len(frames) - _MAX_FRAMES
        frames = [*frames[:2], *frames[-(_MAX_FRAMES - 2) :]]
        parts.append(f"  ({skipped} frames in between are left out)")
    parts.extend(_marked(code, line) for code, line in frames)
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and not isinstance(cause, ExecutionError):
        parts.append(f"  caused by {headline(cause)}")
    return "\n".join(parts)


def headline(error: BaseException) -> str:
    """``Type: message``; an exception without arguments is only its type, an assertion says that it failed."""
    try:
        message = str(error)
    except Exception as unprintable:  # noqa: BLE001 - __str__ is user code; reporting must not fail for it
        return f"{type(error).__name__}, whose text raised {type(unprintable).__name__}"
    if not message:
        return (
            f"{type(error).__name__}: the assertion failed"
            if isinstance(error, AssertionError)
            else type(error).__name__
        )
    return f"{type(error).__name__}: {message}"


def _user_frames(traceback: TracebackType | None) -> list[tuple[CodeType, int]]:
    frames: list[tuple[CodeType, int]] = []
    while traceback is not None:
        frame = traceback.tb_frame
        if is_user_file(frame.f_code.co_filename) and not _ours(frame):
            frames.append((frame.f_code, traceback.tb_lineno))
        traceback = traceback.tb_next
    return frames


def _ours(frame: FrameType) -> bool:
    module = str(frame.f_globals.get("__name__", ""))
    return module == "trace_core" or module.startswith("trace_core.")


@lru_cache(maxsize=1024)
def is_user_file(filename: str) -> bool:
    """Whether a file is the user's own: not this package, the standard library or an installed package."""
    if filename.startswith("<"):
        return not filename.startswith("<frozen")
    path = os.path.abspath(filename)
    if path.startswith(_HERE) or f"{os.sep}site-packages{os.sep}" in path or f"{os.sep}dist-packages{os.sep}" in path:
        return False
    stdlib = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
    return not path.startswith(stdlib) and not path.startswith(os.path.join(sys.base_prefix, "lib", "python"))


def _marked(code: CodeType, line: int) -> str:
    """The neighbourhood of the failing line within its function, the line itself marked."""
    import linecache

    name = code.co_qualname.replace("<locals>.", "").removeprefix("__make__.")
    start = _definition_line(code)
    title = f"  {name}, line {line - start + 1}:" if name != "<module>" else f"  module level, line {line}:"
    first = max(line - _CONTEXT_LINES, start)
    last = min(line + _CONTEXT_LINES, _last_line(code))
    lines = [title]
    for number in range(first, last + 1):
        source = linecache.getline(code.co_filename, number).rstrip("\n")
        if not source and number != line:
            continue
        lines.append(f"{'-->' if number == line else '   '} {number - start + 1:>3} | {source}")
    return "\n".join(lines) if len(lines) > 1 and linecache.getline(code.co_filename, line) else title


def _definition_line(code: CodeType) -> int:
    """The line of ``def``: decorators above it are not part of the code an optimizer sees."""
    import linecache

    first = code.co_firstlineno
    for line in range(first, _last_line(code) + 1):
        if linecache.getline(code.co_filename, line).lstrip().startswith(("def ", "async def ")):
            return line
    return first


def _last_line(code: CodeType) -> int:
    return max((line for _, _, line in code.co_lines() if line is not None), default=code.co_firstlineno)
