"""Copies of a torch optimizer's state that come back bit for bit, and twins that can step without touching it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from trace_core._lazy import require

if TYPE_CHECKING:
    from collections.abc import Mapping


def saved_state(optimizer: Any) -> dict[str, Any]:
    """``optimizer.state_dict()`` with tensors of its own: later steps do not change it."""
    state: dict[str, Any] = copy.deepcopy(optimizer.state_dict())
    return state


def load_exactly(optimizer: Any, state: Mapping[str, Any]) -> None:
    """``optimizer.load_state_dict`` that keeps every tensor's dtype and shares no tensor with ``state``.

    torch casts floating point state to its parameter's dtype, which loses bits where moments of half-precision
    parameters are kept in float32.
    """
    own = copy.deepcopy(dict(state))
    saved = {index: dict(entry) for index, entry in own["state"].items()}  # loaders may change what they are given
    optimizer.load_state_dict(own)
    places = [
        (index, tensor)
        for group, described in zip(optimizer.param_groups, state["param_groups"], strict=True)
        for tensor, index in zip(group["params"], described["params"], strict=True)
    ]
    for index, tensor in places:
        if index in saved and tensor in optimizer.state:
            optimizer.state[tensor] = _as_saved(optimizer.state[tensor], saved[index])


def _as_saved(loaded: Any, saved: Any) -> Any:
    """``loaded`` with tensors of the saved dtypes, on the devices they were loaded to."""
    torch = require("torch", extra="torch")
    if isinstance(loaded, torch.Tensor) and isinstance(saved, torch.Tensor):
        return loaded if loaded.dtype == saved.dtype else saved.to(loaded.device)
    if isinstance(loaded, dict) and isinstance(saved, dict):
        return {key: _as_saved(value, saved[key]) if key in saved else value for key, value in loaded.items()}
    if isinstance(loaded, list | tuple) and isinstance(saved, list | tuple) and len(loaded) == len(saved):
        return type(loaded)([_as_saved(left, right) for left, right in zip(loaded, saved, strict=True)])
    return loaded


def twin_of(optimizer: Any, twins: Mapping[Any, Any]) -> Any:
    """An optimizer in the same state over other tensors: ``twins`` maps the tensors of ``optimizer`` to them.

    Everything it keeps is copied; what cannot be copied (handles of processes or devices) is shared.
    """
    kind: Any = type(optimizer)
    twin = kind.__new__(kind)
    memo: dict[int, Any] = {id(tensor): other for tensor, other in twins.items()}
    memo[id(optimizer)] = twin
    for name, value in optimizer.__dict__.items():
        if name == "step":  # a scheduler's wrapper that counts the original's steps
            continue
        try:
            twin.__dict__[name] = copy.deepcopy(value, memo)
        except (TypeError, RuntimeError):
            twin.__dict__[name] = value
    return twin
