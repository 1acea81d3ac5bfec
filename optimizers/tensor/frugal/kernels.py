"""The CUDA kernels of a step: one launch for all tensors of a group, one pass over each of them.

``free``: ``p = p * keep - lr * sign(g)`` for tensors without state. ``split``: the same with the plain gradient, the
sign or nothing, and AdamW for the columns, rows or entries that keep state. torch would need several launches and a
buffer per tensor. Written in Triton, which comes with torch's CUDA builds; where it is missing or cannot compile, the
functions here say so and the caller goes the long way. Nothing waits for the device: the addresses travel in a small
table that is made anew at every step, for gradients move.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from trace_core.optimizers.tensor.frugal._torch import torch
from trace_core.optimizers.tensor.frugal.seeding import MULTIPLIER

tl: Any = None  # triton.language, once `_compiled` has been called: Triton looks for it among the module's globals

_BLOCK = 1024
_PROGRAMS = 1024  # per tensor at most; each goes on through its tensor in strides
_LARGEST = (1 << 31) - (1 << 21)  # elements of a tensor: places are 32-bit integers
_FREE_WIDTH, _SPLIT_WIDTH = 3, 11  # integers per tensor in the table

# What `split` is compiled for: how places are chosen, and the rule for the others.
_COLUMNS, _ROWS, _EVEN, _UNEVEN = 0, 1, 2, 3
_RULES = {"none": 0, "signsgd": 1, "sgd": 2}


# Triton reads the annotations as marks of constants; its names for them are upper case.
def _free(  # type: ignore[no-untyped-def]
    table,
    lr,
    keep,
    programs,
    DTYPE: tl.constexpr,  # noqa: N803 - as above
    WIDTH: tl.constexpr,  # noqa: N803 - as above
    ALIGNED: tl.constexpr,  # noqa: N803 - as above
    BLOCK: tl.constexpr,  # noqa: N803 - as above
):
    row = table + tl.program_id(1) * WIDTH
    param = tl.multiple_of(tl.load(row).to(tl.pointer_type(DTYPE)), 16)
    grad = tl.multiple_of(tl.load(row + 1).to(tl.pointer_type(DTYPE)), 16)
    size = tl.load(row + 2).to(tl.int32)
    if ALIGNED:
        size = tl.multiple_of(size, 16)
    for start in range(tl.program_id(0) * BLOCK, size, programs * BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < size
        slope = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(param + place, mask=inside, other=0.0).to(tl.float32)
        sign = tl.where(slope > 0, 1.0, 0.0) - tl.where(slope < 0, 1.0, 0.0)
        tl.store(param + place, (value * keep - lr * sign).to(DTYPE), mask=inside)


def _split(  # type: ignore[no-untyped-def]
    table,
    keep,
    lr_free,
    lr_full,
    beta1,
    rest1,
    beta2,
    rest2,
    unbias,
    eps,
    programs,
    DTYPE: tl.constexpr,  # noqa: N803 - as above
    KIND: tl.constexpr,  # noqa: N803 - as above
    RULE: tl.constexpr,  # noqa: N803 - as above
    MULTIPLIER: tl.constexpr,  # noqa: N803 - as above
    WIDTH: tl.constexpr,  # noqa: N803 - as above
    ALIGNED: tl.constexpr,  # noqa: N803 - as above
    BLOCK: tl.constexpr,  # noqa: N803 - as above
):
    row = table + tl.program_id(1) * WIDTH
    param = tl.multiple_of(tl.load(row).to(tl.pointer_type(DTYPE)), 16)
    grad = tl.multiple_of(tl.load(row + 1).to(tl.pointer_type(DTYPE)), 16)
    size = tl.load(row + 2).to(tl.int32)
    if ALIGNED:
        size = tl.multiple_of(size, 16)
    first = tl.load(row + 3).to(tl.pointer_type(tl.float32))
    second = tl.load(row + 4).to(tl.pointer_type(tl.float32))
    count = tl.load(row + 5).to(tl.int32)
    columns = tl.load(row + 6).to(tl.int32)  # for entries: how far apart they lie
    slots = tl.load(row + 7).to(tl.pointer_type(tl.int32))
    factor = tl.load(row + 8)
    offset = tl.load(row + 9)
    shift = tl.load(row + 10).to(tl.int32)
    for start in range(tl.program_id(0) * BLOCK, size, programs * BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < size
        # `at`: where the moments of a place lie, if it is chosen.
        if KIND == 0:
            line = place // columns
            slot = tl.load(slots + place - line * columns, mask=inside, other=-1)
            chosen = slot >= 0
            at = line * count + slot
        elif KIND == 1:
            line = place // columns
            slot = tl.load(slots + line, mask=inside, other=-1)
            chosen = slot >= 0
            at = (slot - line) * columns + place
        else:
            turned = place - shift
            turned = tl.where(turned < 0, turned + size, turned)
            if KIND == 2:
                at = turned // columns
                width = columns.to(tl.int64)
                edge = at * columns
            else:
                at = ((turned.to(tl.int64) + 1) * count - 1) // size
                edge = at * size // count
                width = (at + 1) * size // count - edge
            bits = at.to(tl.int64) * factor + offset
            bits = (bits ^ ((bits >> 32) & 0xFFFFFFFF)) * MULTIPLIER
            bits = (bits ^ ((bits >> 32) & 0xFFFFFFFF)) & 0x7FFFFFFF
            chosen = inside & (turned == edge + ((bits * width) >> 31))
        slope = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(param + place, mask=inside, other=0.0).to(tl.float32)
        m = tl.load(first + at, mask=chosen, other=0.0) * beta1 + slope * rest1
        v = tl.load(second + at, mask=chosen, other=0.0) * beta2 + slope * slope * rest2
        tl.store(first + at, m, mask=chosen)
        tl.store(second + at, v, mask=chosen)
        change = lr_full * m / (tl.sqrt(v) * unbias + eps)
        if RULE == 0:
            other = slope * 0.0
        elif RULE == 1:
            other = lr_free * (tl.where(slope > 0, 1.0, 0.0) - tl.where(slope < 0, 1.0, 0.0))
        else:
            other = lr_free * slope
        tl.store(param + place, (value * keep - tl.where(chosen, change, other)).to(DTYPE), mask=inside)


@functools.cache
def _compiled() -> tuple[Any, ...] | None:
    """The two kernels, and Triton's own base of errors."""
    global tl
    try:
        triton = import_module("triton")
        tl = import_module("triton.language")
        failure = import_module("triton.errors").TritonError
    except (ImportError, AttributeError):
        return None
    return triton.jit(_free), triton.jit(_split), failure


