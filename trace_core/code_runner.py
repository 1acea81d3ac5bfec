"""Where proposed code runs, as far as the core needs to know: a protocol, and how an installed runner is found."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Protocol

from trace_core.errors import RunnerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ENTRY_POINT_GROUP = "trace_core.code_runner"
ISOLATIONS = ("auto", "jail", "process", "monty", "inline")


class CodeVersion:
    """Proposed code, ready to be sent to where it runs.

    Attributes:
        source: text of the function, with helpers and imports beside it.
        name: the function to call.
        filename: how its frames are labelled in tracebacks, e.g. ``<code plan v3>``.
        is_async: whether the function is ``async def``.
        tools: functions of this process that the code may call, by the names it calls them by.
    """

    __slots__ = ("filename", "is_async", "name", "names", "source", "tools")

    def __init__(
        self,
        source: str,
        name: str,
        filename: str,
        is_async: bool,
        names: frozenset[str],
        tools: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        self.source = source
        self.name = name
        self.filename = filename
        self.is_async = is_async
        self.names = names
        self.tools = dict(tools or {})


class CodeRunner(Protocol):
    """Where proposed code runs: a jailed child process by default."""

    def call(
        self, code: CodeVersion, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, context: Mapping[str, Any]
    ) -> Any:
        """Run the function and return its result as data.

        ``context`` holds what the replaced function's globals and closure offer for the names the code uses. Raises
        CandidateError when the code fails (text fit for an optimizer), RunnerError when the runner does.
        """
        ...


def default_runner(isolation: str | None = None) -> CodeRunner:
    """The runner of a tier (None: the default one) from the entry point group ``trace_core.code_runner``.

    Raises RunnerError if none is installed, or the tier cannot be had here.
    """
    with _lock:
        if isolation not in _runners:
            from importlib.metadata import entry_points

            found = list(entry_points(group=ENTRY_POINT_GROUP, name="default"))
            if not found:
                raise RunnerError(
                    f"no runner for proposed code is installed (entry point {ENTRY_POINT_GROUP!r}); reinstall "
                    "trace_core, or opt out of isolation with bundle(trainable=True, isolation='inline')"
                )
            _runners[isolation] = found[0].load()(isolation)
        return _runners[isolation]


_runners: dict[str | None, CodeRunner] = {}  # one of each tier serves the whole program
_lock = threading.Lock()

__all__ = ["ENTRY_POINT_GROUP", "ISOLATIONS", "CodeRunner", "CodeVersion", "default_runner"]
