"""Uncertainty sets: what may come after the decision was taken. Sets that need an LP are in polytope.py."""

from __future__ import annotations

from typing import Any

from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.checks import Array, array, count, number, ordered, spread
from trace_core.nodes.decision.errors import InvalidProblem

INSIDE = 1e-6  # how far outside, relative to the set's size, still counts as inside


class UncertaintySet:
    """A bounded set of vectors ``xi``. Subclasses set the attributes and implement ``worst`` and ``_sample``.

    Attributes:
        name: how messages call it.
        size: the length of its vectors.
        low, high: its bound box, both of length ``size``; each face touches the set.
        matrix, right: beside the box, ``matrix @ xi <= right``; with the box, that is the set (its convex hull for
            Scenarios).
        center: a vector of the set that stands for what is expected.
    """

    name: str
    size: int
    low: Array
    high: Array
    matrix: Array
    right: Array
    center: Array

    @property
    def field(self) -> str:
        """How messages call this set."""
        return f"uncertainty {self.name!r}"

    def contains(self, xi: Any, tolerance: float = INSIDE) -> bool:
        """Whether a vector is in the set. Raises InvalidProblem if it is none of ``size`` finite numbers."""
        value = array(self.field, xi, (self.size,))
        slack = tolerance * np.maximum(1.0, np.abs(self.high - self.low))
        if (value < self.low - slack).any() or (value > self.high + slack).any():
            return False
        scale = np.maximum(1.0, np.abs(self.matrix) @ (self.high - self.low))
        return bool((self.matrix @ value <= self.right + tolerance * scale).all())

    def worst(self, cost: Any) -> tuple[float, Array]:
        """The support function: (max of ``cost . xi`` over the set, a maximiser). Raises InvalidProblem."""
        raise NotImplementedError

    def sample(self, number_of: int, seed: int | np.random.Generator = 0) -> Array:
        """``number_of`` vectors inside the set, as rows; spread over inner points, faces and corners."""
        generator = np.random.default_rng(seed)
        return self._sample(count(f"{self.field}: sample", number_of), generator)

    def _sample(self, number_of: int, generator: np.random.Generator) -> Array:
        raise NotImplementedError

    def _no_rows(self) -> None:
        self.matrix, self.right = np.empty((0, self.size)), np.empty(0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, size={self.size})"


class Box(UncertaintySet):
    """``low <= xi <= high``.

    Args:
        low, high: numbers or vectors; ``size`` is needed if both are numbers.
        center: what is expected; by default the middle.
    """

    def __init__(self, low: Any, high: Any, *, size: int | None = None, center: Any = None, name: str = "xi") -> None:
        self.name = name
        self.size = _size(self.field, size, low, high)
        self.low = spread(f"{self.field}: low", low, self.size)
        self.high = spread(f"{self.field}: high", high, self.size)
        ordered(self.field, self.low, self.high)
        self._no_rows()
        self.center = (
            (self.low + self.high) / 2 if center is None else spread(f"{self.field}: center", center, self.size)
        )
        if not self.contains(self.center):
            raise InvalidProblem(f"{self.field}: center", "lies outside of the set", value=center)

    def worst(self, cost: Any) -> tuple[float, Array]:
        """See UncertaintySet."""
        price = array(f"{self.field}: cost", cost, (self.size,))
        xi = np.where(price > 0, self.high, np.where(price < 0, self.low, self.center))
        return float(price @ xi), xi

    def _sample(self, number_of: int, generator: np.random.Generator) -> Array:
        inner = generator.uniform(size=(number_of, self.size))
        corners = generator.integers(0, 2, size=(number_of, self.size)).astype(np.float64)
        part = np.where(generator.uniform(size=(number_of, 1)) < 0.5, inner, corners)
        return self.low + part * (self.high - self.low)


