# ruff: noqa: T201 - part of a script: its table is its output
"""(d) Second stages whose structure the trace shows: a small surrogate for each opaque node beside one network."""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np

import trace_core as tc
from trace_core.nodes.decision import Box, decision
from trace_core.optimizers.decision import RobustProblem
from trace_core.optimizers.decision.executions import Executions
from trace_core.optimizers.decision.structured import StructuredSurrogate, r_squared
from trace_core.optimizers.decision.surrogate import Surrogate

Row = dict[str, Any]
NODES = 6


def workflow(seed: int) -> Any:
    """A sum of six opaque functions, drawn at random, each of one entry of x and one of xi, and their arithmetic."""
    rng = np.random.default_rng(seed)
    kinds, scale, shift = rng.integers(0, 4, NODES), rng.uniform(1.0, 2.5, NODES), rng.uniform(-0.5, 0.5, NODES)
    weights, prices = rng.uniform(0.5, 2.0, NODES), rng.uniform(0.0, 1.0, NODES)
    pairs = rng.permutation(NODES)

    @tc.bundle
    def service(kind: int, k: int, staff: float, load: float) -> float:
        z = scale[k] * (load - 0.6 * staff) + shift[k]
        curves = (np.exp(z), np.log1p(np.exp(3 * z)), np.sin(2 * z) + z, z**2 / (1 + abs(z)))
        return float(curves[kind])

    def second_stage(x: Any, xi: Any) -> Any:
        total = np.maximum(xi - x, 0.0) @ prices
        for k in range(NODES):
            total = total + weights[k] * service(int(kinds[k]), k, x[k], xi[int(pairs[k])])
        return total

    return second_stage


def executed(problem: RobustProblem, count: int, seed: int) -> Executions:
    """That many runs at random points."""
    runs, rng = Executions(problem), np.random.default_rng(seed)
    for xi in rng.uniform(problem.uncertainty.low, problem.uncertainty.high, (count, problem.uncertainty.size)):
        runs.run(rng.integers(0, 2, problem.size).astype(float), xi)
    return runs


def structure(workflows: int, seeds: int, counts: list[int]) -> list[Row]:
    """R2 on 500 executions held out, of both, after as many executions."""
    rows: list[Row] = []
    print(f"\n{'workflow':>8}{'seed':>5}{'executions':>12}{'per node':>10}{'one network':>12}   R2 on 500 held out")
    for which in range(workflows):
        problem = RobustProblem(decision("x", binary=NODES), Box(0, 1, size=NODES), second_stage=workflow(which))
        test = executed(problem, 500, 10_000 + which).records
        x, xi = np.array([r.x for r in test]), np.array([r.xi for r in test])
        truth = np.array([r.value for r in test])
        for seed in range(seeds):
            for count in counts:
                runs = executed(problem, count, seed)
                program = runs.program
                if program is None:
                    raise RuntimeError("the workflow was not traced")
                each = StructuredSurrogate(problem, program, hidden=12, members=2, seed=seed)
                each.current = runs.keys
                whole = Surrogate(problem, hidden=32, members=4, seed=seed)
                scores = []
                for surrogate in (each, whole):
                    surrogate.fit(runs.records, epochs=400)
                    scores.append(r_squared(surrogate.predict(x, xi), truth))
                row = {"workflow": which, "seed": seed, "executions": count, "node": scores[0], "whole": scores[1]}
                rows.append(row)
                print(f"{which:8}{seed:5}{count:12}{scores[0]:10.3f}{scores[1]:12.3f}", flush=True)
    for count in counts:
        mine = [row for row in rows if row["executions"] == count]
        node, whole = ([row[name] for row in mine] for name in ("node", "whole"))
        print(
            f"after {count}: per node median {median(node):.3f}, least {min(node):.3f}, at least 0.95 in "
            f"{sum(each >= 0.95 for each in node)} of {len(node)}; one network median {median(whole):.3f}, "
            f"least {min(whole):.3f}"
        )
    return rows
