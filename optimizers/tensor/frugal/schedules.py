"""Density and gap that change during training, asked for at every refresh."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from trace_core.optimizers.tensor.frugal._torch import torch
from trace_core.optimizers.tensor.frugal.options import FrugalError


@dataclass(frozen=True, slots=True)
class Progress:
    """What a schedule is told when a refresh is due.

    Attributes:
        step: steps the group has taken.
        refresh: number of the refresh that is about to happen, from 0.
        density, gap: the values so far (``gap`` None: no refresh after the first).
        loss: mean of the losses seen since the last refresh; None if none was.
        previous_loss: the same, one refresh earlier.
    """

    step: int
    refresh: int
    density: float
    gap: int | None
    loss: float | None = None
    previous_loss: float | None = None


Density = Callable[[Progress], float]
Gap = Callable[[Progress], "int | None"]


@dataclass(frozen=True, slots=True)
class LinearDensity:
    """Density falling (or rising) in a straight line from ``start`` to ``end`` over ``steps`` steps, then constant."""

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        if self.steps <= 0:
            raise FrugalError(f"LinearDensity: steps must be positive, got {self.steps}")

    def __call__(self, progress: Progress) -> float:
        share = min(1.0, progress.step / self.steps)
        return self.start + (self.end - self.start) * share


@dataclass(frozen=True, slots=True)
class GrowingGap:
    """A gap that grows by ``factor``, up to ``limit``, when the loss has fallen by less than ``tolerance`` (relative).

    Early on a good subspace changes quickly; near convergence refreshes mostly throw state away. The loss is what
    ``step(closure)`` returned or ``Frugal.observe`` was given (a validation loss, for example).
    """

    start: int = 200
    factor: float = 1.5
    limit: int = 2000
    tolerance: float = 0.01

    needs_loss: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.start < 1 or self.factor < 1 or self.limit < self.start:
            raise FrugalError(
                f"GrowingGap: expected start >= 1, factor >= 1 and limit >= start, got start={self.start}, "
                f"factor={self.factor}, limit={self.limit}"
            )

    def __call__(self, progress: Progress) -> int:
        if progress.refresh == 0 or progress.gap is None:
            return self.start
        if progress.loss is None or progress.previous_loss is None:
            return progress.gap
        gained = (progress.previous_loss - progress.loss) / max(abs(progress.previous_loss), 1e-12)
        return min(self.limit, math.ceil(progress.gap * self.factor)) if gained < self.tolerance else progress.gap


class LossMeter:
    """Mean of the losses between two refreshes, summed where the losses live: no synchronisation before the refresh."""

    __slots__ = ("count", "last", "total")

    def __init__(self) -> None:
        self.total: Any = 0.0
        self.count = 0
        self.last: float | None = None

    def add(self, loss: Any) -> None:
        value = loss.detach() if hasattr(loss, "detach") else float(loss)
        self.total = self.total + value
        self.count += 1

    def mean(self, process_group: Any = None) -> float | None:
        """Mean so far, over all processes if torch.distributed runs, for their schedules must agree."""
        total = float(self.total)
        count = float(self.count)
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized() and process_group is not False:
            group = process_group or None
            device = "cuda" if distributed.get_backend(group) == "nccl" else "cpu"
            both = torch.tensor([total, count], dtype=torch.float64, device=device)
            distributed.all_reduce(both, group=group)
            total, count = both.tolist()
        return total / count if count else None

    def close(self, mean: float | None) -> None:
        """Start the next interval."""
        self.last = mean if mean is not None else self.last
        self.total = 0.0
        self.count = 0

    def save(self) -> list[float | int | None]:
        return [float(self.total), self.count, self.last]

    def restore(self, saved: list[Any]) -> None:
        self.total, self.count, self.last = saved
