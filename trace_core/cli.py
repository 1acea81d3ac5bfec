"""The ``trace-core`` command: the composition root. Nothing imports this module; it may import every room."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from trace_core._target import CliError, Workflow, find_parameters, load_object
from trace_core._version import __version__
from trace_core.errors import TraceCoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from trace_core.integrations.llm.meter import Metered
    from trace_core.node import Node
    from trace_core.optimizers.base import Optimizer
    from trace_core.optimizers.loop import Event, Result
    from trace_core.trace import Trace


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="trace-core")
def cli() -> None:
    """Trace a Python workflow and let optimizers improve its prompts, code and numbers from feedback."""


def main() -> None:
    """Entry point: errors of ours are one message and exit code 2; Ctrl-C is exit code 130."""
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except TraceCoreError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)


# ---- what both commands share


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


def run_task(
    console: Console, task: Task, optimizer: Optimizer, meters: dict[str, Metered], settings: Settings
) -> Result:
    """Held-out score, optimization, held-out score again; prints both, the diffs, and where everything is kept."""
    from trace_core.optimizers.console import RunProgress, print_diffs, score_table
    from trace_core.optimizers.loop import evaluate, optimize
    from trace_core.optimizers.report import write_report

    def held_out() -> tuple[float, Trace | None]:
        results = [evaluate(task.workflow, task.metric, x, f"held-out {i}") for i, x in enumerate(task.held_out)]
        return sum(s for _, s in results) / max(1, len(results)), results[0][0] if results else None

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
    before, _ = held_out()
    seconds = settings.seconds
    if settings.total_seconds is not None:  # leave room for the last step to run over and for measuring again
        measuring = time.monotonic() - began
        seconds = max(60.0, settings.total_seconds - 2 * measuring - 45.0)
    if task.held_out:
        console.print(f"held-out score before: {before:.3f}")

    def follow(event: Event) -> None:
        progress(event)
        if event.kind == "accepted":  # a run that is killed leaves the best so far
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
        )
    _save(settings.out, optimizer, result)
    scores = {"validation": (result.start_score, result.score)}
    trace: Trace | None = None
    if result.stopped in ("interrupted", "error"):
        console.print(f"{result.stopped}: the best so far is kept; the held-out score was not measured again")
    else:
        try:
            after, trace = held_out()
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
    console.print("; ".join(facts), markup=False, highlight=False)
    report = write_report(
        settings.out / "report.html",
        result,
        title=task.name,
        facts=[time.strftime("%Y-%m-%d %H:%M"), *facts],
        names=optimizer.names,
        scores=scores,
        trace=trace,
    )
    console.print(f"best values: {settings.out / 'best.json'}", soft_wrap=True, highlight=False)
    console.print(f"report: {report}", soft_wrap=True, highlight=False)
    if result.error is not None:
        raise result.error
    return result


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


def _console() -> Console:
    from rich.console import Console

    return Console()


def _default_out(name: str) -> Path:
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"


# ---- demo


@cli.command()
@click.option(
    "--llm", default=None, help="Model, e.g. openai/gpt-4.1-mini; default: a provider key if set, else local."
)
@click.option("--seed", default=0, show_default=True, help="Of the data split and the sampling.")
@click.option("--steps", default=9, show_default=True, type=click.IntRange(min=1))
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder for the results [runs/TIME-demo].")
def demo(llm: str | None, seed: int, steps: int, out: Path | None) -> None:
    """Optimize a small workflow with a prompt, a function and a number on real data."""
    from trace_core.examples import review_ratings
    from trace_core.integrations.llm import fetch_model, resolve_llm
    from trace_core.integrations.llm.meter import Metered
    from trace_core.optimizers import OptoPrime

    console = _console()
    model = resolve_llm(llm)
    if getattr(model, "is_local", False) and llm in (None, "local"):
        fetch_model(progress=lambda state: console.print(str(state), highlight=False))
    console.print(f"language model: {model.describe() if hasattr(model, 'describe') else model.model}", highlight=False)
    console.print(review_ratings.ABOUT, highlight=False)
    if getattr(model, "is_local", False):
        console.print("no key needed; this takes about 4 minutes on 2 cores (Ctrl-C keeps the best so far)")
        with console.status("loading the model"):
            model.start()  # type: ignore[attr-defined]
    meters = {"workflow": Metered(model), "optimizer": Metered(model)}
    workflow = review_ratings.ReviewRater(meters["workflow"])
    train, validation, held_out = review_ratings.load(seed)
    optimizer = OptoPrime(workflow, meters["optimizer"], seed=1000 * seed, **review_ratings.OPTIMIZER)
    task = Task("review ratings", Workflow(workflow, train), review_ratings.metric, train, validation, held_out)
    settings = Settings(steps, 8, 3, seed, None, review_ratings.SECONDS, 6, out or _default_out("demo"))
    run_task(console, task, optimizer, meters, settings)


# ---- optimize


@cli.command()
@click.argument("workflow", metavar="MODULE:WORKFLOW")
@click.option("--data", required=True, help="JSON Lines file with one example on each line.")
@click.option(
    "--metric", required=True, metavar="MODULE:METRIC", help="metric(output, example) -> score or (score, text)."
)
@click.option("--llm", default=None, help="Model of the optimizer; default: a provider key if set, else local.")
@click.option(
    "--optimizer", "kind", type=click.Choice(["optoprime", "opro", "textgrad"]), default="optoprime", show_default=True
)
@click.option("--steps", default=10, show_default=True, type=click.IntRange(min=1))
@click.option("--batch-size", default=4, show_default=True, type=click.IntRange(min=1))
@click.option("--proposals", default=1, show_default=True, type=click.IntRange(min=1), help="Asked for in each step.")
@click.option("--objective", default=None, help="What is wanted of the workflow, in words.")
@click.option(
    "--validation", default=0.3, show_default=True, type=click.FloatRange(0, 1), help="Share of the examples."
)
@click.option("--held-out", default=0.2, show_default=True, type=click.FloatRange(0, 1), help="Share of the examples.")
@click.option("--seconds", default=None, type=click.FloatRange(min=0), help="Start no new step after so many.")
@click.option(
    "--patience", default=None, type=click.IntRange(min=1), help="Stop after so many steps without an improvement."
)
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder for the results [runs/TIME-NAME].")
def optimize(
    workflow: str,
    data: str,
    metric: str,
    llm: str | None,
    kind: str,
    steps: int,
    batch_size: int,
    proposals: int,
    objective: str | None,
    validation: float,
    held_out: float,
    seconds: float | None,
    patience: int | None,
    seed: int,
    out: Path | None,
) -> None:
    """Optimize the parameters of your own workflow.

    MODULE is an importable module or a .py file, WORKFLOW a Module instance or class, a bundle, or a function that
    returns a node. Each example's fields are passed by name if they match the workflow's arguments, else the example as
    a whole.
    """
    from trace_core import optimizers
    from trace_core.integrations.data import load_jsonl, split
    from trace_core.integrations.llm import resolve_llm
    from trace_core.integrations.llm.meter import Metered

    if validation + held_out >= 1:
        raise CliError(f"--validation and --held-out leave nothing to train on: {validation} + {held_out} >= 1")
    target = load_object(workflow, "workflow")
    score = load_object(metric, "metric")
    if not callable(score):
        raise CliError(f"metric {metric!r} must be a function metric(output, example), got {type(score).__name__}")
    examples = load_jsonl(data)
    parts = split(examples, (1 - validation - held_out, validation, held_out), seed)
    console = _console()
    call = Workflow(target, examples)
    parameters = find_parameters(call, parts[0][0])
    model = Metered(resolve_llm(llm))
    chosen = {"optoprime": optimizers.OptoPrime, "opro": optimizers.OPRO, "textgrad": optimizers.TextGrad}[kind]
    optimizer = chosen(parameters, model, objective=objective, seed=seed)
    count = len(optimizer.parameters)
    console.print(
        f"{count} parameter{'s' * (count != 1)}: {', '.join(optimizer.names.values())}", markup=False, highlight=False
    )
    if call.note:
        console.print(call.note, markup=False, highlight=False)
    name = workflow.rpartition(":")[2]
    settings = Settings(steps, batch_size, proposals, seed, seconds, None, patience, out or _default_out(name))
    run_task(console, Task(name, call, score, *parts), optimizer, {"optimizer": model}, settings)


# ---- model


@cli.group()
def model() -> None:
    """The embedded local model."""


@model.command("fetch")
@click.argument("name", default="qwen2.5-coder-1.5b")
def model_fetch(name: str) -> None:
    """Download a model file once, check it, and print its path."""
    from trace_core.integrations.llm import fetch_model

    click.echo(str(fetch_model(name, progress=lambda state: click.echo(str(state), err=True))))


if __name__ == "__main__":
    main()
