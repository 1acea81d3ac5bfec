"""The targets of all traces of a step together, with what the oracle said of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trace_core._lazy import require
from trace_core.optimizers.base import OptimizerError
from trace_core.optimizers.surrogate.eta import Position
from trace_core.optimizers.surrogate.problem import Block, Geometry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trace_core.optimizers.surrogate.oracles import Reply

#: Second derivatives below this share of the largest are raised to it: a flat entry must not run away.
FLATTEST = 1e-6


@dataclass(frozen=True)
class Part:
    """One target of one trace.

    Attributes:
        replay: parameters -> target.
        here: the target where the model is made.
        gradient: of the trace's loss.
        count: over how many terms that loss is a mean.
        curvature: diagonal second derivative of the trace's loss, made positive; None without.
        goal: what the target should be, instead of a gradient.
    """

    replay: Callable[..., Any]
    here: Any
    gradient: Any
    count: int
    curvature: Any = None
    goal: Any = None

    def block(self, eta: float, geometry: Geometry) -> Block:
        """The model of the loss for a step eta of the target."""
        if self.goal is not None:  # half the squared distance from the goal, whatever eta
            return Block(self.replay, self.here, self.here - self.goal, self.here.new_ones(()), geometry)
        return Block(self.replay, self.here, self.gradient, self._weight(eta), geometry)

    def moved(self, eta: float, geometry: Geometry) -> Any:
        """The target after a step eta of its own, wherever the parameters can bring it."""
        return geometry.moved(self.here, self.gradient, 1 / self._weight(eta))

    def descent(self) -> float:
        """How much the loss falls per unit of eta, by the gradient."""
        return float((self.gradient.square() / self._weight(1.0)).sum())

    def _weight(self, eta: float) -> Any:
        if self.curvature is not None:
            return self.curvature / eta
        return self.here.new_tensor(1 / (eta * self.count))


def positive(curvature: Any) -> Any:
    """Second derivatives to divide by. Raises OptimizerError if all are zero."""
    size = curvature.abs()
    largest = float(size.max()) if size.numel() else 0.0
    if not largest > 0:
        raise OptimizerError("curvature='diag' cannot be used where every second derivative at the target is zero")
    return size.clamp_min(FLATTEST * largest)


def position(
    step: int, groups: Sequence[tuple[Sequence[Part], Reply]], geometry: Geometry, examples: Callable[[], Any]
) -> Position:
    """What a rule for eta may look at. Parts with a goal are left out: their step is given."""
    torch = require("torch", extra="torch")
    groups = [(parts, reply) for parts, reply in groups if reply.goals is None]
    parts = [part for some, _ in groups for part in some]
    empty = torch.zeros(0)
    loss: Callable[[float], float] | None = None
    if all(reply.loss is not None for _, reply in groups):

        def loss(eta: float) -> float:
            total = 0.0
            for some, reply in groups:
                if eta == 0.0 and reply.base is not None:
                    total += reply.base
                elif reply.loss is not None:
                    total += reply.loss([part.moved(eta, geometry) if eta else part.here for part in some])
            return total

    return Position(
        step,
        torch.cat([part.here.flatten() for part in parts]) if parts else empty,
        torch.cat([(part.count * part.gradient).flatten() for part in parts]) if parts else empty,
        sum(part.descent() for part in parts),
        examples,
        loss,
    )
