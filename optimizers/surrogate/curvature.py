"""The diagonal of a loss's second derivative at a target, by autograd."""

from __future__ import annotations

from typing import Any

from trace_core._lazy import require
from trace_core.optimizers.base import OptimizerError

#: A target whose entries are all coupled needs one product each; more than this many are refused.
MOST_PRODUCTS = 512


def diagonal(gradient: Any, target: Any) -> Any:
    """Diagonal second derivatives of the loss, of the target's shape.

    As many products with the second derivative as a row of the target has entries, if rows do not influence each
    other's losses; one product with random signs tells whether they do. Then every entry needs one of its own.

    Args:
        gradient: of the loss at ``target``, with history.

    Raises OptimizerError if that would be more than MOST_PRODUCTS.
    """
    torch = require("torch", extra="torch")
    if not gradient.requires_grad:
        return torch.zeros_like(target)  # the loss is linear here
    rows = target.shape[0] if target.ndim else 1
    found = torch.zeros(rows, target.numel() // max(rows, 1), dtype=target.dtype, device=target.device)
    if found.shape[1] > MOST_PRODUCTS:
        raise _too_many(found.shape[1])
    signs = torch.randint(0, 2, (rows, 1), generator=torch.Generator().manual_seed(0)).to(found) * 2 - 1
    coupled = False
    for column in range(found.shape[1]):
        weights = torch.zeros_like(found)
        weights[:, column] = 1
        found[:, column] = _product(gradient, target, weights).view_as(found)[:, column]
        signed = _product(gradient, target, weights * signs).view_as(found)[:, column]
        if not torch.allclose(signed, signs[:, 0] * found[:, column], rtol=1e-3, atol=1e-6 * float(found.abs().max())):
            coupled = True
            break
    if coupled:
        if target.numel() > MOST_PRODUCTS:
            raise _too_many(target.numel())
        units = torch.eye(target.numel()).to(target)
        found = torch.stack([_product(gradient, target, unit).flatten() @ unit for unit in units])
    return found.reshape(target.shape).detach()


def _product(gradient: Any, target: Any, weights: Any) -> Any:
    torch = require("torch", extra="torch")
    (product,) = torch.autograd.grad(
        gradient, [target], weights.view_as(target), retain_graph=True, materialize_grads=True
    )
    return product


def _too_many(count: int) -> OptimizerError:
    return OptimizerError(
        f"the diagonal curvature of this target takes {count} products with the second derivative, at most "
        f"{MOST_PRODUCTS} are done: give it with backward(..., curvature=...) or an oracle's Answer(curvature=...)"
    )
