"""Python's conversions of a node: they leave the graph, and replays check what they answered."""

from __future__ import annotations

from typing import Any

from trace_core.guards import leave


class Conversions:
    """The part of Node that answers as its value would."""

    __slots__ = ()

    def __str__(self) -> str:
        return str(self.value)  # type: ignore[attr-defined]

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)  # type: ignore[attr-defined]

    def __bool__(self: Any) -> bool:
        return bool(leave(self, "bool"))

    def __len__(self: Any) -> int:
        return int(leave(self, "len"))

    def __int__(self: Any) -> int:
        return int(leave(self, "int"))

    def __float__(self: Any) -> float:
        return float(leave(self, "float"))

    def __complex__(self: Any) -> complex:
        return complex(leave(self, "complex"))

    def __index__(self: Any) -> int:
        return int(leave(self, "index"))
