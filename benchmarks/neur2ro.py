"""Robust decisions: how good they are, and what they cost.

    python benchmarks/neur2ro.py --only a      32 published knapsacks and capital budgeting, certified
    python benchmarks/neur2ro.py --only b      the same knapsacks, and others, by a network trained beforehand
    python benchmarks/neur2ro.py --only c      knapsacks that can only be run, beside random search
    python benchmarks/neur2ro.py --only d      a surrogate for each node of a traced second stage, beside one network
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
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from _robust_blackbox import black_box
from _robust_exact import exact_capital, exact_knapsack
from _robust_learned import pretrained, race, train
from _robust_plot import drawn
from _robust_structure import structure

PARTS = ("a", "b", "c", "d", "e", "blackbox", "structure")  # the words stand for c and d


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list("abcde"), help="parts")
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
    parser.add_argument("--first-seed", type=int, default=100, help="of the instances of (c)")
    options = parser.parse_args()
    options.only = [{"blackbox": "c", "structure": "d"}.get(each, each) for each in options.only]
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
        found["blackbox"] = black_box(
            options.blackbox_sizes, instances, seeds, 1000, jobs, options.first_seed, options.json
        )
    if "d" in options.only:
        found["structure"] = structure(2 if quick else 5, 1 if quick else 3, [50] if quick else [50, 100, 300])
    if "e" in options.only:
        found["race"] = race([20, 40] if quick else options.race_sizes, 2 if quick else options.each, jobs)
        if options.plot:
            options.plot.write_text(drawn(found["race"]))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
