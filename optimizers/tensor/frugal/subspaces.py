"""The update of tensors of which a low-rank subspace keeps state."""

from __future__ import annotations

import math
from typing import Any

from trace_core.optimizers.tensor.frugal import geometry
from trace_core.optimizers.tensor.frugal._torch import torch
from trace_core.optimizers.tensor.frugal.geometry import Subspace
from trace_core.optimizers.tensor.frugal.jobs import Job, Rates, alike, batches, kind_of
from trace_core.optimizers.tensor.frugal.refreshing import state_dtype
from trace_core.optimizers.tensor.frugal.rules import Workspace, descend, full_update, shrink

_NOISE = 8.0  # a residual below this many roundings of the largest gradient entry is zero that did not come out as zero


def rounding(tensor: Any) -> float:
    """The relative rounding of a matrix product of tensors of this type and device, as the user has set torch up.

    Where float32 products may be made in TF32 or bfloat16, what is noise is larger by a thousand times or more.
    """
    exact = float(torch.finfo(tensor.dtype).eps)
    if tensor.dtype != torch.float32:
        return exact
    backends = torch.backends.cuda if tensor.is_cuda else torch.backends.mkldnn
    setting = getattr(getattr(backends, "matmul", None), "fp32_precision", None)
    if setting is None:  # torch before 2.9
        coarse = {"high": "tf32", "medium": "tf32" if tensor.is_cuda else "bf16"}
        setting = coarse.get(torch.get_float32_matmul_precision(), "ieee")
    elif setting == "none":
        setting = torch.backends.fp32_precision
    return {"tf32": 2.0**-10, "bf16": 2.0**-7}.get(setting, exact)


def step_subspaces(jobs: list[Job], group: dict[str, Any], rates: Rates, space: Workspace) -> None:
    """Equally shaped tensors are stacked where that pays: on a GPU, and for small ones on a CPU."""

    def key(job: Job) -> Any:
        return (*kind_of(job), geometry.matrix_shape(job.param, "svd"), job.part.shape)  # type: ignore[union-attr]

    for equal in alike(jobs, key):
        on_cpu = equal[0].param.device.type == "cpu"
        for batch in batches(equal, lambda job: job.param.numel(), 1 << 15 if on_cpu else 1 << 23):
            if len(batch) > 1:
                _step_stacked(batch, group, rates, space)
            else:
                _step_one(batch[0], group, rates, space)


def _step_one(job: Job, group: dict[str, Any], rates: Rates, space: Workspace) -> None:
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
        rest = _residual(grad, low, part, space, rates.room, denoise=group["free"] == "signsgd")
        descend(target, rest.sign_() if group["free"] == "signsgd" else rest, rates.free)
    part.add(target, change)
    if target is not view:
        view.copy_(target)
    geometry.write_back(job.param, view)


def _residual(grad: Any, low: Any, part: Subspace, space: Workspace, room: int, *, denoise: bool) -> Any:
    """What the subspace does not hold of ``grad``, a matrix.

    ``denoise`` zeroes what is rounding noise. A gradient of low rank can lie in the subspace entirely; the sign of
    what is left of it would turn noise into full steps. The result lies in ``space``, for tensors of up to ``room``
    elements, until the next call.
    """
    left = space.take("residual", grad.shape, grad, room)
    if part.right:
        torch.addmm(grad, low, part.basis.mT, alpha=-1, out=left)
    else:
        torch.addmm(grad, part.basis, low, alpha=-1, out=left)
    if denoise:
        least, most = torch.aminmax(grad)
        bound = torch.maximum(-least, most).mul_(_NOISE * rounding(grad))
        if grad.device.type == "cpu":
            bound = bound.item()  # nothing to wait for there, and clamping by numbers is four times as fast
        left.sub_(torch.clamp(left, -bound, bound, out=space.take("noise", grad.shape, grad, room)))
    return left


def _step_stacked(jobs: list[Job], group: dict[str, Any], rates: Rates, space: Workspace) -> None:
    """The same for matrices of one shape, in one batched product each way."""
    parts = [job.part for job in jobs if isinstance(job.part, Subspace)]
    params, rule = [job.param for job in jobs], group["free"]
    dtype = state_dtype(params[0], group)
    grads = torch.stack([geometry.matrix(job.grad, "svd") for job in jobs]).to(dtype)
    bases = torch.stack([part.basis for part in parts])
    right = parts[0].right
    low = grads @ bases if right else bases.mT @ grads
    change = torch.zeros_like(low)
    full_update(list(change), list(low), [job.state for job in jobs], group, rates.full, 0.0, space)
    left, across = (low, bases.mT) if right else (bases, low)
    if rule == "none":
        update = change @ across if right else left @ change
    else:
        rest = torch.baddbmm(grads, left, across, alpha=-1)
        if rule == "signsgd":
            largest = torch.linalg.vector_norm(grads, math.inf, dim=(1, 2), keepdim=True)
            bound = largest.mul_(_NOISE * rounding(grads))
            rest = rest.sub_(torch.clamp(rest, -bound, bound)).sign_()
        rest.mul_(-rates.free)
        update = rest.baddbmm_(*((change, across) if right else (left, change)))
    updates = [one.view(param.shape) for one, param in zip(update, params, strict=True)]
    if params[0].dtype == dtype:
        shrink(params, rates.decay)
        torch._foreach_add_(params, updates)
    else:  # half precision is rounded once, at the end
        values = [param.to(dtype) for param in params]
        shrink(values, rates.decay)
        torch._foreach_add_(values, updates)
        torch._foreach_copy_(params, values)
