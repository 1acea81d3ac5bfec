"""Staff for a call centre, decided before it is known which lines will be called more than usual.

Who works when, and who is on call, is decided a week ahead. Then two of six blocks (a line in a shift) get three times
the calls of a usual day, or more blocks in part. The centre reacts by its own rules, in a simulation that no formula
replaces (``call_centre_workflow``). ``robust`` lets Neur2RO learn this workflow by running it, and look for the roster
whose worst day is cheapest; ``average_case`` spends as many runs on the average day; ``rule_of_thumb`` spends none.

    python -m trace_core.examples.call_centre --seeds 1 2 3 --executions 600

Needs the extras ``examples`` (for simpy, the simulator), ``milp`` and ``torch``.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from dataclasses import dataclass
from itertools import combinations, permutations
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from trace_core._lazy import require
from trace_core.examples.call_centre_workflow import (
    BLOCKS,
    LINES,
    MINUTES,
    MOST,
    POSTS,
    SEATS,
    SHIFTS,
    SURGE,
    USUAL,
    CallCentre,
    prices,
    wages,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NEW_DAYS = range(100, 104)  # chance that no method sees: for verifying


def what_may_come() -> Any:
    """The uncertainty set: calls per hour of each block, (6,)."""
    from trace_core.nodes.decision import Budget

    return Budget(lower=USUAL, upper=[SURGE * calls for calls in USUAL], gamma=BLOCKS, name="demand")


def some_days(count: int, seed: int) -> list[list[float]]:
    """Demands as they come, (count, 6): most blocks nearly as usual, few far above; all in the uncertainty set."""
    draw = random.Random(seed)
    found: list[list[float]] = []
    while len(found) < count:
        surplus = [draw.betavariate(0.5, 2.0) for _ in USUAL]  # 0.2 in the mean
        if sum(surplus) <= BLOCKS:
            found.append([calls * (1 + (SURGE - 1) * part) for calls, part in zip(USUAL, surplus, strict=True)])
    return found


def problem(centre: CallCentre) -> Any:
    """The two-stage problem, with a roster that fits into the room."""
    from trace_core.nodes.decision import Linear, decision
    from trace_core.optimizers.decision import RobustProblem

    seats = []
    for k, shift in enumerate(SHIFTS):
        weights = [0.0] * len(POSTS) * len(SHIFTS)
        weights[k * len(POSTS) : (k + 1) * len(POSTS) - 1] = [1.0] * (len(POSTS) - 1)
        seats.append(Linear(weights, "<=", SEATS, name=f"seats in the {shift}"))
    roster = decision("roster", integer=len(MOST) * len(SHIFTS), low=0, high=MOST * len(SHIFTS), constraints=seats)
    return RobustProblem(roster, what_may_come(), first_stage=prices(), second_stage=centre)


def robust(centre: CallCentre, executions: int, seed: int) -> list[int]:
    """The roster with the best worst case that Neur2RO finds."""
    from trace_core.optimizers.decision import Neur2RO

    result = Neur2RO(problem(centre), executions=executions, seed=seed, seconds=3600).solve()
    return [round(float(n)) for n in result.x]


def rule_of_thumb(centre: CallCentre, executions: int, seed: int) -> list[int]:
    """Square-root staffing for the mean demand: for a load of r agents, r and its root. Nobody shared or on call."""
    roster = []
    for block, calls in enumerate(USUAL):
        load = calls * (1 + (SURGE - 1) * 0.2) * MINUTES[block % len(LINES)] / 60
        roster.append(round(load + math.sqrt(load)))
    return [*roster[: len(LINES)], 0, 0, *roster[len(LINES) :], 0, 0]


def average_case(centre: CallCentre, executions: int, seed: int, sample: int = 12) -> list[int]:
    """The roster with the best mean cost of a sample of days that a local search from the rule of thumb finds.

    Sample average approximation: all rosters see the same days. One that is clearly worse on the first of them is not
    run on the others.
    """
    allowed, draw, days = problem(centre).allows, random.Random(seed), some_days(sample, seed)
    best = rule_of_thumb(centre, executions, seed)
    costs = [centre.euros(best, day) for day in days]
    moves = _moves(draw)
    while moves and centre.runs + len(days) <= executions:
        move = moves.pop()
        trial = [a + b for a, b in zip(best, move, strict=True)]
        if min(trial) < 0 or not allowed(trial):
            continue
        excess: list[float] = []
        for day, cost in zip(days, costs, strict=True):
            excess.append(centre.euros(trial, day) - cost)
            if len(excess) > 2 and fmean(excess) > 2 * stdev(excess) / math.sqrt(len(excess)):
                break
        if len(excess) == len(days) and fmean(excess) < 0:
            best, costs = trial, [cost + more for cost, more in zip(costs, excess, strict=True)]
            moves = _moves(draw)
    return best


def _moves(draw: random.Random) -> list[list[int]]:
    """One more, one less, or one here instead of there; in random order."""
    size = len(POSTS) * len(SHIFTS)
    unit = [[int(k == i) for k in range(size)] for i in range(size)]
    moves = [*unit, *([-n for n in u] for u in unit)]
    moves += [[a - b for a, b in zip(u, v, strict=True)] for u, v in permutations(unit, 2)]
    draw.shuffle(moves)
    return moves


METHODS: dict[str, Callable[[CallCentre, int, int], list[int]]] = {
    "rule of thumb": rule_of_thumb,
    "average case": average_case,
    "robust": robust,
}


# ---- comparing


@dataclass(frozen=True)
class Verified:
    """One roster, executed on demands and days of chance that no method has seen.

    Attributes:
        worst, average: euros of the worst demand, and the mean over days as they come.
        runs: executions that finding it took.
    """

    method: str
    seed: int
    roster: list[int]
    worst: float
    average: float
    runs: int


def unseen(number: int = 45) -> list[list[float]]:
    """Demands to verify worst cases with: each pair of blocks with the full surge, and more from within the set."""
    pairs = [
        [calls * (SURGE if k in pair else 1.0) for k, calls in enumerate(USUAL)]
        for pair in combinations(range(len(USUAL)), 2)
    ]
    return pairs + [list(map(float, row)) for row in what_may_come().sample(number, 1_000_000)]


def verify(roster: Sequence[int], inside: int = 45, days: int = 60) -> tuple[float, float]:
    """(euros of the worst of ``unseen`` demands, mean euros of ``days`` as they come)."""
    centre = CallCentre(NEW_DAYS)
    worst = max(centre.euros(roster, demand) for demand in unseen(inside))
    return worst, fmean(centre.euros(roster, demand) for demand in some_days(days, 1_000_000))


def compare(seeds: Sequence[int] = (1, 2, 3), executions: int = 600, **thorough: int) -> list[Verified]:
    """Each method with each seed, verified; ``thorough`` goes to ``verify``."""
    found = []
    for name, method in METHODS.items():
        for seed in seeds:
            centre = CallCentre()
            roster = method(centre, executions, seed)
            found.append(Verified(name, seed, roster, *verify(roster, **thorough), centre.runs))
    return found


def report(found: Sequence[Verified]) -> str:
    """The comparison as a table, and in words."""
    lines = [f"{'method':<15} seed  worst day  average day  of it roster  runs  {' / '.join(SHIFTS)}"]
    for each in found:
        shown = " / ".join(
            "+".join(map(str, each.roster[k * len(POSTS) : (k + 1) * len(POSTS)])) for k in range(len(SHIFTS))
        )
        lines.append(
            f"{each.method:<15} {each.seed:4}  {each.worst:9.0f}  {each.average:11.0f}  {wages(each.roster):12.0f}  "
            f"{each.runs:4}  {shown}"
        )
    worst, average = ({m: fmean(getattr(e, of) for e in found if e.method == m) for m in METHODS} for of in _SHOWN)
    lines += ["", f"{'mean':<15}       worst day  average day"]
    lines += [f"{name:<15}       {worst[name]:9.0f}  {average[name]:11.0f}" for name in METHODS]
    less, more = 1 - worst["robust"] / worst["average case"], average["robust"] / average["average case"] - 1
    lines += [
        "",
        f"Euros. Rosters: agents for {', '.join(LINES)}; for all lines; on call.",
        f"Against the average case, the robust roster makes the worst day {100 * less:.1f} % cheaper and the average "
        f"day {100 * more:.1f} % dearer.",
        "Worst days were searched by executing (empirical: nothing is proven), on demands and chance not used before.",
    ]
    return "\n".join(lines)


_SHOWN = ("worst", "average")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m trace_core.examples.call_centre", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--executions", type=int, default=600, help="of the workflow, for each method and seed")
    given = parser.parse_args(arguments)
    require("torch", extra="torch").set_num_threads(1)
    sys.stdout.write(report(compare(given.seeds, given.executions)) + "\n")


if __name__ == "__main__":
    main()
