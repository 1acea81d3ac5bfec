# ruff: noqa: T201 - part of a script: its table is its output
"""(c) Knapsacks that can only be run: learned mode, random search, a genetic algorithm and Optuna's TPE.

An execution is one run of the second stage at one (x, xi). All have the same number of them. The peers search for x; an
x is run on ten scenarios, and the worst of them counts. Random search draws all ten; the others draw five, the other
five are those that were the worst for decisions before. An x that comes again gets ten more.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from _robust_jobs import rows_of
from _robust_problems import FAMILIES, Knapsack, generate

from trace_core.nodes.decision import Budget
from trace_core.optimizers.decision import ExactSolver, Neur2RO
from trace_core.optimizers.decision.adversary import ConcaveAdversary

Row = dict[str, Any]
WHO = ("learned", "random", "genetic", "tpe")


class Runs:
    """The second stage behind a counter; costs are minimised."""

    def __init__(self, knapsack: Knapsack, budget: int, seed: int, memory: bool) -> None:
        self.knapsack, self.left, self.memory = knapsack, budget, memory
        self.rng, self.xi = np.random.default_rng(seed), Budget(knapsack.n, gamma=knapsack.gamma)
        self.bad: list[Any] = []
        self.worst: dict[bytes, float] = {}

    def __call__(self, x: Any) -> float:
        """The worst of what was executed for ``x``, ten more executions included."""
        old = self.bad[-5:] if self.memory else []
        points = [*old, *self.xi.sample(10 - len(old), self.rng)][: self.left]
        self.left -= len(points)
        gain = (self.knapsack.p - self.knapsack.f) @ x
        costs = [-float(self.knapsack.second_stage(x, xi) + gain) for xi in points]
        if costs:
            worst = points[int(np.argmax(costs))]
            self.bad = [*(each for each in self.bad if each is not worst), worst]
            self.worst[x.tobytes()] = max(max(costs), self.worst.get(x.tobytes(), -np.inf))
        return self.worst.get(x.tobytes(), np.inf)

    def best(self) -> Any:
        """The decision with the best worst."""
        return np.frombuffer(min(self.worst, key=lambda key: self.worst[key])).copy()


def random_search(runs: Runs) -> None:
    while runs.left:
        runs((runs.rng.uniform(size=runs.knapsack.n) < runs.rng.uniform()).astype(float))


def genetic(runs: Runs, size: int = 20) -> None:
    """Tournaments of two, uniform crossover, one entry in n flipped, the better half of parents and children stays."""
    rng, n = runs.rng, runs.knapsack.n
    people = [(rng.uniform(size=n) < rng.uniform()).astype(float) for _ in range(size)]
    costs = [runs(x) for x in people]
    while runs.left:
        first, second = (rng.integers(size, size=2) for _ in range(2))
        parents = [people[min(pair, key=lambda k: costs[k])] for pair in (first, second)]
        child = np.where(rng.uniform(size=n) < 0.5, *parents)
        child = np.abs(child - (rng.uniform(size=n) < 1.0 / n))
        cost, last = runs(child), int(np.argmax(costs))
        if cost < costs[last]:
            people[last], costs[last] = child, cost


def tpe(runs: Runs, seed: int) -> None:
    """Optuna's default sampler on binary choices."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    while runs.left:
        trial = study.ask()
        x = [trial.suggest_categorical(f"x{k}", (0, 1)) for k in range(runs.knapsack.n)]
        study.tell(trial, runs(np.array(x, dtype=float)))


def true_error(knapsack: Knapsack, x: Any, best: float) -> float:
    """RE of a decision, its worst case worked out exactly."""
    problem = knapsack.problem()
    attack = ConcaveAdversary(problem.recourse, problem.uncertainty).attack(x, tolerance=1e-6 * abs(best))
    return 100 * (best + problem.value_of(x) + attack.upper) / abs(best)


def reference(n: int, k: int, first: int, seconds: float) -> Row:
    """The exact solver's worst case of one instance."""
    problem = instance(n, k, first).problem()
    found = ExactSolver(problem, problem.recourse, gap=1e-5, seconds=seconds, clock=time.process_time).run()
    return {"n": n, "k": k, "best": found.worst_case, "gap": 100 * (found.certificate.gap or 0.0)}


def instance(n: int, k: int, first: int) -> Knapsack:
    return generate(FAMILIES[k % 4], n, share=0.2, spread=0.5, seed=first + k, top=100)


def one(n: int, k: int, first: int, best: float, seed: int, executions: int) -> Row:
    """All four on one instance with one seed."""
    knapsack, row = instance(n, k, first), {"n": n, "k": k, "seed": seed}
    row["name"], start = knapsack.name, time.process_time()
    hidden = knapsack.problem(second_stage=knapsack.second_stage)
    result = Neur2RO(hidden, executions=executions, seconds=3600.0, seed=seed).solve()
    row["cpu"], row["used"] = time.process_time() - start, result.certificate.executions
    row["learned"] = true_error(knapsack, result.x, best)
    searches: dict[str, Callable[[Runs], None]] = {"random": random_search, "genetic": genetic}
    searches["tpe"] = lambda runs: tpe(runs, seed)
    for who, search in searches.items():
        runs = Runs(knapsack, executions, seed, memory=who != "random")
        try:
            search(runs)
        except ModuleNotFoundError:  # optuna is no part of the library's extras
            row[who] = None
            continue
        row[who] = true_error(knapsack, runs.best(), best)
    return row


def black_box(
    sizes: list[int], instances: int, seeds: int, executions: int, jobs: int, first: int = 100, out: Path | None = None
) -> list[Row]:
    """The table. Rows are printed, and written to ``out``, as they come; after each size and if interrupted, sums."""
    rows: list[Row] = []
    print(f"\n{'hidden knapsack':44}{'seed':>5}{''.join(f'{who:>9}' for who in WHO)}{'CPU s':>7}  RE %, {executions}")
    with contextlib.suppress(KeyboardInterrupt):
        for n in sizes:
            known = list(rows_of(reference, [(n, k, first, 20.0) for k in range(instances)], jobs))
            print(f"n = {n}: largest proven gap of a reference {max(each['gap'] for each in known):.3f} %", flush=True)
            work = [(n, each["k"], first, each["best"], seed, executions) for seed in range(seeds) for each in known]
            for row in rows_of(one, work, jobs):
                rows.append(row)
                shown = "".join(f"{'-':>9}" if row[who] is None else f"{row[who]:9.2f}" for who in WHO)
                print(f"{row['name']:44}{row['seed']:5}{shown}{row['cpu']:7.1f}", flush=True)
                if out:
                    out.write_text(json.dumps(rows, indent=1))
            summary(rows, n)
        return rows
    for n in sizes:
        summary(rows, n)
    return rows


def summary(rows: list[Row], n: int) -> None:
    """Median, mean and largest RE of each, and the two bars."""
    mine = [row for row in rows if row["n"] == n]
    for who in WHO:
        values = [row[who] for row in mine if row[who] is not None]
        if values:
            print(
                f"n = {n}, {len(values):3} runs, {who:9}: median {median(values):6.2f}, mean {mean(values):6.2f}, "
                f"max {max(values):6.2f}",
                flush=True,
            )
    if mine:
        learned, chance = (mean(row[who] for row in mine) for who in ("learned", "random"))
        ratio = f"{chance / learned:.1f}" if learned > 1e-6 else "any number of"
        print(f"n = {n}: the mean of random search is {ratio} times that of the learned mode")
