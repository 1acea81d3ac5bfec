"""Inner solvers: how the surrogate is minimised. Any deterministic descent keeps the outer step's guarantee."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from trace_core._lazy import require
from trace_core.optimizers.base import OptimizerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from trace_core.optimizers.surrogate.problem import Surrogate


class Inner(Protocol):
    """A solver. Leaves the parameters alone."""

    def solve(self, surrogate: Surrogate) -> list[Any]:
        """New tensors, detached, one for each of ``surrogate.start``; never of a higher surrogate value."""
        ...


@dataclass(frozen=True)
class GradientDescent:
    """``steps`` steps of length ``lr``. With one step, the outer iteration is gradient descent on the loss itself."""

    lr: float = 0.1
    steps: int = 1

    def solve(self, surrogate: Surrogate) -> list[Any]:
        """See Inner. A fixed length can overshoot: this is the one solver that may increase the surrogate."""
        torch = require("torch", extra="torch")
        values = surrogate.fresh()
        for _ in range(self.steps):
            _, gradient = surrogate.gradient(values)
            with torch.no_grad():
                for value, slope in zip(values, gradient, strict=True):
                    value.sub_(slope, alpha=self.lr)
        return [value.detach() for value in values]


@dataclass(frozen=True)
class Adam:
    """``steps`` steps of Adam with fresh moments; the best values met are kept."""

    lr: float = 1e-2
    steps: int = 20

    def solve(self, surrogate: Surrogate) -> list[Any]:
        """See Inner."""
        torch = require("torch", extra="torch")
        values = surrogate.fresh()
        adam = torch.optim.Adam(values, lr=self.lr, foreach=True)
        best, lowest = surrogate.start, float("inf")
        for _ in range(self.steps):
            loss, gradient = surrogate.gradient(values)
            if float(loss) < lowest:
                best, lowest = [value.detach().clone() for value in values], float(loss)
            for value, slope in zip(values, gradient, strict=True):
                value.grad = slope
            adam.step()
        return [value.detach() for value in values] if surrogate.value(values) < lowest else list(best)


@dataclass(frozen=True)
class LBFGS:
    """Quasi-Newton with strong Wolfe line search, at most ``steps`` iterations."""

    steps: int = 20
    history: int = 20

    def solve(self, surrogate: Surrogate) -> list[Any]:
        """See Inner."""
        torch = require("torch", extra="torch")
        values = surrogate.fresh()
        lbfgs = torch.optim.LBFGS(
            values,
            max_iter=self.steps,
            history_size=self.history,
            tolerance_grad=1e-12,
            tolerance_change=1e-14,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Any:
            loss, gradient = surrogate.gradient(values)
            for value, slope in zip(values, gradient, strict=True):
                value.grad = slope
            return loss

        lbfgs.step(closure)
        return _no_worse(surrogate, values)


@dataclass(frozen=True)
class Armijo:
    """Gradient descent with Armijo's rule on the surrogate. For convex problems; weak on networks.

    Each outer step starts anew from the length ``first``; a length grows by ``expand`` between steps and shrinks by
    ``shrink`` while the decrease is less than ``c`` times what the gradient promises.
    """

    steps: int = 20
    c: float = 0.5
    expand: float = 1.8
    shrink: float = 0.9
    first: float = 10.0
    smallest: float = 1e-6
    backtracks: int = 100

    def solve(self, surrogate: Surrogate) -> list[Any]:
        """See Inner."""
        torch = require("torch", extra="torch")
        values, length = surrogate.fresh(), self.first
        for step in range(self.steps):
            loss, gradient = surrogate.gradient(values)
            slope = float(sum(part.square().sum() for part in gradient))
            if slope <= 1e-12:
                break
            length = length if step == 0 else length * self.expand
            for _ in range(self.backtracks):
                tried = [(v.detach() - length * g).requires_grad_() for v, g in zip(values, gradient, strict=True)]
                if surrogate.value(tried) <= float(loss) - self.c * length * slope:
                    values = tried
                    break
                length *= self.shrink
                if length < self.smallest * torch.finfo(loss.dtype).eps:
                    break
            else:
                break
        return [value.detach() for value in values]


def _no_worse(surrogate: Surrogate, values: list[Any]) -> list[Any]:
    end = surrogate.value(values)
    # where the targets have not been moved the surrogate is 0
    return [value.detach() for value in values] if end <= surrogate.value(surrogate.start) else list(surrogate.start)


def inner_solver(given: str | Inner, steps: int | None, lr: float | None) -> Inner:
    """A solver by name, or the one given. Raises OptimizerError, listing the names."""
    from trace_core.optimizers.surrogate.exact import GaussNewton

    made: dict[str, Callable[..., Inner]] = {
        "adam": Adam,
        "armijo": Armijo,
        "exact": GaussNewton,
        "gd": GradientDescent,
        "lbfgs": LBFGS,
    }
    if not isinstance(given, str):
        if steps is not None or lr is not None:
            raise OptimizerError("inner_steps and inner_lr go to the solver itself where inner is an object")
        return given
    if given not in made:
        raise OptimizerError(f"inner must be a solver or one of {', '.join(made)}; got {given!r}")
    if steps is not None and steps < 1:
        raise OptimizerError(f"inner_steps must be at least 1, got {steps}")
    if lr is not None and given not in ("adam", "gd"):
        raise OptimizerError(f"inner_lr is for the inner solvers adam and gd; {given!r} finds its own step lengths")
    options: dict[str, Any] = {} if steps is None else {"steps": steps}
    return made[given](**options) if lr is None else made[given](lr=lr, **options)
