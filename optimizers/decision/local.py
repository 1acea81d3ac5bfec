"""The surrogate near one decision: the network, corrected by kriging of its errors, and how unsure that is."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.uncertainty import Scenarios

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trace_core.nodes.decision.checks import Array
    from trace_core.nodes.decision.uncertainty import UncertaintySet
    from trace_core.optimizers.decision.executions import Record
    from trace_core.optimizers.decision.problem import RobustProblem
    from trace_core.optimizers.decision.surrogate import Surrogate

_MOST = 150  # executions that take part, those of the nearest decisions
_NUGGET = 1e-4
_SAMPLES, _ASCENTS, _TURNS, _PARTNERS = 40, 3, 7, 4
_APART = 5e-3  # of the ranges: scenarios nearer than this are not executed beside each other
_LENGTHS = (0.3, 1.0, 3.0)  # of scenarios, in units of what a typical step among the executions changes
_DECISIONS = (0.1, 0.4)  # how far one changed entry of the decision is, in the same units


class LocalModel:
    """Values at one decision ``x`` as a function of the scenario.

    The network's errors at the executions nearby are a Gaussian process with a Matern kernel (smoothness 3/2), whose
    lengths maximise the likelihood. Scenarios differ as far as the network's slopes at ``x`` say that they matter.
    Source: Rasmussen and Williams, "Gaussian Processes for Machine Learning" (2006), sections 2.2, 4.2 and 5.4.
    """

    def __init__(self, problem: RobustProblem, surrogate: Surrogate, x: Array, records: Sequence[Record]) -> None:
        self.problem, self.surrogate, self.x = problem, surrogate, x
        reach = problem.high - problem.low
        self._share = np.divide(1.0, reach, out=np.zeros(len(x)), where=reach > 0)
        rows = np.array([r.x for r in records])
        near = np.argsort((((rows - x) * self._share) ** 2).sum(axis=1), kind="stable")[:_MOST]
        self._xs = rows[near]
        self._xis = np.array([records[k].xi for k in near])
        self._values = np.array([records[k].value for k in near])
        slopes = surrogate.slopes(x, self._xis)
        weights = np.sqrt((slopes**2).mean(axis=0))
        self._weights = weights + 0.02 * max(float(weights.max()), 1e-12)
        spread = self._xis * self._weights
        self._weights /= max(float(np.sqrt(2 * spread.var(axis=0).sum())), 1e-12)
        self._lengths = max(itertools.product(_LENGTHS, _DECISIONS), key=self._likelihood)
        self._solve()

    def add(self, record: Record) -> None:
        """One more execution at ``x``."""
        self._xs, self._xis = np.vstack([self._xs, record.x]), np.vstack([self._xis, record.xi])
        self._values = np.append(self._values, record.value)
        self._solve()

    def __call__(self, xis: Array) -> tuple[Array, Array]:
        """(mean, standard deviation) at rows of scenarios."""
        return self.at(np.broadcast_to(self.x, (len(xis), len(self.x))), xis)

    def totals(self, rows: Array, scenarios: Sequence[Array], daring: float) -> Array:
        """First stage and worst second stage over the scenarios, at other decisions, less some standard deviations."""
        worst = np.full(len(rows), -np.inf)
        for xi in scenarios:
            mean, doubt = self.at(rows, np.broadcast_to(xi, (len(rows), len(xi))))
            worst = np.maximum(worst, mean - daring * doubt)
        found: Array = worst + rows @ self.problem.cost
        return found

    def at(self, xs: Array, xis: Array) -> tuple[Array, Array]:
        """(mean, standard deviation) at rows of decisions and scenarios."""
        base = self.surrogate.predict(xs, xis)
        cross = _kernel(self._places(xs, xis), self._places(self._xs, self._xis))
        inner = self._inverse @ cross.T
        left = np.maximum(1.0 + _NUGGET - (inner**2).sum(axis=0), 0.0)
        return base + cross @ self._solved, np.sqrt(left * self._variance)

    # ---- inside

    def _places(self, xs: Array, xis: Array) -> Array:
        """Points whose Euclidean distances are those of the kernel."""
        scenario, decision = self._lengths
        return np.hstack([xis * self._weights / scenario, xs * self._share * decision])

    def _likelihood(self, lengths: tuple[float, float]) -> float:
        self._lengths = lengths
        self._solve()
        fit = len(self._values) * float(np.log(self._variance))
        return -fit - 2.0 * float(np.log(np.diag(self._root)).sum())

    def _solve(self) -> None:
        places = self._places(self._xs, self._xis)
        self._root = np.linalg.cholesky(_kernel(places, places) + _NUGGET * np.eye(len(places)))
        errors = self._values - self.surrogate.predict(self._xs, self._xis)
        self._inverse = np.linalg.inv(self._root)
        half = self._inverse @ errors
        self._variance = max(float(half @ half) / len(half), (1e-6 * self.surrogate.scale) ** 2)
        self._solved = self._inverse.T @ half

    # ---- where it may be worst

    def worst(
        self, starts: Sequence[Array], generator: np.random.Generator, courage: float
    ) -> tuple[Array, float] | None:
        """(scenario, mean there) with the largest mean + ``courage`` standard deviations that an ascent finds.

        It begins at the best of ``starts`` and samples, and leaves out what was executed for the decision, or nearly
        so; None if nothing is left.
        """
        xi = self.problem.uncertainty
        if isinstance(xi, Scenarios):
            return self._first([self._scored(xi.vectors, courage)], 0.0)
        found = [self._scored(np.array([xi.center, *starts, *xi.sample(_SAMPLES, generator)]), courage)]
        best = np.argsort(-found[0][1], kind="stable")[:_ASCENTS]
        points, scores = found[0][0][best], found[0][1][best]
        climbing = np.ones(len(points), dtype=bool)
        for _ in range(_TURNS):
            up = np.flatnonzero(climbing)
            if not len(up):
                break
            slopes = self._slopes(points[up])
            moves = [_moves(xi, points[k], slope, generator) for k, slope in zip(up, slopes, strict=True)]
            found.append(self._scored(np.concatenate(moves), courage))
            ends = np.cumsum([len(each) for each in moves])
            for k, first, end in zip(up, [0, *ends], ends, strict=False):
                top = first + int(np.argmax(found[-1][1][first:end]))
                climbing[k] = found[-1][1][top] > scores[k] + 1e-4 * self.surrogate.scale
                if climbing[k]:
                    points[k], scores[k] = found[-1][0][top], found[-1][1][top]
        return self._first(found, _APART)

    def _scored(self, points: Array, courage: float) -> tuple[Array, Array, Array]:
        mean, doubt = self(points)
        return points, mean + courage * doubt, mean

    def _slopes(self, points: Array) -> Array:
        """Derivatives of the mean by the scenario."""
        base = self.surrogate.slopes(self.x, points)
        here = self._places(np.broadcast_to(self.x, (len(points), len(self.x))), points)
        apart = here[:, None, :] - self._places(self._xs, self._xis)[None]
        pull = -3.0 * np.exp(-np.sqrt(3.0 * (apart**2).sum(axis=2))) * self._solved
        size = points.shape[1]
        found: Array = base + np.einsum("pj,pjk->pk", pull, apart[:, :, :size]) * (self._weights / self._lengths[0])
        return found

    def _first(self, found: list[tuple[Array, Array, Array]], apart: float) -> tuple[Array, float] | None:
        """The best point that is farther than ``apart`` (of the set's ranges) from all executed for the decision."""
        points, scores, means = (np.concatenate([each[k] for each in found]) for k in range(3))
        xi = self.problem.uncertainty
        reach = np.where(xi.high > xi.low, xi.high - xi.low, 1.0)
        own = self._xis[(self._xs == self.x).all(axis=1)]
        for k in np.argsort(-scores, kind="stable"):
            if not (np.abs(own - points[k]) / reach <= apart).all(axis=1).any():
                return points[k].copy(), float(means[k])
        return None


def _kernel(left: Array, right: Array) -> Array:
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None, :] - 2.0 * left @ right.T
    scaled = np.sqrt(3.0 * np.maximum(squares, 0.0))
    found: Array = (1.0 + scaled) * np.exp(-scaled)
    return found


