"""Where the code of trainable bundles runs once an optimizer has changed it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trace_core.code import CodeRunner


def default_runner() -> CodeRunner:
    """The runner behind ``bundle(trainable=True)``: one worker process for the whole program.

    ``trace_core`` finds it through the entry point group ``trace_core.code_runner`` and need not know this package.
    """
    from trace_core.integrations.sandbox import ProcessRunner

    return ProcessRunner()
