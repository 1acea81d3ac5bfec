"""A torch learning rate scheduler beside an optimizer, if there is one."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from trace_core.optimizers.base import OptimizerError
from trace_core.optimizers.tensor.exact import saved_state
from trace_core.optimizers.tensor.history import mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class Schedule:
    """The scheduler that ``make(optimizer)`` gives, or none. Raises OptimizerError if it gives something else.

    Attributes:
        scheduler: torch's object, or None.
    """

    def __init__(self, make: Callable[[Any], Any] | None, optimizer: Any) -> None:
        self.scheduler: Any = None
        if make is None:
            return
        try:
            self.scheduler = make(optimizer)
        except TypeError as error:
            raise OptimizerError(
                f"scheduler= must be callable with the torch optimizer alone ({error}): give further arguments by "
                "functools.partial(torch.optim.lr_scheduler.StepLR, step_size=10)"
            ) from error
        if not hasattr(self.scheduler, "step") or not hasattr(self.scheduler, "state_dict"):
            raise OptimizerError(
                f"scheduler= must make a learning rate scheduler, it made {type(self.scheduler).__name__}"
            )
        self._watches_loss = must_be_given(self.scheduler.step, "metrics")

    def check(self, losses: Sequence[Any]) -> None:
        """Raises OptimizerError if the scheduler watches the loss and there is none."""
        if self.scheduler is not None and self._watches_loss and not losses:
            raise OptimizerError(
                f"{type(self.scheduler).__name__} watches the loss, and the feedback was only gradients: "
                "give backward a scalar loss, or take another scheduler"
            )

    def advance(self, losses: Sequence[Any]) -> None:
        """One step; a scheduler that watches the loss gets the mean of ``losses``."""
        if self.scheduler is not None:
            self.scheduler.step(*((mean(losses),) if self._watches_loss else ()))

    def state(self) -> dict[str, Any] | None:
        """Plain data."""
        return None if self.scheduler is None else saved_state(self.scheduler)

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Take over what ``state`` gave. Raises OptimizerError if one side has a scheduler and the other none."""
        if (state is None) != (self.scheduler is None):
            has, lacks = ("optimizer", "state") if state is None else ("state", "optimizer")
            raise OptimizerError(f"the {has} has a learning rate scheduler, the {lacks} has none: make both alike")
        if state is not None:
            self.scheduler.load_state_dict(dict(state))


def must_be_given(function: Any, argument: str) -> bool:
    """Whether the function has an argument of that name and no default for it."""
    found = inspect.signature(function).parameters.get(argument)
    return found is not None and found.default is inspect.Parameter.empty
