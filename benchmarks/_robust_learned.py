# ruff: noqa: T201 - a script: its table is its output
"""Parts (b) and (e): a network trained beforehand, on 20 to 40 items, and exact solving beside it, up to n = 200."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import mean, median
from typing import Any

from _robust_jobs import Row, rows_of
from _robust_problems import DATA, FAMILIES, Knapsack, generate, published
from _robust_training import features, labelled, training_instance, unit

from trace_core.optimizers.decision import ExactSolver, SetData, SetNetwork, SetSolver, train_set_network

NETWORK = DATA / "setnet.json"
INSTANCES = 400
SECONDS = 2.4  # of the learned mode in (b); what has begun is finished, so that it ends within 3
HELD_BACK_SEED = 500  # of generated instances that are measured
CAPS = {"exact": 60.0, "learned": 30.0}  # seconds in (e)
CLOSE = (0.01, 0.001)  # how near to the best value, in (e)


def _labelled(k: int) -> Row:
    start = time.process_time()
    knapsack = training_instance(k)
    x, xi, values = labelled(knapsack, k)
    rest = {"unit": unit(knapsack), "cpu": time.process_time() - start}
    return {"features": features(knapsack), "x": x, "xi": xi, "values": values, **rest}


def train(path: Path = NETWORK, instances: int = INSTANCES, epochs: int = 150, jobs: int = 1) -> None:
    """Make the data, train, save."""
    data, used = SetData("max"), 0.0
    for row in rows_of(_labelled, [(k,) for k in range(instances)], jobs):
        data.add(row["features"], row["x"], row["xi"], row["values"], unit=row["unit"])
        used += row["cpu"]
    import torch

    torch.set_num_threads(1)
    start = time.process_time()
    note = f"benchmarks/neur2ro.py --train: {instances} generated knapsacks, n = 20..40, {epochs} epochs, seed 0"
    network = train_set_network(data, epochs=epochs, embedding=16, hidden=32, seed=0, note=note)
    network.save(path)
    spent = time.process_time() - start
    print(f"{data.rows} values of {instances} knapsacks in {used:.0f} CPU s, trained in {spent:.0f} CPU s -> {path}")


def _solvers(knapsack: Knapsack, seconds: dict[str, float], gap: float) -> dict[str, Any]:
    """Results of both by name; their clocks are CPU time."""
    problem, clock = knapsack.problem(), time.process_time
    network = SetNetwork.load(NETWORK).on(features(knapsack), unit=unit(knapsack))
    found: dict[str, Any] = {}
    for name, limit in seconds.items():
        start = clock()
        if name == "learned":
            result = SetSolver(problem, network, seconds=limit, clock=clock).run()
        else:
            result = ExactSolver(problem, problem.recourse, gap=gap, seconds=limit, clock=clock).run()
        found[name], found[f"{name} cpu"] = result, clock() - start
    return found


def _pretrained(name: str, knapsack: Knapsack, best: float | None, exact: float) -> Row:
    found = _solvers(knapsack, {"learned": SECONDS, "exact": exact} if best is None else {"learned": SECONDS}, 1e-4)
    learned = found["learned"]
    reference = max(found["exact"].worst_case, learned.worst_case) if best is None else best
    row = {"name": name, "n": knapsack.n, "re": 100 * (reference - learned.worst_case) / reference}
    rest = {"cpu": found["learned cpu"], "gap": 100 * learned.certificate.gap, "decisions": len(learned.history)}
    return {**row, **rest, "worst_case": learned.worst_case, "best": reference}


def pretrained(sizes: list[int], each: int, limit: int | None, jobs: int) -> list[Row]:
    """(b): published instances, and generated ones, whose best value is that of 20 s of exact solving or better."""
    rows: list[Row] = []
    tasks: list[tuple[Any, ...]] = []
    for n in sizes:
        tasks += [(knapsack.name, knapsack, best, 0.0) for knapsack, best, _ in published(n)[:limit]]
    for n in sizes:
        for k in range(each):
            share, spread = (0.1, 0.15, 0.2)[k % 3], (0.1, 0.5, 1.0)[k // 2 % 3]
            made = generate(FAMILIES[k % 4], n, share=share, spread=spread, seed=HELD_BACK_SEED + k)
            tasks.append((f"made {made.name}", made, None, 20.0))
    print(f"{'network trained beforehand':48}{'RE %':>8}{'CPU s':>7}{'gap %':>7}  decisions verified")
    for row in rows_of(_pretrained, tasks, jobs):
        rows.append(row)
        line = f"{row['name']:48}{row['re']:8.3f}{row['cpu']:7.2f}{row['gap']:7.2f}{row['decisions']:5}"
        print(line, flush=True)
    print(f"\n{'':32}{'median':>8}{'mean':>8}{'max':>8}  of RE %; median and largest CPU s")
    for kind in ("published", "made"):
        for n in [*sizes, None]:
            mine = [r for r in rows if (r["n"] == n or n is None) and r["name"].startswith("made") == (kind == "made")]
            if mine:
                errors, times = [r["re"] for r in mine], [r["cpu"] for r in mine]
                title = f"{kind} n = {n or 'all'}, {len(mine)} instances"
                numbers = (
                    f"{median(errors):8.3f}{mean(errors):8.3f}{max(errors):8.3f}{median(times):8.2f}{max(times):6.2f}"
                )
                print(f"{title:32}{numbers}")
    return rows


def _race(name: str, knapsack: Knapsack) -> Row:
    found = _solvers(knapsack, CAPS, 1e-3)
    best = max(found[who].worst_case for who in CAPS)
    row: Row = {"name": name, "n": knapsack.n, "best": best}
    for who in CAPS:
        rounds = [r for r in found[who].history if r.worst_case is not None]
        # a round's time is that of its end
        for near in CLOSE:
            row[f"{who} {near}"] = next((r.seconds for r in rounds if r.worst_case >= (1 - near) * best), None)
        row[f"{who} first"], row[f"{who} re"] = rounds[0].seconds, 100 * (best - found[who].worst_case) / best
        within3 = [r.worst_case for r in rounds if r.seconds <= 3.0]
        row[f"{who} re 3 s"] = 100 * (best - within3[-1]) / best if within3 else None
    proof = found["exact"].certificate.gap
    bounds = [r for r in found["exact"].history if r.bound is not None and r.worst_case is not None]
    row["proven"] = next((r.seconds for r in bounds if r.bound - r.worst_case <= 0.01 * r.worst_case), None)
    return {**row, "gap": 100 * proof, "exact cpu": found["exact cpu"]}


def race(sizes: list[int], each: int, jobs: int) -> list[Row]:
    """(e): CPU seconds until a decision within 1 % and 0.1 % of the best of both is verified, as n grows."""
    tasks: list[tuple[Any, ...]] = []
    for n in sizes:
        for k in range(each):
            made = generate(FAMILIES[k % 4], n, share=0.1, spread=(0.1, 0.5)[k // 4 % 2], seed=HELD_BACK_SEED + k)
            tasks.append((made.name, made))
    columns = ["exact first", "learned first", "exact 0.01", "learned 0.01", "exact 0.001", "learned 0.001", "proven"]
    columns += ["exact re 3 s", "learned re 3 s", "exact re", "learned re"]
    titles = ["exact", "learned"] * 3 + ["proven"] + ["exact", "learned"] * 2
    print(f"{'':40}{'first':>20}{'within 1 %':>20}{'within 0.1 %':>20}{'':10}{'RE % after 3 s':>20}{'RE % at end':>20}")
    print(f"{'CPU s until':40}" + "".join(f"{title:>10}" for title in titles))
    rows: list[Row] = []
    for row in rows_of(_race, tasks, jobs):
        rows.append(row)
        print(f"{row['name']:40}" + "".join(shown(row[c]) for c in columns), flush=True)
    print("\nmedian; '-': not within the limit")
    for n in sizes:
        print(f"n = {n:<36}" + "".join(shown(middle([r[c] for r in rows if r["n"] == n])) for c in columns))
    return rows


def middle(values: list[float | None]) -> float | None:
    """The median, where None is later than everything."""
    found = sorted(values, key=lambda v: float("inf") if v is None else v)[
        (len(values) - 1) // 2 : len(values) // 2 + 1
    ]
    return None if None in found else mean(found)  # type: ignore[type-var]


def shown(value: float | None) -> str:
    return f"{'-':>10}" if value is None else f"{value:10.2f}"
