"""What the optimizer's state weighs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trace_core.optimizers.tensor.frugal.options import is_dtensor

_MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")


@dataclass(frozen=True, slots=True)
class StateBytes:
    """Bytes on this process. ``moments``: of the rule with state; ``subspaces``: indices, bases; ``steps``: counts."""

    moments: int
    subspaces: int
    steps: int

    @property
    def total(self) -> int:
        return self.moments + self.subspaces + self.steps


def state_bytes(states: Any) -> StateBytes:
    """Add up storages, not views: what a view keeps alive counts."""
    sums = {"moments": 0, "subspaces": 0, "steps": 0}
    for state in states.values():
        for key, value in state.items():
            if hasattr(value, "untyped_storage"):
                tensor = value.to_local() if is_dtensor(value) else value
                what = "moments" if key in _MOMENTS else "steps" if key == "step" else "subspaces"
                sums[what] += tensor.untyped_storage().nbytes()
    return StateBytes(**sums)
