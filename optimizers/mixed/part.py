"""One part of a mixed optimizer: whose turn it is when, and the traces it is going to see."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

from trace_core.optimizers.base import Optimizer, OptimizerError
from trace_core.optimizers.mixed.light import light

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trace_core.parameter import Parameter
    from trace_core.trace import Trace

OptimizerLike: TypeAlias = "Optimizer | Callable[[list[tuple[str | None, Parameter]]], Optimizer] | Any"


class Part:
    """An optimizer with its place in ``Mixed``.

    Args:
        optimizer: an Optimizer; for ``Mixed.by_kind`` also what ``by_kind`` takes.
        every: it takes its turn at every so many steps of Mixed. Until then gradients add up, and traces are kept.
        budget: it takes at most so many turns; None for no limit.
        trial: for parts that propose: a proposal is judged after so many more steps of Mixed, in which the numeric
            parts train with it; 0 for at once. By default ``every``. Matters only if ``step`` gets a closure.
        window: for parts that propose: at most so many of the latest traces since its last turn are shown to it.

    Raises OptimizerError for numbers out of range.
    """

    def __init__(
        self,
        optimizer: OptimizerLike,
        *,
        every: int = 1,
        budget: int | None = None,
        trial: int | None = None,
        window: int = 16,
    ) -> None:
        for name, value, least in (
            ("every", every, 1),
            ("budget", budget, 0),
            ("trial", trial, 0),
            ("window", window, 1),
        ):
            if value is not None and (not isinstance(value, int) or value < least):
                raise OptimizerError(f"{name} must be a whole number from {least}, got {value!r}")
        self.optimizer, self.every, self.budget, self.window = optimizer, every, budget, window
        self.trial = every if trial is None else trial


class Member:
    """A Part at work.

    Attributes:
        numeric: whether all its parameters are tensors: it steps where others propose.
        takes_gradients: whether it is to be told of gradients.
        asks: whether it asks an oracle about each trace by itself, before gradients are sent.
        observes: whether it is to see each trace as it comes, although it proposes.
        waited: steps of Mixed since its last turn.
        turns: turns taken.
        traces: what it will be shown, without big tensors; oldest first.
        since: numeric part -> steps it had done at this one's last turn.
    """

    def __init__(self, name: str, part: Part) -> None:
        if not isinstance(part.optimizer, Optimizer):
            raise OptimizerError(
                f"part {name!r} needs an Optimizer, got {type(part.optimizer).__name__}: functions that make one are "
                "for Mixed.by_kind"
            )
        self.name, self.part = name, part
        self.optimizer: Optimizer = part.optimizer
        self.numeric = all(parameter.kind == "tensor" for parameter in self.optimizer.parameters)
        self.takes_gradients = self.numeric and hasattr(self.optimizer, "receive")
        self.asks = self.numeric and hasattr(self.optimizer, "ask")
        self.observes = not self.numeric and hasattr(self.optimizer, "observe")
        self.waited = 0
        self.turns = 0
        self.traces: deque[Trace] = deque(maxlen=part.window)
        self.since: dict[str, int] = {}

    @property
    def exhausted(self) -> bool:
        """Whether its budget is used."""
        return self.part.budget is not None and self.turns >= self.part.budget

    @property
    def due(self) -> bool:
        """Whether its turn has come."""
        return not self.exhausted and self.waited >= self.part.every

    def took_turn(self) -> None:
        """Count a turn."""
        self.turns += 1
        self.waited = 0

    def reached(self, traces: Sequence[Trace]) -> list[Trace]:
        """Those of the traces that reach its parameters."""
        mine = set(self.optimizer.parameters)
        return [trace for trace in traces if mine.intersection(trace.parameters)]

    def keep(self, traces: Sequence[Trace], before_turn: int) -> None:
        """Keep what it may be shown at its turn, ``before_turn`` steps away, if about as many come with each step."""
        found = self.reached(traces)
        if found and not self.exhausted and before_turn * len(found) < self.part.window:
            self.traces.extend(map(light, found[-self.part.window :]))


def without_gradient(parameter: Parameter) -> bool:
    """Whether it is a tensor that is frozen in torch's way."""
    return parameter.kind == "tensor" and not parameter._current._value.requires_grad
