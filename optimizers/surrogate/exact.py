"""The exact inner solution: linear least squares, or a sequence of them where the target is not linear.

Each iteration minimises ``|sqrt(W) (J d + u / W)|^2 + damp |d|^2`` for the step ``d`` of the parameters, with J the
derivative of the targets, u and W gradient and curvature of the surrogate with respect to them. For a target that is
linear in the parameters the first iteration ends it. Damping follows Levenberg and Marquardt.

Source of the matrix-free solver: Paige and Saunders, "LSQR" (1982), section 7, in the form called CGLS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trace_core._lazy import require

if TYPE_CHECKING:
    from collections.abc import Callable

    from trace_core.optimizers.surrogate.problem import Surrogate

#: Jacobians of at most so many multiplications to factor are formed; others are only multiplied with.
DENSE = 4e8


@dataclass(frozen=True)
class GaussNewton:
    """At most ``steps`` iterations, until one lowers the surrogate by less than the share ``tolerance``.

    ``products`` limits the products with J in one iteration, where J is too large to be formed: the solution of a
    large problem is an approximation.
    """

    steps: int = 10
    products: int = 30
    tolerance: float = 1e-2

    def solve(self, surrogate: Surrogate) -> list[Any]:
        """See inner.Inner."""
        torch = require("torch", extra="torch")
        values, damping = surrogate.fresh(), 0.0
        best = surrogate.value(values)
        noise = 10 * torch.finfo(values[0].dtype).eps
        for _ in range(self.steps):
            with torch.enable_grad():
                targets = surrogate.targets(values)
            gradient, curvature = surrogate.derivatives([target.detach() for target in targets])
            solve = _solver(targets, values, gradient, curvature, self.products)
            accepted = False
            for _ in range(12):
                step = solve(damping)
                tried = _moved(values, step)
                there = surrogate.value(tried)
                if there <= best:
                    accepted = True
                    break
                if there - best <= noise * abs(best):
                    break  # at the minimum, as far as these numbers can tell
                damping = max(10 * damping, 1e-4)
            if not accepted:
                break
            gained, best = best - there, there
            values = [value.requires_grad_() for value in tried]
            damping = damping / 10 if damping > 1e-6 else 0.0
            if gained <= self.tolerance * abs(best):
                break
        return [value.detach() for value in values]


def _moved(values: list[Any], step: Any) -> list[Any]:
    moved, at = [], 0
    for value in values:
        moved.append(value.detach() + step[at : at + value.numel()].view_as(value))
        at += value.numel()
    return moved


class Linearized:
    """The derivative of the targets at some parameters: products with it and with its transpose.

    Both come from one recorded run, so that they are exact transposes of each other.
    """

    def __init__(self, targets: list[Any], values: list[Any]) -> None:
        torch = require("torch", extra="torch")
        self._values = values
        self._flat = torch.cat([target.flatten() for target in targets])
        self._seed = torch.zeros_like(self._flat, requires_grad=True)
        with torch.enable_grad():
            self._transposed = self._pull(self._seed, create_graph=True)
        self.rows, self.columns = self._flat.numel(), self._transposed.numel()

    def _pull(self, weights: Any, **options: Any) -> Any:
        torch = require("torch", extra="torch")
        parts = torch.autograd.grad(
            self._flat, self._values, weights, retain_graph=True, allow_unused=True, materialize_grads=True, **options
        )
        batched = options.get("is_grads_batched", False)
        return torch.cat([part.reshape(len(part), -1) if batched else part.flatten() for part in parts], dim=-1)

    def transposed(self, weights: Any) -> Any:
        """``J^T weights``, flat."""
        return self._pull(weights)

    def product(self, step: Any) -> Any:
        """``J step``, flat."""
        torch = require("torch", extra="torch")
        (image,) = torch.autograd.grad(
            self._transposed, [self._seed], step, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return image

    def matrix(self) -> Any:
        """J itself, row by row or column by column, whichever is less."""
        torch = require("torch", extra="torch")
        if self.rows <= self.columns:
            return torch.stack([self.transposed(row) for row in torch.eye(self.rows).to(self._flat)])
        return torch.stack([self.product(column) for column in torch.eye(self.columns).to(self._flat)], dim=1)


def _solver(
    targets: list[Any], values: list[Any], gradient: Any, curvature: Any, products: int
) -> Callable[[float], Any]:
    """damping -> step. Damping is relative to the mean square of the columns of J."""
    torch = require("torch", extra="torch")
    linear = Linearized(targets, values)
    root = curvature.clamp_min(torch.finfo(curvature.dtype).tiny).sqrt()
    wanted = -gradient / root
    small = min(linear.rows, linear.columns)
    if linear.rows * linear.columns * small > DENSE:
        return lambda damping: _cgls(linear, root, wanted, damping, products)
    matrix = root[:, None] * linear.matrix()
    scale = matrix.norm(dim=0)  # columns of raw features differ by many orders of magnitude
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    left, sizes, right = torch.linalg.svd(matrix / scale, full_matrices=False)
    kept = sizes > sizes[0] * torch.finfo(sizes.dtype).eps * max(linear.rows, linear.columns)
    shares = left.T @ wanted
    tiny = torch.finfo(sizes.dtype).tiny

    def solve(damping: float) -> Any:
        inverse = torch.where(kept, sizes / (sizes.square() + damping).clamp_min(tiny), torch.zeros_like(sizes))
        return (right.T @ (inverse * shares)) / scale

    return solve


def _cgls(linear: Linearized, root: Any, wanted: Any, damping: float, products: int) -> Any:
    """Least squares by conjugate gradients on the normal equations, which are never formed."""
    torch = require("torch", extra="torch")
    residual = wanted.clone()
    slope = linear.transposed(root * residual)
    step, direction = torch.zeros_like(slope), slope.clone()
    size = first = float(slope.square().sum())
    damp = damping * first / max(float(residual.square().sum()), torch.finfo(residual.dtype).tiny)
    for _ in range(products):
        if size <= first * torch.finfo(residual.dtype).eps ** 2 or size == 0:
            break
        image = root * linear.product(direction)
        length = size / float(image.square().sum() + damp * direction.square().sum())
        step += length * direction
        residual -= length * image
        slope = linear.transposed(root * residual) - damp * step
        before, size = size, float(slope.square().sum())
        direction = slope + (size / before) * direction
    return step
