# ruff: noqa: T201 - a script: its table is its output
"""Robust decisions: how good they are, and what they cost.

    python benchmarks/neur2ro.py exact                     (a) 32 published knapsacks and capital budgeting, certified
    python benchmarks/neur2ro.py exact --sizes 20 --json out.json
    python benchmarks/neur2ro.py blackbox                  (c) knapsacks that can only be run, beside random search
    python benchmarks/neur2ro.py --quick                   every part on few instances

One process, one thread. Budgets and times are CPU seconds of this process, so that a loaded machine does not change the
table; where a budget ends inside the solver, whose limit is wall time, less CPU time was used. RE is the relative error
100 (best known - worst case) / best known, the worst case evaluated exactly; negative where the answer is better than
the best known.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from _robust_problems import FAMILIES, Knapsack, capital, generate, published

from trace_core.nodes.decision import Budget
from trace_core.optimizers.decision import ExactSolver, Neur2RO
from trace_core.optimizers.decision.adversary import ConcaveAdversary

Row = dict[str, Any]


def summary(values: list[float]) -> str:
    return f"{median(values):8.3f}{mean(values):8.3f}{max(values):8.3f}"


def exact_knapsack(sizes: list[int], limit: int | None) -> list[Row]:
    rows: list[Row] = []
    print(f"{'':40}{'RE %':>8}{'gap %':>8}{'CPU s':>7}  ended")
    for n in sizes:
        for knapsack, best, proven in published(n)[:limit]:
            problem = knapsack.problem()
            start = time.process_time()
            seconds, gap = (5.0, 1e-6) if n <= 20 else (10.0, 1e-4)
            solver = ExactSolver(problem, problem.recourse, gap=gap, seconds=seconds, clock=time.process_time)
            result = solver.run()
            used = time.process_time() - start
            error = 100 * (best - result.worst_case) / best
            row = {"name": knapsack.name, "n": n, "re": error, "gap": 100 * result.certificate.gap, "cpu": used}
            rows.append({**row, "proven": proven, "stop": result.stop, "worst_case": result.worst_case, "best": best})
            print(f"{knapsack.name:40}{error:8.3f}{row['gap']:8.3f}{used:7.1f}  {result.stop}", flush=True)
    print(f"\n{'knapsack':24}{'median':>8}{'mean':>8}{'max':>8}  of RE %; median gap %, median CPU s")
    for n in sizes:
        mine = [row for row in rows if row["n"] == n]
        rest = f"{median(r['gap'] for r in mine):9.3f}{median(r['cpu'] for r in mine):7.1f}"
        print(f"n = {n}, {len(mine)} instances{'':5}{summary([r['re'] for r in mine])}{rest}")
    larger = [row for row in rows if row["n"] > 20]
    if larger:
        print(f"n > 20, {len(larger)} instances{'':4}{summary([r['re'] for r in larger])}")
        hard = [r for r in larger if not r["proven"]]
        better = sum(r["re"] < -0.01 for r in hard)
        print(f"better than branch and price after three hours on {better} of the {len(hard)} it did not finish")
    return rows


def exact_capital(count: int, sizes: list[int]) -> list[Row]:
    rows: list[Row] = []
    print(f"\n{'capital budgeting':24}{'worst case':>11}{'gap %':>8}{'CPU s':>7}  ended")
    for n in sizes:
        for seed in range(count if n == 10 else 1):
            problem = capital(n, seed).problem()
            start = time.process_time()
            solver = ExactSolver(problem, problem.recourse, gap=1e-3, seconds=60.0, clock=time.process_time)
            result = solver.run()
            used = time.process_time() - start
            gap = 100 * result.certificate.gap
            rows.append({"n": n, "seed": seed, "worst_case": result.worst_case, "gap": gap, "cpu": used})
            print(f"n = {n} seed {seed:<14}{result.worst_case:11.4f}{gap:8.3f}{used:7.1f}  {result.stop}", flush=True)
    small = [row for row in rows if row["n"] == 10]
    good = sum(row["gap"] <= 0.1 for row in small)
    print(f"n = 10: certified gap of at most 0.1 % within 60 s on {good} of {len(small)}")
    return rows


def random_search(knapsack: Knapsack, executions: int, seed: int) -> Any:
    """The decision with the best worst of ten random scenarios, among random decisions."""
    rng, xi = np.random.default_rng(seed), Budget(knapsack.n, gamma=knapsack.gamma)
    best, at = -np.inf, np.zeros(knapsack.n)
    for _ in range(executions // 10):
        x = (rng.uniform(size=knapsack.n) < rng.uniform()).astype(float)
        worst = min(knapsack.second_stage(x, each) for each in xi.sample(10, rng)) + (knapsack.p - knapsack.f) @ x
        if worst > best:
            best, at = worst, x
    return at


def true_error(knapsack: Knapsack, x: Any, best: float) -> float:
    """RE of a decision, its worst case worked out exactly."""
    problem = knapsack.problem()
    attack = ConcaveAdversary(problem.recourse, problem.uncertainty).attack(x, tolerance=1e-6 * abs(best))
    return 100 * (best + problem.value_of(x) + attack.upper) / abs(best)


def black_box(sizes: list[int], instances: int, seeds: int, executions: int) -> list[Row]:
    rows: list[Row] = []
    print(f"\n{'hidden knapsack':44}{'seed':>5}{'learned':>9}{'random':>9}{'CPU s':>7}   RE %, {executions} executions")
    for n in sizes:
        for k in range(instances):
            knapsack = generate(FAMILIES[k % 4], n, share=0.2, spread=0.5, seed=100 + k, top=100)
            problem = knapsack.problem()
            best = (
                ExactSolver(problem, problem.recourse, gap=1e-4, seconds=20.0, clock=time.process_time).run().worst_case
            )
            for seed in range(seeds):
                start = time.process_time()
                hidden = knapsack.problem(second_stage=knapsack.second_stage)
                result = Neur2RO(hidden, executions=executions, seconds=3600.0, seed=seed).solve()
                used = time.process_time() - start
                learned = true_error(knapsack, result.x, best)
                chance = true_error(knapsack, random_search(knapsack, executions, seed), best)
                rows.append({"name": knapsack.name, "seed": seed, "learned": learned, "random": chance, "cpu": used})
                print(f"{knapsack.name:44}{seed:5}{learned:9.2f}{chance:9.2f}{used:7.1f}", flush=True)
        mine = [row for row in rows if f" n={n} " in row["name"]]
        for who in ("learned", "random"):
            print(f"n = {n} {who:12}{summary([row[who] for row in mine])}   median, mean, max RE %")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("exact", "blackbox", "all"), default="all")
    parser.add_argument("--sizes", type=int, nargs="*", default=[20, 40, 60, 80], help="knapsack sizes")
    parser.add_argument("--blackbox-sizes", type=int, nargs="*", default=[10, 20])
    parser.add_argument("--instances", type=int, default=10, help="hidden knapsacks of each size")
    parser.add_argument("--seeds", type=int, default=3, help="runs on each of them")
    parser.add_argument("--quick", action="store_true", help="few instances")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    options = parser.parse_args()
    parts: dict[str, Callable[[], Any]] = {
        "knapsack": lambda: exact_knapsack(options.sizes, 1 if options.quick else None),
        "capital": lambda: exact_capital(2 if options.quick else 10, [10] if options.quick else [10, 20, 30, 50]),
    }
    parts["blackbox"] = lambda: black_box(
        options.blackbox_sizes, 2 if options.quick else options.instances, 1 if options.quick else options.seeds, 1000
    )
    wanted = {"blackbox": ["blackbox"], "exact": ["knapsack", "capital"], "all": list(parts)}[options.part]
    found = {name: parts[name]() for name in wanted}
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
