"""The update rules: with state (AdamW, Lion, SGDM) and without (sign, plain gradient).

Rules with state work in place on lists of equally typed dense tensors: ``works`` are the parameters themselves, or
copies of the part of them that keeps state. A state is a dict with ``step`` (int, or a 0-dim tensor when capturable)
and the moments named in ``SLOTS``. AdamW goes through torch's fused kernel, one launch for the list.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from trace_core.optimizers.tensor.frugal import kernels
from trace_core.optimizers.tensor.frugal._torch import torch

SLOTS = {"adamw": ("exp_avg", "exp_avg_sq"), "lion": ("exp_avg",), "sgdm": ("momentum_buffer",)}

_FUSED_DEVICES = ("cpu", "cuda", "xpu", "mps")
_CHUNK = 1 << 21  # elements of scratch at a time: 8 MiB of float32, little beside the state that is saved


def full_update(
    works: list[Any],
    grads: list[Any],
    states: list[dict[str, Any]],
    group: dict[str, Any],
    lr: Any,
    decay: Any,
    space: Workspace,
) -> None:
    """One step of the group's rule with state. ``decay`` is the share of the value that is taken off first."""
    if not works:
        return
    advance(states)
    if group["full"] == "adamw":
        _adamw(works, grads, states, group, lr, decay, space)
        return
    shrink(works, decay)
    if group["full"] == "lion":
        _lion(works, grads, states, group, lr)
    else:
        _sgdm(works, grads, states, group, lr)


def advance(states: Sequence[dict[str, Any]]) -> None:
    if isinstance(states[0]["step"], int):
        for state in states:
            state["step"] += 1
    else:
        torch._foreach_add_([state["step"] for state in states], 1)


def shrink(tensors: list[Any], decay: Any) -> None:
    """Multiply by ``1 - decay``; ``decay`` is a number, or a tensor where the learning rate is one."""
    if isinstance(decay, float) and decay == 0.0:
        return
    torch._foreach_mul_(tensors, 1 - decay)


def _adamw(
    works: list[Any],
    grads: list[Any],
    states: list[dict[str, Any]],
    group: dict[str, Any],
    lr: Any,
    decay: Any,
    space: Workspace,
) -> None:
    beta1, beta2 = group["betas"]
    device = works[0].device
    if group["fused"] is False or device.type not in _FUSED_DEVICES:
        shrink(works, decay)
        for work, grad, state in zip(works, grads, states, strict=True):
            _adamw_plain(work, grad, state, group, lr)
        return
    if isinstance(lr, torch.Tensor):
        shrink(works, decay)
        lr, fused_decay = lr.to(device), 0.0
    elif lr == 0.0:
        shrink(works, decay)
        fused_decay = 0.0
    else:
        fused_decay = decay / lr  # the kernel multiplies it by lr
    for places, steps in _by_step(states, device, space):
        torch._fused_adamw_(
            [works[i] for i in places],
            [grads[i] for i in places],
            [states[i]["exp_avg"] for i in places],
            [states[i]["exp_avg_sq"] for i in places],
            [],
            steps,
            amsgrad=False,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=fused_decay,
            eps=group["eps"],
            maximize=False,
        )


def _by_step(states: list[dict[str, Any]], device: Any, space: Workspace) -> Iterator[tuple[Sequence[int], list[Any]]]:
    """Positions with their step tensors, in lists of one age where steps are counted on the host."""
    if not isinstance(states[0]["step"], int):
        yield range(len(states)), [state["step"] for state in states]
        return
    ages: dict[int, list[int]] = {}
    for place, state in enumerate(states):
        ages.setdefault(state["step"], []).append(place)
    for age, places in ages.items():
        yield places, [space.age(age, device)] * len(places)


def _adamw_plain(work: Any, grad: Any, state: dict[str, Any], group: dict[str, Any], lr: Any) -> None:
    beta1, beta2 = group["betas"]
    first, second, step = state["exp_avg"], state["exp_avg_sq"], state["step"]
    first.lerp_(grad, 1 - beta1)
    second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    if isinstance(step, int):
        root = second.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
    else:
        root = second.sqrt().div_((1 - beta2**step).sqrt()).add_(group["eps"])
    size = lr / (1 - beta1**step)
    if isinstance(size, torch.Tensor):
        work.sub_(torch.div(first, root, out=root).mul_(size))
    else:
        work.addcdiv_(first, root, value=-size)


def _lion(works: list[Any], grads: list[Any], states: list[dict[str, Any]], group: dict[str, Any], lr: Any) -> None:
    beta1, beta2 = group["betas"]
    for work, grad, state in zip(works, grads, states, strict=True):
        direction = torch.lerp(state["exp_avg"], grad, 1 - beta1).sign_()
        descend(work, direction, lr)
        state["exp_avg"].lerp_(grad, 1 - beta2)


