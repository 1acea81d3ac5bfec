# ruff: noqa: T201 - a script: its table is its output
"""Part (a): what is certified, for knapsacks and for capital budgeting."""

from __future__ import annotations

import time
from statistics import mean, median

from _robust_jobs import Row, rows_of
from _robust_problems import Knapsack, capital, published

from trace_core.optimizers.decision import ExactSolver


def summary(values: list[float]) -> str:
    return f"{median(values):8.3f}{mean(values):8.3f}{max(values):8.3f}"


def _knapsack(knapsack: Knapsack, best: float, proven: bool, dynamic: bool) -> Row:
    problem, start = knapsack.problem(dynamic), time.process_time()
    seconds, gap = (5.0, 1e-6) if knapsack.n <= 20 else (10.0, 1e-4)
    result = ExactSolver(problem, problem.recourse, gap=gap, seconds=seconds, clock=time.process_time).run()
    row = {"name": knapsack.name, "n": knapsack.n, "re": 100 * (best - result.worst_case) / best}
    rest = {"gap": 100 * result.certificate.gap, "cpu": time.process_time() - start, "over": result.seconds - seconds}
    return {**row, **rest, "proven": proven, "stop": result.stop, "worst_case": result.worst_case, "best": best}


def exact_knapsack(sizes: list[int], limit: int | None, jobs: int, dynamic: bool = True) -> list[Row]:
    """``dynamic``: the recourse by the dynamic program, else by the MILP solver."""
    rows: list[Row] = []
    who = "dynamic program" if dynamic else "MILP solver"
    print(f"{f'recourse by the {who}':40}{'RE %':>8}{'gap %':>8}{'CPU s':>7}  ended")
    tasks = [(*each, dynamic) for n in sizes for each in published(n)[:limit]]
    for row in rows_of(_knapsack, tasks, jobs):
        rows.append(row)
        print(f"{row['name']:40}{row['re']:8.3f}{row['gap']:8.3f}{row['cpu']:7.1f}  {row['stop']}", flush=True)
    print(f"\n{'knapsack':24}{'median':>8}{'mean':>8}{'max':>8}  of RE %; median gap %, median and largest CPU s")
    for n in sizes:
        mine = [row for row in rows if row["n"] == n]
        times = [r["cpu"] for r in mine]
        rest = f"{median(r['gap'] for r in mine):9.3f}{median(times):7.1f}{max(times):7.1f}"
        print(f"n = {n}, {len(mine)} instances{'':5}{summary([r['re'] for r in mine])}{rest}")
    larger = [row for row in rows if row["n"] > 20]
    if larger:
        print(f"n > 20, {len(larger)} instances{'':4}{summary([r['re'] for r in larger])}")
        hard = [r for r in larger if not r["proven"]]
        better = sum(r["re"] < -0.01 for r in hard)
        print(f"better than branch and price after three hours on {better} of the {len(hard)} it did not finish")
    return rows


def _capital(n: int, seed: int) -> Row:
    problem, start = capital(n, seed).problem(), time.process_time()
    result = ExactSolver(problem, problem.recourse, gap=1e-3, seconds=60.0, clock=time.process_time).run()
    row = {"n": n, "seed": seed, "worst_case": result.worst_case, "gap": 100 * result.certificate.gap}
    return {**row, "cpu": time.process_time() - start, "stop": result.stop}


def exact_capital(count: int, sizes: list[int], jobs: int) -> list[Row]:
    rows: list[Row] = []
    print(f"\n{'capital budgeting':24}{'worst case':>11}{'gap %':>8}{'CPU s':>7}  ended")
    for row in rows_of(_capital, [(n, seed) for n in sizes for seed in range(count)], jobs):
        rows.append(row)
        line = f"n = {row['n']} seed {row['seed']:<14}{row['worst_case']:11.4f}{row['gap']:8.3f}{row['cpu']:7.1f}"
        print(f"{line}  {row['stop']}", flush=True)
    for n in sizes:
        mine = [row["gap"] for row in rows if row["n"] == n]
        good = sum(gap <= 0.1 for gap in mine)
        print(
            f"n = {n}: certified gap of at most 0.1 % within 60 s on {good} of {len(mine)}; median {median(mine):.2f} %"
        )
    return rows
