"""The exact worst case of one decision. Everything here is minimised by the recourse and maximised by the adversary."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.errors import InvalidProblem
from trace_core.nodes.decision.milp import Model
from trace_core.nodes.decision.uncertainty import Scenarios, UncertaintySet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trace_core.nodes.decision.checks import Array
    from trace_core.nodes.decision.stage import MilpStage


@dataclass(frozen=True)
class Attack:
    """The worst case of one decision.

    Attributes:
        lower: proven to be reached, at ``xi``; infinite if no reaction is possible there.
        upper: proven not to be exceeded.
        xi: the worst scenario found.
    """

    lower: float
    upper: float
    xi: Array


def until(deadline: float) -> float:
    """Seconds left for one solve; none at all would not even show whether there is a reaction."""
    return deadline if math.isinf(deadline) else max(deadline - time.monotonic(), 0.02)


class FixedRecourse(Protocol):
    """The recourse of one decision."""

    def best(self, xi: Array, within: float = 0.0, seconds: float = math.inf) -> tuple[float, Array | None]:
        """See FixedStage."""
        ...


class Adversary(Protocol):
    """Finds the worst case of a decision."""

    def attack(
        self,
        x: Array,
        *,
        tolerance: float,
        known: Sequence[Array] = (),
        enough: float = math.inf,
        deadline: float = math.inf,
    ) -> Attack:
        """The worst case of ``x``.

        Args:
            tolerance: how far apart ``lower`` and ``upper`` may be.
            known: scenarios to begin with.
            enough: stop as soon as ``lower`` is above it: the decision is bad enough to be dropped.
            deadline: of ``time.monotonic``; the answer may then be loose.
        """
        ...


def adversary_for(
    stage: MilpStage, xi: UncertaintySet, fixed: Callable[[Array], FixedRecourse] | None = None
) -> Adversary:
    """The exact adversary for this kind of uncertainty.

    ``fixed`` solves the recourse of a decision faster than ``stage.fixed``.

    Raises InvalidProblem where there is none: uncertain rows with a recourse that is not purely integer and bounded.
    """
    if isinstance(xi, Scenarios):
        return ScenarioAdversary(stage, xi, fixed or stage.fixed)
    if not stage.uncertain_rows:
        return ConcaveAdversary(stage, xi)
    from trace_core.optimizers.decision.nested import NestedAdversary

    if bool(stage.integer.all()) and bool(np.isfinite(stage.low).all() and np.isfinite(stage.high).all()):
        return NestedAdversary(stage, xi, fixed or stage.fixed)
    raise InvalidProblem(
        "recourse",
        "has rows that depend on xi and reactions that are not bounded integers: no exact worst case is known here. "
        "Use Scenarios, or leave recourse= out and give second_stage=, to learn from executions",
    )


class ScenarioAdversary:
    """Finitely many scenarios: each is tried."""

    def __init__(self, stage: MilpStage, xi: Scenarios, fixed: Callable[[Array], FixedRecourse]) -> None:
        self.stage, self.xi, self._fixed = stage, xi, fixed

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
        worst, at = -math.inf, self.xi.vectors[0]
        for vector in [*known, *self.xi.vectors]:
            value, reaction = fixed.best(vector, seconds=until(deadline))
            if value > worst:
                worst, at = value, vector
            if worst > enough or reaction is None:
                return Attack(worst, math.inf, at)
            if time.monotonic() > deadline:
                return Attack(worst, math.inf, at)
        return Attack(worst, worst, at)


class ConcaveAdversary:
    """Uncertain costs only: V(x, .) is the least of the linear functions that the reactions give, so it is concave.

    Maximised by cutting planes: the LP over the cuts of all reactions known bounds it from above, a recourse problem at
    the LP's point (or between it and the best point, which needs fewer of them) gives the value and a new cut. A cut is
    valid for every reaction that is allowed, so reactions to earlier decisions are used again where they are.
    Source: Kelley (1960); the points between, Ben-Ameur and Neto, "Acceleration of cutting-plane and column generation
    algorithms" (2007).
    """

    _KEPT = 400  # reactions

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
        stage, center = self.stage, self.xi.center
        fixed = stage.fixed(x)
        lower, best = -math.inf, center
        model = Model(maximise=True)
        xi = model.add_columns(self.xi.size, self.xi.low, self.xi.high)
        if len(self.xi.matrix):
            model.add_rows([(xi, self.xi.matrix)], high=self.xi.right)
        theta = model.add_columns(1, -math.inf, math.inf, cost=1.0)
        of_x = stage.P.T @ x

        def cut(reactions: Array) -> None:  # theta <= q.y + xi.(Q'y + P'x) for each row y
            model.add_rows(
                [(theta, np.ones((len(reactions), 1))), (xi, -(reactions @ stage.Q + of_x))], high=reactions @ stage.q
            )

        usable = self._usable(x)
        if len(usable):
            cut(usable)
        for vector in [*known, center] if not len(usable) else known:
            value, reaction = fixed.best(vector, seconds=until(deadline))
            if value > lower:
                lower, best = value, vector
            if reaction is None:
                return Attack(lower, math.inf, best)
            if lower > enough:
                return Attack(lower, math.inf, best)
            self._keep(reaction)
            cut(reaction[None, :])
        finest, fine = tolerance / 4, False
        while True:
            solution = model.solve()
            upper = solution[theta].item() if solution else math.inf
            if upper - lower <= tolerance or not solution or time.monotonic() > deadline:
                return Attack(lower, max(upper, lower), best)
            point, far = (solution[xi] + best) / 2, solution[xi].copy()
            if math.isinf(lower):
                point = far
            within = finest if fine or math.isinf(lower) else max(finest, (upper - lower) / 10)
            for query in (point, far):
                value, reaction = fixed.best(query, within, until(deadline))
                if value > lower:
                    lower, best = value, query
                if reaction is None:
                    return Attack(lower, math.inf if math.isinf(lower) else max(upper, lower), best)
                if lower > enough:
                    return Attack(lower, math.inf, best)
                self._keep(reaction)
                cut(reaction[None, :])
                if self._line(reaction, of_x, far) < upper - tolerance / 2:  # cuts off the LP's point: solve it again
                    fine = False
                    break
            else:
                if within <= finest:
                    return Attack(lower, max(upper, lower), best)
                fine = True  # rough reactions gave no new cut

    def _line(self, reaction: Array, of_x: Array, xi: Array) -> float:
        return float(reaction @ self.stage.q + xi @ (self.stage.Q.T @ reaction + of_x))

    def _keep(self, reaction: Array) -> None:
        self._reactions[reaction.tobytes()] = reaction
        if len(self._reactions) > self._KEPT:
            self._reactions.pop(next(iter(self._reactions)))

    def _usable(self, x: Array) -> Array:
        """Reactions known that are allowed for ``x``, as rows."""
        if not self._reactions:
            return np.empty((0, self.stage.ny))
        rows = np.array(list(self._reactions.values()))
        right = self.stage.h - self.stage.T @ x
        allowed: Array = rows[(rows @ self.stage.W.T <= right + 1e-7 * np.maximum(1.0, np.abs(right))).all(axis=1)]
        return allowed
