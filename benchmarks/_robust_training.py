"""Data for a set network: knapsacks of all families, decisions near good ones, scenarios near their worst.

The second stage's values are exact, by dynamic programming. The seeds of instances start at 10,000: no instance that is
measured is among them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from _robust_problems import FAMILIES, Knapsack, generate

from trace_core.nodes.decision import Budget, decision
from trace_core.optimizers.decision import RobustProblem
from trace_core.optimizers.decision.adversary import ConcaveAdversary
from trace_core.optimizers.decision.main_problem import MainProblem

FIRST_SEED = 10_000
SHARES, SPREADS = (0.1, 0.15, 0.2), (0.1, 0.5, 1.0)


def features(knapsack: Knapsack) -> Any:
    """(n, 10): profits in units of the mean outsourcing cost, weights in units of the capacity per item, ratios."""
    n, money, room = knapsack.n, knapsack.f.mean(), knapsack.capacity / knapsack.n
    f, p, ph = knapsack.f / money, knapsack.p / money, knapsack.ph / money
    c, t = knapsack.c / room, knapsack.t / room
    ratios = [np.log(f / c), np.log(f / (c + t)), np.log((ph + 0.01) / t), np.full(n, knapsack.gamma / n)]
    return np.stack([f, p, ph, c, t, f - p, *ratios], axis=1)


def unit(knapsack: Knapsack) -> float:
    """What one unit of the network's output is worth."""
    return float(knapsack.f.sum())


def training_instance(k: int) -> Knapsack:
    """The k-th of them, with 20 to 40 items."""
    rng = np.random.default_rng([7, k])
    n, share, spread = int(rng.integers(20, 41)), float(rng.choice(SHARES)), float(rng.choice(SPREADS))
    return generate(FAMILIES[k % 4], n, share=share, spread=spread, seed=FIRST_SEED + k)


def relaxed_decision(knapsack: Knapsack) -> Any:
    """The decision if everything could be taken in parts: a linear program."""
    x = decision("take", continuous=knapsack.n, low=0, high=1)
    xi = Budget(knapsack.n, gamma=knapsack.gamma)
    stage = knapsack.stage()
    problem = RobustProblem(x, xi, first_stage=knapsack.p - knapsack.f, sense="max", recourse=stage)
    main = MainProblem(problem, stage, 0)
    return main.solve(10.0, 1e-6)[main.x]


def decisions(knapsack: Knapsack, rng: Any) -> list[Any]:
    """Of all densities; greedy ones under random prices of the capacity; roundings of the relaxed one."""
    n = knapsack.n
    found = [(rng.uniform(size=n) < rng.uniform(0.1, 0.9)).astype(float) for _ in range(2)]
    for _ in range(4):
        worth = knapsack.p - rng.uniform(0, 0.5) * knapsack.ph + rng.normal(size=n) * 0.15 * knapsack.p
        order = np.argsort(-worth / (knapsack.c + rng.uniform(0, 1) * knapsack.t))
        fits = np.cumsum(knapsack.c[order]) <= rng.uniform(0.7, 1.6) * knapsack.capacity
        x = np.zeros(n)
        x[order[fits]] = 1.0
        found.append(x)
    part = relaxed_decision(knapsack)
    for _ in range(6):
        shifted = np.clip(part + rng.normal() * 0.15 * (part > 0), 0, 1)
        x = (rng.uniform(size=n) < shifted).astype(float)
        flips = rng.integers(n, size=rng.integers(0, 3))
        x[flips] = 1.0 - x[flips]
        found.append(x)
    return found


def labelled(knapsack: Knapsack, seed: int, most: int = 10) -> tuple[Any, Any, Any]:
    """(x, xi, values) as rows: what is expected, samples, and what an exact search for the worst case looks at."""
    rng = np.random.default_rng([8, seed])
    stage = knapsack.stage(dynamic=True)
    xi = Budget(knapsack.n, gamma=knapsack.gamma)
    rows: list[tuple[Any, Any]] = []
    for x in decisions(knapsack, rng):
        seen: list[Any] = []
        stage.reaction = lambda x, at, seen=seen: (seen.append(at), knapsack.reaction(x, at))[1]
        attack = ConcaveAdversary(stage, xi).attack(x, tolerance=2e-3 * knapsack.f.sum() * x.mean())
        chosen = rng.choice(len(seen), min(len(seen), most - 4), replace=False)
        rows += [(x, at) for at in [xi.center, attack.xi, *xi.sample(2, rng), *(seen[k] for k in chosen)]]
    x, at = (np.array([row[k] for row in rows]) for k in (0, 1))
    return x, at, np.array([knapsack.second_stage(*row) for row in rows])
