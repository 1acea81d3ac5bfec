"""Gradients at a target from losses alone.

Sources: coordinate-wise differences as in Nesterov and Spokoiny, "Random Gradient-Free Minimization of Convex
Functions" (2017), section 1; simultaneous perturbations from Spall, "Multivariate Stochastic Approximation" (1992).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core._lazy import require
from trace_core.errors import FeedbackError
from trace_core.optimizers.base import OptimizerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

METHODS = ("auto", "coordinates", "spsa")


class Differences:
    """Makes gradients of losses.

    With one loss per row of the target, rows are perturbed all at once, one column after the other: as many questions
    as the target has columns, however many rows and parameters there are. With one loss for all, either each entry is
    moved by itself (``coordinates``) or all of them at random (``spsa``, two questions for each of ``probes``).

    Args:
        method: ``auto`` takes coordinates for a loss per row, and SPSA for a single loss.
        size: how far entries are moved; by default the cube root of the precision, by the target's size.
        probes: random directions that are averaged.
        seed: of the directions.
    """

    def __init__(self, method: str, size: float | None, probes: int, seed: int) -> None:
        if method not in METHODS:
            raise OptimizerError(f"differences must be one of {', '.join(METHODS)}; got {method!r}")
        if size is not None and not size > 0:
            raise OptimizerError(f"probe_size must be positive, got {size}")
        if probes < 1:
            raise OptimizerError(f"probes must be at least 1, got {probes}")
        self.method, self.size, self.probes, self.seed = method, size, probes, seed
        self.drawn = 0

    def __call__(self, losses: Callable[[Sequence[Any]], Any], here: Sequence[Any], base: Any) -> tuple[str, list[Any]]:
        """(what was done in words, a gradient for each target).

        Args:
            losses: targets -> one loss for all, or one for each row. Each call is a question to the oracle.
            here: the targets.
            base: what ``losses`` gives there.
        """
        start = _column(base)
        rows = start.numel()
        per_row = getattr(base, "ndim", 0) > 0 and all(t.ndim > 0 and t.shape[0] == rows for t in here)
        if not per_row and rows != 1:
            raise OptimizerError(
                f"expected one loss, or one for each row of the target, got losses of shape {tuple(start.shape)} for a "
                f"target of shape {', '.join(str(tuple(target.shape)) for target in here)}"
            )
        if self.method == "spsa" or (self.method == "auto" and not per_row):
            return f"SPSA, {self.probes} of 2 losses", self._simultaneous(losses, here)
        gradients, questions = [], 0
        for index, target in enumerate(here):
            flat = target.reshape(rows, -1) if per_row else target.reshape(1, -1)
            size = self._size(target)
            slopes = []
            for column in range(flat.shape[1]):
                moved = flat.clone()
                moved[:, column] += size
                there = _column(losses([*here[:index], moved.view_as(target), *here[index + 1 :]]))
                slopes.append((there - start) / size)
                questions += 1
            gradients.append(torch_stack(slopes).to(target).reshape(target.shape))
        return f"coordinate differences, 1 + {questions} losses", gradients

    def _simultaneous(self, losses: Callable[[Sequence[Any]], Any], here: Sequence[Any]) -> list[Any]:
        torch = require("torch", extra="torch")
        gradients = [torch.zeros_like(target) for target in here]
        for _ in range(self.probes):
            self.drawn += 1
            draw = torch.Generator().manual_seed(hash((self.seed, self.drawn)) % 2**63)
            signs = [
                (torch.randint(0, 2, target.shape, generator=draw) * 2 - 1).to(target.device, target.dtype)
                for target in here
            ]
            steps = [self._size(target) * sign for target, sign in zip(here, signs, strict=True)]
            up = _column(losses([t + s for t, s in zip(here, steps, strict=True)])).sum()
            down = _column(losses([t - s for t, s in zip(here, steps, strict=True)])).sum()
            for gradient, step in zip(gradients, steps, strict=True):
                gradient += ((up - down) / 2).to(gradient) / step / self.probes
        return gradients

    def _size(self, target: Any) -> float:
        if self.size is not None:
            return self.size
        torch = require("torch", extra="torch")
        scale = max(1.0, float(target.square().mean().sqrt()))
        return float(scale * torch.finfo(target.dtype).eps ** (1 / 3))


def torch_stack(columns: Sequence[Any]) -> Any:
    """Columns side by side: (rows, columns)."""
    return require("torch", extra="torch").stack(list(columns), dim=1)


def _column(losses: Any) -> Any:
    """Losses as a flat tensor of double precision. Raises FeedbackError if one is not finite."""
    torch = require("torch", extra="torch")
    values = torch.as_tensor(losses, dtype=torch.float64).detach().cpu().flatten()
    if not bool(torch.isfinite(values).all()):
        raise FeedbackError("the oracle's loss at a moved target is not finite: expected finite losses")
    return values
