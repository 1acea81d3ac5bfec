"""A run on the terminal: progress while it goes, tables and diffs at the end."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from trace_core.values import elide, render_value

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from rich.console import Console

    from trace_core.integrations.llm.meter import Metered
    from trace_core.optimizers.loop import Event
    from trace_core.parameter import Parameter


class RunProgress:
    """Shows a run: a bar with step, score, calls and tokens; a line for every step's outcome.

    Use as ``on_event`` of ``optimize``, inside ``with``. On anything but a terminal only the lines are printed.
    """

    def __init__(
        self, console: Console, steps: int, meters: Mapping[str, Metered], names: Mapping[Parameter, str]
    ) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.console, self.meters, self.names, self.steps = console, meters, names, steps
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=steps, facts="")

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Take an event in."""
        best = "" if event.best is None else f"best {event.best:.3f}"
        calls = sum(meter.calls for meter in self.meters.values())
        tokens = sum(meter.tokens for meter in self.meters.values())
        label = f"step {event.step}/{self.steps}" if event.step else "validating"
        self._bar.update(
            self._task,
            description=label,
            completed=max(0, event.step - 1) if event.kind != "end" else self.steps,
            facts="  ".join(part for part in (best, f"{calls} calls", f"{tokens:,} tokens") if part),
        )
        line = self._line(event)
        if line:
            self.console.print(line, markup=False, highlight=False)

    def _line(self, event: Event) -> str:
        if event.kind == "start":
            return f"start: validation score {event.score:.3f}"
        if event.kind not in ("accepted", "rejected"):
            return ""
        names = ", ".join(self.names.get(p, "?") for p in event.proposal.values) if event.proposal else ""
        what = f" {names}" if names else ""
        return f"step {event.step}: {event.kind}{what} ({elide(' '.join(event.note.split()), 160)})"


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
