# ruff: noqa: T201 - a script: its table is its output
"""Studies beside gepa, at equal metric calls, on tasks whose best values are known; and what their frameworks cost.

    python benchmarks/search.py [--json out.json] [--quick] [--seeds 10] [--only branches,trap]

Needs the extra ``bench``. The landscapes stand in ``_search_landscapes.py``. The model follows one and the same rule
for all (``_search_model.py``): it reads the prompt that a search sends, OptoPrime's or that of gepa's own template, and
changes what stands there. Scores are true ones, without noise, over all validation examples; the best is 1. A study
never passes its limit of metric calls. gepa does, since it looks at it between iterations: what it knew best when the
calls were used up counts, and what it returned later is printed below.

Times are CPU milliseconds, ours and gepa's in turns in one process, the least of several rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from _peers import gepa_seconds
from _search_gepa import gepa_search
from _search_landscapes import LANDSCAPES, Landscape
from _search_model import Model

import trace_core as tc
from trace_core.integrations.budget import Budget
from trace_core.integrations.llm import ScriptedLLM
from trace_core.optimizers import Candidate, Optimizer, OptoPrime, Proposal, Search, Study
from trace_core.optimizers.search import (
    UCB,
    Best,
    MergeBranches,
    PairedTest,
    Pareto,
    Racing,
    Repeats,
)
from trace_core.optimizers.search.pool import Pool

STUDIES: dict[str, Callable[[], Search | str]] = {
    "pareto": lambda: "pareto",
    "pareto, merge": lambda: Search(merge=MergeBranches()),
    "pareto, racing": lambda: Search(validation=Racing()),
    "ucb": lambda: Search(parents=UCB()),
    "best": lambda: Search(parents=Best()),
}
NOISY: dict[str, Callable[[], Search]] = {
    "pareto, no end at 1": lambda: Search(perfect=None, reuse=0),
    "pareto, repeats": lambda: Search(perfect=None, reuse=0, acceptance=Repeats(3)),
    "pareto, paired test": lambda: Search(perfect=None, reuse=0, batch_size=6, acceptance=PairedTest(0.1)),
}
"""For scores that differ from run to run; on landscapes with noise alone."""
PEERS: dict[str, dict[str, Any]] = {
    "gepa": {},
    "gepa, all": {"module_selector": "all"},
    "gepa, merge": {"use_merge": True},
}
BLAME = ("branches", "crossing", "errors")
"""Landscapes where the trace tells which parameter is to blame."""
BARS = {"selection": 1.0, "evaluation": 0.03}  # ms


def study_search(landscape: Landscape, seed: int, search: Search | str) -> dict[str, float]:
    """A run of a study: true score of the best, metric calls, requests to the model."""
    workflow, model = landscape.workflow(), Model(landscape)
    window = landscape.window or 32_000  # characters; four to a token
    study = Study(
        workflow,
        landscape.metric(seed),
        landscape.train,
        landscape.validation,
        optimizer=OptoPrime(workflow, ScriptedLLM(model.answer), max_prompt_tokens=window // 4),
        search=search,
        budget=Budget(metric_calls=landscape.calls),
        seed=seed,
    )
    result = study.run()
    if result.best is None or result.error is not None:
        raise SystemExit(f"{landscape.name}, seed {seed}: the study failed with {result.error}")
    return {"score": landscape.true(result.best.values), "calls": result.evaluations, "requests": model.asked}


def contest(names: Sequence[str], seeds: int) -> dict[str, dict[str, list[dict[str, float]]]]:
    """landscape -> contender -> one result for each seed."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name in names:
        landscape = LANDSCAPES[name]()
        studies = {**STUDIES, **(NOISY if landscape.noise else {})}
        rows: dict[str, list[dict[str, float]]] = {contender: [] for contender in (*studies, *PEERS)}
        for seed in range(seeds):
            for contender, search in studies.items():
                rows[contender].append(study_search(landscape, seed, search()))
            for contender, options in PEERS.items():
                rows[contender].append(gepa_search(landscape, seed, **options))
        found[name] = rows
    return found


