"""The exact worst case where the recourse's rows depend on the uncertainty and its reactions are bounded integers."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.errors import SolverError
from trace_core.nodes.decision.milp import Model
from trace_core.optimizers.decision.adversary import Attack, until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from trace_core.nodes.decision.checks import Array
    from trace_core.nodes.decision.milp import Columns
    from trace_core.nodes.decision.stage import MilpStage
    from trace_core.nodes.decision.uncertainty import UncertaintySet
    from trace_core.optimizers.decision.adversary import FixedRecourse

ROOM = 1e-5  # a row counts as broken from this much on, relative to its size


class NestedAdversary:
    """Branch and bound over reactions: each is either allowed, so that it caps the worst case, or one row of it breaks.

    The nodes are linear programs ``max theta`` over parts of the set, with one row for each choice made, in ``xi`` and
    ``theta`` only: they are small whatever the recourse is, and have no big-M. A reaction is branched on where it is
    allowed and cheaper than ``theta`` at the program's solution; if none of those known is, the recourse problem there
    gives one, or proves that ``theta`` is reached. Rows are kept up to ``ROOM`` of their size; a scenario that breaks
    a row by less does not count as breaking it. Reactions to earlier decisions are used again.
    Source: the disjunction is that of Zhao and Zeng, "An exact algorithm for two-stage robust optimization with mixed
    integer recourse problems" (2012), who solve a MILP over all reactions found, again for each new one.
    """

    _KEPT = 400  # reactions

    def __init__(self, stage: MilpStage, xi: UncertaintySet, fixed: Callable[[Array], FixedRecourse]) -> None:
        self.stage, self.xi, self._fixed = stage, xi, fixed
        self._reactions: dict[bytes, Array] = {}

    def attack(
        self,
        x: Array,
        *,
        tolerance: float,
        known: Sequence[Array] = (),
        enough: float = math.inf,
        deadline: float = math.inf,
    ) -> Attack:
        """See Adversary."""
        fixed = self._fixed(x)
        lower, best = -math.inf, self.xi.center
        for vector in [*known, self.xi.center]:
            value, reaction = fixed.best(vector, tolerance / 4, until(deadline))
            if value > lower:
                lower, best = value, vector
            if lower > enough or reaction is None:
                return Attack(lower, math.inf, best)
            self._keep(reaction)
        pool = _Pool(self.stage, self.xi, x, list(self._reactions.values()))
        search = _Search(self.xi, pool)
        upper = math.inf
        while (node := search.worst()) is not None:
            upper = max(node.theta, search.closed)
            if upper - lower <= tolerance or time.monotonic() > deadline:
                return Attack(lower, max(upper, lower), best)
            choice = pool.choice(node.xi, node.theta - max(node.theta - lower, tolerance) / 4, node.decided)
            if choice is None:
                for within in (max(node.theta - lower, tolerance) / 4, tolerance / 2):
                    value, reaction = fixed.best(node.xi, within, until(deadline))
                    if value > lower:
                        lower, best = value, node.xi
                    if reaction is None or lower > enough:
                        return Attack(lower, math.inf if math.isinf(lower) or lower > enough else upper, best)
                    self._keep(reaction)
                    choice = new = pool.add(reaction)
                    if value >= node.theta - tolerance or pool.cost(new, node.xi) < node.theta - tolerance / 4:
                        break
                if value >= node.theta - tolerance or choice is None or choice in node.decided:
                    search.close()
                    continue
            search.branch(choice)
        return Attack(lower, max(search.closed, lower), best)

    def _keep(self, reaction: Array) -> None:
        self._reactions.pop(reaction.tobytes(), None)
        self._reactions[reaction.tobytes()] = reaction
        if len(self._reactions) > self._KEPT:
            self._reactions.pop(next(iter(self._reactions)))


class _Pool:
    """The reactions to one decision: for each, its cost and its rows as affine functions of ``xi``.

    Row k of a reaction is broken from ``gradient[k] . xi >= limit[k]`` on.
    """

    def __init__(self, stage: MilpStage, xi: UncertaintySet, x: Array, reactions: list[Array]) -> None:
        self.stage, self.set, self.x = stage, xi, x
        self.gradients: list[Array] = []
        self.limits: list[Array] = []
        self.slopes: list[Array] = []
        self.bases: list[float] = []
        self.rows: list[NDArray[np.intp]] = []  # those that some scenario breaks, for each reaction
        self._index: dict[bytes, int] = {}
        self._spread = xi.high - xi.low
        self._stacked: tuple[Array, ...] = ()
        self.cap = self._dearest()
        for reaction in reactions:
            self.add(reaction, only_possible=True)

    def _dearest(self) -> float:
        """No reaction within its bounds costs more, whatever comes: what theta is where none is left, and one more."""
        stage, box = self.stage, self.set
        total = 0.0
        for slopes, base, low, high in ((stage.Q, stage.q, stage.low, stage.high), (stage.P, 0.0, self.x, self.x)):
            ends = [base + np.where(slopes * s > 0, slopes * box.high, slopes * box.low).sum(axis=1) for s in (1, -1)]
            corners = [end * bound for end in ends for bound in (low, high)]
            total += float(np.max(corners, axis=0).sum()) if len(low) else 0.0
        return total + 1.0 + abs(total) * 1e-3

    def add(self, y: Array, *, only_possible: bool = False) -> int:
        """The index of a reaction; ``only_possible`` leaves out what no scenario allows (-1)."""
        known = self._index.get(y.tobytes())
        if known is not None:
            return known
        stage, x = self.stage, self.x
        gradient = (stage.T_xi @ x + stage.W_xi @ y).T - stage.H
        constant = stage.T @ x + stage.W @ y - stage.h
        size = np.abs(stage.h) + np.abs(stage.T) @ np.abs(x) + np.abs(stage.W) @ np.abs(y)
        limit = ROOM * np.maximum(1.0, size) - constant
        steady = ~gradient.any(axis=1)
        if only_possible and (limit[steady] <= 0).any():
            return -1
        moving = np.flatnonzero(~steady)
        ends = np.array([(self.set.worst(gradient[k])[0], -self.set.worst(-gradient[k])[0]) for k in moving])
        if only_possible and len(ends) and (ends[:, 1] >= limit[moving]).any():
            return -1
        breakable = moving[ends[:, 0] >= limit[moving]] if len(ends) else moving
        self.gradients.append(gradient)
        self.limits.append(limit)
        self.slopes.append(stage.Q.T @ y + stage.P.T @ x)
        self.bases.append(float(stage.q @ y))
        self.rows.append(breakable)
        self._index[y.tobytes()] = len(self.bases) - 1
        self._stacked = ()
        return len(self.bases) - 1

    def cost(self, reaction: int, xi: Array) -> float:
        """Of a reaction, by its index."""
        return self.bases[reaction] + float(self.slopes[reaction] @ xi)

    def choice(self, xi: Array, below: float, decided: Mapping[int, Any]) -> int | None:
        """The reaction to branch on: undecided, allowed at ``xi``, cheaper than ``below``, and both by much."""
        if not self.bases:
            return None
        if not self._stacked:
            gradients, limits = np.array(self.gradients), np.array(self.limits)
            reach = np.maximum(np.abs(gradients) @ self._spread, 1e-12)
            free = np.ones(limits.shape, dtype=bool)
            for k, rows in enumerate(self.rows):
                free[k, rows] = False
            self._stacked = (gradients, limits, reach, np.array(self.slopes), np.array(self.bases), free)
        gradients, limits, reach, slopes, bases, free = self._stacked
        gain = below - bases - slopes @ xi
        slack = (limits - gradients @ xi) / reach
        slack[free] = math.inf
        distance = slack.min(axis=1, initial=1.0)
        score = np.where((gain > 0) & (distance > 0), gain * (distance + 0.01), -1.0)
        score[list(decided)] = -1.0
        best = int(np.argmax(score))
        return best if score[best] > 0 else None


@dataclass(frozen=True)
class _Node:
    """A part of the set: what was decided of reactions (None: allowed, else which row breaks), and its solution."""

    decided: dict[int, int | None]
    theta: float
    xi: Array


class _Search:
    """The open nodes, and one linear program that becomes each of them in turn."""

    def __init__(self, xi: UncertaintySet, pool: _Pool) -> None:
        self.pool, self.closed = pool, -math.inf  # of nodes whose bound is reached
        self.model = Model(maximise=True)
        self.columns: Columns = self.model.add_columns(xi.size, xi.low, xi.high)
        if len(xi.matrix):
            self.model.add_rows([(self.columns, xi.matrix)], high=xi.right)
        self._fixed = self.model.rows
        self.theta = self.model.add_columns(1, -math.inf, pool.cap, cost=1.0)
        self._place: dict[int, int] = {}  # of a reaction's rows: its cost, then those that can be broken
        self._open: list[tuple[float, int, _Node]] = []
        self._order = itertools.count()
        self._solve({})

    def worst(self) -> _Node | None:
        """The open node with the highest bound; stays open."""
        return self._open[0][2] if self._open else None

    def close(self) -> None:
        """That node's bound is reached."""
        node = heapq.heappop(self._open)[2]
        self.closed = max(self.closed, node.theta)

    def branch(self, reaction: int) -> None:
        """That node is replaced by its parts."""
        node = heapq.heappop(self._open)[2]
        self._solve({**node.decided, reaction: None}, node.theta)
        for row in self.pool.rows[reaction]:
            self._solve({**node.decided, reaction: int(row)}, node.theta)

    def _solve(self, decided: dict[int, int | None], most: float = math.inf) -> None:
        pool, model = self.pool, self.model
        for reaction in decided:
            if reaction not in self._place:
                rows = pool.rows[reaction]
                self._place[reaction] = model.rows
                model.add_rows([(self.theta, [1.0]), (self.columns, -pool.slopes[reaction])])
                if len(rows):
                    model.add_rows([(self.columns, pool.gradients[reaction][rows])])
        low, high = np.full(model.rows - self._fixed, -math.inf), np.full(model.rows - self._fixed, math.inf)
        for reaction, broken in decided.items():
            first, rows = self._place[reaction] - self._fixed, pool.rows[reaction]
            if broken is None:
                high[first] = pool.bases[reaction]
                high[first + 1 : first + 1 + len(rows)] = pool.limits[reaction][rows]
            else:
                at = first + 1 + int(np.searchsorted(rows, broken))
                low[at] = pool.limits[reaction][broken]
        model.set_row_bounds(np.arange(self._fixed, model.rows, dtype=np.int32), low, high)
        solution = model.solve()
        if solution.status == "infeasible":
            return
        if not solution:
            raise SolverError("the adversary's problem", solution.status)
        theta = min(solution[self.theta].item(), most)
        node = _Node(decided, theta, solution[self.columns].copy())
        heapq.heappush(self._open, (-theta, next(self._order), node))
