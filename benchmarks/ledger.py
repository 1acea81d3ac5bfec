# ruff: noqa: T201 - a script: its table is its output
"""What writing down a run costs, and whether it grows: the ledger beside gepa's state file and optuna's SQLite storage.

    python benchmarks/ledger.py [--json out.json] [--quick]

Needs the extra ``bench``. Ours are medians over 1000 appends each, each committed by itself, in one file that grows
to the number of rows on the left. gepa writes its whole state with each iteration; the figure is its saving alone, in a
run with as many evaluations. optuna's is one trial (ask, suggest, tell). Wall-clock milliseconds, one process.
"""

from __future__ import annotations

import argparse
import json
import platform
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from _peers import gepa_seconds, optuna_seconds, optuna_study

from trace_core.integrations.budget import Cost
from trace_core.integrations.store import EvaluationRow, EventRow, Ledger

BAR = 0.2  # ms for one append
SAMPLE = 1000


def timed(work: Callable[[int], Any], first: int, count: int = SAMPLE) -> list[float]:
    times = []
    for number in range(first, first + count):
        began = time.perf_counter()
        work(number)
        times.append((time.perf_counter() - began) * 1e3)
    return times


def ours(folder: Path, sizes: list[int]) -> list[dict[str, Any]]:
    rows = []
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        run = ledger.new_run("bench", fingerprint={}, config={})
        state = {"queue": list(range(20)), "random": list(range(625)), "memory": ["x" * 200] * 8}

        def evaluation(number: int) -> None:
            run.put_evaluation(EvaluationRow(str(number % 500), f"train {number}", 0, 0.5, None, "too long by 3"))

        def call(number: int) -> None:
            ledger.begin_call(f"k{number}", "workflow", "hash", Cost(0.1, 100, 1), run=run.id, model="m")
            ledger.finish_call(f"k{number}", Cost(0.1, 80, 1), result="{}" * 100)

        kinds: dict[str, Callable[[int], Any]] = {
            "evaluation": evaluation,
            "event": lambda number: run.put_event(EventRow(number // 8, number % 8, "gated", {"score": 0.5})),
            "call (intent + result)": call,
            "step with state": lambda number: run.save_step(number, 0.5, {"prompt": "x" * 200}, state),
        }
        done = 0
        for size in sizes:
            with ledger.transaction():  # filled up quickly; what is measured is committed one by one
                while done < size:
                    evaluation(done)
                    call(done)
                    done += 1
            row: dict[str, Any] = {"rows": size}
            for name, work in kinds.items():
                times = timed(work, 1_000_000 + size)
                row[name] = median(times)
                row[f"{name}, mean"] = sum(times) / len(times)
            rows.append(row)
        if ledger.check() != ["ok"]:
            raise SystemExit("the ledger is damaged")
    return rows


def peers(folder: Path, quick: bool) -> list[dict[str, Any]]:
    rows = []
    for evaluations in (500, 2000) if quick else (500, 2000, 8000):
        place = folder / f"gepa-{evaluations}"
        place.mkdir()
        without, _ = gepa_seconds(evaluations, 20)
        within, made = gepa_seconds(evaluations, 20, place)
        iterations = max(1, made // 26)  # a minibatch of 3 twice and a validation of 20
        size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        rows.append(
            {"peer": "gepa, saving its state", "rows": made, "ms": (within - without) / iterations * 1e3, "bytes": size}
        )
    study = optuna_study(folder)
    for trials in (50, 100) if quick else (100, 400):
        before = len(study.get_trials(deepcopy=False))
        _, wall = optuna_seconds(study, trials)
        rows.append({"peer": "optuna, SQLite, one trial", "rows": before + trials, "ms": wall / trials * 1e3})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    sizes = [0, 5_000] if options.quick else [0, 20_000, 100_000]
    with tempfile.TemporaryDirectory() as name:
        table = ours(Path(name), sizes)
        beside = peers(Path(name), options.quick)
    kinds = [key for key in table[0] if key != "rows" and not key.endswith("mean")]
    print(f"{platform.platform()}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}")
    print(f"{'rows':>8}  " + "  ".join(f"{kind:>24}" for kind in kinds) + "   median (mean), ms")
    for row in table:
        cells = [f"{row[kind]:.3f} ({row[f'{kind}, mean']:.3f})" for kind in kinds]
        print(f"{row['rows']:>8}  " + "  ".join(f"{cell:>24}" for cell in cells))
    for row in beside:
        size = f", {row['bytes'] / 1e6:.1f} MB" if "bytes" in row else ""
        print(f"{row['peer']}: {row['ms']:.2f} ms at {row['rows']}{size}")
    worst = max(row[kind] for row in table for kind in kinds if kind != "step with state")
    growth = max(table[-1][kind] / table[0][kind] for kind in kinds)
    print(f"append <= {BAR} ms: {'met' if worst <= BAR else 'MISSED'} (worst {worst:.3f})")
    print(f"flat from {sizes[0]} to {sizes[-1]} rows: {growth:.2f} times at most")
    if options.json:
        options.json.write_text(json.dumps({"ours": table, "peers": beside}, indent=1))


if __name__ == "__main__":
    main()
