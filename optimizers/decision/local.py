"""The surrogate near one decision: the network, corrected by kriging of its errors, and how unsure that is."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.uncertainty import Scenarios

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trace_core.nodes.decision.checks import Array
    from trace_core.nodes.decision.uncertainty import UncertaintySet
    from trace_core.optimizers.decision.executions import Record
    from trace_core.optimizers.decision.problem import RobustProblem
    from trace_core.optimizers.decision.surrogate import Surrogate

_MOST = 150  # executions that take part, those of the nearest decisions
_NUGGET = 1e-4
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
        same = np.broadcast_to(self.x, (len(xis), len(self.x)))
        base = self.surrogate.predict(same, xis)
        cross = _kernel(self._places(same, xis), self._places(self._xs, self._xis))
        inner = np.linalg.solve(self._root, cross.T)
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
        half = np.linalg.solve(self._root, errors)
        self._variance = max(float(half @ half) / len(half), (1e-6 * self.surrogate.scale) ** 2)
        self._solved = np.linalg.solve(self._root.T, half)

    # ---- where it may be worst

    def worst(
        self, starts: Sequence[Array], generator: np.random.Generator, courage: float, known: Callable[[Array], bool]
    ) -> tuple[Array, float] | None:
        """(scenario, mean there) with the largest mean + ``courage`` standard deviations that a search finds.

        It begins at ``starts``, the last of them the most promising.

        Only such as are not ``known``; None if there is none.
        """
        xi = self.problem.uncertainty
        if isinstance(xi, Scenarios):
            return self._first(*self._scored(xi.vectors, courage), known)
        first = [np.array([xi.center, *starts]), xi.sample(100, generator), _exchanges(xi, starts[-1], generator)]
        found = [self._scored(np.concatenate(first), courage)]
        for turn in range(4):
            points, scores, _ = max(found, key=lambda each: float(each[1].max()))
            point = points[int(np.argmax(scores))]
            slope = self.surrogate.slopes(self.x, point[None])[0]
            noise = generator.normal(size=(6, xi.size)) * max(float(np.abs(slope).mean()), 1e-12)
            ends = np.concatenate(
                [[xi.worst(slope + (k > 0) * each)[1] for k, each in enumerate(noise)], xi.sample(14, generator)]
            )
            steps = np.array([1.0, 0.5, 0.2, 0.05] if turn < 2 else [0.5, 0.2, 0.08, 0.03])
            trial = (point + steps[:, None, None] * (ends - point)).reshape(-1, xi.size)
            found.append(self._scored(np.concatenate([trial, _exchanges(xi, point, generator)]), courage))
        points, scores, means = (np.concatenate([each[k] for each in found]) for k in range(3))
        return self._first(points, scores, means, known)

    def _scored(self, points: Array, courage: float) -> tuple[Array, Array, Array]:
        mean, doubt = self(points)
        return points, mean + courage * doubt, mean

    @staticmethod
    def _first(
        points: Array, scores: Array, means: Array, known: Callable[[Array], bool]
    ) -> tuple[Array, float] | None:
        for k in np.argsort(-scores, kind="stable"):
            if not known(points[k]):
                return points[k].copy(), float(means[k])
        return None


def _kernel(left: Array, right: Array) -> Array:
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None, :] - 2.0 * left @ right.T
    scaled = np.sqrt(3.0 * np.maximum(squares, 0.0))
    found: Array = (1.0 + scaled) * np.exp(-scaled)
    return found


def _exchanges(xi: UncertaintySet, point: Array, generator: np.random.Generator, count: int = 80) -> Array:
    """Vectors of the set in which one coordinate grew and another shrank by as much of its range, or only one moved."""
    reach = xi.high - xi.low
    rows = np.repeat(point[None], count, axis=0)
    up, down = generator.integers(xi.size, size=count), generator.integers(xi.size, size=count)
    every = np.arange(count)
    share = np.divide(1.0, reach, out=np.zeros(xi.size), where=reach > 0)
    room = np.minimum((xi.high - point)[up] * share[up], (point - xi.low)[down] * share[down])
    step = np.where(generator.uniform(size=count) < 0.8, room, 0.3) * generator.choice([1.0, 0.5, 0.25, 0.1], count)
    rows[every, up] += step * reach[up]
    rows[every, down] -= step * reach[down]
    rows = np.clip(rows, xi.low, xi.high)
    inside: Array = rows[(rows @ xi.matrix.T <= xi.right + 1e-9).all(axis=1)]
    return inside
