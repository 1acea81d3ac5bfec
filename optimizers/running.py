"""One task from the command line's point of view: measure, optimize, measure again, print, keep."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from trace_core._target import CliError
from trace_core.errors import TraceCoreError
from trace_core.integrations.accounting import account
from trace_core.integrations.store import EventRow
from trace_core.optimizers.console import RunProgress, print_diffs, score_table
from trace_core.optimizers.journal import SEED
from trace_core.optimizers.loop import optimize
from trace_core.optimizers.report import write_run_page
from trace_core.optimizers.rollouts import Rollouts, examples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor
    from pathlib import Path

    from rich.console import Console

    from trace_core.integrations.budget import Budget
    from trace_core.integrations.llm.meter import Metered
    from trace_core.integrations.store import Run
    from trace_core.node import Node
    from trace_core.optimizers.base import Optimizer
    from trace_core.optimizers.loop import Event, Result
    from trace_core.trace import Trace


class Task(NamedTuple):
    """What is to be optimized, and on what."""

    name: str
    workflow: Callable[[Any], Node]
    metric: Callable[[Any, Any], Any]
    train: list[Any]
    validation: list[Any]
    held_out: list[Any]


class Settings(NamedTuple):
    """How."""

    steps: int
    batch_size: int
    proposals: int
    seed: int
    seconds: float | None
    total_seconds: float | None  # for everything, both measurements on held-out data included
    patience: int | None
    out: Path


class Means(NamedTuple):
    """Where, from what, and with what record."""

    run: Run | None = None
    budget: Budget | None = None
    engine: Executor | None = None


def run_task(
    console: Console,
    task: Task,
    optimizer: Optimizer,
    meters: dict[str, Metered],
    settings: Settings,
    means: Means = Means(),  # noqa: B008 - immutable
) -> Result:
    """Held-out score, optimization, held-out score again; prints both, the diffs, and where everything is kept."""
    run, budget = means.run, means.budget
    rollouts = Rollouts(task.workflow, task.metric, optimizer.names, run=run, budget=budget, engine=means.engine)

    def held_out(candidate: str, traces: int) -> tuple[float, Trace | None]:
        asked = examples("held-out", task.held_out)
        with account(run=run, budget=budget):
            found = rollouts.run(asked[:traces], candidate) + rollouts.run(asked[traces:], candidate, traces=False)
        return sum(outcome.score for outcome in found) / max(1, len(found)), found[0].trace if found else None

    try:
        settings.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CliError(
            f"the results cannot be kept in {settings.out}: {error}; choose another folder with --out"
        ) from error
    began = time.monotonic()
    console.print(
        f"{len(task.train)} training, {len(task.validation)} validation, {len(task.held_out)} held-out examples"
    )
    if budget is not None and run is not None:
        budget.start(run.spent(), run.row().seconds)
    before, _ = held_out(SEED, 0)
    seconds = settings.seconds
    if settings.total_seconds is not None:  # leave room for the last step to run over and for measuring again
        measuring = time.monotonic() - began
        seconds = max(60.0, settings.total_seconds - 2 * measuring - 45.0)
    if task.held_out:
        console.print(f"held-out score before: {before:.3f}")

    def follow(event: Event) -> None:
        progress(event)
        if event.kind == "accepted":  # a run that is killed leaves the best so far
            with contextlib.suppress(OSError):  # told at the end, which writes it again
                _save_values(settings.out, {name: parameter.value for parameter, name in optimizer.names.items()})

    with RunProgress(console, settings.steps, meters, optimizer.names) as progress:
        result = optimize(
            task.workflow,
            task.metric,
            task.train,
            task.validation,
            optimizer=optimizer,
            steps=settings.steps,
            batch_size=settings.batch_size,
            proposals=settings.proposals,
            seed=settings.seed,
            seconds=seconds,
            patience=settings.patience,
            on_event=follow,
            run=run,
            budget=budget,
            engine=means.engine,
        )
    with _kept(settings.out, run):
        _save(settings.out, optimizer, result)
    scores = {"validation": (result.start_score, result.score)}
    trace: Trace | None = None
    if result.stopped in ("interrupted", "error", "budget"):
        why = f" ({result.why})" if result.stopped == "budget" else ""
        console.print(
            f"{result.stopped}{why}: the best so far is kept; the held-out score was not measured again", markup=False
        )
    else:
        try:
            after, trace = held_out(_best(run), 1)
        except TraceCoreError as error:  # what was found is worth more than its last measurement
            result.error = error
        else:
            if task.held_out:
                scores["held-out"] = (before, after)
    console.print(score_table(scores, task.name))
    print_diffs(console, {optimizer.names[p]: change for p, change in result.changed.items()})
    for text, count in result.failures.items():
        console.print(f"{count} outputs failed: {text}", markup=False)
    elapsed = time.monotonic() - began
    facts = [f"{role}: {m.calls} calls, {m.tokens:,} tokens" for role, m in meters.items()]
    facts += [_cost(meters), f"{result.steps} steps, {elapsed:.0f} s", f"stopped: {result.stopped}"]
    if budget is not None:
        facts.append(f"budget: {budget.describe()}")
    console.print("; ".join(facts), markup=False, highlight=False)
    console.print(f"best values: {settings.out / 'best.json'}", soft_wrap=True, highlight=False)
    if run is not None:
        if trace is not None:
            seen = {"candidate": _best(run), "example": "held-out 0", "trace": trace.to_dict()}
            run.put_event(EventRow(result.steps + 1, 0, "trace", seen))
        with _kept(settings.out, run):
            report = write_run_page(run, settings.out / "report.html")
        console.print(f"report: {report}", soft_wrap=True, highlight=False)
        ended = result.stopped not in ("interrupted", "error", "budget")
        again = "" if ended else f"; go on with: trace-core resume {run.id}"
        console.print(f"run: {run.id} in {run.ledger.path}{again}", soft_wrap=True, highlight=False, markup=False)
    if result.error is not None:
        raise result.error
    return result


@contextlib.contextmanager
def _kept(out: Path, run: Run | None) -> Iterator[None]:
    """Raise CliError where the results cannot be written."""
    try:
        yield
    except OSError as error:
        there = "" if run is None else f"; the ledger has them: trace-core best {run.id}"
        raise CliError(f"the results cannot be kept in {out}: {error}{there}") from error


def _best(run: Run | None) -> str:
    """Id of the candidate that holds now; the seed's has its own measurement already."""
    return "best" if run is None else str(run.row().best)


def _cost(meters: dict[str, Metered]) -> str:
    costs = [meter.cost for meter in {id(m): m for m in meters.values()}.values()]
    known = [cost for cost in costs if cost is not None]
    return f"cost ${sum(known):.4f}" if len(known) == len(costs) else "cost unknown"


def _save(out: Path, optimizer: Optimizer, result: Result) -> None:
    """The best values and the history, readable by people and by ``state.read``."""
    _save_values(out, {name: result.best[parameter] for parameter, name in optimizer.names.items()})
    events = [
        {
            "kind": event.kind,
            "step": event.step,
            "score": event.score,
            "note": event.note,
            "reason": event.proposal.reason if event.proposal else "",
            "dropped": [repr(item) for item in event.proposal.dropped] if event.proposal else [],
        }
        for event in result.history
    ]
    (out / "history.json").write_text(json.dumps(events, indent=1), encoding="utf-8")


def _save_values(out: Path, values: dict[str, Any]) -> None:
    from trace_core.state import write

    write(values, out / "best.json")
