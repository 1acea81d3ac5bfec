# ruff: noqa: T201 - a script: its table is its output
"""What the framework adds to an evaluation, and how near the ideal many slow ones run at once: beside gepa and optuna.

    python benchmarks/engine.py [--json out.json] [--quick]

Needs the extra ``bench``. Per evaluation: CPU milliseconds of a whole run whose workflow, metric and model do nothing,
divided by its examples evaluated (optuna: by its trials), with and without a store. All in one process, in turns, the
least of several rounds. Rollouts: wall-clock seconds for 1000 waits of 50 ms with 64 at once; the ideal is 16 rounds of
them. gepa leaves running at once to its adapters and has no figure there; optuna runs with n_jobs=64, in memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from _peers import gepa_seconds, optuna_seconds, optuna_study

import trace_core as tc
from trace_core.integrations.engines import AsyncEngine, ThreadEngine
from trace_core.integrations.store import Ledger
from trace_core.optimizers import Optimizer, Proposal, optimize
from trace_core.optimizers.evaluation import evaluate

BARS = {"without": 0.1, "with": 0.3}  # ms for one evaluation
WAIT, AT_ONCE = 0.05, 64


class Counting(Optimizer):
    """Proposes the next number."""

    def propose(self, traces: Any = None, n: int = 1) -> list[Proposal]:
        return [Proposal({p: p.value + 1 for p in self.parameters}) for _ in range(n)]


def workflow_of(quality: tc.Parameter) -> Callable[[int], tc.Node]:
    return lambda example: quality + example


def metric(output: int, example: int) -> float:
    return (output * 7 % 100) / 100


def ours_seconds(evaluations: int, examples: int, ledger: Path | None) -> tuple[float, int]:
    """(CPU seconds, evaluations) of a run of the loop."""
    quality = tc.Parameter(0, name="quality")
    done = 0

    def count(event: Any) -> None:
        nonlocal done
        done += event.kind == "evaluated"

    options: dict[str, Any] = {"steps": evaluations // (examples + 6), "batch_size": 3, "perfect": None}
    began = time.process_time()
    if ledger is None:
        optimize(
            workflow_of(quality),
            metric,
            list(range(examples)),
            optimizer=Counting([quality]),
            on_event=count,
            **options,
        )
    else:
        with Ledger.open(ledger) as book:
            run = book.new_run("bench", fingerprint={}, config={})
            optimize(
                workflow_of(quality),
                metric,
                list(range(examples)),
                optimizer=Counting([quality]),
                on_event=count,
                run=run,
                **options,
            )
    return time.process_time() - began, done


def bare_ms(count: int) -> float:
    """One traced evaluation by itself: workflow, metric, trace."""
    quality = tc.Parameter(0, name="quality")
    workflow = workflow_of(quality)
    began = time.process_time()
    for example in range(count):
        evaluate(workflow, metric, example)
    return (time.process_time() - began) / count * 1e3


def overhead(quick: bool) -> dict[str, float]:
    size, rounds = (1500, 2) if quick else (5000, 4)
    found: dict[str, list[float]] = {}

    def note(name: str, cpu: float, count: int) -> None:
        found.setdefault(name, []).append(cpu / count * 1e3)

    for number in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            note("trace_core, without", *ours_seconds(size, 20, None))
            note("trace_core, with", *ours_seconds(size, 20, folder / f"l{number}.sqlite"))
            note("gepa, without", *gepa_seconds(size, 20))
            if number < 2:
                note("gepa, with", *gepa_seconds(size, 20, folder))
                note("optuna, with", optuna_seconds(optuna_study(folder), 100)[0], 100)
            note("optuna, without", optuna_seconds(optuna_study(), size // 5)[0], size // 5)
            found.setdefault("(of ours: workflow, metric and trace)", []).append(bare_ms(size))
    return {name: min(values) for name, values in found.items()}


async def waits_async(number: int) -> int:
    await asyncio.sleep(WAIT)
    return number


def waits(number: int) -> int:
    time.sleep(WAIT)
    return number


def rollouts(quick: bool) -> dict[str, float]:
    count, rounds = (320, 2) if quick else (1000, 3)
    ideal = -(-count // AT_ONCE) * WAIT

    def once(engine: Any, work: Any) -> float:
        with engine:
            began = time.perf_counter()
            futures = [engine.submit(work, number) for number in range(count)]
            if [future.result() for future in futures] != list(range(count)):
                raise SystemExit("wrong results")
            return time.perf_counter() - began

    def optuna() -> float:
        study = optuna_study()
        began = time.perf_counter()
        study.optimize(lambda trial: float(waits(0)), n_trials=count, n_jobs=AT_ONCE)
        return time.perf_counter() - began

    sides: dict[str, Callable[[], float]] = {
        "trace_core, AsyncEngine(64)": lambda: once(AsyncEngine(AT_ONCE), waits_async),
        "trace_core, ThreadEngine(64)": lambda: once(ThreadEngine(AT_ONCE), waits),
        "trace_core, ThreadEngine(64, timeout=60)": lambda: once(ThreadEngine(AT_ONCE, timeout=60), waits),
        "optuna, n_jobs=64": optuna,
    }
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(rounds):
        for name, side in sides.items():
            best[name] = min(best[name], side() / ideal)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    per_evaluation, waiting = overhead(options.quick), rollouts(options.quick)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores, load {load:.1f}")
    print("CPU ms for one evaluation, without or with a store")
    for name, value in per_evaluation.items():
        print(f"  {name:<44} {value:.4f}")
    print("1000 rollouts of 50 ms, 64 at once: wall-clock time over the ideal")
    for name, value in waiting.items():
        print(f"  {name:<44} {100 * (value - 1):+.1f} %")
    for name, bar in BARS.items():
        value = per_evaluation[f"trace_core, {name}"]
        print(f"{name} the ledger <= {bar} ms: {'met' if value <= bar else 'MISSED'} ({value:.4f})")
    ours = min(value for name, value in waiting.items() if name.startswith("trace_core"))
    print(f"within 5 % of the ideal: {'met' if ours <= 1.05 else 'MISSED'} ({100 * (ours - 1):+.1f} %)")
    if options.json:
        options.json.write_text(json.dumps({"evaluation": per_evaluation, "rollouts": waiting}, indent=1))


if __name__ == "__main__":
    main()
