"""The options of a parameter group, checked where they are given."""

from __future__ import annotations

import math
import sys
from typing import Any

from trace_core.errors import TraceCoreError

SPLITS = ("block", "columns", "rows", "randk", "svd", "random")
ORDERS = ("random", "ascending", "descending")
FULL_RULES = ("adamw", "lion", "sgdm")
FREE_RULES = ("signsgd", "sgd", "none")
ON_REFRESH = ("auto", "reset", "reproject")
STATE_DTYPES = ("float32", "float64", "bfloat16", "float16")

# What a group carries besides its options; integers and lists of integers, so that a checkpoint is plain data.
COUNTERS: dict[str, Any] = {"steps": 0, "refreshes": 0, "refreshed_at": 0, "cursor": 0}


class FrugalError(TraceCoreError, ValueError):
    """Frugal was given options, parameters or gradients it cannot work with; the message says which and what to do."""


def _one_of(group: dict[str, Any], key: str, choices: tuple[str, ...]) -> None:
    if group[key] not in choices:
        raise FrugalError(f"{key}: expected one of {', '.join(choices)}, got {group[key]!r}")


def _number(group: dict[str, Any], key: str, low: float, high: float = math.inf, *, below: bool = False) -> None:
    value = group[key]
    fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    if not fits or not math.isfinite(value) or (below and value == high):
        bound = f"in [{low:g}, {high:g}{')' if below else ']'}" if high < math.inf else f">= {low:g}"
        raise FrugalError(f"{key}: expected a number {bound}, got {value!r}")


def check_group(group: dict[str, Any]) -> None:
    """Raise FrugalError for the first option that does not fit. Schedules have been taken out before."""
    _one_of(group, "split", SPLITS)
    _one_of(group, "order", ORDERS)
    _one_of(group, "full", FULL_RULES)
    _one_of(group, "free", FREE_RULES)
    _one_of(group, "on_refresh", ON_REFRESH)
    if not hasattr(group["lr"], "dim"):
        _number(group, "lr", 0.0)
    elif group["lr"].numel() != 1:
        raise FrugalError(f"lr: expected a number or a tensor of one element, got shape {tuple(group['lr'].shape)}")
    for key in ("eps", "weight_decay", "projected_scale", "free_scale"):
        _number(group, key, 0.0)
    _number(group, "density", 0.0, 1.0)
    for key in ("momentum", "dampening"):
        _number(group, key, 0.0, 1.0, below=key == "momentum")
    check_gap(group["gap"])
    betas = group["betas"]
    if len(betas) != 2:
        raise FrugalError(f"betas: expected two numbers, got {betas!r}")
    for beta in betas:
        _number({"betas": beta}, "betas", 0.0, 1.0, below=True)
    if not isinstance(group["seed"], int):
        raise FrugalError(f"seed: expected an integer, got {group['seed']!r}")
    if group["state_dtype"] is not None and group["state_dtype"] not in STATE_DTYPES:
        raise FrugalError(
            f"state_dtype: expected one of {', '.join(STATE_DTYPES)} or None, got {group['state_dtype']!r}"
        )


def check_gap(gap: Any) -> None:
    if gap is not None and (not isinstance(gap, int) or isinstance(gap, bool) or gap < 1):
        raise FrugalError(f"gap: expected a number of steps >= 1, or None for no refresh after the first, got {gap!r}")


def dtype_name(dtype: Any) -> str | None:
    """``torch.float32`` or ``"float32"`` as the plain string that a checkpoint can hold."""
    return None if dtype is None else str(dtype).removeprefix("torch.")


def is_dtensor(tensor: Any) -> bool:
    """Whether a tensor is spread over processes. Where nobody has imported DTensor there are none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def check_parameter(parameter: Any, label: str, group: dict[str, Any]) -> None:
    """Refuse what would be updated wrongly."""
    if parameter.is_complex():
        raise FrugalError(f"{label} is complex; give Frugal torch.view_as_real(parameter) instead")
    if getattr(parameter, "_is_flat_param", False):
        raise FrugalError(
            f"{label} is a flattened FSDP parameter, whose tensors cannot be told apart; use fully_shard (FSDP2)"
        )
    if not is_dtensor(parameter):
        return
    if any(placement.is_partial() for placement in parameter.placements):
        raise FrugalError(f"{label} is a DTensor with a partial placement; redistribute it before making the optimizer")
    if group["project"] and group["split"] != "block":
        raise FrugalError(
            f"{label} is a DTensor, and split={group['split']!r} needs the whole of each weight on one device; "
            f"use split='block', which works on the local shards"
        )


def label(group: dict[str, Any], position: int) -> str:
    """How messages call a parameter."""
    names = group.get("param_names")
    return f"parameter {names[position]!r}" if names else f"parameter {position} of its group"


def gradient(parameter: Any, group: dict[str, Any], position: int) -> tuple[Any, bool]:
    """The gradient of one parameter, placed like it, and whether both are DTensors."""
    grad = parameter.grad
    if grad.is_sparse:
        raise FrugalError(
            f"{label(group, position)} has a sparse gradient; make its module with sparse=False, or leave it "
            f"to torch.optim.SparseAdam"
        )
    if not is_dtensor(parameter):
        return grad, False
    if grad.placements != parameter.placements:
        grad = grad.redistribute(placements=parameter.placements)
    return grad, True
