"""Where proposed code runs. ``open_sandbox`` gives a place of a tier: jail, process, monty, inline.

The process tier keeps a run going whatever a candidate does: hang, crash, eat memory, print without end. The jail
also keeps it from files, the network, other processes and your environment. See ``JailRunner``, ``ProcessRunner``.
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
        PolicyViolation,
        ResultRejected,
        SandboxSetupError,
        SandboxUnavailable,
        Timeout,
    )
    from trace_core.integrations.sandbox.inline import InlineRunner
    from trace_core.integrations.sandbox.jail import DEFAULT_IMPORTS, JailRunner
    from trace_core.integrations.sandbox.monty import MontyRunner
    from trace_core.integrations.sandbox.report import Outcome
    from trace_core.integrations.sandbox.runner import Code, ProcessRunner
    from trace_core.integrations.sandbox.tiers import Sandbox, open_sandbox

_LAZY = {
    "CandidateException": "errors",
    "CandidateSyntaxError": "errors",
    "CannotCross": "errors",
    "Code": "runner",
    "Crash": "errors",
    "DEFAULT_IMPORTS": "jail",
    "InlineRunner": "inline",
    "JailRunner": "jail",
    "Memory": "errors",
    "MontyRunner": "monty",
    "Outcome": "report",
    "OutputLimit": "errors",
    "PolicyViolation": "errors",
    "ProcessRunner": "runner",
    "ResultRejected": "errors",
    "Sandbox": "tiers",
    "SandboxSetupError": "errors",
    "SandboxUnavailable": "errors",
    "Timeout": "errors",
    "open_sandbox": "tiers",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


__all__ = [
    "DEFAULT_IMPORTS",
    "CandidateException",
    "CandidateSyntaxError",
    "CannotCross",
    "Code",
    "Crash",
    "InlineRunner",
    "JailRunner",
    "Memory",
    "MontyRunner",
    "Outcome",
    "OutputLimit",
    "PolicyViolation",
    "ProcessRunner",
    "ResultRejected",
    "Sandbox",
    "SandboxSetupError",
    "SandboxUnavailable",
    "Timeout",
    "open_sandbox",
]
