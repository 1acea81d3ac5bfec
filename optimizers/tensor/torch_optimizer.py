"""Any torch optimizer, with the interface every optimizer of this library has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core._lazy import require
from trace_core.nodes.tensor import TensorParameter, send_gradients
from trace_core.optimizers.base import Optimizer, OptimizerError, Parameters, Proposal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trace_core.feedback import Feedback, FeedbackLike
    from trace_core.node import Node
    from trace_core.trace import Trace


class TorchOptimizer(Optimizer):
    """A ``torch.optim.Optimizer`` on the tensor parameters of a traced workflow.

    Args:
        parameters: TensorParameters, a ``module_node``, a Module; see ``Optimizer``.
        optimizer: a class such as ``torch.optim.AdamW``, or a function of ``(name, tensor)`` pairs.
        options: handed to it.

    ``backward(loss)`` sends gradients and leaves the trace with the parameters; ``step()`` updates in place.
    """

    def __init__(self, parameters: Parameters, optimizer: Callable[..., Any], **options: Any) -> None:
        super().__init__(parameters)
        others = [name for parameter, name in self.names.items() if not isinstance(parameter, TensorParameter)]
        if others:
            raise OptimizerError(
                f"expected tensor parameters, got others ({', '.join(others)}): "
                "make them with TensorParameter, or give them to an optimizer of their kind"
            )
        self.torch_optimizer = optimizer([(name, p.value) for p, name in self.names.items()], **options)
        self.steps = 0

    def backward(self, output: Node, feedback: FeedbackLike | Feedback = "") -> Trace:
        """Send the gradient of ``output`` (a loss; or ``Feedback(gradient=...)`` at any tensor) to the parameters.

        Raises what ``send_gradients`` does.
        """
        trace = super().backward(output, feedback)
        send_gradients(trace, self.parameters)  # type: ignore[arg-type]
        return trace

    def step(self, closure: Callable[[], float] | None = None) -> Proposal:
        """Update the tensors from their gradients."""
        require("torch", extra="torch")
        self.torch_optimizer.step()
        self.steps += 1
        for parameter in self.parameters:
            parameter.touch()
        proposal = Proposal({p: p.value for p in self.parameters}, reason=f"step {self.steps}")
        proposal.status = "applied"
        return proposal

    def state_dict(self) -> dict[str, Any]:
        """torch's own state, and the number of steps."""
        return {"torch": self.torch_optimizer.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.torch_optimizer.load_state_dict(state["torch"])
        self.steps = int(state["steps"])
