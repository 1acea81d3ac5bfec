"""Tiers of protection by name, the protocol they share, and how one is chosen."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from trace_core.errors import CandidateError, RunnerError
from trace_core.integrations.sandbox.errors import SandboxUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Self

    from trace_core.integrations.sandbox.report import Outcome
    from trace_core.integrations.sandbox.runner import Code

TIERS = ("auto", "jail", "process", "monty", "inline")
VARIABLE = "TRACE_CORE_ISOLATION"


@runtime_checkable
class Sandbox(Protocol):
    """Where proposed code runs. Implement it for a container or another machine, and pass the object as ``isolation``.

    Contract: ``call`` gets plain data and gives plain data, raises CandidateError (text fit for an optimizer) for what
    the code does wrong, and RunnerError for trouble with the place itself, which no optimizer may see. Calls come from
    several threads at once. ``describe`` says what protects the host, under ``tier`` and ``layers`` at least.
    """

    def call(self, code: Code, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, context: Mapping[str, Any]) -> Any:
        """Run the function once; ``context`` holds the names of its surroundings that it uses."""
        ...

    def call_many(
        self, code: Code, calls: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]], *, context: Mapping[str, Any]
    ) -> list[Outcome]:
        """Run the function on many examples; one Outcome for each, in order."""
        ...

    def describe(self) -> dict[str, Any]:
        """What protects this process, as seen at work."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class OpenSandbox(Sandbox, Protocol):
    """A sandbox that is closed at the end of a ``with``."""

    @property
    def tier(self) -> str:
        """Its name."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *failure: Any) -> None: ...


def open_sandbox(tier: str | None = None, *, require: str | None = None, **settings: Any) -> OpenSandbox:
    """A sandbox of a tier.

    Args:
        tier: ``auto`` is the jail where its self-test passes, else what there is of it, with one warning. A name is a
            demand: ``jail``, ``process``, ``monty`` (extra ``monty``), ``inline`` (no protection at all: for code you
            trust). None takes the environment variable TRACE_CORE_ISOLATION, or ``auto``.
        require: ``jail`` raises where ``auto`` would fall back.
        settings: those of the tier's class, such as ``timeout`` and ``imports``.

    Raises SandboxUnavailable if the tier does not work here, MissingExtra for ``monty`` without its package,
    ValueError for a name that is no tier.
    """
    chosen = tier or os.environ.get(VARIABLE) or "auto"
    if chosen not in TIERS or require not in (None, "jail"):
        raise ValueError(
            f"a tier is one of {', '.join(TIERS)}, and require is None or 'jail'; got {chosen!r}, {require!r}"
        )
    if require == "jail" and chosen not in ("auto", "jail"):
        raise ValueError(f"tier {chosen!r} is no jail, which require='jail' asks for")
    return _MAKERS["jail" if require else chosen](settings)


def _process(settings: dict[str, Any]) -> OpenSandbox:
    from trace_core.integrations.sandbox.runner import ProcessRunner

    return ProcessRunner(**settings)


def _jail(settings: dict[str, Any]) -> OpenSandbox:
    from trace_core.integrations.sandbox.jail import JailRunner

    made = JailRunner(**settings)
    try:
        made.check()
    except SandboxUnavailable:
        raise
    except (RunnerError, CandidateError) as error:
        made.close()
        raise SandboxUnavailable(f"no jail can be had here: its self-test failed: {error}") from error
    return made


def _auto(settings: dict[str, Any]) -> OpenSandbox:
    from trace_core.integrations.sandbox.jail import JailRunner

    made = JailRunner(**{**settings, "partial": True})
    try:
        missing = made.missing()
    except (RunnerError, CandidateError) as error:
        made.close()
        _warn(f"the jail's self-test failed ({error})")
        plain = {name: value for name, value in settings.items() if name not in ("readable", "partial")}
        return _process(plain)
    if missing:
        _warn(f"missing here: {', '.join(missing)}")
    return made


def _warn(why: str) -> None:
    warnings.warn(
        f"proposed code runs in the tier 'process', not in a jail: {why}. It is held to time and memory, but this is "
        f"no security boundary. Set {VARIABLE}=jail to refuse, or =process to choose this",
        RuntimeWarning,
        stacklevel=4,
    )


def _monty(settings: dict[str, Any]) -> OpenSandbox:
    from trace_core.integrations.sandbox.monty import MontyRunner

    return MontyRunner(**settings)


def _inline(settings: dict[str, Any]) -> OpenSandbox:
    from trace_core.integrations.sandbox.inline import InlineRunner

    return InlineRunner(**settings)


_MAKERS: dict[str, Callable[[dict[str, Any]], OpenSandbox]] = {
    "auto": _auto,
    "jail": _jail,
    "process": _process,
    "monty": _monty,
    "inline": _inline,
}

__all__ = ["TIERS", "VARIABLE", "Sandbox", "open_sandbox"]
