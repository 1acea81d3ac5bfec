"""Where proposed code runs: a child process with limits. See ``ProcessRunner``.

This tier keeps a run going whatever a candidate does: hang, crash, eat memory, print without end. It is not a security
boundary: the code runs as the same user, with the same files and the same network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trace_core.integrations.sandbox.errors import (
        CandidateException,
        CandidateSyntaxError,
        CannotCross,
        Crash,
        Memory,
        OutputLimit,
        ResultRejected,
        Timeout,
    )
    from trace_core.integrations.sandbox.runner import Code, Outcome, ProcessRunner

_LAZY = {
    "CandidateException": "errors",
    "CandidateSyntaxError": "errors",
    "CannotCross": "errors",
    "Code": "runner",
    "Crash": "errors",
    "Memory": "errors",
    "Outcome": "runner",
    "OutputLimit": "errors",
    "ProcessRunner": "runner",
    "ResultRejected": "errors",
    "Timeout": "errors",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


__all__ = [
    "CandidateException",
    "CandidateSyntaxError",
    "CannotCross",
    "Code",
    "Crash",
    "Memory",
    "Outcome",
    "OutputLimit",
    "ProcessRunner",
    "ResultRejected",
    "Timeout",
]
