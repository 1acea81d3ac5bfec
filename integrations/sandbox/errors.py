"""What can become of a candidate. Each outcome is a CandidateError whose text is fit to be shown to an optimizer.

Trouble with the machinery itself (no worker can be started, an argument cannot be sent) is a RunnerError instead: no
optimizer can learn from it.
"""

from __future__ import annotations

from trace_core.errors import CandidateError, RunnerError


class CandidateException(CandidateError):
    """The candidate raised. The text shows its own frames with the failing lines marked.

    Attributes:
        exception_type: name of the exception's class.
        exception_message: its message; may be cut.
    """

    def __init__(self, message: str, *, exception_type: str = "", exception_message: str = "") -> None:
        super().__init__(message, kind="exception")
        self.exception_type = exception_type
        self.exception_message = exception_message


class CandidateSyntaxError(CandidateError):
    """The source does not compile."""

    def __init__(self, message: str) -> None:
        super().__init__(message, kind="syntax")


class Timeout(CandidateError):
    """Too much time was used. ``limit`` is ``wall`` or ``cpu``; ``seconds`` is how much was allowed."""

    def __init__(self, message: str, *, limit: str = "wall", seconds: float = 0.0) -> None:
        super().__init__(message, kind="timeout")
        self.limit = limit
        self.seconds = seconds


class Memory(CandidateError):
    """Too much memory was asked for."""

    def __init__(self, message: str) -> None:
        super().__init__(message, kind="memory")


class Crash(CandidateError):
    """The process ended without a result: by a signal, or by leaving the interpreter (``sys.exit``, ``os._exit``).

    ``signal`` is the signal's name or None, ``exit_code`` the exit status or None.
    """

    def __init__(self, message: str, *, signal: str | None = None, exit_code: int | None = None) -> None:
        super().__init__(message, kind="crash")
        self.signal = signal
        self.exit_code = exit_code


class OutputLimit(CandidateError):
    """Too much was printed or written to a file."""

    def __init__(self, message: str) -> None:
        super().__init__(message, kind="output")


class ResultRejected(CandidateError):
    """The result cannot come back. ``reason`` is ``type``, ``size`` or ``protocol`` (what came was not a result)."""

    def __init__(self, message: str, *, reason: str = "type") -> None:
        super().__init__(message, kind="result")
        self.reason = reason


class PolicyViolation(CandidateError):
    """The code tried something that it may not do. ``what`` says what."""

    def __init__(self, message: str, *, what: str = "") -> None:
        super().__init__(message, kind="policy")
        self.what = what


class SandboxUnavailable(RunnerError):
    """The tier that was asked for does not work here; the message says which layers are missing."""


class SandboxSetupError(RunnerError):
    """A process for a call could not be set up as it should be, so the call was not made."""


class CannotCross(RunnerError, TypeError):
    """An argument cannot be sent to where the candidate runs; the message names it and the types that can."""


__all__ = [
    "CandidateException",
    "CandidateSyntaxError",
    "CannotCross",
    "Crash",
    "Memory",
    "OutputLimit",
    "PolicyViolation",
    "ResultRejected",
    "SandboxSetupError",
    "SandboxUnavailable",
    "Timeout",
]
