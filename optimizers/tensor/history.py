"""What a numeric optimizer did, step by step: bounded, and read from the device only when somebody looks."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


class StepRecord(NamedTuple):
    """One step.

    Attributes:
        step: counted from 1.
        loss: mean over the outputs that gave a scalar loss; None if none did.
        outputs: how many outputs sent gradients.
        grad_norm: 2-norm of all gradients together, before clipping; None if it is not recorded.
        lr: learning rate of the first group.
    """

    step: int
    loss: float | None
    outputs: int
    grad_norm: float | None
    lr: float


class History:
    """The last ``size`` steps. Losses and norms stay on their device until they are read."""

    def __init__(self, size: int) -> None:
        self.size = max(0, size)
        self._steps: deque[tuple[int, Any, int, Any, Any]] = deque(maxlen=self.size)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[StepRecord]:
        return iter(self.read())

    def add(self, step: int, losses: Sequence[Any], outputs: int, grad_norm: Any, lr: Any) -> None:
        """Note a step; losses, norm and rate may be 0-dim tensors and are not looked at."""
        self._steps.append((step, tuple(losses), outputs, grad_norm, lr))

    def read(self, since: int = 0) -> list[StepRecord]:
        """The records of the steps after step ``since``. Waits for the device the first time they are read."""
        for index, (step, loss, outputs, norm, lr) in enumerate(self._steps):
            if not all(type(value) in (float, type(None)) for value in (loss, norm, lr)):
                self._steps[index] = (step, mean(loss), outputs, _number(norm), _number(lr))
        return [StepRecord(*record) for record in self._steps if record[0] > since]

    def state(self) -> list[list[Any]]:
        """Plain data."""
        return [list(record) for record in self.read()]

    def load(self, state: Sequence[Sequence[Any]]) -> None:
        """Take over what ``state`` gave."""
        self._steps.clear()
        self._steps.extend((int(step), loss, int(outputs), norm, lr) for step, loss, outputs, norm, lr in state)


def mean(losses: Any) -> float | None:
    """The mean of some losses as a number; None of none. Waits for their device."""
    if losses is None or isinstance(losses, float):
        return losses
    return sum(float(loss) for loss in losses) / len(losses) if losses else None


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def describe(records: Sequence[StepRecord], optimizer: str, points: int = 6) -> str:
    """The records as a line or two for a person or an LLM: how many steps, loss, gradient norm and rate on the way.

    ``points``: at most so many numbers of each curve, the first and the last among them.
    """
    if not records:
        return f"{optimizer}: no step"
    first, last = records[0].step, records[-1].step
    which = f"step {first}" if first == last else f"steps {first} to {last}"
    shown = [records[index] for index in _spread(len(records), points)]
    parts = [f"{optimizer}, {which}"]
    curves: Mapping[str, list[float | None]] = {
        "loss": [record.loss for record in shown],
        "gradient norm": [record.grad_norm for record in shown],
        "lr": [record.lr for record in shown],
    }
    for name, values in curves.items():
        known = [f"{value:.3g}" for value in values if value is not None]
        if known:
            parts.append(f"{name} {known[0] if len(set(known)) == 1 else ' -> '.join(known)}")
    return "; ".join(parts)


def _spread(count: int, points: int) -> list[int]:
    """At most ``points`` indices below ``count``, evenly spread, first and last included."""
    if count <= points:
        return list(range(count))
    if points < 2:
        return [count - 1]
    return [round(index * (count - 1) / (points - 1)) for index in range(points)]
