"""One step of one parameter group: every tensor to the rule that is due to it, in few kernel launches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trace_core.optimizers.tensor.frugal import geometry
from trace_core.optimizers.tensor.frugal._torch import torch
from trace_core.optimizers.tensor.frugal.geometry import Coordinates, Subspace
from trace_core.optimizers.tensor.frugal.lowrank import residual
from trace_core.optimizers.tensor.frugal.options import is_dtensor
from trace_core.optimizers.tensor.frugal.refreshing import State, state_dtype
from trace_core.optimizers.tensor.frugal.rules import SLOTS, Workspace, descend, free_update, full_update, shrink

# Elements copied at a time where copies are needed: 8 MiB of values and gradients in float32 on a GPU.
_BATCH = 1 << 20
_BATCH_CPU = 1 << 17


@dataclass(slots=True)
class Job:
    """One tensor with its gradient; ``part`` None: the whole of it keeps ``state``."""

    param: Any
    grad: Any
    state: State
    part: Coordinates | Subspace | None = None


@dataclass(slots=True)
class Work:
    """A group's tensors, sorted by what happens to them."""

    whole: list[Job] = field(default_factory=list)
    coordinates: list[Job] = field(default_factory=list)
    subspaces: list[Job] = field(default_factory=list)
    free: list[tuple[Any, Any]] = field(default_factory=list)
    distributed: list[tuple[State, State]] = field(default_factory=list)

    def add(
        self, param: Any, grad: Any, state: State | None, part: Coordinates | Subspace | None, *, sharded: bool
    ) -> None:
        if sharded:
            param, grad = param.to_local(), grad.to_local()
            if state is not None:
                local = {key: value.to_local() if is_dtensor(value) else value for key, value in state.items()}
                self.distributed.append((state, local))
                state = local
        if state is None:
            self.free.append((param, grad))
        elif part is None:
            self.whole.append(Job(param, grad, state))
        elif isinstance(part, Subspace):
            self.subspaces.append(Job(param, grad, state, part))
        else:
            self.coordinates.append(Job(param, grad, state, part))

    def run(self, group: dict[str, Any]) -> None:
        lr = group["lr"]
        full = lr * group["projected_scale"] if group["project"] else lr
        room = max((job.param.numel() for job in (*self.coordinates, *self.subspaces)), default=0)
        # Weights decay by the plain learning rate, on every tensor alike.
        rates = Rates(full, full * group["free_scale"], lr * group["weight_decay"], room)
        space = Workspace()
        _step_whole(self.whole, group, rates, space)
        for pairs in _alike(self.free, lambda pair: (pair[0].device, pair[0].dtype)):
            free_update([p for p, _ in pairs], [g for _, g in pairs], group, rates.free, rates.decay, space)
        for jobs in _alike(self.coordinates, _kind_of):
            _step_coordinates(jobs, group, rates, space)
        for job in self.subspaces:
            _step_subspace(job, group, rates, space)
        for state, local in self.distributed:
            state["step"] = local["step"]


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates of the two rules (numbers or 0-dim tensors), the share that decays, the largest tensor's size."""

    full: Any
    free: Any
    decay: Any
    room: int


def _alike(items: list[Any], key: Any) -> Iterator[list[Any]]:
    """The items in lists of equal key, in the order of first appearance."""
    if items:
        lists: dict[Any, list[Any]] = {}
        for item in items:
            lists.setdefault(key(item), []).append(item)
        yield from lists.values()


def _kind_of(job: Job) -> tuple[Any, ...]:
    return job.param.device, job.param.dtype, job.state[_slot(job.state)].dtype


def _slot(state: State) -> str:
    return "exp_avg" if "exp_avg" in state else "momentum_buffer"


