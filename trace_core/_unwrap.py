"""Nodes inside containers: take the values out for the code that runs, keep the nodes for the graph."""

from __future__ import annotations

from collections import deque
from operator import is_
from typing import TYPE_CHECKING, Any

from trace_core._values import (
    ATOMIC,
    PLAIN_TENSORS,
    UNSET,
    ByReference,
    all_atomic,
    is_tensor,
    restore,
    snapshot,
)
from trace_core.context import current
from trace_core.node import Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Leaves = Callable[[Any], bool]


def is_record(kind: type) -> bool:
    """Whether instances are dataclasses or pydantic models: data with named fields."""
    return hasattr(kind, "__dataclass_fields__") or hasattr(kind, "__pydantic_fields__")


def record_fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass instance or pydantic model that are set."""
    kind = type(value)
    names = kind.__dataclass_fields__ if hasattr(kind, "__dataclass_fields__") else kind.__pydantic_fields__
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def replace_fields(value: Any, fields: dict[str, Any]) -> Any:
    """A copy of the record with other field values; neither __init__ nor validators run again."""
    import copy

    duplicate = copy.copy(value)
    for name, item in fields.items():
        object.__setattr__(duplicate, name, item)
    return duplicate


def map_nodes(
    value: Any, change: Callable[[Any], Any], seen: frozenset[int] = frozenset(), *, leaves: Leaves | None = None
) -> Any:
    """``value`` with every node at any depth replaced by ``change(node)``; ``value`` itself if nothing was replaced.

    With ``leaves``, the values for which it is true are replaced instead of nodes.
    """
    kind = type(value)
    if kind in ATOMIC:
        return value
    if isinstance(value, Node):
        return value if leaves is not None else change(value)
    if leaves is not None and leaves(value):
        return change(value)
    if kind is list or kind is tuple or kind is set or kind is frozenset:
        if all_atomic(value) or id(value) in seen:
            return value
        seen = seen | {id(value)}
        items = [map_nodes(item, change, seen, leaves=leaves) for item in value]
        return value if all(map(is_, items, value)) else kind(items)
    if kind is dict:
        if (all_atomic(value.values()) and all_atomic(value)) or id(value) in seen:
            return value
        pairs = _map_pairs(value, change, seen | {id(value)}, leaves)
        return value if pairs is None else dict(pairs)
    if isinstance(value, tuple) and (hasattr(kind, "_fields") or hasattr(kind, "n_fields")):
        # named tuples, and the named results of torch.max and the like
        items = [map_nodes(item, change, seen, leaves=leaves) for item in value]
        if all(map(is_, items, value)):
            return value
        return kind(*items) if hasattr(kind, "_fields") else kind(items)
    if isinstance(value, list | dict | set | deque) and not hasattr(kind, "__trace_core_module__"):
        return value if id(value) in seen else _map_subclass(value, change, seen | {id(value)}, leaves)
    if is_record(kind) and not isinstance(value, type) and not hasattr(kind, "__trace_core_module__"):
        if id(value) in seen:
            return value
        changed = _map_fields(value, change, seen | {id(value)}, leaves)
        return replace_fields(value, changed) if changed else value
    return value


def _map_pairs(
    value: Mapping[Any, Any], change: Callable[[Any], Any], seen: frozenset[int], leaves: Leaves | None
) -> list[tuple[Any, Any]] | None:
    """The items with what was replaced; None if nothing was."""
    pairs = [
        (map_nodes(key, change, seen, leaves=leaves), map_nodes(item, change, seen, leaves=leaves))
        for key, item in value.items()
    ]
    same = all(a is c and b is d for (a, b), (c, d) in zip(pairs, value.items(), strict=True))
    return None if same else pairs


def _map_fields(
    value: Any, change: Callable[[Any], Any], seen: frozenset[int], leaves: Leaves | None
) -> dict[str, Any]:
    """The fields of a record that are replaced."""
    fields = record_fields(value)
    new = {name: map_nodes(item, change, seen, leaves=leaves) for name, item in fields.items()}
    return {name: item for name, item in new.items() if item is not fields[name]}


def _map_subclass(value: Any, change: Callable[[Any], Any], seen: frozenset[int], leaves: Leaves | None) -> Any:
    """``map_nodes`` for subclasses of list, dict and set, and for deque: a copy by the class's own means, refilled."""
    import copy

    if isinstance(value, dict):
        pairs = _map_pairs(value, change, seen, leaves)
        if pairs is None:
            return value
        duplicate = copy.copy(value)
        dict.clear(duplicate)
        for key, item in pairs:
            dict.__setitem__(duplicate, key, item)
        if is_record(type(value)):  # a dict whose items are its fields as well
            for name, item in _map_fields(value, change, seen, leaves).items():
                object.__setattr__(duplicate, name, item)
        return duplicate
    items = [map_nodes(item, change, seen, leaves=leaves) for item in value]
    if all(map(is_, items, value)):
        return value
    duplicate = copy.copy(value)
    base: Any = next(base for base in (list, set, deque) if isinstance(value, base))  # not what the subclass made of it
    base.clear(duplicate)
    refill: Any = set.update if base is set else base.extend
    refill(duplicate, items)
    return duplicate


