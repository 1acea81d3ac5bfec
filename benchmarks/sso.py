# ruff: noqa: T201 - a script: its table is its output
"""Target surrogates beside methods that ask for every step: how far they come with how many questions to the oracle.

    python benchmarks/sso.py                 all of it, one thread
    python benchmarks/sso.py --json out.json --quick

Needs the extras ``torch`` and ``bench``. "calls a/b/c" are gradient calls until the loss is below .10/.07/.05: the
number of answers behind the first iterate that good. All contenders run one after the other in one process; CPU seconds
are of the process and hold the oracle, which is cheap here.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from _sso_convex import least_squares_rows, logistic_rows
from _sso_networks import digits_rows, pendulum_rows
from _sso_rows import Row

PARTS = {
    "least-squares": least_squares_rows,
    "breast-cancer": logistic_rows,
    "digits": digits_rows,
    "pendulum": pendulum_rows,
}


def table(rows: Sequence[Row]) -> str:
    lines = [("task", "method", "result", "gradients", "losses", "CPU s")]
    for row in rows:
        asked = ["" if count is None else str(count) for count in (row.gradients, row.losses)]
        lines.append((row.task, row.method, row.shown(), *asked, f"{row.cpu:.2f}"))
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def bars(rows: Sequence[Row]) -> list[tuple[str, bool]]:
    """What is asked of the method, and whether these rows show it."""
    found = {(row.task, row.method): row.result for row in rows}
    checks: list[tuple[str, bool]] = []

    def within(method: str, limits: tuple[int, ...]) -> None:
        result = found.get(("breast_cancer raw", method))
        if result is not None:
            met = all(
                calls is not None and calls <= limit for calls, limit in zip(result["calls"], limits, strict=True)
            )
            checks.append((f"raw features, {method}: at most {'/'.join(map(str, limits))} calls", met))

    within("SSO exact, line search", (3, 10, 23))
    within("SSO exact, bb", (5, 8, 15))
    within("SSO exact, diagonal curvature", (3, 4, 5))
    digits = {method: result for (task, method), result in found.items() if task.startswith("digits")}
    if digits:
        exact, black = digits["SSO exact, eta 4"], digits["SSO exact, eta 4, black box"]
        checks.append(("digits: train loss at most .016", exact["train loss"] <= 0.016))
        checks.append(("digits: test accuracy at least .978", exact["test"] >= 0.978))
        near = abs(black["train loss"] - exact["train loss"]) <= 0.1 * exact["train loss"]
        checks.append(("digits: black box within 10 % of the gradient", near))
    return checks


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(PARTS), action="append", help="only these parts")
    parser.add_argument("--quick", action="store_true", help="one seed, fewer calls: to see that it runs")
    parser.add_argument("--json", type=Path, help="write the rows there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*Overriding environment.*")
    rows = [row for part in options.only or PARTS for row in PARTS[part](options.quick)]
    machine = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, one thread"
    print(machine)
    print(table(rows))
    checks = bars(rows)
    for what, met in checks:
        print(f"{'met   ' if met else 'MISSED'}  {what}")
    if options.json is not None:
        report: dict[str, Any] = {"machine": machine, "rows": [asdict(row) for row in rows], "bars": dict(checks)}
        options.json.write_text(json.dumps(report, indent=1))
    return 0 if options.quick or all(met for _, met in checks) else 1


if __name__ == "__main__":
    raise SystemExit(main())
