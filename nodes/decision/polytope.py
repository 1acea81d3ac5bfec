"""Uncertainty sets described by linear inequalities; emptiness, bounds and worst cases come from linear programs."""

from __future__ import annotations

import math
from itertools import combinations
from typing import TYPE_CHECKING, Any

from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.checks import Array, array, spread
from trace_core.nodes.decision.errors import InvalidProblem, SolverError
from trace_core.nodes.decision.milp import Model
from trace_core.nodes.decision.uncertainty import UncertaintySet

if TYPE_CHECKING:
    from trace_core.nodes.decision.milp import Columns


class Polytope(UncertaintySet):
    """``A @ xi <= b``, within ``low <= xi <= high`` where these are given.

    Args:
        A, b: of shapes (rows, size) and (rows,).
        low, high: numbers or vectors; infinite where there is no bound.
        center: what is expected; by default the mean of the corners found while looking for the bounds.

    Raises InvalidProblem if the set is empty, or unbounded in some coordinate.
    """

    def __init__(
        self,
        A: Any,  # noqa: N803 - the textbook's letter
        b: Any,
        *,
        low: Any = -math.inf,
        high: Any = math.inf,
        center: Any = None,
        name: str = "xi",
    ) -> None:
        self.name = name
        self.matrix = array(f"{self.field}: A", A, (None, None))
        self.size = self.matrix.shape[1]
        if not self.size:
            raise InvalidProblem(f"{self.field}: A", "has no columns", value=A)
        self.right = array(f"{self.field}: b", b, (len(self.matrix),))
        self._build(
            spread(f"{self.field}: low", low, self.size, infinite=True),
            spread(f"{self.field}: high", high, self.size, infinite=True),
        )
        if center is not None:
            self.center = spread(f"{self.field}: center", center, self.size)
            if not self.contains(self.center):
                raise InvalidProblem(f"{self.field}: center", "lies outside of the set", value=center)

    def _build(self, low: Array, high: Array) -> None:
        """The LP, the bound box and some corners."""
        crossed = np.flatnonzero(low > high)
        if crossed.size:
            raise InvalidProblem(self.field, "is empty: low is above high", index=(int(crossed[0]),))
        self._model = Model(maximise=True)
        self._xi: Columns = self._model.add_columns(self.size, low, high)
        if len(self.matrix):
            self._model.add_rows([(self._xi, self.matrix)], high=self.right)
        corners = []
        self.low, self.high = np.empty(self.size), np.empty(self.size)
        for k in range(self.size):
            for sign, store in ((1.0, self.high), (-1.0, self.low)):
                direction = np.zeros(self.size)
                direction[k] = sign
                value, corner = self._optimum(direction, k)
                store[k] = sign * value
                corners.append(corner)
        self._corners = np.unique(np.round(np.array(corners), 12), axis=0)
        self.center = self._corners.mean(axis=0)

    def _optimum(self, direction: Array, coordinate: int | None = None) -> tuple[float, Array]:
        self._model.set_costs(self._xi, direction)
        solution = self._model.solve()
        if solution.status == "infeasible":
            raise InvalidProblem(self.field, "is empty: no vector satisfies its inequalities")
        if solution.status == "unbounded":
            raise InvalidProblem(self.field, f"is unbounded in coordinate {coordinate}", value=coordinate)
        if not solution:
            raise SolverError(f"{self.field}: a worst case", solution.status)
        return solution.objective, solution[self._xi].copy()

    def worst(self, cost: Any) -> tuple[float, Array]:
        """See UncertaintySet."""
        return self._optimum(array(f"{self.field}: cost", cost, (self.size,)))

    def _sample(self, number_of: int, generator: np.random.Generator) -> Array:
        """Corners in random directions, and mixtures of corners: always inside."""
        corners = [self._optimum(generator.normal(size=self.size))[1] for _ in range(min(number_of, 4 * self.size))]
        pool = np.concatenate([self._corners, np.array(corners)])
        weights = generator.dirichlet(np.full(len(pool), 1.5 / len(pool)), size=number_of)
        mixed: Array = weights @ pool
        return mixed


class Ellipsoid(Polytope):
    """A polytope around the ellipsoid ``{center + factor @ u : |u| <= 1}``: an OUTER approximation.

    Its facets touch the ellipsoid: two for each axis, and four for each pair of axes (|u_i +- u_j| <= sqrt 2). A worst
    case over it is therefore at least that over the ellipsoid, and decisions err on the safe side; ``sample`` stays
    within the ellipsoid itself.

    Args:
        center: of length ``size``.
        factor: invertible matrix (size, size), such as a Cholesky factor of a covariance times a radius.
    """

    def __init__(self, center: Any, factor: Any, *, name: str = "xi") -> None:
        self.name = name
        middle = array(f"{self.field}: center", center, (None,))
        self._factor = array(f"{self.field}: factor", factor, (len(middle), len(middle)))
        if np.linalg.matrix_rank(self._factor) < len(middle):
            raise InvalidProblem(f"{self.field}: factor", "is not invertible: the ellipsoid is flat", value=factor)
        inverse = np.linalg.inv(self._factor)
        faces = [inverse, -inverse]
        for i, j in combinations(range(len(middle)), 2):
            for sign in (1.0, -1.0):
                face = (inverse[i] + sign * inverse[j]) / math.sqrt(2.0)
                faces += [face[None, :], -face[None, :]]
        matrix = np.concatenate(faces)
        super().__init__(matrix, 1.0 + matrix @ middle, center=middle, name=name)

    def _sample(self, number_of: int, generator: np.random.Generator) -> Array:
        u = generator.normal(size=(number_of, self.size))
        u /= np.linalg.norm(u, axis=1, keepdims=True)
        radius = np.where(
            generator.uniform(size=number_of) < 0.5, 1.0, generator.uniform(size=number_of) ** (1 / self.size)
        )
        points: Array = self.center + (u * radius[:, None]) @ self._factor.T
        return points