def _sgdm(works: list[Any], grads: list[Any], states: list[dict[str, Any]], group: dict[str, Any], lr: Any) -> None:
    momenta = [state["momentum_buffer"] for state in states]
    torch._foreach_mul_(momenta, group["momentum"])
    torch._foreach_add_(momenta, grads, alpha=1 - group["dampening"])
    if isinstance(lr, torch.Tensor):
        for work, momentum in zip(works, momenta, strict=True):
            work.sub_(momentum * lr)
    else:
        torch._foreach_add_(works, momenta, alpha=-lr)


def descend(work: Any, direction: Any, lr: Any) -> None:
    """``work -= lr * direction``, in place; ``direction`` may be overwritten."""
    if isinstance(lr, torch.Tensor):
        work.sub_(direction.mul_(lr))
    else:
        work.add_(direction, alpha=-lr)


class Workspace:
    """Scratch memory, reused from tensor to tensor and on a CPU from step to step: fresh memory costs as much there as
    the arithmetic, for its pages have to be mapped first.

    ``take`` gives a buffer per name, ``age`` the step count as the scalar tensor that the fused kernel wants; all
    tensors of one age share it, so no scalar is kept per tensor.
    """

    def __init__(self) -> None:
        self._buffers: dict[Any, Any] = {}
        self._views: dict[Any, Any] = {}
        self._ages: dict[Any, Any] = {}

    def take(self, name: Any, shape: Any, like: Any, room: int = 0) -> Any:
        """Uninitialised memory of ``like``'s type; ``room`` is how many elements it will be asked for later."""
        whole = (name, shape, like.dtype, like.device)
        view = self._views.get(whole)
        if view is not None:
            return view
        key, size = (name, like.dtype, like.device), math.prod(shape)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < size:
            buffer = torch.empty(max(size, min(room, _CHUNK)), dtype=like.dtype, device=like.device)
            self._buffers[key] = buffer
            self._forget({key})
        view = self._views[whole] = buffer[:size].view(shape)
        return view

    def age(self, step: int, device: Any) -> Any:
        """``step`` as float32."""
        scalar = self._ages.get((step, device))
        if scalar is None:
            scalar = self._ages[step, device] = torch.full((), float(step), dtype=torch.float32, device=device)
        return scalar

    def trim(self) -> None:
        """Keep small buffers on a CPU only: CUDA's allocator keeps memory by itself, and graphs want their own."""
        self._ages.clear()
        gone = {key for key, held in self._buffers.items() if held.device.type != "cpu" or held.numel() > _CHUNK}
        if gone:
            self._buffers = {key: held for key, held in self._buffers.items() if key not in gone}
            self._forget(gone)

    def _forget(self, keys: set[Any]) -> None:
        self._views = {whole: view for whole, view in self._views.items() if (whole[0], *whole[2:]) not in keys}


def free_update(
    params: list[Any], grads: list[Any], group: dict[str, Any], lr: Any, decay: Any, space: Workspace
) -> None:
    """One step of the group's rule without state, in place; every parameter first shrinks by ``decay``."""
    rule = group["free"]
    numbers = not isinstance(lr, torch.Tensor)
    if rule == "signsgd" and numbers and group["fused"] is not False and params[0].is_cuda:
        suited = [kernels.suits(p, g) for p, g in zip(params, grads, strict=True)]
        if kernels.run_free(
            [p for p, fits in zip(params, suited, strict=True) if fits],
            [g for g, fits in zip(grads, suited, strict=True) if fits],
            lr,
            1 - decay,
        ):
            params = [p for p, fits in zip(params, suited, strict=True) if not fits]
            grads = [g for g, fits in zip(grads, suited, strict=True) if not fits]
    if not params:
        return
    shrink(params, decay)
    if rule == "none" or (numbers and lr == 0.0):
        return
    if rule == "signsgd":
        room = max(grad.numel() for grad in grads)
        for param, grad in zip(params, grads, strict=True):
            for part, slope in _chunks(param, grad):
                descend(part, torch.sign(slope, out=space.take("sign", slope.shape, slope, room)), lr)
    elif numbers:
        torch._foreach_add_(params, grads, alpha=-lr)
    else:
        for param, grad in zip(params, grads, strict=True):
            param.sub_(grad * lr)


def _chunks(param: Any, grad: Any) -> Iterator[tuple[Any, Any]]:
    """The pair, cut into flat pieces where it is large; strided tensors stay whole."""
    size = param.numel()
    if size <= _CHUNK or not (param.is_contiguous() and grad.is_contiguous()):
        yield param, grad
        return
    flat, slope = param.view(-1), grad.view(-1)
    for start in range(0, size, _CHUNK):
        yield flat[start : start + _CHUNK], slope[start : start + _CHUNK]
