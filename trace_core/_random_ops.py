"""Operators that drew random numbers: they remember the generators' states, and a replay draws the same again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core._torch import Draws, devices_of
from trace_core.operators import Operator

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trace_core.node import Node


class RandomOperator(Operator):
    """An operator with the states of the random generators before it ran."""

    __slots__ = ("draws",)

    def __init__(self, op: Operator, values: Iterable[Any]) -> None:
        super().__init__(op.name, op.fn, op.form, op.description)
        self.draws = Draws(devices_of(values))

    def rerun(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Node:
        """Draw the same numbers for new inputs and record the result."""
        from trace_core.node import apply

        with self.draws.again():
            return apply(self, args, kwargs)


def random_operator(op: Operator, args: Iterable[Any], kwargs: Mapping[str, Any] | None) -> RandomOperator:
    """The operator for one call of a function that draws random numbers, with inputs that may be nodes."""
    from trace_core.node import unwrap

    return RandomOperator(op, [unwrap(value)[0] for value in (*args, *(kwargs or {}).values())])
