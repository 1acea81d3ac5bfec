"""Every exception a user of trace_core can meet. One root, so that one ``except`` clause is enough.

Each message says what was expected, what came, and what to do about it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trace_core.node import Node


class TraceCoreError(Exception):
    """Root of all exceptions raised by this library."""


class MissingExtra(TraceCoreError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class MutationError(TraceCoreError, TypeError):
    """An in-place change of a node's value was asked for. Nodes are immutable; the message names the pure form."""


class ParameterError(TraceCoreError, ValueError):
    """A value was refused by a parameter (wrong type, violated constraint). The parameter keeps its old value."""


class FeedbackError(TraceCoreError, ValueError):
    """Feedback that cannot be used: wrong type, a score that is not finite."""


class SourceError(TraceCoreError):
    """The source of a trainable function is needed and cannot be had, or is not one function definition."""


class ReplayError(TraceCoreError):
    """A trace cannot be re-executed, or re-executing it would take another path than the recorded one."""


class ReleasedError(TraceCoreError):
    """The value of a node was let go of to free memory; the message says how to have it again."""


class StateError(TraceCoreError, ValueError):
    """A state dict does not fit the module; every unknown, missing and ill-typed entry is named."""


class ExecutionError(TraceCoreError):
    """An operator raised. ``node`` stands for the failed output, so feedback can flow backward from it.

    Attributes:
        node: exception node; its value is the exception, its inputs are those of the failed operator.
        exception: the exception as raised.
    """

    def __init__(self, node: Node, exception: BaseException, text: str) -> None:
        super().__init__(text)
        self.node = node
        self.exception = exception

    @property
    def exception_node(self) -> Node:
        """Alias of ``node``."""
        return self.node


class CandidateError(TraceCoreError):
    """Proposed code failed where it ran. The text is fit to be shown to an optimizer: only the candidate's own frames.

    ``kind`` is a short word: ``exception``, ``syntax``, ``timeout``, ``memory``, ``crash``, ``output``, ``result``,
    ``policy``.
    """

    def __init__(self, message: str, *, kind: str = "exception") -> None:
        super().__init__(message)
        self.kind = kind


class RunnerError(TraceCoreError):
    """The place where proposed code runs could not be set up or broke by itself. Never feedback for an optimizer."""
