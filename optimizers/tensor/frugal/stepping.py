"""One step of one parameter group: every tensor to the rule that is due to it, in few kernel launches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trace_core.optimizers.tensor.frugal import geometry, kernels
from trace_core.optimizers.tensor.frugal._torch import torch
from trace_core.optimizers.tensor.frugal.geometry import Coordinates, Subspace
from trace_core.optimizers.tensor.frugal.jobs import Job, Rates, alike, batches, kind_of
from trace_core.optimizers.tensor.frugal.options import is_dtensor
from trace_core.optimizers.tensor.frugal.refreshing import State
from trace_core.optimizers.tensor.frugal.rules import (
    SLOTS,
    Workspace,
    advance,
    descend,
    free_update,
    full_update,
    shrink,
)
from trace_core.optimizers.tensor.frugal.subspaces import step_subspaces


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

    def run(self, group: dict[str, Any], space: Workspace) -> None:
        lr = group["lr"]
        full = lr * group["projected_scale"] if group["project"] else lr
        room = max((job.param.numel() for job in (*self.coordinates, *self.subspaces)), default=0)
        # Weights decay by the plain learning rate, on every tensor alike.
        rates = Rates(full, full * group["free_scale"], lr * group["weight_decay"], room)
        _step_whole(self.whole, group, rates, space)
        for pairs in alike(self.free, lambda pair: (pair[0].device, pair[0].dtype)):
            free_update([p for p, _ in pairs], [g for _, g in pairs], group, rates.free, rates.decay, space)
        for jobs in alike(_step_in_kernels(self.coordinates, group, rates), kind_of):
            _step_coordinates(jobs, group, rates, space)
        step_subspaces(self.subspaces, group, rates, space)
        for state, local in self.distributed:
            state["step"] = local["step"]


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
    for equal in alike(direct, kind_of):
        works, grads, states = [j.param for j in equal], [j.grad for j in equal], [j.state for j in equal]
        full_update(works, grads, states, group, rates.full, rates.decay, space)
    for equal in alike(copied, kind_of):
        for batch in batches(equal, lambda job: job.param.numel(), _in_cache(equal[0].param)):
            works = [torch.empty_like(job.state[slot]).copy_(job.param) for job in batch]
            grads = [torch.empty_like(job.state[slot]).copy_(job.grad) for job in batch]
            full_update(works, grads, [job.state for job in batch], group, rates.full, rates.decay, space)
            torch._foreach_copy_([job.param for job in batch], works)


def _in_cache(tensor: Any) -> int:
    """Elements that are copied at a time: few enough for a CPU's cache, little beside the saved state on a GPU."""
    return 1 << 17 if tensor.device.type == "cpu" else 1 << 20


def _step_in_kernels(jobs: list[Job], group: dict[str, Any], rates: Rates) -> list[Job]:
    """Take what a CUDA kernel can do in one pass; the jobs that are left."""
    if not jobs or group["full"] != "adamw" or group["fused"] is False or group["capturable"] or not rates.numbers:
        return jobs
    fitting: list[Job] = []
    left: list[Job] = []
    for job in jobs:
        fits = kernels.suits(job.param, job.grad) and job.state["exp_avg"].dtype == torch.float32
        (fitting if fits else left).append(job)
    for equal in alike(fitting, lambda job: (*kind_of(job), kernels.layout(job.part), job.state["step"])):
        if kernels.run_split(equal, group, (rates.full, rates.free), 1 - rates.decay):
            advance([job.state for job in equal])
        else:
            left += equal
    return left


def _step_coordinates(jobs: list[Job], group: dict[str, Any], rates: Rates, space: Workspace) -> None:
    """The direction of the rule without state is made for the whole tensor; the chosen part of it is overwritten with
    that of the rule with state, in units of the other's learning rate. One pass over the parameter then takes both.

    A few tensors at a time, so that their gradients, which are read twice, are still in a CPU's cache.
    """
    rule = group["free"]
    unit = rule != "none" and group["free_scale"] > 0
    step = rates.free if unit else rates.full
    lr = -1 / group["free_scale"] if unit else -1.0
    dtype = jobs[0].state[SLOTS[group["full"]][0]].dtype
    same = jobs[0].grad.dtype == dtype
    for batch in batches(jobs, lambda job: job.param.numel(), _together(jobs[0].param)):
        chosen: list[Coordinates] = [job.part for job in batch]  # type: ignore[misc]
        views = [geometry.matrix(job.grad, part.kind) for job, part in zip(batch, chosen, strict=True)]
        lows, parts = [], []
        for place, (part, grad) in enumerate(zip(chosen, views, strict=True)):
            low = part.take(grad, out=space.take(("low", place), part.shape, grad))
            lows.append(low if same else low.to(dtype))
            parts.append(space.take(("part", place), part.shape, lows[-1]))
        torch._foreach_zero_(parts)
        full_update(parts, lows, [job.state for job in batch], group, lr, 0.0, space)
        shrink([job.param for job in batch], rates.decay)
        for job, part, grad, change in zip(batch, chosen, views, parts, strict=True):
            direction = space.take("direction", grad.shape, change, rates.room)
            if not unit:
                direction.zero_()
            elif rule == "signsgd" and same:
                torch.sign(grad, out=direction)
            else:
                direction.copy_(grad)
                if rule == "signsgd":
                    direction.sign_()
            part.put(direction, change)
            part.forget()
            descend(job.param, direction if grad is job.grad else direction.view(job.param.shape), step)


def _together(tensor: Any) -> int:
    """Elements of tensors whose chosen parts share one call: 2 MiB of float32 on a CPU, 16 MiB on a GPU."""
    return 1 << 19 if tensor.device.type == "cpu" else 1 << 22
