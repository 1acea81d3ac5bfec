"""Names of nodes within one trace."""

from __future__ import annotations

import keyword
from typing import TYPE_CHECKING

from trace_core.parameter import Parameter, Version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trace_core.node import Node


_LONGEST = 60


def identifier(text: str) -> str:
    """``text`` as a Python identifier of at most about sixty characters."""
    cleaned = "".join(c if ("_" + c).isidentifier() else "_" for c in text[:_LONGEST]).strip("_") or "value"
    return cleaned if cleaned.isidentifier() and not keyword.iskeyword(cleaned) else f"_{cleaned}"


def unique_names(parameters: Iterable[Parameter], prefix: str = "") -> dict[Parameter, str]:
    """One identifier per parameter: its own name, else its kind; equal ones are numbered."""
    names = _Names()
    return {
        parameter: names.free(identifier(f"{prefix}{parameter.name or parameter.kind}")) for parameter in parameters
    }


def name_nodes(nodes: Iterable[Node], given: Mapping[Parameter, str] | None = None) -> dict[Node, str]:
    """A name for each node: parameters by ``given`` or their own names, leaves by theirs, results as ``op0`` ..."""
    names: dict[Node, str] = {}
    by_parameter: dict[Parameter, str] = dict(given or {})
    given_out = _Names(by_parameter.values())
    seen: set[Parameter] = set()
    for node in nodes:
        label = node._label()
        if isinstance(node, Version):
            name = by_parameter.get(node.parameter)
            if name is None:
                name = by_parameter[node.parameter] = given_out.free(identifier(label or node.parameter.kind))
            # a parameter updated between two reads has two versions in one trace
            names[node] = given_out.free(f"{name}_v{node.index}") if node.parameter in seen else name
            seen.add(node.parameter)
        elif label is not None:
            names[node] = given_out.free(identifier(label))
        else:
            names[node] = given_out.numbered(identifier(node.op.name) if node.op is not None else "input")
    return names


class _Names:
    """Names given so far; a name that is taken gets a number. Constant time per name, however many are alike."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)
        self._next: dict[str, int] = {}

    def free(self, name: str) -> str:
        """``name``, or ``name_2``, ``name_3`` ..."""
        candidate = name
        if name in self._taken:
            number = self._next.get(name, 2)
            while f"{name}_{number}" in self._taken:
                number += 1
            self._next[name] = number + 1
            candidate = f"{name}_{number}"
        self._taken.add(candidate)
        return candidate

    def numbered(self, stem: str) -> str:
        """``stem0``, ``stem1`` ..."""
        key = f"{stem}#"
        number = self._next.get(key, 0)
        while f"{stem}{number}" in self._taken:
            number += 1
        self._next[key] = number + 1
        self._taken.add(f"{stem}{number}")
        return f"{stem}{number}"
