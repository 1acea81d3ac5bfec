"""The main problem of column-and-constraint generation: a decision against the scenarios collected so far."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.milp import Model, Solution
from trace_core.nodes.decision.uncertainty import Scenarios

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trace_core.nodes.decision.checks import Array
    from trace_core.nodes.decision.milp import Columns
    from trace_core.nodes.decision.stage import MilpStage
    from trace_core.nodes.decision.uncertainty import UncertaintySet
    from trace_core.optimizers.decision.problem import RobustProblem


class MainProblem:
    """``min first stage + theta``, theta at least the cost of a reaction of its own for every scenario.

    With uncertain costs only, one block more: the reaction relaxed to continuous values, against the whole uncertainty
    set at once. As its cost is linear in ``xi``, the worst case is a linear program, and its dual stands in the block.
    Continuous reactions are mixtures of integer ones and more, so what it says is a valid lower bound. With uncertain
    rows, each of them alone must allow a reaction whatever comes.
    Source: Zeng and Zhao, "Solving two-stage robust optimization problems using a column-and-constraint generation
    method" (2013); the dual block, Bertsimas and Sim (2004).
    """

    def __init__(self, problem: RobustProblem, stage: MilpStage, seed: int) -> None:
        self.problem, self.stage = problem, stage
        self.model = Model(seed=seed)
        self.x = problem.add_to(self.model)
        self.theta = self.model.add_columns(1, -math.inf, math.inf, cost=1.0)
        self.relaxed = not stage.uncertain_rows and not isinstance(problem.uncertainty, Scenarios)
        self.scenarios: list[Array] = []
        self.cut = math.inf  # decisions that promise more are not looked at
        self._reach: tuple[bytes, Columns] | None = None  # around which decision a ball is drawn, and its radius
        self._necessary: Columns = np.empty(0, dtype=np.int32)
        if self.relaxed:
            self._add_relaxed()
        elif not isinstance(problem.uncertainty, Scenarios):
            self._add_necessary()

    def _add_relaxed(self) -> None:
        stage, model = self.stage, self.model
        y = model.add_columns(stage.ny, stage.low, stage.high)
        if stage.m:
            model.add_rows([(self.x, stage.T), (y, stage.W)], high=stage.h)
        self._keep_cost(model, y)

    def _keep_cost(self, model: Model, y: Columns) -> None:
        """``theta`` is at least the cost of the one reaction ``y``, whatever comes."""
        stage, nothing = self.stage, np.zeros(self.stage.nx)
        always(
            model,
            self.problem.uncertainty,
            [
                (y, stage.Q.T, -stage.q),
                (self.x, stage.P.T, nothing),
                (self.theta, np.zeros((stage.nu, 1)), np.ones(1)),
            ],
        )

    def _add_necessary(self) -> None:
        """For uncertain rows, each by itself: some reaction within its bounds keeps it, whatever comes.

        The reaction is the best one where the sign of its coefficient is always the same, else better than the best.
        """
        stage, xi, first = self.stage, self.problem.uncertainty, self.model.rows
        for k in np.flatnonzero(stage.moving):
            slopes = stage.W_xi[:, k, :].T
            most = stage.W[k] + np.array([xi.worst(slope)[0] for slope in slopes])
            least = stage.W[k] - np.array([xi.worst(-slope)[0] for slope in slopes])
            y = np.where(least >= 0, stage.low, np.where(most <= 0, stage.high, 0.0))
            mixed = (least < 0) & (most > 0)
            ends = np.array([least * stage.low, least * stage.high, most * stage.low, most * stage.high])[:, mixed]
            if not (np.isfinite(y).all() and np.isfinite(ends).all()):
                continue  # can always be kept
            spare = float(ends.min(axis=0).sum()) if mixed.any() else 0.0
            always(
                self.model,
                xi,
                [(self.x, stage.T_xi[:, k, :], -stage.T[k])],
                slope=slopes.T @ y - stage.H[k],
                right=stage.h[k] - stage.W[k] @ y - spare,
            )
        self._necessary = np.arange(first, self.model.rows, dtype=np.int32)

    def forget_necessary(self) -> bool:
        """Leave only the scenarios to say what is impossible; False if nothing else does."""
        if not len(self._necessary):
            return False
        self.model.set_row_bounds(self._necessary, -math.inf, math.inf)
        self._necessary = self._necessary[:0]
        return True

    def static(self, seconds: float) -> tuple[Array, float] | None:
        """The best decision with one reaction for all that may come, and its cost, proven; None if there is none."""
        stage, xi, every = self.stage, self.problem.uncertainty, self.model
        model = Model(seed=every.seed)
        self.problem.add_to(model)  # x and theta have the same columns as in the main problem
        model.add_columns(1, -math.inf, math.inf, cost=1.0)
        y = model.add_columns(stage.ny, stage.low, stage.high, integer=stage.integer)
        for k in range(stage.m):
            if stage.moving[k]:
                parts = [(self.x, stage.T_xi[:, k, :], -stage.T[k]), (y, stage.W_xi[:, k, :], -stage.W[k])]
                always(model, xi, parts, slope=-stage.H[k], right=stage.h[k])
            else:
                model.add_rows([(self.x, stage.T[k]), (y, stage.W[k])], high=stage.h[k])
        self._keep_cost(model, y)
        found = model.solve(seconds=seconds, gap=1e-3)
        return (found[self.x], found[self.theta].item()) if found else None

    def add(self, xi: Array) -> None:
        """One scenario more."""
        self.scenarios.append(xi)
        self.stage.add_copy(self.model, self.x, xi, self.theta)

    def exclude(self, x: Array) -> None:
        """Cut off one binary decision, whose worst case is known."""
        one = x > 0.5
        self.model.add_rows([(self.x, np.where(one, -1.0, 1.0))], low=1.0 - np.count_nonzero(one))

    def below(self, value: float) -> None:
        """Look only for decisions that promise less than ``value``."""
        if value < self.cut:
            self.cut = value
            right = value - self.problem.constant
            self.model.add_rows([(self.x, self.problem.cost), (self.theta, [1.0])], high=right)

    def near(self, x: Array | None, radius: int = 0) -> None:
        """Look only at binary decisions that differ from ``x`` in at most ``radius`` entries; at all of them for None.

        Source: Fischetti and Lodi, "Local branching" (2003).
        """
        if x is None:
            if self._reach is not None:
                self.model.set_bounds(self._reach[1], 0.0, float(self.problem.size))
            return
        if self._reach is None or self._reach[0] != x.tobytes():
            self.near(None)
            self._reach = (x.tobytes(), self.model.add_columns(1))
            one = x > 0.5
            self.model.add_rows(
                [(self.x, np.where(one, -1.0, 1.0)), (self._reach[1], [-1.0])], high=-float(np.count_nonzero(one))
            )
        self.model.set_bounds(self._reach[1], 0.0, float(radius))

    def solve(self, seconds: float, gap: float) -> Solution:
        """Solve; ``x`` and ``theta`` index the solution."""
        return self.model.solve(seconds=seconds, gap=gap)


def always(
    model: Model,
    xi: UncertaintySet,
    parts: Sequence[tuple[Columns, Array, Array]],
    *,
    slope: Array | None = None,
    right: float = 0.0,
) -> None:
    """``(slope + sum of S v) . xi <= right + sum of r . v`` for every ``xi`` of the set, by the dual of its left side.

    Args:
        parts: (columns v, S, r) each; S has a row for each entry of ``xi``.

    Source: Bertsimas and Sim, "The Price of Robustness" (2004).
    """
    span, slack = xi.high - xi.low, xi.right - xi.matrix @ xi.low  # xi = low + z, 0 <= z <= span, matrix z <= slack
    fixed = np.zeros(xi.size) if slope is None else slope
    prices, caps = model.add_columns(len(xi.matrix)), model.add_columns(xi.size)
    model.add_rows([(prices, xi.matrix.T), (caps, np.eye(xi.size)), *((v, -steep) for v, steep, _ in parts)], low=fixed)
    model.add_rows(
        [(prices, slack), (caps, span), *((v, steep.T @ xi.low - r) for v, steep, r in parts)],
        high=right - fixed @ xi.low,
    )
