"""ReLU networks inside MILP models: exact, with bounds as tight as linear programs make them.

A neuron ``h = max(0, a)`` with ``low <= a <= high`` becomes ``h >= a``, ``h >= 0``, ``h <= a - low (1 - z)``,
``h <= high z`` with one binary z; none of this where its sign is known: then it is ``a`` or 0.
Sources: Fischetti and Jo, "Deep neural networks and mixed integer linear optimization" (2018); for bounds by linear
programs, Tjeng, Xiao and Tedrake, "Evaluating robustness of neural networks with mixed integer programming" (2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.checks import Array, array
from trace_core.nodes.decision.errors import DecisionError, InvalidProblem
from trace_core.nodes.decision.milp import Model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trace_core.nodes.decision.milp import Columns
    from trace_core.nodes.decision.uncertainty import UncertaintySet

SURE = 1e-9  # a neuron whose value is beyond 0 by no more than this has a known sign
LARGEST = 1e6  # a bound above it makes big-M rows meaningless


class IllConditioned(DecisionError):
    """A network whose values are too large to be embedded; standardise its inputs and outputs."""


class ReluNetwork:
    """Layers ``max(0, W h + b)``, the last one without the maximum; and a linear part from inputs to outputs.

    Args:
        layers: (weights of shape (out, in), biases of shape (out)) of each.
        skip: (outputs, inputs), added to the last layer's result; 0 by default.

    Raises InvalidProblem if shapes do not fit or numbers are not finite.
    """

    def __init__(self, layers: Sequence[tuple[Any, Any]], skip: Any = None) -> None:
        if not layers:
            raise InvalidProblem("network: layers", "must be at least one")
        self.layers: list[tuple[Array, Array]] = []
        width: int | None = None
        for k, (weights, biases) in enumerate(layers):
            matrix = array(f"network: weights of layer {k}", weights, (None, width))
            width = len(matrix)
            self.layers.append((matrix, array(f"network: biases of layer {k}", biases, (width,))))
        self.inputs, self.outputs = self.layers[0][0].shape[1], len(self.layers[-1][1])
        shape = (self.outputs, self.inputs)
        self.skip = np.zeros(shape) if skip is None else array("network: skip", skip, shape)

    @classmethod
    def from_torch(cls, module: Any, skip: Any = None) -> ReluNetwork:
        """From a ``torch.nn.Sequential`` of Linear and ReLU layers, in float64. Raises InvalidProblem for others."""
        layers, active = [], True
        for each in module:
            kind = type(each).__name__
            if kind == "Linear" and active:
                weights, bias = (
                    None if p is None else p.detach().cpu().double().numpy() for p in (each.weight, each.bias)
                )
                layers.append((weights, np.zeros(each.out_features) if bias is None else bias))
            elif kind != "ReLU" or active:
                raise InvalidProblem("network", f"must be Linear, ReLU, Linear, ..., Linear; found {kind}", value=kind)
            active = kind == "ReLU"
        if active:
            raise InvalidProblem("network", "must end with a Linear layer")
        return cls(layers, None if skip is None else skip.detach().cpu().double().numpy())

    def __call__(self, points: Any) -> Array:
        """Outputs (rows, outputs) for inputs (rows, inputs), in float64."""
        return self.values(array("network: inputs", points, (None, self.inputs)))

    def values(self, points: Array) -> Array:
        """The same for an array of floats that is known to fit: nothing is checked."""
        hidden = points
        for weights, biases in self.layers[:-1]:
            hidden = np.maximum(hidden @ weights.T + biases, 0.0)
        weights, biases = self.layers[-1]
        found: Array = hidden @ weights.T + biases + points @ self.skip.T
        return found

    def folded(self, matrix: Array, offset: Array) -> ReluNetwork:
        """The network of v with inputs ``matrix @ v + offset``: one of smaller width where v is short."""
        (first, biases), *others = self.layers
        layers = [(first @ matrix, first @ offset + biases), *others]
        layers[-1] = (layers[-1][0], layers[-1][1] + self.skip @ offset)
        return ReluNetwork(layers, self.skip @ matrix)

    @property
    def convex(self) -> bool:
        """Whether every output is convex in the inputs, as its signs show: no negative weight behind a maximum."""
        return all(bool((weights >= 0).all()) for weights, _ in self.layers[1:])

    def slopes(self, points: Array) -> Array:
        """Derivatives (rows, inputs) of the first output by the inputs, on one side where there are two."""
        hidden, masks = points, []
        for weights, biases in self.layers[:-1]:
            before = hidden @ weights.T + biases
            masks.append(before > 0)
            hidden = np.maximum(before, 0.0)
        slopes = np.broadcast_to(self.layers[-1][0][0], (len(points), self.layers[-1][0].shape[1]))
        for (weights, _), mask in zip(reversed(self.layers[:-1]), reversed(masks), strict=True):
            slopes = (slopes * mask) @ weights
        found: Array = slopes + self.skip[0]
        return found


@dataclass(frozen=True)
class Domain:
    """Where the columns may lie, for bounds: a box and ``matrix @ v <= right``. Integrality may be left out."""

    low: Array
    high: Array
    matrix: Array
    right: Array

    @classmethod
    def box(cls, low: Array, high: Array) -> Domain:
        """A box."""
        return cls(low, high, np.empty((0, len(low))), np.empty(0))

    @classmethod
    def of(cls, xi: UncertaintySet) -> Domain:
        """Of an uncertainty set, or what surrounds it."""
        return cls(xi.low, xi.high, xi.matrix, xi.right)

    def add_to(self, model: Model) -> Columns:
        """Continuous columns with these bounds and rows."""
        columns = model.add_columns(len(self.low), self.low, self.high)
        if len(self.matrix):
            model.add_rows([(columns, self.matrix)], high=self.right)
        return columns


@dataclass(frozen=True)
class Affine:
    """``matrix @ columns + constant``, one row per entry."""

    columns: Columns
    matrix: Array
    constant: Array


class Embedding:
    """A network in a model, as a function of some of its columns.

    Args:
        model: where rows and columns are added.
        columns: the columns v that the inputs depend on.
        matrix, offset: the network's inputs are ``matrix @ v + offset``; what is fixed is folded in there.
        domain: where v may lie.
        tighten: bounds of deeper layers by linear programs, not only by intervals.
        pushed_down: the model only ever gains from smaller outputs; a convex network then needs no binaries: each
            neuron is at least its two pieces.

    Attributes:
        output: the network's outputs.
        unstable: how many neurons got a binary.
        bounds: (low, high) of each hidden layer's values before the maximum.
        domain: where the columns of ``output`` may lie.

    Raises IllConditioned if a bound exceeds ``LARGEST``.
    """

    def __init__(
        self,
        model: Model,
        columns: Columns,
        network: ReluNetwork,
        matrix: Array,
        offset: Array,
        domain: Domain,
        *,
        tighten: bool = True,
        pushed_down: bool = False,
    ) -> None:
        self.model, self.unstable = model, 0
        self._free = pushed_down and network.convex  # of binaries
        self.bounds: list[tuple[Array, Array]] = []
        self._columns = np.asarray(columns)
        self._relaxed = Model()  # the same with continuous z, over the domain: what the linear programs look at
        self._twin = domain.add_to(self._relaxed)
        start = Affine(self._columns, matrix, offset)
        low, high = domain.low, domain.high  # of self._columns
        hidden = start
        for k, (weights, biases) in enumerate(network.layers[:-1]):
            before = self._extend(weights @ hidden.matrix, weights @ hidden.constant + biases)
            lows, highs = _interval(before.matrix, before.constant, low, high)
            if not self._free and ((k == 0 and len(domain.matrix)) or (k > 0 and tighten)):
                lows, highs = self._tightened(before, lows, highs)
            self.bounds.append((lows, highs))
            hidden, low, high = self._maximum(before, lows, highs, low, high)
        weights, biases = network.layers[-1]
        rows = weights @ hidden.matrix
        rows[:, : matrix.shape[1]] += network.skip @ matrix
        self.output = Affine(self._columns, rows, weights @ hidden.constant + biases + network.skip @ offset)
        more = len(low) - len(domain.low)
        self.domain = Domain(low, high, np.pad(domain.matrix, ((0, 0), (0, more))), domain.right)

    def _extend(self, matrix: Array, constant: Array) -> Affine:
        return Affine(self._columns, matrix, constant)

    def _tightened(self, before: Affine, lows: Array, highs: Array) -> tuple[Array, Array]:
        lows, highs = lows.copy(), highs.copy()
        every = np.arange(self._relaxed.columns, dtype=np.int32)
        for k in range(len(lows)):
            if lows[k] >= -SURE or highs[k] <= SURE:
                continue
            for sign, store in ((-1.0, highs), (1.0, lows)):
                costs = np.zeros(len(every))
                costs[self._twin] = sign * before.matrix[k]
                self._relaxed.set_costs(every, costs)
                found = self._relaxed.solve()
                if found.status == "optimal":
                    value = sign * found.objective + before.constant[k]
                    slack = 1e-7 * max(1.0, abs(value))  # the solver's tolerance must not cut off a value
                    store[k] = min(store[k], value + slack) if sign < 0 else max(store[k], value - slack)
        return lows, highs

    def _maximum(
        self, before: Affine, lows: Array, highs: Array, low: Array, high: Array
    ) -> tuple[Affine, Array, Array]:
        """max(0, before), with columns for the neurons whose sign is open; and the bounds of all columns."""
        worst = float(np.max(np.abs([lows, highs]), initial=0.0))
        if worst > LARGEST:
            raise IllConditioned(f"a neuron may reach {worst:.3g}; standardise the network's inputs and outputs")
        open_ = np.flatnonzero((lows < -SURE) & (highs > SURE))
        width = before.matrix.shape[1]
        matrix = np.zeros((len(lows), width + len(open_)))
        constant = np.zeros(len(lows))
        for k in np.flatnonzero(lows >= -SURE):
            matrix[k, :width], constant[k] = before.matrix[k], before.constant[k]
        if len(open_):
            rows, base, below, above = before.matrix[open_], before.constant[open_], lows[open_], highs[open_]
            h = self._neurons(self.model, self._columns, rows, base, below, above, integer=not self._free)
            twins = self._neurons(self._relaxed, self._twin, rows, base, below, above, integer=False)
            self._columns, self._twin = np.concatenate([self._columns, h]), np.concatenate([self._twin, twins])
            matrix[open_, width + np.arange(len(open_))] = 1.0
            low, high = np.concatenate([low, np.zeros(len(open_))]), np.concatenate([high, above])
        self.unstable += 0 if self._free else len(open_)
        return Affine(self._columns, matrix, constant), low, high

    def _neurons(
        self, model: Model, columns: Columns, rows: Array, base: Array, low: Array, high: Array, *, integer: bool
    ) -> Columns:
        count = len(base)
        h = model.add_columns(count, 0.0, high)
        if self._free:
            model.add_rows([(h, np.eye(count)), (columns, -rows)], low=base)
            return h
        z = model.add_columns(count, 0.0, 1.0, integer=integer)
        one = np.eye(count)
        model.add_rows([(h, one), (columns, -rows)], low=base)
        model.add_rows([(h, one), (columns, -rows), (z, -one * low)], high=base - low)
        model.add_rows([(h, one), (z, -one * high)], high=0.0)
        return h


def _interval(matrix: Array, constant: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """Bounds of ``matrix @ v + constant`` for ``low <= v <= high``, with room for rounding."""
    up, down = np.maximum(matrix, 0.0), np.minimum(matrix, 0.0)
    lows, highs = up @ low + down @ high + constant, up @ high + down @ low + constant
    room = 1e-13 * (1.0 + np.abs(matrix) @ np.maximum(np.abs(low), np.abs(high)))
    return lows - room, highs + room


def maximise(
    network: ReluNetwork, domain: Domain, *, integer: Any = False, seconds: float = 60.0
) -> tuple[float, Array]:
    """(largest first output over the domain, where). ``integer``: which inputs are integers."""
    model = Model(maximise=True)
    columns = model.add_columns(len(domain.low), domain.low, domain.high, integer=integer)
    if len(domain.matrix):
        model.add_rows([(columns, domain.matrix)], high=domain.right)
    inside = Embedding(model, columns, network, np.eye(len(columns)), np.zeros(len(columns)), domain)
    model.set_costs(inside.output.columns, inside.output.matrix[0])
    model.offset = float(inside.output.constant[0])
    found = model.solve(seconds=seconds)
    return found.objective, found[columns].copy()
