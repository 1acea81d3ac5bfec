"""From what was seen of a process to outcomes: a value, or an error whose text an optimizer can use.

Everything in a transcript came from the candidate's process and may be forged: texts are cut, values are decoded with
the allow-list of ``codec``, and nothing else is believed.
"""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trace_core.errors import CandidateError
from trace_core.integrations.sandbox import codec
from trace_core.integrations.sandbox.errors import (
    CandidateException,
    CandidateSyntaxError,
    Crash,
    Memory,
    OutputLimit,
    PolicyViolation,
    ResultRejected,
    SandboxSetupError,
    Timeout,
)

if TYPE_CHECKING:
    from trace_core.integrations.sandbox.launch import Settings, Transcript

MAX_TEXT = 12_000  # characters of an error's text
MAX_FIELD = 4_000


@dataclass(frozen=True)
class Outcome:
    """What became of one example: ``value``, or ``error`` if that is not None.

    ``seconds`` is how long the function ran, by its own process's clock; 0.0 where it did not come to an end.
    """

    value: Any = None
    error: CandidateError | None = None
    seconds: float = 0.0

    def unwrap(self) -> Any:
        """The value; raises the error if there is one."""
        if self.error is not None:
            raise self.error
        return self.value


class Reporter:
    """Makes the outcomes of one candidate under given limits."""

    def __init__(self, name: str, settings: Settings) -> None:
        self._name, self._settings = name, settings

    def outcomes(self, seen: Transcript, examples: int) -> list[Outcome]:
        """What is known now, in the order of the examples: all of them, or up to the one that ended the process.

        Raises SandboxSetupError if the process never came as far as its request.
        """
        if not (seen.started or seen.killed or seen.lost):
            said = f"; it said:\n{seen.printed[-1]}" if seen.printed and seen.printed[-1] else ""
            raise SandboxSetupError(
                f"the process for a call ended (status {seen.status}) before it took the call{said}"
            )
        printed = [*seen.printed, *[""] * (len(seen.answers) + 1 - len(seen.printed))]
        made = [self._answer(*answer, text) for answer, text in zip(seen.answers, printed, strict=False)]
        if seen.setup_error is not None:
            error = seen.setup_error.get("error")
            return [Outcome(error=self.failure(error, printed[-1])) for _ in range(examples)]
        if len(made) == examples:
            if made and seen.printed_size >= self._settings.output_bytes:
                made[-1] = Outcome(error=self._too_much_output(printed[-2]))
            return made
        if seen.answers and seen.answers[-1][0].get("last"):  # this example has ended the process
            return made
        missing = examples if not seen.ready else len(made) + 1  # the code could not even be loaded: true of all
        return [*made, *(Outcome(error=self._death(seen)) for _ in range(missing - len(made)))]

    def supervisor_killed(self) -> CandidateError:
        """The worker died twice under this call, the second time with nobody else's call on it."""
        return Crash(self._text("ended the process that supervises it", [], ""))

    def _answer(self, head: dict[str, Any], value: bytes, printed: str) -> Outcome:
        seconds = head.get("seconds")
        seconds = float(seconds) if isinstance(seconds, int | float) else 0.0
        if "error" in head:
            return Outcome(error=self.failure(head["error"], printed), seconds=seconds)
        if len(value) > self._settings.result_bytes:
            what = f"it takes {len(value)} bytes; at most {self._settings.result_bytes}"
            return Outcome(error=self._rejected("size", what, printed), seconds=seconds)
        try:
            return Outcome(codec.decode(value, containers_limit=codec.MAX_CONTAINERS), seconds=seconds)
        except codec.CodecError as error:
            return Outcome(error=self._rejected("protocol", str(error), printed), seconds=seconds)

    def failure(self, said: Any, printed: str = "") -> CandidateError:
        """The error for what a candidate's process said went wrong."""
        said = said if isinstance(said, dict) else {}
        kind, message = said.get("kind"), _string(said.get("message"))
        frames = [_string(f) for f in said["frames"]] if isinstance(said.get("frames"), list) else []
        if kind == "memory":
            what = f"MemoryError: {message + '; ' if message else ''}it may use {self._settings.memory_mb} MiB"
            return Memory(self._text(what, frames, printed))
        if kind == "output":
            return self._too_much_output(printed, frames)
        if kind == "policy":
            return self._violation(message, frames, printed)
        if kind == "result":
            return self._rejected("size" if said.get("reason") == "size" else "type", message, printed)
        if kind == "exit":
            code = said["code"] if isinstance(said.get("code"), int) else 1
            reason = f": {message}" if message else ""
            what = f"left the interpreter (sys.exit, code {code}{reason}); return a value instead"
            return Crash(self._text(what, frames, printed), exit_code=code)
        name = _string(said.get("type")) or "Exception"
        if not message and name == "AssertionError":
            message = "the assertion failed"
        text = self._text(f"{name}: {message}" if message else name, frames, printed)
        if kind == "syntax":
            return CandidateSyntaxError(text)
        return CandidateException(text, exception_type=name, exception_message=message)

    def _death(self, seen: Transcript) -> CandidateError:
        printed = seen.printed[-1] if seen.printed else ""
        settings, status = self._settings, seen.status
        if seen.killed == "disk":
            return self._too_much_output(printed)
        if seen.killed == "wall":
            what = f"took more than {settings.timeout:g} s and was stopped"
            return Timeout(self._text(what, [], printed), limit="wall", seconds=settings.timeout)
        if seen.killed == "protocol":
            return self._rejected("protocol", f"what came was no result ({seen.trouble})", printed)
        if status is None or status >= 0:
            what = f"ended its process (exit code {status}) without a result; return a value instead"
            return Crash(self._text(what, [], printed), exit_code=status)
        name = _signal_name(-status)
        if name == "SIGSYS":
            return self._violation("use a system call that is not allowed", [], printed)
        if name == "SIGXCPU" or (name == "SIGKILL" and seen.cpu >= settings.cpu):
            what = f"used more than {settings.cpu:g} s of CPU time and was stopped"
            return Timeout(self._text(what, [], printed), limit="cpu", seconds=settings.cpu)
        if name == "SIGXFSZ":
            return self._too_much_output(printed)
        what = f"crashed: its process was ended by {name}"
        if name == "SIGKILL":
            what += " (by the code itself, or by the system for want of memory)"
        return Crash(self._text(what, [], printed), signal=name)

    def _violation(self, what: str, frames: list[str], printed: str) -> CandidateError:
        if what.startswith("import "):
            others = sorted((self._settings.imports or frozenset()) - sys.stdlib_module_names)
            text = (
                f"the code may not {what}. It may import modules of the standard library that compute (math, re, json, "
                f"collections, ...), {_cut(', '.join(others), MAX_FIELD)}, and what the program itself uses."
            )
        else:
            text = (
                f"the code tried what it may not do: {what}. It may compute, and use files in its working directory; "
                "it may not open other files, use the network, start programs or processes, or signal others."
            )
        return PolicyViolation(self._text(text, frames, printed), what=what)

    def _too_much_output(self, printed: str, frames: list[str] | None = None) -> CandidateError:
        what = f"printed, or wrote to a file, more than {self._settings.output_bytes} bytes"
        return OutputLimit(self._text(what, frames or [], printed))

    def _rejected(self, reason: str, what: str, printed: str) -> CandidateError:
        text = f"the result cannot come back: {what}."
        if reason == "type":
            text += f" Return plain data made of {codec.ALLOWED}."
        return ResultRejected(self._text(text, [], printed), reason=reason)

    def _text(self, what: str, frames: list[str], printed: str) -> str:
        parts = [f"(in {self._name}) {what}", *frames]
        if printed.strip():
            parts.append(f"  printed before that:\n{_indent(printed)}")
        return _cut("\n".join(parts), MAX_TEXT)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _string(value: Any) -> str:
    """A text from the candidate's process, fit for any log: no lone surrogates, no endless length."""
    text = _cut(value, MAX_FIELD) if isinstance(value, str) else ""
    return text.encode("utf-8", "replace").decode("utf-8")


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2]}\n…\n{text[-limit // 2 :]}"


def _indent(text: str) -> str:
    return "\n".join("    | " + line for line in text.rstrip().splitlines())


__all__ = ["Outcome", "Reporter"]