@functools.cache
def _broken(device: Any) -> list[str]:
    """Why the kernels did not compile for a device; empty while they do."""
    del device
    return []


def _usable(device: Any) -> bool:
    return (
        device.type == "cuda"
        and not torch.cuda.is_current_stream_capturing()
        and _compiled() is not None
        and not _broken(device)
    )


def suits(param: Any, grad: Any) -> bool:
    """Whether the kernels can read a parameter and its gradient as they lie in memory."""
    return (
        param.is_cuda
        and param.dtype == grad.dtype
        and param.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and param.is_contiguous()
        and grad.is_contiguous()
        and 0 < param.numel() <= _LARGEST
        and param.data_ptr() % 16 == 0
        and grad.data_ptr() % 16 == 0
    )


def run_free(params: list[Any], grads: list[Any], lr: float, keep: float) -> bool:
    """Update tensors of one type and device, each of which ``suits``. False: nothing was done."""
    if not params or not _usable(params[0].device):
        return False
    rows = [(p.data_ptr(), g.data_ptr(), p.numel()) for p, g in zip(params, grads, strict=True)]
    return _launch(0, rows, (lr, keep), params[0], {"WIDTH": _FREE_WIDTH})


def layout(part: Any) -> int:
    """How the kernel finds the chosen places; the tensors of one call have this in common."""
    if part.kind == "randk":
        return _UNEVEN if part.drawing.whole % part.drawing.taken else _EVEN
    return _COLUMNS if part.kind == "columns" else _ROWS


def run_split(jobs: list[Any], group: dict[str, Any], rates: tuple[float, float], keep: float) -> bool:
    """AdamW at ``rates[0]`` for the chosen part of each tensor, the rule without state at ``rates[1]`` for the rest.

    Tensors of one type, device, layout and count of steps (which stays as it is), each of which ``suits``, with float32
    moments. False: nothing was done.
    """
    if not _usable(jobs[0].param.device):
        return False
    kind, rows = layout(jobs[0].part), []
    for job in jobs:
        part, first, second = job.part, job.state["exp_avg"], job.state["exp_avg_sq"]
        row = (job.param.data_ptr(), job.grad.data_ptr(), job.param.numel(), first.data_ptr(), second.data_ptr())
        if part.drawing is not None:
            whole, count, keys = part.drawing
            rows.append((*row, count, whole // count, 0, *keys))
        else:
            rows.append((*row, part.count, part.extent[1], part.slots.data_ptr(), 0, 0, 0))
    step, (beta1, beta2) = jobs[0].state["step"] + 1, group["betas"]
    full, unbias = rates[0] / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)
    numbers = (keep, rates[1], full, beta1, 1 - beta1, beta2, 1 - beta2, unbias, group["eps"])
    constants = {"KIND": kind, "RULE": _RULES[group["free"]], "MULTIPLIER": MULTIPLIER, "WIDTH": _SPLIT_WIDTH}
    return _launch(1, rows, numbers, jobs[0].param, constants)


def _launch(
    which: int, rows: Sequence[tuple[int, ...]], numbers: tuple[float, ...], like: Any, constants: dict[str, Any]
) -> bool:
    kernels = _compiled()
    if kernels is None:
        return False
    device = like.device
    table = torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True)
    programs = min(_PROGRAMS, -(-max(row[2] for row in rows) // _BLOCK))
    dtype = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[like.dtype]
    aligned = all(row[2] % 16 == 0 for row in rows)
    constants = {**constants, "DTYPE": dtype, "ALIGNED": aligned, "BLOCK": _BLOCK}
    try:
        with torch.cuda.device(device):
            kernels[which][(programs, len(rows))](table, *map(float, numbers), programs, **constants)
    except (RuntimeError, OSError, ImportError, kernels[2]) as error:
        _broken(device).append(str(error))
        warnings.warn(f"Frugal: its CUDA kernels are not used, Triton failed: {error}", RuntimeWarning, stacklevel=2)
        return False
    return True