def find_nodes(value: Any) -> Iterator[tuple[str, Node]]:
    """(path, node) for every node at any depth of plain containers; the path of a node itself is empty."""
    stack: list[tuple[str, Any]] = [("", value)]
    seen: set[int] = set()
    while stack:
        path, item = stack.pop()
        kind = type(item)
        if kind in ATOMIC:
            continue
        if isinstance(item, Node):
            yield path, item
            continue
        if id(item) in seen:
            continue
        if isinstance(item, list | tuple | set | frozenset | deque) and not hasattr(kind, "__trace_core_module__"):
            if not all_atomic(item):
                seen.add(id(item))
                stack.extend(reversed([(f"{path}[{index}]", child) for index, child in enumerate(item)]))
        elif isinstance(item, dict) and not hasattr(kind, "__trace_core_module__"):
            seen.add(id(item))
            children = [(f"{path}.keys[{index}]", key) for index, key in enumerate(item) if isinstance(key, Node)]
            children += [
                (f"{path}[{_plain(key)!r}]", child) for key, child in item.items() if type(child) not in ATOMIC
            ]
            stack.extend(reversed(children))
        elif is_record(kind) and not isinstance(item, type) and not hasattr(kind, "__trace_core_module__"):
            seen.add(id(item))
            stack.extend(reversed([(f"{path}.{name}", child) for name, child in record_fields(item).items()]))


def _plain(key: Any) -> Any:
    return key._value if isinstance(key, Node) else key


def holds_nodes(value: Any) -> bool:
    """Whether there is a node at any depth of plain containers. Iterative: data may be nested deeply."""
    stack: list[Any] = [value]
    seen: set[int] = set()
    while stack:
        item = stack.pop()
        kind = type(item)
        if kind in ATOMIC:
            continue
        if isinstance(item, Node):
            return True
        if id(item) in seen or hasattr(kind, "__trace_core_module__"):
            continue
        if isinstance(item, list | tuple | set | frozenset | deque):
            if not all_atomic(item):
                seen.add(id(item))
                stack.extend(item)
        elif isinstance(item, dict):
            seen.add(id(item))
            if not all_atomic(item):
                stack.extend(item)
            if not all_atomic(item.values()):
                stack.extend(item.values())
        elif is_record(kind) and not isinstance(item, type):
            seen.add(id(item))
            stack.extend(record_fields(item).values())
    return False


def unwrap_container(value: Any) -> tuple[Any, Any]:
    """See node.unwrap, for containers and records."""
    if not holds_nodes(value):
        kept = snapshot(value)
        if isinstance(kept, ByReference) and type(value) is not tuple:
            return value, value
        return value, _with_leaves(value if kept is UNSET or isinstance(kept, ByReference) else kept)
    frame = current.get()
    recorded = map_nodes(value, lambda node: node._read(frame))
    if recorded is value:
        recorded = restore(value)  # the caller's own container, which may be changed later
    return map_nodes(recorded, lambda node: node._value), _with_leaves(recorded)


def _with_leaves(recorded: Any) -> Any:
    """Nodes for the tensors in a recorded container, so that it tells if one is changed in place later."""
    if not PLAIN_TENSORS:  # torch is not in use
        return recorded
    from trace_core.node import leaf

    return map_nodes(recorded, leaf, leaves=is_tensor)
