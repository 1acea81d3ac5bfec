"""Loading: tensors keep their own types, counters stay integers, and what does not fit is named."""

from __future__ import annotations

from itertools import chain
from typing import Any

from trace_core.errors import StateError
from trace_core.optimizers.tensor.frugal import geometry
from trace_core.optimizers.tensor.frugal._torch import torch
from trace_core.optimizers.tensor.frugal.options import is_dtensor
from trace_core.optimizers.tensor.frugal.rules import SLOTS


def place_states(states: Any, groups: list[dict[str, Any]], saved: dict[str, Any]) -> None:
    """Fill ``states`` from ``saved``, a state_dict.

    torch's own loading casts every tensor to the parameter's type, which would round float32 moments of half-precision
    parameters and turn indices into floating-point numbers.
    """
    ids = chain.from_iterable(group["params"] for group in saved["param_groups"])
    params = chain.from_iterable(((group, param) for param in group["params"]) for group in groups)
    for key, (group, param) in zip(ids, params, strict=True):
        if key in saved["state"]:
            states[param] = _placed(saved["state"][key], param, group, key)


def _placed(state: dict[str, Any], param: Any, group: dict[str, Any], key: Any) -> dict[str, Any]:
    device = param.to_local().device if is_dtensor(param) else param.device
    placed = {name: _copy(value, device) for name, value in state.items()}
    if not placed:
        return placed
    step = placed.get("step", 0)
    if group["capturable"]:
        placed["step"] = torch.as_tensor(step, dtype=torch.float32).to(device)
    else:
        placed["step"] = int(step)
    kind = geometry.kind_for(param, group["split"]) if group["project"] else "block"
    part = geometry.of_state(placed, param, kind, (group["seed"], placed.get("refresh", 0), 0))
    for slot in SLOTS[group["full"]]:
        expected = tuple(param.shape) if part is None else part.shape
        found = tuple(placed[slot].shape) if slot in placed else None
        if found != expected:
            raise StateError(
                f"the state of parameter {key} does not fit: a parameter of shape {tuple(param.shape)} needs {slot} of "
                f"shape {expected}, the checkpoint has {found}; load it with the model and groups it was made with"
            )
    return placed


def _copy(value: Any, device: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().clone() if is_dtensor(value) else value.detach().to(device, copy=True)
