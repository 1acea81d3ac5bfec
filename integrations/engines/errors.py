"""How work on an engine can end other than by its own result."""

from __future__ import annotations

from trace_core.errors import TraceCoreError


class EngineError(TraceCoreError):
    """An engine is used in a way that cannot work, or broke by itself."""


class RolloutTimeout(TraceCoreError):
    """A rollout took longer than it may. A result, not a fault of the run: the output is a failure."""


class RolloutCrash(TraceCoreError):
    """The process of a rollout ended without an answer. A result, not a fault of the run: the output is a failure."""


class AbandonedWarning(RuntimeWarning):
    """A thread could not be ended and goes on in the background; what it gives is ignored."""
