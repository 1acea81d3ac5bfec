"""Commands that look into a ledger: ``trace-core runs``, ``show``, ``best``, ``report`` and ``export``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trace_core._codec import encode
from trace_core.integrations.store import Ledger, Run, StoreError, all_runs
from trace_core.optimizers.console import diff_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trace_core.integrations.store import RunRow

STORE = Path("runs") / "ledger.sqlite"

store_option = click.option(
    "--store",
    type=click.Path(path_type=Path),
    default=STORE,
    show_default=True,
    envvar="TRACE_CORE_STORE",
    show_envvar=True,
    help="The ledger file.",
)


@click.command()
@store_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on each line.")
def runs(store: Path, as_json: bool) -> None:
    """List the runs of a ledger."""
    from rich.console import Console
    from rich.table import Table

    with Ledger.open(store, read_only=True) as ledger:
        rows = all_runs(ledger)
        steps = dict(ledger.query("SELECT run, max(step) FROM steps GROUP BY run"))
        if as_json:
            for row in rows:
                click.echo(json.dumps(_as_data(row) | {"steps": steps.get(row.id, 0)}))
            return
    table = Table("run", "state", "steps", "score", "started", "seconds", box=None)
    for row in rows:
        score = "" if row.score is None else f"{row.score:.3f}"
        table.add_row(row.id, _state(row), str(steps.get(row.id, 0)), score, _when(row.started), f"{row.seconds:.0f}")
    Console().print(table)


@click.command()
@click.argument("run")
@store_option
def show(run: str, store: Path) -> None:
    """Show a run: how it stands, what it cost, what became of each candidate."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False, markup=False)
    with Ledger.open(store, read_only=True) as ledger:
        found = Run(ledger, ledger.find_run(run))
        row = found.row()
        console.print(f"{row.id}: {_state(row)}, started {_when(row.started)}, {row.seconds:.0f} s of work")
        if row.parent:
            console.print(f"forked from {row.parent}")
        if row.error:
            console.print(row.error)
        for name, seen in row.config.get("isolation", {}).items():
            console.print(f"{name}: proposed code runs in {_isolation(seen)}")
        steps = list(found.steps())
        if steps and steps[0].score is not None:
            console.print(f"score: {steps[0].score:.3f} -> {steps[-1].score:.3f} in {steps[-1].step} steps")
        for role, cost in sorted(found.spent().items()):
            usd = "cost unknown" if cost.usd is None else f"${cost.usd:.4f}"
            console.print(f"{role}: {cost.calls} calls, {cost.tokens:,} tokens, {usd}, {cost.metric_calls} evaluations")
        for candidate in found.candidates():
            mark = "*" if candidate.id == row.best else " "
            score = "" if candidate.score is None else f" {candidate.score:.3f}"
            names = ", ".join(candidate.values)
            note = candidate.detail.get("note", "")
            console.print(
                f"{mark} {candidate.id} {candidate.status}{score}: {names} {f'({note})' if note else ''}".rstrip()
            )


@click.command()
@click.argument("run")
@store_option
@click.option("--diff", is_flag=True, help="What changed since the start, instead of the values.")
def best(run: str, store: Path, diff: bool) -> None:
    """Print the best values of a run as JSON."""
    with Ledger.open(store, read_only=True) as ledger:
        found = Run(ledger, ledger.find_run(run))
        last = found.last_step()
        if last is None:
            raise StoreError(f"the run {found.id} ended before its first validation: it has no best values yet")
        if not diff:
            click.echo(json.dumps(encode(last.values), indent=2))
            return
        first = found.candidates("0")[0].values
    changed = {name: value for name, value in last.values.items() if encode(first.get(name)) != encode(value)}
    for name, value in changed.items():
        click.echo("\n".join(diff_lines(name, first.get(name), value)))
    if not changed:
        click.echo("no parameter was changed")


@click.command()
@click.argument("run")
@store_option
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, dir_okay=False), default=None, help="The file [RUN.html, here]."
)
def report(run: str, store: Path, out: Path | None) -> None:
    """Write a run as one self-contained HTML page: scores, lineage, examples, changes, every rejection, cost."""
    from trace_core.optimizers.report import write_run_page

    with Ledger.open(store, read_only=True) as ledger:
        found = Run(ledger, ledger.find_run(run))
        click.echo(str(write_run_page(found, out or Path(f"{found.id}.html"))))


@click.command()
@click.argument("run")
@store_option
@click.option("--out", type=click.Path(path_type=Path), default=None, help="A file, instead of the screen.")
def export(run: str, store: Path, out: Path | None) -> None:
    """Write everything of a run as JSON Lines: one object with its kind for each row."""
    with Ledger.open(store, read_only=True) as ledger:
        lines = _lines(Run(ledger, ledger.find_run(run)))
        if out is None:
            for line in lines:
                click.echo(line)
            return
        try:
            out.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        except OSError as error:
            raise StoreError(f"the run cannot be written to {out}: {error}; give another file with --out") from error


def _lines(run: Run) -> Iterator[str]:
    def line(kind: str, data: dict[str, Any]) -> str:
        return json.dumps({"kind": kind, **encode(data)})

    yield line("run", _as_data(run.row()) | {"fingerprint": run.row().fingerprint, "config": run.row().config})
    for step in run.steps():
        yield line("step", {"step": step.step, "score": step.score, "values": step.values})
    for candidate in run.candidates():
        yield line("candidate", candidate._asdict())
    for evaluation in run.evaluations():
        yield line("evaluation", evaluation._asdict())
    for event in run.events():
        yield line("event", {"step": event.step, "number": event.number, "event": event.kind, **event.data})
    names = ("key", "role", "model", "state", "usd", "tokens", "tries", "result", "error")
    for row in run.ledger.query(f"SELECT {', '.join(names)} FROM calls WHERE run = ? ORDER BY began, rowid", (run.id,)):
        yield line("call", dict(zip(names, row, strict=True)))


def _as_data(row: RunRow) -> dict[str, Any]:
    kept = ("id", "name", "status", "started", "updated", "seconds", "parent", "stopped", "error", "best", "score")
    return {name: getattr(row, name) for name in kept}


def _state(row: RunRow) -> str:
    if row.status == "running":
        return "running or killed"
    return row.status if row.stopped in (None, row.status) else f"{row.status} ({row.stopped})"


def _isolation(seen: dict[str, Any]) -> str:
    if "reason" in seen:
        return f"nothing that can be had here ({seen['reason']})"
    titles = {"layers": "seen", "absent": "not there"}
    parts = "; ".join(f"{title}: {', '.join(seen[key])}" for key, title in titles.items() if seen.get(key))
    return f"tier {seen['tier']!r}" + (f" ({parts})" if parts else "")


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
