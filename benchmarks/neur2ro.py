# ruff: noqa: T201 - a script: its table is its output
"""Robust decisions: how good they are, and what they cost.

    python benchmarks/neur2ro.py --only a      32 published knapsacks and capital budgeting, certified
    python benchmarks/neur2ro.py --only b      the same knapsacks, and others, by a network trained beforehand
    python benchmarks/neur2ro.py --only c      knapsacks that can only be run, beside random search
    python benchmarks/neur2ro.py --only e --plot docs/robust-time.svg      exact beside learned, up to n = 200
    python benchmarks/neur2ro.py --quick       every part on few instances
    python benchmarks/neur2ro.py --train       the network of (b) and (e), made anew

One thread in each of `--jobs` processes. Budgets and times are CPU seconds, so that a loaded machine does not change
the table; where a budget ends inside the solver, whose limit is wall time, less CPU time was used. RE is the relative
error 100 (best known - worst case) / best known, the worst case evaluated exactly; negative where the answer is better
than the best known.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from _robust_exact import exact_capital, exact_knapsack, summary
from _robust_learned import pretrained, race, train
from _robust_plot import drawn
from _robust_problems import FAMILIES, Knapsack, generate

from trace_core.nodes.decision import Budget
from trace_core.optimizers.decision import ExactSolver, Neur2RO
from trace_core.optimizers.decision.adversary import ConcaveAdversary

Row = dict[str, Any]


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
    parser.add_argument("--only", nargs="*", choices=("a", "b", "c", "e"), default=["a", "b", "c", "e"], help="parts")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--sizes", type=int, nargs="*", default=[20, 40, 60, 80], help="knapsacks of (a) and (b)")
    parser.add_argument("--recourse", choices=("dynamic", "milp"), default="dynamic", help="of the knapsacks of (a)")
    parser.add_argument("--capital-sizes", type=int, nargs="*", default=[10, 20, 30, 50])
    parser.add_argument("--race-sizes", type=int, nargs="*", default=[20, 40, 80, 120, 160, 200], help="of (e)")
    parser.add_argument("--each", type=int, default=8, help="generated instances of each size in (b) and (e)")
    parser.add_argument("--blackbox-sizes", type=int, nargs="*", default=[10, 20])
    parser.add_argument("--instances", type=int, default=10, help="hidden knapsacks of each size")
    parser.add_argument("--seeds", type=int, default=3, help="runs on each of them")
    parser.add_argument("--quick", action="store_true", help="few instances")
    parser.add_argument("--train", action="store_true", help="make the network's file anew, and nothing else")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument("--plot", type=Path, help="draw (e) to this SVG file")
    options = parser.parse_args()
    quick, jobs = options.quick, options.jobs
    if options.train:
        train(jobs=jobs)
        return
    found: dict[str, Any] = {}
    if "a" in options.only:
        found["knapsack"] = exact_knapsack(options.sizes, 1 if quick else None, jobs, options.recourse == "dynamic")
        found["capital"] = exact_capital(2 if quick else 10, [10] if quick else options.capital_sizes, jobs)
    if "b" in options.only:
        found["pretrained"] = pretrained(options.sizes, 2 if quick else options.each, 2 if quick else None, jobs)
    if "c" in options.only:
        instances, seeds = (2, 1) if quick else (options.instances, options.seeds)
        found["blackbox"] = black_box(options.blackbox_sizes, instances, seeds, 1000)
    if "e" in options.only:
        found["race"] = race([20, 40] if quick else options.race_sizes, 2 if quick else options.each, jobs)
        if options.plot:
            options.plot.write_text(drawn(found["race"]))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