class Budget(UncertaintySet):
    """At most ``gamma`` coordinates leave ``lower`` for ``upper``, or more of them in part.

    ``xi = lower + z (upper - lower)`` with ``0 <= z <= 1`` and ``sum z <= gamma``; coordinates whose bounds are equal
    use no budget. Source: Bertsimas and Sim, "The Price of Robustness" (2004).

    Args:
        size: the number of coordinates; may be left out if a bound is a vector.
        gamma: at least 0; 0 leaves the one vector ``lower``, ``size`` or more the whole box.
        lower, upper: numbers or vectors; ``lower`` is what is expected.
    """

    def __init__(
        self, size: int | None = None, *, gamma: float, lower: Any = 0.0, upper: Any = 1.0, name: str = "xi"
    ) -> None:
        self.name = name
        self.size = _size(self.field, size, lower, upper)
        self.gamma = number(f"{self.field}: gamma", gamma)
        if self.gamma < 0:
            raise InvalidProblem(f"{self.field}: gamma", f"must not be negative, got {self.gamma:g}", value=self.gamma)
        self.low = spread(f"{self.field}: lower", lower, self.size)
        self._top = spread(f"{self.field}: upper", upper, self.size)
        ordered(self.field, self.low, self._top)
        self._range = self._top - self.low
        self.center = self.low.copy()
        self.high = self.low + self._range * min(1.0, self.gamma)
        share = np.divide(1.0, self._range, out=np.zeros(self.size), where=self._range > 0)
        if self.gamma >= np.count_nonzero(share):
            self._no_rows()
        else:
            self.matrix, self.right = share[None, :], np.array([self.gamma + share @ self.low])

    def worst(self, cost: Any) -> tuple[float, Array]:
        """See UncertaintySet. The largest gains take the budget, the last of them a part."""
        price = array(f"{self.field}: cost", cost, (self.size,))
        gain = price * self._range
        order = np.argsort(-gain, kind="stable")
        z = np.zeros(self.size)
        z[order] = np.clip(self.gamma - np.arange(self.size), 0.0, 1.0)
        z[gain <= 0] = 0.0
        xi = self.low + z * self._range
        return float(price @ xi), xi

    def _sample(self, number_of: int, generator: np.random.Generator) -> Array:
        shape = (number_of, self.size)
        kind = generator.uniform(size=(number_of, 1))
        ranks = np.argsort(generator.uniform(size=shape), axis=1)
        corners = np.clip(self.gamma - ranks, 0.0, 1.0)  # the whole budget on few coordinates
        shares = generator.dirichlet(np.full(self.size, 0.3), number_of) * self.gamma
        shares *= generator.uniform(0.5, 1.0, (number_of, 1))
        z = np.where(kind < 0.45, corners, np.where(kind < 0.75, shares, generator.uniform(size=shape)))
        z = np.clip(z, 0.0, 1.0)
        z *= np.minimum(1.0, self.gamma / np.maximum(z.sum(axis=1, keepdims=True), 1e-12))
        return self.low + z * self._range


class Scenarios(UncertaintySet):
    """Finitely many vectors, given as rows. The first is what is expected unless ``center`` names another row."""

    def __init__(self, vectors: Any, *, center: int = 0, name: str = "xi") -> None:
        self.name = name
        self.vectors = array(f"{self.field}: vectors", vectors, (None, None))
        if not self.vectors.size:
            raise InvalidProblem(self.field, "is empty: give at least one vector", value=vectors)
        if isinstance(center, bool) or not isinstance(center, int) or not 0 <= center < len(self.vectors):
            raise InvalidProblem(
                f"{self.field}: center", f"must be a row from 0 to {len(self.vectors) - 1}", value=center
            )
        self.size = self.vectors.shape[1]
        self.low, self.high = self.vectors.min(axis=0), self.vectors.max(axis=0)
        self._no_rows()
        self.center = self.vectors[center].copy()

    def contains(self, xi: Any, tolerance: float = INSIDE) -> bool:
        """Whether a vector is one of the rows."""
        value = array(self.field, xi, (self.size,))
        slack = tolerance * np.maximum(1.0, np.abs(self.vectors))
        return bool((np.abs(self.vectors - value) <= slack).all(axis=1).any())

    def worst(self, cost: Any) -> tuple[float, Array]:
        """See UncertaintySet."""
        values = self.vectors @ array(f"{self.field}: cost", cost, (self.size,))
        index = int(np.argmax(values))
        return float(values[index]), self.vectors[index].copy()

    def _sample(self, number_of: int, generator: np.random.Generator) -> Array:
        chosen: Array = self.vectors[generator.integers(0, len(self.vectors), size=number_of)]
        return chosen


def _size(field: str, size: int | None, *bounds: Any) -> int:
    if size is not None:
        return count(f"{field}: size", size)
    lengths = [np.shape(bound)[0] for bound in bounds if np.ndim(bound) == 1]
    if not lengths:
        raise InvalidProblem(f"{field}: size", "is needed where both bounds are single numbers")
    return count(f"{field}: size", lengths[0])
