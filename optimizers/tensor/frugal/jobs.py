"""What a step works through: tensors with their gradients, and how they are put into lists that one call can take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trace_core.optimizers.tensor.frugal._torch import torch
from trace_core.optimizers.tensor.frugal.geometry import Coordinates, Subspace
from trace_core.optimizers.tensor.frugal.refreshing import State


@dataclass(slots=True)
class Job:
    """One tensor with its gradient; ``part`` None: the whole of it keeps ``state``."""

    param: Any
    grad: Any
    state: State
    part: Coordinates | Subspace | None = None


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates of the two rules (numbers or 0-dim tensors), the share that decays, the largest tensor's size."""

    full: Any
    free: Any
    decay: Any
    room: int

    @property
    def numbers(self) -> bool:
        return not isinstance(self.full, torch.Tensor)


def alike(items: list[Any], key: Any) -> Iterator[list[Any]]:
    """The items in lists of equal key, in the order of first appearance."""
    if items:
        lists: dict[Any, list[Any]] = {}
        for item in items:
            lists.setdefault(key(item), []).append(item)
        yield from lists.values()


def kind_of(job: Job) -> tuple[Any, ...]:
    return job.param.device, job.param.dtype, job.state[_slot(job.state)].dtype


def _slot(state: State) -> str:
    return "exp_avg" if "exp_avg" in state else "momentum_buffer"


def batches(jobs: list[Job], size: Any, limit: int) -> Iterator[list[Job]]:
    """Lists whose sizes add up to ``limit`` at most; a job that is larger stands alone."""
    batch: list[Job] = []
    held = 0
    for job in jobs:
        count = size(job)
        if batch and held + count > limit:
            yield batch
            batch, held = [], 0
        batch.append(job)
        held += count
    yield batch
