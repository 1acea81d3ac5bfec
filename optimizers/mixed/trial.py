"""A proposal on trial, and what is written down about the parts' turns."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trace_core.optimizers.mixed.part import Member
    from trace_core.parameter import Parameter
    from trace_core.trace import Trace


class Event(NamedTuple):
    """Something that happened in a step of Mixed; ordinary numeric steps are in their optimizers' own history.

    Attributes:
        step: of Mixed, counted from 1.
        part: whose event it is.
        kind: ``applied`` (without a gate), ``tried`` (on trial from now), ``kept``, ``undone``, ``empty`` (no usable
            proposal), ``skipped`` (no gradient came), ``exhausted``.
        reason: in words.
        score: the score the event is about, if any.
    """

    step: int
    part: str
    kind: str
    reason: str = ""
    score: float | None = None


@dataclass
class Trial:
    """A proposal that is in force and not yet kept.

    Attributes:
        part: who proposed; ``values`` what, ``reason`` why.
        before: score when it began.
        left: steps until it is judged; ``since``: the step in which it began.
        saved: part -> values and state, as they were.
        told: numeric part -> steps it had done at the proposing part's turn before; what it was told of came after.
        traces: what the part would be shown if it is undone.
        failed: why it cannot be kept whatever its score is; '' if nothing is known against it.
    """

    part: str
    values: dict[Parameter, Any]
    reason: str
    before: float
    left: int
    since: int
    saved: dict[str, Any]
    told: dict[str, int]
    traces: list[Trace] = field(default_factory=list)
    failed: str = ""


def checkpoint(members: Iterable[Member]) -> dict[str, Any]:
    """Values and optimizer state of the parts, as copies."""
    return {
        member.name: {
            "values": {name: own_copy(parameter.value) for parameter, name in member.optimizer.names.items()},
            "state": copy.deepcopy(member.optimizer.state_dict()) if member.numeric else None,
        }
        for member in members
    }


def restore(members: Iterable[Member], saved: Mapping[str, Any]) -> None:
    """Put values and state back, bit for bit. Parts that propose keep their memory: it learns from what was undone."""
    for member in members:
        then = saved[member.name]
        for parameter, name in member.optimizer.names.items():
            parameter.update(then["values"][name])
        if then["state"] is not None:
            member.optimizer.load_state_dict(then["state"])


def own_copy(value: Any) -> Any:
    """A copy that later changes in place do not reach; of a tensor, without history."""
    if hasattr(value, "detach") and hasattr(value, "clone"):
        return value.detach().clone()
    return copy.deepcopy(value)


def finite_score(score: Any) -> float:
    """A closure's score as a float. Raises OptimizerError if it is none, NaN counts as the worst."""
    from trace_core.node import Node
    from trace_core.optimizers.base import OptimizerError

    value = score.value if isinstance(score, Node) else score
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise OptimizerError(f"closure must return a score, got {type(value).__name__}: {value!r:.80}") from error
    return number if number == number else float("-inf")


__all__ = ["Event", "Trial", "checkpoint", "finite_score", "own_copy", "restore"]
