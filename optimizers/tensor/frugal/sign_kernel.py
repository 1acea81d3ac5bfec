"""The sign rule on CUDA in one launch for all tensors: ``p = p * keep - lr * sign(g)``.

Without it each tensor costs two launches and a buffer. Written in Triton, which comes with torch's CUDA builds; where
it is missing, or cannot compile, ``run`` says so and the caller goes the long way. Nothing here waits for the device:
the addresses travel in a small table that is made anew at every step, for gradients move.
"""

from __future__ import annotations

import functools
import warnings
from importlib import import_module
from typing import Any

from trace_core.optimizers.tensor.frugal._torch import torch

tl: Any = None  # triton.language, once `_compiled` has been called: Triton looks for it among the module's globals

_BLOCK = 2048
_PROGRAMS = 512  # per tensor at most; each goes on through its tensor in strides


# Triton reads the annotations as marks of constants; its names for them are upper case.
def _kernel(  # type: ignore[no-untyped-def]
    table,
    lr,
    keep,
    programs,
    DTYPE: tl.constexpr,  # noqa: N803 - as above
    BLOCK: tl.constexpr,  # noqa: N803 - as above
):
    tensor = tl.program_id(1)
    param = tl.load(table + tensor * 3).to(tl.pointer_type(DTYPE))
    grad = tl.load(table + tensor * 3 + 1).to(tl.pointer_type(DTYPE))
    size = tl.load(table + tensor * 3 + 2)
    for start in range(tl.program_id(0) * BLOCK, size, programs * BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < size
        slope = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(param + place, mask=inside, other=0.0).to(tl.float32)
        sign = tl.where(slope > 0, 1.0, 0.0) - tl.where(slope < 0, 1.0, 0.0)
        tl.store(param + place, (value * keep - lr * sign).to(DTYPE), mask=inside)


@functools.cache
def _compiled() -> tuple[Any, dict[Any, Any]] | None:
    global tl
    try:
        triton = import_module("triton")
        tl = import_module("triton.language")
    except ImportError:
        return None
    return triton.jit(_kernel), {
        torch.float32: tl.float32,
        torch.bfloat16: tl.bfloat16,
        torch.float16: tl.float16,
    }


@functools.cache
def _broken(device: Any) -> list[str]:
    """Why the kernel did not compile for a device; empty while it does."""
    del device
    return []


def suits(param: Any, grad: Any) -> bool:
    return (
        param.is_cuda
        and param.dtype == grad.dtype
        and param.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and param.is_contiguous()
        and grad.is_contiguous()
    )


def run(params: list[Any], grads: list[Any], lr: float, keep: float) -> bool:
    """Update CUDA tensors of one type and device, each of which ``suits``. False: nothing was done."""
    device = params[0].device
    kernel = _compiled()
    if kernel is None or _broken(device) or torch.cuda.is_current_stream_capturing():
        return False
    rows = [(p.data_ptr(), g.data_ptr(), p.numel()) for p, g in zip(params, grads, strict=True) if p.numel()]
    if not rows:
        return True
    table = torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True)
    programs = min(_PROGRAMS, -(-max(size for *_, size in rows) // _BLOCK))
    launch, types = kernel
    try:
        with torch.cuda.device(device):
            launch[(programs, len(rows))](
                table, float(lr), float(keep), programs, DTYPE=types[params[0].dtype], BLOCK=_BLOCK
            )
    except (RuntimeError, OSError, ImportError) as error:
        _broken(device).append(str(error))
        warnings.warn(
            f"Frugal: the fused sign kernel is not used, Triton failed: {error}", RuntimeWarning, stacklevel=2
        )
        return False
    return True
