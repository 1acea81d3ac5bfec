"""Choosing anew: which part of each tensor keeps state from here on, and what becomes of the state it had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trace_core.optimizers.tensor.frugal import geometry
from trace_core.optimizers.tensor.frugal._torch import torch
from trace_core.optimizers.tensor.frugal.blocks import choose_tensors
from trace_core.optimizers.tensor.frugal.geometry import Coordinates, Subspace
from trace_core.optimizers.tensor.frugal.lowrank import find_basis
from trace_core.optimizers.tensor.frugal.options import is_dtensor, label
from trace_core.optimizers.tensor.frugal.rules import SLOTS

State = dict[str, Any]


def is_due(group: Mapping[str, Any]) -> bool:
    """The first step chooses; after that the group's own counter decides, whichever tensors had gradients."""
    if not group["refreshes"]:
        return True
    gap: int | None = group["gap"]
    return gap is not None and bool(group["steps"] - group["refreshed_at"] >= gap)


def keeps_state(group: Mapping[str, Any]) -> bool:
    """``auto``: a tensor that stays chosen as a whole keeps its moments; a part of a tensor starts anew."""
    rule: str = group["on_refresh"]
    split: str = group["split"]
    return rule == "reproject" or (rule == "auto" and split == "block")


def refresh_group(group: dict[str, Any], states: Any, first: int) -> None:
    """Open a new interval. ``first`` is the position of the group's first tensor among all of the optimizer's.

    Whole tensors are chosen here; parts of a tensor when its next gradient comes, for a subspace is read off that.
    """
    group["refreshes"] += 1
    group["refreshed_at"] = group["steps"]
    group["drawn"] = float(group["density"])
    if group["split"] != "block":
        return
    params = group["params"]
    sizes = [p.numel() if p.requires_grad or p.grad is not None else 0 for p in params]
    group["active"], group["cursor"] = choose_tensors(
        sizes,
        group["drawn"],
        group["order"],
        group["cursor"],
        seed=group["seed"],
        refresh=group["refreshes"],
        tensor=first,
    )
    active = set(group["active"])
    for position, param in enumerate(params):
        if position not in active:
            states.pop(param, None)
        elif param in states and not keeps_state(group):
            clear(states[param], group)


def clear(state: State, group: Mapping[str, Any]) -> None:
    """Back to the state of a tensor that has seen no gradient, in place."""
    for slot in SLOTS[group["full"]]:
        state[slot].zero_()
    state["step"] = 0 if isinstance(state["step"], int) else state["step"].zero_()


def state_dtype(param: Any, group: Mapping[str, Any]) -> Any:
    """Moments of half-precision parameters are float32: in bfloat16 ``beta2 = 0.999`` would not move them at all."""
    if group["state_dtype"] is not None:
        return getattr(torch, group["state_dtype"])
    return torch.float32 if param.dtype in (torch.bfloat16, torch.float16) else param.dtype


def whole_state(states: Any, param: Any, group: Mapping[str, Any]) -> State:
    """The state of a tensor that is chosen as a whole, made where there is none."""
    state: State = states[param]
    if not state:
        dtype = state_dtype(param, group)
        _start(state, param, group)
        for slot in SLOTS[group["full"]]:
            state[slot] = torch.zeros_like(param, dtype=dtype, requires_grad=False)
    return state


def _start(state: State, param: Any, group: Mapping[str, Any]) -> None:
    if group["capturable"]:
        device = param.to_local().device if is_dtensor(param) else param.device
        state["step"] = torch.zeros((), dtype=torch.float32, device=device)
    else:
        state["step"] = 0


def part_state(
    states: Any, param: Any, grad: Any, group: dict[str, Any], place: int, position: int
) -> tuple[State | None, Coordinates | Subspace | None]:
    """State and part of one projected tensor, chosen anew if its group has been since.

    ``position`` is the tensor's in its group, ``place`` its position among all of the optimizer's.
    Returns (None, None) where nothing of the tensor keeps state and (state, None) where all of it does.
    """
    kind = geometry.kind_for(param, group["split"])
    state: State | None = states.get(param)
    if not state or state["refresh"] != group["refreshes"]:
        count = geometry.chosen_count(param, kind, group["drawn"])
        if count == 0:
            states.pop(param, None)
            return None, None
        state = states[param]
        _choose(state, param, grad, group, kind, count, place, position)
    return state, geometry.of_state(state, param, kind, (group["seed"], state["refresh"], place))


def _choose(
    state: State, param: Any, grad: Any, group: dict[str, Any], kind: str, count: int, place: int, position: int
) -> None:
    draw = (group["seed"], group["refreshes"], place)
    dtype = state_dtype(param, group)
    old = geometry.of_state(state, param, kind, (group["seed"], state.get("refresh", 0), place)) if state else None
    new: Coordinates | Subspace | None = None
    if count < geometry.capacity(param, kind):
        if kind in geometry.LOW_RANK:
            new = geometry.subspace_of(param, find_basis(grad, kind, count, dtype, draw, label(group, position)))
        else:
            new = geometry.draw_coordinates(param, kind, count, draw)
    if not state:
        _start(state, param, group)
    elif not keeps_state(group):
        state["step"] = 0 if isinstance(state["step"], int) else state["step"].zero_()
    shape = geometry.matrix_shape(param, kind)
    for slot in SLOTS[group["full"]]:
        before = state.get(slot)
        if before is not None and keeps_state(group):
            moment = _carry(before, old, new, shape, squared=slot == "exp_avg_sq")
            moment = moment.view(param.shape) if new is None else moment
        else:
            moment = torch.zeros(param.shape if new is None else new.shape, dtype=dtype, device=param.device)
        _store(state, slot, moment)
    _describe(state, new, count)
    state["refresh"] = group["refreshes"]


def _carry(
    moment: Any,
    old: Coordinates | Subspace | None,
    new: Coordinates | Subspace | None,
    shape: tuple[int, int],
    *,
    squared: bool,
) -> Any:
    """A moment of the old part as one of the new: zero for what was not in the old part."""
    if isinstance(old, Subspace) and isinstance(new, Subspace):
        return old.turn(moment, new, squared=squared)
    whole = moment.reshape(shape) if old is None else old.embed(moment, shape, squared=squared)
    return whole if new is None else new.restrict(whole, squared=squared)


def _describe(state: State, part: Coordinates | Subspace | None, count: int) -> None:
    """Record the part. Entries are not recorded, only how many: they are drawn again at every step."""
    given = {
        "basis": part.basis if isinstance(part, Subspace) else None,
        "indices": part.held if isinstance(part, Coordinates) and part.kind != "randk" else None,
        "entries": count if isinstance(part, Coordinates) and part.kind == "randk" else None,
    }
    for key, value in given.items():
        if value is None:
            state.pop(key, None)
        elif isinstance(value, int):
            state[key] = value
        else:
            _store(state, key, value)


def _store(state: State, key: str, value: Any) -> None:
    """Into the tensor that is there where it fits: a captured graph goes on reading the same memory."""
    held = state.get(key)
    if held is not None and held.shape == value.shape and held.dtype == value.dtype:
        held.copy_(value)
    else:
        state[key] = value
