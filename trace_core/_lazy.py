"""Optional and heavy imports, done at the moment of use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trace_core.errors import MissingExtra

if TYPE_CHECKING:
    from types import ModuleType


def require(module: str, *, extra: str) -> ModuleType:
    """Import ``module`` or raise MissingExtra with the command that installs it."""
    from importlib import import_module

    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # the module is there but broken: its own error says more than ours would
        hint = f"pip install 'trace_core[{extra}]'"
        raise MissingExtra(f"{module!r} is needed here and is not installed; run: {hint}") from error
