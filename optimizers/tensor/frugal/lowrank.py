"""Bases of the low-rank splits.

``svd`` finds the leading directions of the gradient with a randomized range finder: one power iteration on a seeded
random block a little wider than the rank, then an exact rotation within it (Halko, Martinsson, Tropp, 2011, algorithms
4.4 and 5.1 in spirit). ``random`` draws a semi-orthogonal matrix. Bases are kept contiguous and no wider than the rank.
"""

from __future__ import annotations

from typing import Any

from trace_core.optimizers.tensor.frugal._torch import torch
from trace_core.optimizers.tensor.frugal.geometry import is_right, matrix
from trace_core.optimizers.tensor.frugal.options import FrugalError
from trace_core.optimizers.tensor.frugal.seeding import generator

_OVERSAMPLING = 8


def random_basis(n: int, rank: int, place: tuple[int, int, int], like: Any) -> Any:
    """Orthonormal columns, (n, rank), uniform over all subspaces."""
    drawn = torch.randn(n, rank, generator=generator(*place), dtype=torch.float32).to(like.device, like.dtype)
    return torch.linalg.qr(drawn).Q.contiguous()


def leading_basis(tall: Any, rank: int, place: tuple[int, int, int]) -> Any:
    """The ``rank`` leading right singular vectors of ``tall`` (m, n) with m >= n, as columns: (n, rank).

    Where the block is as wide as the matrix nothing is left to chance and the result is that of an exact SVD.
    """
    n = tall.shape[1]
    width = min(n, rank + _OVERSAMPLING)
    if width == n:
        values = torch.linalg.eigh(tall.mT @ tall).eigenvectors
        return values[:, n - rank :].flip(1).contiguous()
    block = torch.randn(n, width, generator=generator(*place), dtype=torch.float32).to(tall.device, tall.dtype)
    span = torch.linalg.qr(tall.mT @ (tall @ block)).Q
    small = tall @ span
    rotation = torch.linalg.eigh(small.mT @ small).eigenvectors[:, width - rank :].flip(1)
    return (span @ rotation).contiguous()


def find_basis(grad: Any, split: str, rank: int, dtype: Any, place: tuple[int, int, int], label: str) -> Any:
    """The basis for this gradient in ``dtype``; raises FrugalError where the gradient is not finite."""
    view = matrix(grad, split).to(dtype)
    right = is_right(grad)
    if split == "random":
        return random_basis(view.shape[1] if right else view.shape[0], rank, place, view)
    # Singular vectors do not depend on the scale; without it the squares of small gradients underflow.
    largest = view.abs().amax()
    tall = (view if right else view.mT) / torch.where(largest > 0, largest, torch.ones_like(largest))
    try:
        return leading_basis(tall, rank, place)
    except torch.linalg.LinAlgError as error:
        raise FrugalError(
            f"{label}: no subspace can be found, the gradient has NaN or infinite entries; skip such steps "
            f"(torch.amp.GradScaler does) or clip"
        ) from error
