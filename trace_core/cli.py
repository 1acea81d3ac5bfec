"""The ``trace-core`` command: the composition root. Nothing imports this module; it may import every room."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from trace_core._target import CliError, Workflow, find_parameters, load_object
from trace_core._version import __version__
from trace_core.errors import TraceCoreError
from trace_core.integrations.engines.choose import NAMES
from trace_core.optimizers.run_commands import best, export, report, runs, show, store_option
from trace_core.optimizers.run_options import Models, budget_of, budget_options, model_options
from trace_core.optimizers.search.search import PARENTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from trace_core.integrations.store import Run
    from trace_core.optimizers.base import Optimizer


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


# ---- what the commands share


def _console() -> Console:
    from rich.console import Console

    return Console()


def _default_out(name: str) -> Path:
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"


@contextmanager
def _recorded(
    store: Path, name: str, config: dict[str, Any], fingerprint: dict[str, str], resume: tuple[str, str] | None
) -> Iterator[Run]:
    """A new run of the ledger, or the one to resume with what to do about drift; open for writing until the end."""
    from trace_core.integrations.store import Ledger, StoreError, interruptible

    try:
        store.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"the ledger {store} cannot be made: {error}; give another place with --store") from error
    with Ledger.open(store) as ledger:
        if resume is None:
            run = ledger.new_run(name, fingerprint=fingerprint, config=config)
        else:
            run = ledger.resume(resume[0], fingerprint=fingerprint, on_drift=resume[1])
        try:
            with interruptible(ledger):
                yield run
        except BaseException as error:
            if run.row().status == "running":
                stopped = "interrupted" if isinstance(error, KeyboardInterrupt) else "error"
                run.end("interrupted" if stopped == "interrupted" else "failed", stopped=stopped, error=str(error))
            raise


# ---- demo


@cli.command()
@click.option(
    "--llm", default=None, help="Model, e.g. openai/gpt-4.1-mini; default: a provider key if set, else local."
)
@click.option("--seed", default=0, show_default=True, help="Of the data split and the sampling.")
@click.option("--steps", default=9, show_default=True, type=click.IntRange(min=1))
@budget_options
@model_options
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder for the results [runs/TIME-demo].")
def demo(llm: str | None, seed: int, steps: int, out: Path | None, **options: Any) -> None:
    """Optimize a small workflow with a prompt, a function and a number on real data."""
    from trace_core.examples import review_ratings
    from trace_core.integrations.llm import fetch_model
    from trace_core.integrations.llm.meter import Metered
    from trace_core.optimizers import OptoPrime, Search
    from trace_core.optimizers.running import Means, Settings, Task, run_task

    console = _console()
    models, budget = Models(options), budget_of(options)
    model = models.get(llm)
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
    folder = out or _default_out("demo")
    search = Search(**review_ratings.SEARCH)
    settings = Settings(search, steps, seed, None, review_ratings.SECONDS, folder)
    config = {"command": "demo", "seed": seed}
    with (
        _recorded(folder / "ledger.sqlite", "demo", config, {"model": model.model}, None) as run,
        models.in_force(),
    ):
        run_task(console, task, optimizer, meters, settings, Means(run, budget))


# ---- optimize


@cli.command()
@click.argument("workflow", metavar="MODULE:WORKFLOW")
@click.option("--data", required=True, help="JSON Lines file with one example on each line.")
@click.option(
    "--metric", required=True, metavar="MODULE:METRIC", help="metric(output, example) -> score or (score, text)."
)
@click.option("--llm", default=None, help="Model of the optimizer; default: a provider key if set, else local.")
@click.option(
    "--optimizer", type=click.Choice(["optoprime", "opro", "textgrad"]), default="optoprime", show_default=True
)
@click.option("--search", type=click.Choice(tuple(PARENTS)), default="pareto", show_default=True, help="By which rule.")
@click.option("--in-flight", default=1, show_default=True, type=click.IntRange(min=1), help="Steps at work at once.")
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
@budget_options
@model_options
@click.option("--dry-run", is_flag=True, help="Say what the run may take at most, and spend nothing.")
@click.option("--probe", is_flag=True, help="With --dry-run: evaluate one example, to see what the workflow asks.")
@click.option("--engine", default=None, type=click.Choice(NAMES), help="Where examples run; default: one by one here.")
@click.option(
    "--workers", default=4, show_default=True, type=click.IntRange(min=1), help="Examples at once, with --engine."
)
@click.option("--timeout", default=None, type=click.FloatRange(min=0, min_open=True), help="Seconds for one example.")
@store_option
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder for the results [runs/TIME-NAME].")
def optimize(store: Path, out: Path | None, **options: Any) -> None:
    """Optimize the parameters of your own workflow.

    MODULE is an importable module or a .py file, WORKFLOW a Module instance or class, a bundle, or a function that
    returns a node. Each example's fields are passed by name if they match the workflow's arguments, else the example as
    a whole. The run is kept in the ledger: one that was killed goes on with `trace-core resume RUN`.
    """
    if options["probe"] and not options["dry_run"]:
        raise CliError("--probe is for --dry-run: a run evaluates its examples anyway")
    folder = out or _default_out(options["workflow"].rpartition(":")[2])
    config = {"command": "optimize", "options": options, "out": str(folder), "folder": str(Path.cwd())}
    _optimize(store, config, None)


def _optimize(store: Path, config: dict[str, Any], resume: tuple[str, str] | None) -> None:
    """The run that ``config`` describes, from its beginning or resumed."""
    from dataclasses import replace

    from trace_core import optimizers
    from trace_core.integrations.accounting import account, no_calls, place
    from trace_core.integrations.data import load_jsonl, split
    from trace_core.integrations.engines.choose import engine_named
    from trace_core.integrations.llm.meter import Metered
    from trace_core.integrations.store import fingerprint
    from trace_core.optimizers.estimate import estimate, probe
    from trace_core.optimizers.remote import ImportedMetric, ImportedWorkflow
    from trace_core.optimizers.running import Means, Settings, Task, run_task
    from trace_core.optimizers.search.search import described, search_from

    o = SimpleNamespace(**config["options"])
    if o.validation + o.held_out >= 1:
        raise CliError(f"--validation and --held-out leave nothing to train on: {o.validation} + {o.held_out} >= 1")
    models, budget = Models(config["options"]), budget_of(config["options"])
    with models.in_force():
        load_object(o.workflow, "workflow")
        score = ImportedMetric(o.metric)
        examples = load_jsonl(o.data)
        call = ImportedWorkflow(o.workflow, examples)
    models.check_held(call.target, score.target)
    parts = split(examples, (1 - o.validation - o.held_out, o.validation, o.held_out), o.seed)
    console = _console()
    model = Metered(models.get(o.llm))
    search = replace(
        search_from(o.search),
        batch_size=o.batch_size,
        in_flight=o.in_flight,
        proposals=o.proposals,
        patience=o.patience,
    )
    kept = ("optimizer", "objective", "validation", "held_out", "seed")
    parts_of = fingerprint(
        code={"workflow": call, "metric": score},
        data={"data": examples},
        config={
            "model": model.model,
            "search": described(search),
            **{name: config["options"].get(name) for name in kept},
        },
    )
    name = o.workflow.rpartition(":")[2]

    def prepare() -> Optimizer:
        chosen = {"optoprime": optimizers.OptoPrime, "opro": optimizers.OPRO, "textgrad": optimizers.TextGrad}
        parameters = find_parameters(call, parts[0][0])
        return chosen[o.optimizer](parameters, model, objective=o.objective, seed=o.seed)

    if getattr(o, "dry_run", False):
        sizes = {"train": len(parts[0]), "validation": len(parts[1]), "held_out": len(parts[2])}
        with models.in_force():
            per_example = probe(call, score, parts[0][0]) if o.probe else None
            with nullcontext() if o.probe else no_calls("a dry run asks no language model; --probe allows one example"):
                optimizer = prepare()
            bounds = estimate(
                optimizer,
                **sizes,
                steps=o.steps,
                batch_size=o.batch_size,
                proposals=o.proposals,
                per_example=per_example,
            )
        console.print(bounds.describe(), markup=False, highlight=False)
        return
    with (
        models.in_force(),
        _recorded(store, name, config, parts_of, resume) as run,
        engine_named(o.engine, o.workers, o.timeout) as engine,
    ):
        with account(run=run, budget=budget), place("workflow", "parameters"):
            optimizer = prepare()
        count = len(optimizer.parameters)
        console.print(
            f"{count} parameter{'s' * (count != 1)}: {', '.join(optimizer.names.values())}",
            markup=False,
            highlight=False,
        )
        if call.note:
            console.print(call.note, markup=False, highlight=False)
        settings = Settings(search, o.steps, o.seed, o.seconds, None, Path(config["out"]))
        task = Task(name, call, score, *parts)
        run_task(console, task, optimizer, {"optimizer": model}, settings, Means(run, budget, engine))


# ---- runs


for _command in (runs, show, best, report, export):
    cli.add_command(_command)


@cli.command()
@click.argument("run")
@store_option
@click.option(
    "--on-drift",
    type=click.Choice(["refuse", "fork"]),
    default="refuse",
    show_default=True,
    help="Where code, data or settings have changed: refuse, or go on as a new run from the last step.",
)
@click.option("--steps", default=None, type=click.IntRange(min=1), help="Steps in all, in place of those at the start.")
@budget_options
def resume(run: str, store: Path, on_drift: str, **changed: Any) -> None:
    """Go on with a run that was killed, interrupted or stopped: RUN is its id, the beginning of it, or latest.

    It is run in the folder where it was started. What was paid for is not paid for again. A budget takes the place of
    the one at the start, and counts for all parts of the run together.
    """
    from trace_core.integrations.store import Ledger, Run

    with Ledger.open(store, read_only=True) as ledger:
        found = ledger.find_run(run)
        config = Run(ledger, found).row().config
    if config.get("command") != "optimize":
        raise CliError(
            f"the run {found} was not made by `trace-core optimize`: resume it from the program that made it"
        )
    if "search" not in config["options"]:
        raise CliError(f"the run {found} was made by an earlier version, whose search is another one: start a new run")
    if config["options"].get("cassette"):
        raise CliError(
            f"the run {found} used the cassette {config['options']['cassette']}, whose answers go by their order: "
            "start it again, with --cassette-mode extend to ask only for what is not recorded yet"
        )
    config["options"].update({name: value for name, value in changed.items() if value is not None})
    path = store.absolute()
    try:
        os.chdir(config["folder"])
    except OSError as error:
        raise CliError(f"the run {found} was started in a folder that cannot be entered now: {error}") from error
    _optimize(path, config, (found, on_drift))


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