def mean(rows: Sequence[Mapping[str, float]], key: str = "score") -> float:
    return statistics.fmean(row[key] for row in rows)


def gap(ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """(difference of the means, its standard error)."""
    sides = [[row["score"] for row in rows] for rows in (ours, theirs)]
    variances = [statistics.variance(side) / len(side) if len(side) > 1 else 0.0 for side in sides]
    return statistics.fmean(sides[0]) - statistics.fmean(sides[1]), math.sqrt(sum(variances))


def show(found: Mapping[str, Mapping[str, list[dict[str, float]]]], seeds: int) -> None:
    print(f"true score of the best, mean and standard deviation over {seeds} seeds; the optimum is 1")
    print(f"  {'':<22}" + "".join(f"{name:>15}" for name in found))
    for contender in dict.fromkeys((*STUDIES, *NOISY, *PEERS)):
        cells = []
        for rows in found.values():
            scores = [row["score"] for row in rows.get(contender, ())]
            spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
            cells.append(f"{statistics.fmean(scores):.3f} ± {spread:.3f}" if scores else "-")
        if any(cell != "-" for cell in cells):
            print(f"  {contender:<22}" + "".join(f"{cell:>15}" for cell in cells))
    for name, rows in found.items():
        landscape = LANDSCAPES[name]()
        print(f"{name}: {landscape.about}; seed {landscape.true(landscape.seeds):.3f}; {landscape.calls} metric calls")
        over = ", ".join(f"{c} {mean(rows[c], 'returned'):.3f} after {mean(rows[c], 'calls'):.0f}" for c in PEERS)
        print(f"  returned past the limit: {over}; pareto made {mean(rows['pareto'], 'calls'):.0f} calls")
        best = max(PEERS, key=lambda contender: mean(rows[contender]))
        for peer in dict.fromkeys(("gepa", best)):
            difference, error = gap(rows["pareto"], rows[peer])
            wanted = "clearly better" if name in BLAME else "at least as good"
            met = difference > 2 * error if name in BLAME else difference >= -2 * error
            what = f"pareto beside {peer}: {difference:+.3f}, standard error {error:.3f}"
            print(f"  {what}; {wanted}: {'met' if met else 'MISSED'}")


# ---- times


class Counting(Optimizer):
    """Proposes the next number."""

    def propose(self, traces: Any = None, n: int = 1) -> list[Proposal]:
        return [Proposal({p: p.value + 1 for p in self.parameters}) for _ in range(n)]


def study_seconds(evaluations: int, size: int) -> tuple[float, int]:
    """(CPU seconds, evaluations) of a study in which nothing else takes time."""
    quality = tc.Parameter(0, name="quality")
    study = Study(
        lambda example: quality + example,
        lambda output, example: (output * 7 % 100) / 100,
        list(range(size)),
        optimizer=Counting([quality]),
        search=Search(perfect=None, reuse=0),  # each evaluation is made
        budget=Budget(metric_calls=evaluations),
    )
    began = time.process_time()
    result = study.run()
    return time.process_time() - began, result.evaluations


def bare_seconds(evaluations: int) -> float:
    """The same workflow and metric in a plain loop: what is not the framework's."""
    quality = tc.Parameter(0, name="quality")
    began = time.process_time()
    for example in range(evaluations):
        _ = ((quality + example).value * 7 % 100) / 100
    return time.process_time() - began


def per_evaluation(quick: bool) -> dict[str, float]:
    """CPU ms of an evaluation."""
    count, rounds = (600, 1) if quick else (6000, 5)
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for size in (20, 200):
            seconds, done = study_seconds(count, size)
            found.setdefault(f"trace_core, {size} validation examples", []).append(seconds / done * 1e3)
            seconds, done = gepa_seconds(count, size)
            found.setdefault(f"gepa, {size} validation examples", []).append(seconds / done * 1e3)
        found.setdefault("(of ours: workflow and metric)", []).append(bare_seconds(count) / count * 1e3)
    return {name: min(times) for name, times in found.items()}


class GepaState:
    """As much of gepa's state as its selection reads."""

    def __init__(self, scores: Sequence[Sequence[float]]) -> None:
        self.program_candidates = list(range(len(scores)))
        self.per_program_tracked_scores = self.program_full_scores_val_set = [statistics.fmean(row) for row in scores]
        tops = [max(column) for column in zip(*scores, strict=True)]
        self.fronts = {
            example: {k for k, row in enumerate(scores) if row[example] == top} for example, top in enumerate(tops)
        }

    def get_pareto_front_mapping(self) -> dict[int, set[int]]:
        return {example: set(front) for example, front in self.fronts.items()}


def score_tables(candidates: int, examples: int) -> Iterator[tuple[str, list[list[float]]]]:
    rng = random.Random(0)
    yield (
        "scores of 0 to 1 in hundredths",
        [[rng.randrange(101) / 100 for _ in range(examples)] for _ in range(candidates)],
    )
    yield "scores of 0 or 1", [[float(rng.random() < 0.5) for _ in range(examples)] for _ in range(candidates)]


def selection(quick: bool) -> dict[str, float]:
    """CPU ms of a selection with a newly joined candidate, so that nothing is known from before."""
    from gepa.strategies.candidate_selector import ParetoCandidateSelector

    candidates, examples = (60, 100) if quick else (500, 1000)
    found = {}
    for kind, scores in score_tables(candidates, examples):
        pool, times, joining = Pool(), [], []
        for number, row in enumerate(scores):
            candidate = Candidate(str(number), {"x": number}, status="accepted")
            candidate.add_scores(dict(enumerate(row)))
            began = time.process_time_ns()
            pool.add(candidate)
            joined = time.process_time_ns()
            Pareto().select(pool, random.Random(number), number)
            if number >= candidates - 20:
                times.append((time.process_time_ns() - joined) / 1e6)
                joining.append((joined - began) / 1e6)
        state, selector = GepaState(scores), ParetoCandidateSelector(random.Random(0))
        began = time.process_time_ns()
        selector.select_candidate_idx(state)  # type: ignore[arg-type]
        found[f"gepa, {kind}"] = (time.process_time_ns() - began) / 1e6
        found[f"trace_core, {kind}"] = min(times)
        found[f"(joining the pool before it, {kind})"] = min(joining)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--only", default=",".join(LANDSCAPES), help="landscapes, with commas")
    options = parser.parse_args(arguments)
    names, seeds = options.only.split(","), options.seeds or (2 if options.quick else 10)
    unknown = [name for name in names if name not in LANDSCAPES]
    if unknown:
        parser.error(f"no landscape {', '.join(unknown)}; there are {', '.join(LANDSCAPES)}")
    print(f"{platform.platform()}, Python {platform.python_version()}")
    began = time.process_time()
    found = contest(names, seeds)
    show(found, seeds)
    times = {"selection": selection(options.quick), "evaluation": per_evaluation(options.quick)}
    print("CPU ms for the selection of a parent" + ("" if options.quick else ", 500 candidates x 1000 examples"))
    for name, value in times["selection"].items():
        print(f"  {name:<60} {value:.3f}")
    print("CPU ms for one evaluation, without a store")
    for name, value in times["evaluation"].items():
        print(f"  {name:<60} {value:.4f}")
    for what, bar in BARS.items():
        value = max(value for name, value in times[what].items() if name.startswith("trace_core"))
        if what == "evaluation":
            value -= times[what]["(of ours: workflow and metric)"]
        print(f"{what} <= {bar} ms: {'met' if value <= bar else 'MISSED'} ({value:.4f})")
    print(f"{time.process_time() - began:.0f} s of CPU time")
    if options.json:
        options.json.write_text(json.dumps({"seeds": seeds, "landscapes": found, "ms": times}, indent=1))


if __name__ == "__main__":
    main()
