"""What only some nodes have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trace_core.node import Node

#: Operators that took less are not noted: most nodes have no place for it, and need none.
NOTED_SECONDS = 1e-4


class Extra:
    """Kept apart from the node, so that the ordinary node stays small."""

    __slots__ = ("description", "guards", "inner", "kwargs", "name", "reads", "seconds", "watchers")

    def __init__(self) -> None:
        self.kwargs: dict[str, Any] | None = None
        self.reads: tuple[Node, ...] = ()
        self.inner: Any = None
        self.name: str | None = None
        self.description: str | None = None
        self.guards: dict[Any, Any] | None = None  # how the value left the graph -> the answer; see guards.py
        self.watchers: list[Node] | None = None  # tested temporaries made of this value
        self.seconds = 0.0  # what the operator took, if that was worth noting
