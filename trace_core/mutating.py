"""Methods that would change a value in place: refused on nodes, with the way to say it without a change."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from trace_core._values import is_ndarray, is_tensor
from trace_core.errors import MutationError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What these methods would change in place, and how to say it without a change.
MUTATING: Mapping[type, Mapping[str, str]] = {
    list: {
        "append": "node + [item]",
        "extend": "node + items",
        "insert": "node[:i] + [item] + node[i:]",
        "remove": "a bundle that returns the new list",
        "pop": "node[-1] and node[:-1]",
        "clear": "tc.node([])",
        "sort": "a bundle that returns sorted(value)",
        "reverse": "node[::-1]",
    },
    dict: {
        "update": "node | other",
        "setdefault": "node.get(key, default)",
        "pop": "node[key]",
        "popitem": "a bundle that returns the new dict",
        "clear": "tc.node({})",
    },
    set: {
        "add": "node | {item}",
        "discard": "node - {item}",
        "remove": "node - {item}",
        "update": "node | other",
        "pop": "a bundle that returns the new set",
        "clear": "tc.node(set())",
        "difference_update": "node - other",
        "intersection_update": "node & other",
        "symmetric_difference_update": "node ^ other",
    },
    bytearray: dict.fromkeys(("append", "extend", "insert", "pop", "remove", "reverse", "clear"), "bytes"),
    deque: dict.fromkeys(
        [
            "append",
            "appendleft",
            "clear",
            "extend",
            "extendleft",
            "insert",
            "pop",
            "popleft",
            "remove",
            "reverse",
            "rotate",
        ],
        "a bundle that returns the new deque",
    ),
}
_NDARRAY_MUTATING = frozenset(
    {"fill", "sort", "partition", "put", "resize", "itemset", "setfield", "setflags", "byteswap"}
)


def refuse_mutation(value: Any, name: str) -> None:
    """Raise MutationError if the method ``name`` would change the value."""
    for kind, methods in MUTATING.items():
        if isinstance(value, kind) and name in methods:
            raise MutationError(
                f"{kind.__name__}.{name} would change a node's value in place: nodes are immutable. "
                f"Use {methods[name]}, or change a copy inside a bundle and return it"
            )
    if (is_ndarray(value) and name in _NDARRAY_MUTATING) or (
        is_tensor(value) and name.endswith("_") and not name.startswith("_") and name != "requires_grad_"
    ):
        raise MutationError(
            f"{type(value).__name__}.{name} would change a node's value in place: nodes are immutable. "
            f"Use the form that returns a new array, or do it inside a bundle"
        )
