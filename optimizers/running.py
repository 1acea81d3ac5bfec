"""One task from the command line's point of view: search, measure before and after, print, keep."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from trace_core._target import CliError
from trace_core.integrations.budget import Budget
from trace_core.optimizers.console import print_diffs, score_table
from trace_core.optimizers.live import StudyProgress
from trace_core.optimizers.report import write_run_page
from trace_core.optimizers.search import Study

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import Executor
    from pathlib import Path

    from rich.console import Console

    from trace_core.integrations.llm.meter import Metered
    from trace_core.integrations.store import Run
    from trace_core.node import Node
    from trace_core.optimizers.base import Optimizer
    from trace_core.optimizers.search import Event, Search, StudyResult


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

    search: Search
    steps: int
    seed: int
    seconds: float | None
    total_seconds: float | None  # for everything, the measurements on held-out data included
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
) -> StudyResult:
    """A study, and the held-out scores of its seed and best; prints scores, diffs, and where everything is kept."""
    out, run, budget = settings.out, means.run, means.budget or Budget()  # without limits: for what is shown
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CliError(f"the results cannot be kept in {out}: {error}; choose another folder with --out") from error
    console.print(
        f"{len(task.train)} training, {len(task.validation)} validation, {len(task.held_out)} held-out examples"
    )
    study = Study(
        task.workflow,
        task.metric,
        task.train,
        task.validation,
        task.held_out,
        optimizer=optimizer,
        search=settings.search,
        budget=budget,
        store=run,
        engine=means.engine,
        seed=settings.seed,
        steps=settings.steps,
        seconds=settings.seconds,
    )

    def keep_best(event: Event) -> None:
        if event.kind == "new_best" and study.best is not None:  # a run that is killed leaves the best so far
            with contextlib.suppress(OSError):  # told at the end, which writes it again
                _save_values(out, study.best.values)

    alarm = _Alarm(study, task, settings.total_seconds)
    with StudyProgress(console, budget=budget, steps=settings.steps) as progress:
        study.callbacks += [progress, keep_best, alarm]
        steps = list(run.steps()) if run is not None else []
        if run is not None and steps and steps[0].score is not None and steps[-1].score is not None:
            progress.goes_on(steps[0].score, run.row().best or "0", steps[-1].score)
        result = study.run()
    with _kept(out, run, result.error):
        _save(out, optimizer, result)
    stopped = "seconds" if alarm.rang and result.stopped == "stopped" else result.stopped
    early = stopped in ("interrupted", "error", "budget")
    why = f" ({result.why})" if stopped == "budget" else ""
    scores: dict[str, tuple[float, float]] = {}
    if result.start_score is not None and result.score is not None:
        scores["validation"] = (result.start_score, result.score)
    if task.held_out and result.test_start is not None and result.test_score is not None:
        scores["held-out"] = (result.test_start, result.test_score)
    elif task.held_out:
        console.print(f"{stopped}: the best so far is kept; the held-out score was not measured", markup=False)
    console.print(score_table(scores, task.name))
    print_diffs(console, result.changed)
    for text, count in result.failures.items():
        console.print(f"{count} outputs failed: {text}", markup=False)
    facts = [f"{role}: {m.calls} calls, {m.tokens:,} tokens" for role, m in meters.items()]
    facts += [_cost(meters), f"{result.steps} steps, {result.seconds:.0f} s", f"stopped: {stopped}{why}"]
    if means.budget is not None:
        facts.append(f"budget: {budget.describe()}")
    console.print("; ".join(facts), markup=False, highlight=False)
    console.print(f"best values: {out / 'best.json'}", soft_wrap=True, highlight=False)
    if run is not None:
        with _kept(out, run, result.error):
            report = write_run_page(run, out / "report.html")
        console.print(f"report: {report}", soft_wrap=True, highlight=False)
        again = f"; go on with: trace-core resume {run.id}" if early else ""
        console.print(f"run: {run.id} in {run.ledger.path}{again}", soft_wrap=True, highlight=False, markup=False)
    if result.error is not None:
        raise result.error
    return result


class _Alarm:
    """Stops a study so early that there is time left for measuring on held-out data; a callback of it.

    How long that takes is told by the validation of the seed; a ticket under way gets 45 s.
    """

    def __init__(self, study: Study, task: Task, total: float | None) -> None:
        self._study, self._total, self._began, self._until = study, total, time.monotonic(), float("inf")
        self._share = 2 * len(task.held_out) / len(task.validation or task.train)
        self.rang = False

    def __call__(self, event: Event) -> None:
        """Take an event in."""
        if self._total is None:
            return
        now = time.monotonic() - self._began
        if event.kind == "started":
            self._until = max(60.0, self._total - self._share * now - 45.0)
        elif event.kind in ("accepted", "rejected") and now > self._until:
            self.rang = True
            self._study.stop()


@contextlib.contextmanager
def _kept(out: Path, run: Run | None, before: BaseException | None) -> Iterator[None]:
    """Raise CliError where the results cannot be written, or the error ``before`` that ended the run."""
    try:
        yield
    except OSError as error:
        if before is not None:
            raise before from error
        there = "" if run is None else f"; the ledger has them: trace-core best {run.id}"
        raise CliError(f"the results cannot be kept in {out}: {error}{there}") from error


def _cost(meters: dict[str, Metered]) -> str:
    costs = [meter.cost for meter in {id(m): m for m in meters.values()}.values()]
    known = [cost for cost in costs if cost is not None]
    return f"cost ${sum(known):.4f}" if len(known) == len(costs) else "cost unknown"


def _save(out: Path, optimizer: Optimizer, result: StudyResult) -> None:
    """The best values and the history, readable by people and by ``state.read``."""
    now = {name: parameter.value for parameter, name in optimizer.names.items()}
    _save_values(out, result.best.values if result.best is not None else now)
    events = [{"kind": event.kind, **asdict(event)} for event in result.history]
    (out / "history.json").write_text(json.dumps(events, indent=1), encoding="utf-8")


def _save_values(out: Path, values: Mapping[str, Any]) -> None:
    from trace_core.state import write

    write(values, out / "best.json")
