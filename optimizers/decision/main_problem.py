"""The main problem of column-and-constraint generation: a decision against the scenarios collected so far."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.milp import Model, Solution
from trace_core.nodes.decision.uncertainty import Scenarios

if TYPE_CHECKING:
    from trace_core.nodes.decision.checks import Array
    from trace_core.nodes.decision.milp import Columns
    from trace_core.nodes.decision.stage import MilpStage
    from trace_core.optimizers.decision.problem import RobustProblem


class MainProblem:
    """``min first stage + theta``, theta at least the cost of a reaction of its own for every scenario.

    With uncertain costs only, one block more: the reaction relaxed to continuous values, against the whole uncertainty
    set at once. As its cost is linear in ``xi``, the worst case is a linear program, and its dual stands in the block.
    Continuous reactions are mixtures of integer ones and more, so what it says is a valid lower bound.
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
        if self.relaxed:
            self._add_relaxed()

    def _add_relaxed(self) -> None:
        stage, xi, model = self.stage, self.problem.uncertainty, self.model
        y = model.add_columns(stage.ny, stage.low, stage.high)
        if stage.m:
            model.add_rows([(self.x, stage.T), (y, stage.W)], high=stage.h)
        # max over 0 <= z <= span, matrix z <= right - matrix low, of v.(low + z) with v = Q'y + P'x, by its dual
        span, slack = xi.high - xi.low, xi.right - xi.matrix @ xi.low
        prices, caps = model.add_columns(len(xi.matrix)), model.add_columns(xi.size)
        model.add_rows([(prices, xi.matrix.T), (caps, np.eye(xi.size)), (y, -stage.Q.T), (self.x, -stage.P.T)], low=0.0)
        model.add_rows(
            [
                (self.theta, [1.0]),
                (y, -(stage.q + stage.Q @ xi.low)),
                (self.x, -(stage.P @ xi.low)),
                (prices, -slack),
                (caps, -span),
            ],
            low=0.0,
        )

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