def _moves(xi: UncertaintySet, point: Array, slope: Array, generator: np.random.Generator) -> Array:
    """Vectors of the set to go to from one: towards the corner that the slope points to, and exchanges.

    In an exchange one coordinate grows and another shrinks by as much of its range, or only one moves: those that the
    slope favours, and some at random.
    """
    reach = xi.high - xi.low
    free = reach > 0
    share = np.divide(1.0, reach, out=np.zeros(xi.size), where=free)
    rise, fall = (xi.high - point) * share, (point - xi.low) * share
    gain = np.where(free, slope * reach, 0.0)
    ups = [k for k in np.argsort(-gain, kind="stable") if rise[k] > 1e-9][:_PARTNERS]
    downs = [k for k in np.argsort(gain, kind="stable") if fall[k] > 1e-9][:_PARTNERS]
    pairs = [(i, j) for i in ups for j in downs if i != j]
    if free.any():
        pairs += [tuple(pair) for pair in generator.choice(np.flatnonzero(free), (_PARTNERS * _PARTNERS, 2))]
    steps = [(i, j, part * min(rise[i], fall[j])) for i, j in pairs if i != j for part in (1.0, 0.4, 0.1)]
    steps += [(i, None, part * rise[i]) for i in ups for part in (1.0, 0.3, 0.1)]
    steps += [(None, j, part * fall[j]) for j in downs for part in (1.0, 0.3, 0.1)]
    rows = np.repeat(point[None], len(steps), axis=0)
    for row, (i, j, step) in zip(rows, steps, strict=True):
        if i is not None:
            row[i] += step * reach[i]
        if j is not None:
            row[j] -= step * reach[j]
    rows = np.clip(rows, xi.low, xi.high)
    inside = (rows @ xi.matrix.T <= xi.right + 1e-9).all(axis=1)
    corner = xi.worst(slope)[1]
    ways = point + np.array([1.0, 0.5, 0.25, 0.1, 0.04])[:, None] * (corner - point)
    return np.concatenate([ways, rows[inside]])