def _step_whole(jobs: list[Job], group: dict[str, Any], rates: Rates, space: Workspace) -> None:
    """Tensors whose type and strides are those of their moments are updated in place, the others through copies."""
    slot = SLOTS[group["full"]][0]
    direct: list[Job] = []
    copied: list[Job] = []
    for job in jobs:
        param, grad, moment = job.param, job.grad, job.state[slot]
        same = param.dtype == moment.dtype == grad.dtype and param.stride() == moment.stride() == grad.stride()
        if param.numel():
            (direct if same else copied).append(job)
    for alike in _alike(direct, _kind_of):
        works, grads, states = [j.param for j in alike], [j.grad for j in alike], [j.state for j in alike]
        full_update(works, grads, states, group, rates.full, rates.decay, space)
    for alike in _alike(copied, _kind_of):
        for batch in _batches(alike, lambda job: job.param.numel()):
            works = [torch.empty_like(job.state[slot]).copy_(job.param) for job in batch]
            grads = [torch.empty_like(job.state[slot]).copy_(job.grad) for job in batch]
            full_update(works, grads, [job.state for job in batch], group, rates.full, rates.decay, space)
            torch._foreach_copy_([job.param for job in batch], works)


def _batches(jobs: list[Job], size: Any) -> Iterator[list[Job]]:
    """Short lists, so that the copies of one stay small: in the cache of a CPU, beside the saved state on a GPU."""
    limit = _BATCH_CPU if jobs[0].param.device.type == "cpu" else _BATCH
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


def _step_coordinates(jobs: list[Job], group: dict[str, Any], rates: Rates, space: Workspace) -> None:
    """The direction of the rule without state is made for the whole tensor; the chosen part of it is overwritten with
    that of the rule with state, in units of the other's learning rate. One pass over the parameter then takes both.
    """
    rule, slot = group["free"], SLOTS[group["full"]][0]
    unit = rule != "none" and group["free_scale"] > 0
    step = rates.free if unit else rates.full
    for batch in _batches(jobs, lambda job: job.state[slot].numel()):
        lows = [job.part.take(geometry.matrix(job.grad, job.part.kind)) for job in batch]  # type: ignore[union-attr]
        if lows[0].dtype != batch[0].state[slot].dtype:
            lows = [low.to(job.state[slot].dtype) for low, job in zip(lows, batch, strict=True)]
        parts = [torch.zeros_like(low) for low in lows]
        full_update(
            parts, lows, [j.state for j in batch], group, -1 / group["free_scale"] if unit else -1.0, 0.0, space
        )
        shrink([job.param for job in batch], rates.decay)
        for job, part in zip(batch, parts, strict=True):
            grad = geometry.matrix(job.grad, job.part.kind)  # type: ignore[union-attr]
            direction = space.take("direction", grad.shape, part, rates.room)
            if not unit:
                direction.zero_()
            elif rule == "sgd" or grad.dtype != part.dtype:
                direction.copy_(grad)
            else:
                torch.sign(grad, out=direction)
            if unit and rule == "signsgd" and grad.dtype != part.dtype:
                direction.sign_()
            job.part.put(direction, part)  # type: ignore[union-attr]
            descend(job.param, direction if grad.dim() == job.param.dim() else direction.view(job.param.shape), step)


def _step_subspace(job: Job, group: dict[str, Any], rates: Rates, space: Workspace) -> None:
    part = job.part
    if not isinstance(part, Subspace):
        return
    dtype = state_dtype(job.param, group)
    grad = geometry.matrix(job.grad, "svd").to(dtype)
    low = part.take(grad)
    change = torch.zeros_like(low)
    full_update([change], [low], [job.state], group, rates.full, 0.0, space)
    view = geometry.matrix(job.param, "svd")
    target = view if view.dtype == dtype else view.to(dtype)  # half precision is rounded once, at the end
    shrink([target], rates.decay)
    if group["free"] != "none":
        rest = residual(grad, low, part, space, rates.room, denoise=group["free"] == "signsgd")
        descend(target, rest.sign_() if group["free"] == "signsgd" else rest, rates.free)
    part.add(target, change)
    if target is not view:
        view.copy_(target)
    geometry.write_back(job.param, view)
