"""Small problems of whole numbers only: all decisions and reactions are listed, and a table stands for the solver."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.milp import Solution

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trace_core.nodes.decision.checks import Array
    from trace_core.nodes.decision.milp import Columns
    from trace_core.nodes.decision.stage import MilpStage
    from trace_core.optimizers.decision.problem import RobustProblem

_LISTED = 1 << 12  # decisions, and reactions
_LOOKED_AT = 1 << 22  # pairs of them that are looked at
_KEPT = 1 << 20  # pairs that rows without xi allow


class ListedProblem:
    """The main problem (see MainProblem) and the recourse of a problem whose decisions and reactions can be listed.

    For each scenario, the value of every decision is worked out once. So the main problem is solved to optimality by
    looking, however many scenarios there are.
    """

    relaxed = False

    def __init__(self, problem: RobustProblem, stage: MilpStage) -> None:
        """Raises ValueError if there are too many: see ``listed``."""
        self.problem, self.stage = problem, stage
        self.scenarios: list[Array] = []
        self.cut = math.inf
        every = _grid(problem.low, problem.high)
        self._x = np.array([x for x in every if problem.allows(x)]).reshape(-1, problem.size)
        self._y = _grid(stage.low, stage.high)
        steady = ~stage.moving
        used, right = self._y @ stage.W[steady].T, stage.h[steady]
        limit = right + 1e-7 * np.maximum(1.0, np.abs(right))
        pairs = [np.flatnonzero((used + stage.T[steady] @ x <= limit).all(axis=1)) for x in self._x]
        self._starts = np.cumsum([0, *map(len, pairs)])
        if self._starts[-1] > _KEPT:
            raise ValueError("too many pairs of decisions and reactions")
        self._pairs: NDArray[np.intp] = np.concatenate([*pairs, np.empty(0, dtype=np.intp)]).astype(np.intp)
        self._owner = np.repeat(np.arange(len(pairs)), np.diff(self._starts))
        self._promised = np.full(len(self._x), -math.inf)  # of each decision: its worst value over the scenarios
        self._first = self._x @ problem.cost + problem.constant
        self._open = np.ones(len(self._x), dtype=bool)
        self._near = self._open
        self._index = {x.tobytes(): k for k, x in enumerate(self._x)}
        self.x: Columns = np.arange(problem.size, dtype=np.int32)
        self.theta: Columns = np.array([problem.size], dtype=np.int32)

    def add(self, xi: Array) -> None:
        """One scenario more."""
        self.scenarios.append(xi)
        costs = self._costs(xi, slice(None))
        values = np.full(len(self._x), math.inf)
        some = np.flatnonzero(np.diff(self._starts))
        if len(some):
            values[some] = np.minimum.reduceat(costs, self._starts[some])
        self._promised = np.maximum(self._promised, values + self._x @ self.stage.costs(xi)[1])

    def _costs(self, xi: Array, pairs: slice) -> Array:
        """Of the reactions in these pairs, infinite where a row is broken."""
        stage = self.stage
        of_x, of_y, right = (each[stage.moving] for each in stage.rows(xi))
        limit = right + 1e-7 * np.maximum(1.0, np.abs(right))
        costs = (self._y @ stage.costs(xi)[0])[self._pairs[pairs]]
        for row, side, high in zip(of_x, of_y, limit, strict=True):
            used = (self._x @ row)[self._owner[pairs]] + (self._y @ side)[self._pairs[pairs]]
            costs = np.where(used <= high, costs, math.inf)
        return costs

    def exclude(self, x: Array) -> None:
        """See MainProblem."""
        self._open[self._index[x.tobytes()]] = False

    def below(self, value: float) -> None:
        """See MainProblem."""
        self.cut = min(self.cut, value)

    def near(self, x: Array | None, radius: int = 0) -> None:
        """See MainProblem."""
        self._near = self._open if x is None else np.abs(self._x - x).sum(axis=1) <= radius + 0.5

    def solve(self, seconds: float, gap: float) -> Solution:
        """See MainProblem; always to optimality."""
        totals = np.where(self._open & self._near, self._first + self._promised, math.inf)
        best = int(np.argmin(totals)) if len(totals) else -1
        if best < 0 or not totals[best] <= self.cut or math.isinf(totals[best]):
            return Solution("infeasible", np.empty(0), math.nan, math.nan, 0.0)
        values = np.append(self._x[best], self._promised[best])
        return Solution("optimal", values, float(totals[best]), float(totals[best]), 0.0)

    def forget_necessary(self) -> bool:
        """See MainProblem."""
        return False

    def static(self, seconds: float) -> None:
        """See MainProblem; the table is as fast."""

    def fixed(self, x: Array) -> ListedStage:
        """The recourse of one decision."""
        return ListedStage(self, x, self._index[x.tobytes()])


class ListedStage:
    """The recourse of one decision, by looking (see FixedStage)."""

    def __init__(self, listed: ListedProblem, x: Array, index: int) -> None:
        self._listed, self.x = listed, x
        self._mine = slice(int(listed._starts[index]), int(listed._starts[index + 1]))

    def best(self, xi: Array, within: float = 0.0, seconds: float = math.inf) -> tuple[float, Array | None]:
        """(least cost, a reaction that has it), (inf, None) if there is no reaction."""
        listed = self._listed
        costs = listed._costs(xi, self._mine)
        best = int(np.argmin(costs)) if len(costs) else -1
        if best < 0 or math.isinf(costs[best]):
            return math.inf, None
        reaction: Array = listed._y[listed._pairs[self._mine][best]]
        return float(costs[best] + listed.stage.costs(xi)[1] @ self.x), reaction


def listed(problem: RobustProblem, stage: MilpStage) -> ListedProblem | None:
    """The tables, for uncertain rows and binary decisions; None where there are too many, or not only whole numbers."""
    if not (stage.uncertain_rows and problem.binary and stage.reaction is None and bool(stage.integer.all())):
        return None
    sizes = [_many(problem.low, problem.high), _many(stage.low, stage.high)]
    if max(sizes) > _LISTED or sizes[0] * sizes[1] > _LOOKED_AT:
        return None
    try:
        return ListedProblem(problem, stage)
    except ValueError:
        return None


def _many(low: Array, high: Array) -> float:
    """How many vectors of whole numbers lie between the bounds."""
    return float(np.prod(np.maximum(np.floor(high) - np.ceil(low) + 1, 0.0)))


def _grid(low: Array, high: Array) -> Array:
    """All vectors of whole numbers between the bounds, as rows."""
    ranges = [range(int(np.ceil(a)), int(np.floor(b)) + 1) for a, b in zip(low, high, strict=True)]
    return np.array(list(itertools.product(*ranges)), dtype=np.float64).reshape(-1, len(low))
