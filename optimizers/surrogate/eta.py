"""How far the target moves: the rules for eta.

eta is a step in target space for the sum of the examples' losses, whatever the loss at hand averages over: 1/L with L
the smoothness of one example's loss in its target is safe (logistic loss: 4; softmax cross-entropy: 1 to 2; squared
error: 1/2).

Source: "Target-based Surrogates for Stochastic Optimization" (Lavington et al., ICML 2023), section 3 and appendix.
Barzilai-Borwein: "Two-Point Step Size Gradient Methods" (1988), with differences of targets for those of parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from trace_core.optimizers.base import OptimizerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True)
class Position:
    """What a rule may look at.

    Attributes:
        step: counted from 1.
        targets: all targets, flat, one tensor.
        gradient: of the sum of the losses at the targets, flat.
        descent: decrease of the loss per unit of eta that its gradient promises.
        examples: gives something that is equal for two positions about the same examples.
        loss: the loss with the targets moved by eta; with 0.0, where they are. None if only gradients can be had.
    """

    step: int
    targets: Any
    gradient: Any
    descent: float
    examples: Callable[[], Any] = lambda: None
    loss: Callable[[float], float] | None = None


class EtaRule(Protocol):
    """A rule. One object belongs to one optimizer."""

    def __call__(self, position: Position) -> float:
        """The eta of this step, positive."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` needs to go on."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        ...


class _Stateless:
    def state_dict(self) -> dict[str, Any]:
        """See EtaRule."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See EtaRule."""


@dataclass
class Constant(_Stateless):
    """Always ``eta``. Monotone with all examples and eta <= 1/L; with minibatches, goes to a ball around a minimum."""

    eta: float = 1.0

    def __call__(self, position: Position) -> float:
        """See EtaRule."""
        return self.eta


@dataclass
class InverseSqrt(_Stateless):
    """``eta / sqrt(t)``: converges with minibatches."""

    eta: float = 1.0

    def __call__(self, position: Position) -> float:
        """See EtaRule."""
        return self.eta / math.sqrt(position.step)


@dataclass
class Exponential(_Stateless):
    """``eta * (1/T)^(t/T)`` for a run of T steps: adapts to how noisy the minibatches are."""

    eta: float = 1.0
    total: int = 100

    def __call__(self, position: Position) -> float:
        """See EtaRule."""
        return float(self.eta * (1 / self.total) ** (position.step / self.total))


@dataclass
class AdaGradNorm(_Stateless):
    """``eta / sqrt(sum of the squared norms of the gradients so far)``."""

    eta: float = 1.0
    total: float = 0.0

    def __call__(self, position: Position) -> float:
        """See EtaRule."""
        self.total += float(position.gradient.square().sum())
        return self.eta / math.sqrt(self.total) if self.total > 0 else self.eta

    def state_dict(self) -> dict[str, Any]:
        """See EtaRule."""
        return {"total": self.total}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See EtaRule."""
        self.total = float(state["total"])


@dataclass
class LineSearch:
    """Armijo's rule in target space: never touches the parameters, asks the oracle for losses only.

    Starts from ``expand`` times the last eta and multiplies by ``shrink`` while the loss at the moved targets is more
    than ``loss - c * eta * descent``. Every trial is one more question to the oracle, about a loss.
    """

    start: float = 10.0
    c: float = 0.1
    expand: float = 1.8
    shrink: float = 0.9
    low: float = 1e-4
    high: float = 1e4
    last: float | None = None

    def __call__(self, position: Position) -> float:
        """See EtaRule. Raises OptimizerError if the oracle gives no losses."""
        if position.loss is None:
            raise OptimizerError(
                "the line search needs losses at moved targets, and this feedback gives none: use oracle=..., a scalar "
                "loss as the output, or another eta"
            )
        here = position.loss(0.0)
        eta = min(self.high, self.start if self.last is None else self.last * self.expand)
        while eta > self.low:
            there = position.loss(eta)
            if there <= here - self.c * eta * position.descent:
                break
            eta *= self.shrink
        self.last = max(eta, self.low)
        return self.last

    def state_dict(self) -> dict[str, Any]:
        """See EtaRule."""
        return {"last": self.last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See EtaRule."""
        self.last = None if state["last"] is None else float(state["last"])


@dataclass
class BarzilaiBorwein:
    """The secant of the last two answers, ``s.s / s.y`` with ``s`` and ``y`` the changes of targets and gradients.

    Needs two answers about the same examples: between others eta stays as it is, and so it does where the loss curves
    down along ``s``. ``start`` is the first eta.
    """

    start: float = 1.0
    low: float = 1e-4
    high: float = 1e4
    last: float | None = None
    _before: tuple[Any, Any, Any] | None = field(default=None, repr=False)

    def __call__(self, position: Position) -> float:
        """See EtaRule."""
        eta = self.start if self.last is None else self.last
        now = position.examples()
        if self._before is not None:
            targets, gradient, examples = self._before
            if examples == now and targets.shape == position.targets.shape:
                moved = position.targets - targets
                changed = position.gradient - gradient
                curved = float((moved * changed).sum())
                if curved > 0:
                    eta = float((moved * moved).sum()) / curved
        self.last = min(self.high, max(self.low, eta))
        self._before = (position.targets.clone(), position.gradient.clone(), now)
        return self.last

    def state_dict(self) -> dict[str, Any]:
        """See EtaRule."""
        if self._before is None:
            return {"last": self.last}
        targets, gradient, examples = self._before
        return {"last": self.last, "targets": targets, "gradient": gradient, "examples": examples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See EtaRule."""
        self.last = None if state["last"] is None else float(state["last"])
        known = state.get("targets")
        self._before = None if known is None else (known.clone(), state["gradient"].clone(), state["examples"])


RULES: dict[str, Callable[[], EtaRule]] = {
    "adagrad-norm": AdaGradNorm,
    "bb": BarzilaiBorwein,
    "constant": Constant,
    "exponential": Exponential,
    "line-search": LineSearch,
    "sqrt": InverseSqrt,
}


def eta_rule(given: float | str | EtaRule, newton: bool = False) -> EtaRule:
    """A rule from a number (constant), a name or a rule. Raises OptimizerError, listing the names.

    With ``newton``, a line search by name looks at shares of a whole step: 1 is the first and the largest.
    """
    if isinstance(given, str):
        if given not in RULES:
            raise OptimizerError(f"eta must be a number, a rule or one of {', '.join(RULES)}; got {given!r}")
        return LineSearch(start=1.0, high=1.0) if newton and given == "line-search" else RULES[given]()
    if isinstance(given, int | float):
        if not (given > 0 and math.isfinite(given)):
            raise OptimizerError(f"eta must be a positive number, got {given}")
        return Constant(float(given))
    return given
