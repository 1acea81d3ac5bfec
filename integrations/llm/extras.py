"""Whether an optional package is there, found out without importing it: some take seconds."""

from __future__ import annotations


def installed(module: str) -> bool:
    """Whether ``import module`` would find something."""
    from importlib.util import find_spec

    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # blocked by a finder, or put into sys.modules without a spec
        return False
