"""What can go wrong with tensors and their gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trace_core.errors import FeedbackError, TraceCoreError

if TYPE_CHECKING:
    from trace_core.node import Node
    from trace_core.parameter import Parameter


class TensorError(TraceCoreError, ValueError):
    """A tensor, module or device that cannot be used as asked; the message says what to do."""


class GradientError(TraceCoreError):
    """No gradient can reach the parameters.

    Attributes:
        stops: the nodes at which gradients stop, in topological order.
    """

    def __init__(self, message: str, stops: tuple[Node, ...] = ()) -> None:
        super().__init__(message)
        self.stops = stops


class GradientStopsWarning(UserWarning):
    """Gradients reach some of the parameters and not others; the message names these and where gradients stop."""


class NonFiniteError(FeedbackError):
    """NaN or Inf in what is to be learned from.

    Attributes:
        node: the first node of the trace with such a value, a parameter's version included; None if the values are
            finite and only gradients are not.
        parameters: the parameters whose gradients are not finite; empty if these were not looked at.
    """

    def __init__(self, message: str, node: Node | None = None, parameters: tuple[Parameter, ...] = ()) -> None:
        super().__init__(message)
        self.node = node
        self.parameters = parameters
