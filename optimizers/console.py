"""A run on the terminal: tables and diffs at its end. What is shown while it goes is in ``live``."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from trace_core.values import render_value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console


def score_table(
    rows: Mapping[str, tuple[float, float]], title: str, columns: tuple[str, str] = ("before", "after")
) -> Any:
    """A rich table of names with two numbers each and their difference."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in (*columns, "change"):
        table.add_column(column, justify="right")
    for name, (before, after) in rows.items():
        table.add_row(name, f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}")
    return table


def diff_lines(name: str, before: Any, after: Any) -> list[str]:
    """A unified diff of a parameter's two values, without file headers."""
    old, new = (value if isinstance(value, str) else render_value(value) for value in (before, after))
    lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), n=2, lineterm=""))[2:]
    return [f"{name}:", *(f"  {line}" for line in lines if not line.startswith("@@"))]


def print_diffs(console: Console, changes: Mapping[str, tuple[Any, Any]]) -> None:
    """Print the diff of each changed parameter, coloured on a terminal."""
    from rich.text import Text

    if not changes:
        console.print("no parameter was changed")
    for name, (before, after) in changes.items():
        for line in diff_lines(name, before, after):
            style = "green" if line.startswith("  +") else "red" if line.startswith("  -") else ""
            console.print(Text(line, style=style))
