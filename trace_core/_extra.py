"""What only some nodes have; kept apart so that the ordinary node stays small."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trace_core.node import Node


class Extra:
    """The rarely used fields of a node.

    Attributes:
        kwargs: recorded keyword arguments.
        reads: what the body read by itself.
        inner: the recorded result of a transparent bundle's body.
        name, description: as given by the user.
        mode: torch's, where it was not the default; see _torch.Mode.
        later: what the value became by a change in place.
        guards: how the value left the graph -> the answer; see guards.py.
        watchers: tested temporaries made of this value.
    """

    # Defaults of the class: an instance is made for many operators and stores what it has.
    kwargs: dict[str, Any] | None = None
    reads: tuple[Node, ...] = ()
    inner: Any = None
    name: str | None = None
    description: str | None = None
    mode: Any = None
    later: Node | None = None
    guards: dict[Any, Any] | None = None
    watchers: list[Node] | None = None
