"""Where the code of trainable bundles runs once an optimizer has changed it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trace_core.code import CodeRunner


def default_runner(isolation: str | None = None) -> CodeRunner:
    """The runner behind ``bundle(trainable=True)``: a jail where its self-test passes, else a process, with a warning.

    ``isolation`` names a tier instead; the environment variable TRACE_CORE_ISOLATION does so where nothing is named.
    ``trace_core`` finds this function through the entry point group ``trace_core.code_runner`` and need not know this
    package. Raises SandboxUnavailable if a tier was named that cannot be had.
    """
    from trace_core.integrations.sandbox import open_sandbox

    return open_sandbox(isolation)
