"""Where the code of trainable bundles runs once an optimizer has changed it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core.errors import TraceCoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trace_core.code import CodeRunner
    from trace_core.parameter import Parameter


def default_runner(isolation: str | None = None) -> CodeRunner:
    """The runner behind ``bundle(trainable=True)``: a jail where its self-test passes, else a process, with a warning.

    ``isolation`` names a tier instead; the environment variable TRACE_CORE_ISOLATION does so where nothing is named.
    ``trace_core`` finds this function through the entry point group ``trace_core.code_runner`` and need not know this
    package. Raises SandboxUnavailable if a tier was named that cannot be had.
    """
    from trace_core.integrations.sandbox import open_sandbox

    return open_sandbox(isolation)


def isolation_of(names: Mapping[Parameter, str]) -> dict[str, dict[str, Any]]:
    """Name of each code parameter -> where its proposed versions run: the tier, layers seen at work and those missing.

    What cannot be had here has the tier ``none`` and a ``reason``; a runner of the user's own that does not describe
    itself has its class's name.
    """
    from trace_core.code import CodeParameter

    return {name: _described(parameter) for parameter, name in names.items() if isinstance(parameter, CodeParameter)}


def _described(parameter: Any) -> dict[str, Any]:
    try:
        runner = parameter.runner
        if runner is None:
            return {"tier": "inline", "layers": [], "absent": ["everything"]}
        describe = getattr(runner, "describe", None)
        seen = {"tier": type(runner).__name__} if describe is None else describe()
    except TraceCoreError as error:  # a run that never needs it goes on; one that does ends with this very error
        return {"tier": "none", "reason": str(error)}
    return {"tier": str(seen.get("tier")), **{name: list(seen.get(name, ())) for name in ("layers", "absent")}}
