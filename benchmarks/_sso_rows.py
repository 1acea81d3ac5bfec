"""A line of the table of benchmarks/sso.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Row:
    """A method on a task.

    Attributes:
        result: what came out, by name.
        gradients, losses: questions to the oracle with and without a gradient; None where ``result`` tells.
        cpu: seconds of CPU time, oracle included.
    """

    task: str
    method: str
    result: dict[str, Any]
    gradients: int | None = None
    losses: int | None = None
    cpu: float = 0.0

    def shown(self) -> str:
        return "  ".join(f"{name} {_text(value)}" for name, value in self.result.items())


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "/".join("-" if item is None else str(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
