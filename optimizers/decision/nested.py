"""The exact worst case where the recourse's rows depend on the uncertainty and its reactions are bounded integers."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.errors import SolverError
from trace_core.nodes.decision.milp import Model
from trace_core.optimizers.decision.adversary import Attack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trace_core.nodes.decision.checks import Array
    from trace_core.nodes.decision.milp import Columns, Solution
    from trace_core.nodes.decision.stage import MilpStage
    from trace_core.nodes.decision.uncertainty import UncertaintySet

ROOM = 1e-5  # a row counts as broken from this much on, relative to its size


class NestedAdversary:
    """Column generation within the adversary: each reaction known must be too dear or break a row.

    ``max theta`` over the set, such that for every reaction k either ``theta <=`` its cost under ``xi``, or one of its
    rows is broken by more than ``ROOM`` (a binary for each row that can be). The recourse problem at the solution gives
    the value and a new reaction. Rows are thus kept up to ``ROOM`` of their size; a scenario that breaks a row by less
    does not count as breaking it. Source: Zhao and Zeng, "An exact algorithm for two-stage robust optimization with
    mixed integer recourse problems" (2012).
    """

    _KEPT = 40  # reactions to earlier decisions

    def __init__(self, stage: MilpStage, xi: UncertaintySet) -> None:
        self.stage, self.xi = stage, xi
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
        fixed = self.stage.fixed(x)
        lower, best = -math.inf, self.xi.center
        mine: dict[bytes, Array] = {}
        for vector in [*known, self.xi.center]:
            value, reaction = fixed.best(vector)
            if value > lower:
                lower, best = value, vector
            if lower > enough or reaction is None:
                return Attack(lower, math.inf, best)
            mine[reaction.tobytes()] = reaction
        inner = _Inner(self.stage, self.xi, x, enough)
        for reaction in {**self._reactions, **mine}.values():
            inner.add(reaction)
        upper, gap = math.inf, 0.03
        finest = tolerance / max(abs(lower), 1e-3) / 2
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return Attack(lower, max(upper, lower), best)
            gap = max(gap, finest)
            solution = inner.solve(left, gap)
            if solution.bound < inner.enough:  # at that cap, the bound says nothing
                upper = min(upper, solution.bound)
            if not solution or upper - lower <= tolerance:
                return Attack(lower, max(upper, lower), best)
            xi = solution[inner.xi].copy()
            value, reaction = fixed.best(xi)
            if value > lower:
                lower, best = value, xi
            if reaction is None or lower > enough:
                return Attack(lower, math.inf, best)
            self._keep(reaction)
            new = inner.add(reaction)
            if solution.objective <= lower + tolerance:  # no worse scenario this roughly
                gap = gap / 10 if gap > finest else 0.0
            if not new and gap < finest:  # the scenario breaks this reaction by less than ROOM
                return Attack(lower, max(upper, lower), best)
            if not new:
                gap = gap / 10

    def _keep(self, reaction: Array) -> None:
        self._reactions.pop(reaction.tobytes(), None)
        self._reactions[reaction.tobytes()] = reaction
        if len(self._reactions) > self._KEPT:
            self._reactions.pop(next(iter(self._reactions)))


class _Inner:
    """The model of the adversary for one decision."""

    def __init__(self, stage: MilpStage, xi: UncertaintySet, x: Array, enough: float) -> None:
        self.stage, self.set, self.x = stage, xi, x
        self.model = Model(maximise=True)
        self.xi: Columns = self.model.add_columns(xi.size, xi.low, xi.high)
        if len(xi.matrix):
            self.model.add_rows([(self.xi, xi.matrix)], high=xi.right)
        self.enough = enough + 1e-3 * max(1.0, abs(enough))  # more than enough need not be told apart
        self.cap = min(self._dearest(), self.enough)  # of theta: the smaller, the tighter the switches
        self.theta = self.model.add_columns(1, -math.inf, self.cap, cost=1.0)
        self._known: set[bytes] = set()

    def _dearest(self) -> float:
        """No reaction within its bounds costs more, whatever comes: what theta is where none is left, and one more."""
        stage, box = self.stage, self.set
        total = 0.0
        for slopes, base, low, high in ((stage.Q, stage.q, stage.low, stage.high), (stage.P, 0.0, self.x, self.x)):
            ends = [base + np.where(slopes * s > 0, slopes * box.high, slopes * box.low).sum(axis=1) for s in (1, -1)]
            corners = [end * bound for end in ends for bound in (low, high)]
            total += float(np.max(corners, axis=0).sum()) if len(low) else 0.0
        return total + 1.0 + abs(total) * 1e-3

    def add(self, y: Array) -> bool:
        """A reaction more; False if it is there already."""
        if y.tobytes() in self._known:
            return False
        self._known.add(y.tobytes())
        stage = self.stage
        # broken by more than room: gradient . xi + constant >= room
        gradient = (stage.T_xi @ self.x + stage.W_xi @ y).T - stage.H
        constant = stage.T @ self.x + stage.W @ y - stage.h
        size = np.abs(stage.h) + np.abs(stage.T) @ np.abs(self.x) + np.abs(stage.W) @ np.abs(y)
        room = ROOM * np.maximum(1.0, size)
        most = np.array([self.set.worst(row)[0] for row in gradient]) + constant
        lows = constant - np.array([self.set.worst(-row)[0] for row in gradient])
        if (lows >= room).any():  # never a reaction to this decision
            return True
        terms = []
        for k in np.flatnonzero(most >= room):
            least = lows[k]
            switch = self.model.add_columns(1, 0.0, 1.0, integer=True)
            self.model.add_rows([(self.xi, gradient[k]), (switch, [least - room[k]])], low=least - constant[k])
            terms.append(switch)
        slope = stage.Q.T @ y + stage.P.T @ self.x
        base = float(stage.q @ y)
        least = base - self.set.worst(-slope)[0]
        if not terms:  # always a reaction: nothing costs more than it
            self.cap = min(self.cap, base + self.set.worst(slope)[0])
            self.model.set_bounds(self.theta, -math.inf, self.cap)
        row = [(self.theta, [1.0]), (self.xi, -slope)] + [(switch, [least - self.cap]) for switch in terms]
        self.model.add_rows(row, high=base)
        return True

    def solve(self, seconds: float, gap: float) -> Solution:
        solution = self.model.solve(seconds=seconds, gap=gap)
        if solution.status in ("infeasible", "unbounded"):
            raise SolverError("the adversary's problem", solution.status)
        return solution
