"""A surrogate with the structure of the traced second stage: small networks for its opaque nodes, the rest exact."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from trace_core.nodes.decision._numpy import np
from trace_core.optimizers.decision.forms import Forms
from trace_core.optimizers.decision.operations import Bilinear, Largest, Linear
from trace_core.optimizers.decision.relu import Affine, ReluNetwork
from trace_core.optimizers.decision.surrogate import Ensemble, Surrogate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trace_core.nodes.decision.checks import Array
    from trace_core.nodes.decision.milp import Columns, Model
    from trace_core.optimizers.decision.executions import Record
    from trace_core.optimizers.decision.problem import RobustProblem
    from trace_core.optimizers.decision.program import Observation, Program
    from trace_core.optimizers.decision.relu import Domain

_PAIRS = 60  # at most so many products of an input of x and one of xi


class NodeSurrogate:
    """One opaque step: a small ensemble from its inputs, and products of those of x alone and of xi alone."""

    def __init__(self, program: Program, k: int, *, hidden: int, members: int, seed: int) -> None:
        step = program.steps[k]
        self.what, self.size = program.signature(k), step.size
        alone: dict[str, list[int]] = {"x": [], "xi": []}
        first = 0
        for j in step.inputs:
            source = program.steps[j]
            entries = list(range(first, first + source.size))
            if source.on_x != source.on_xi:
                alone["x" if source.on_x else "xi"] += entries
            first += source.size
        left, right = alone["x"], alone["xi"]
        if len(left) == len(right) and len(left) > 1:
            pairs = list(zip(left, right, strict=True))
        else:
            pairs = [(a, b) for a in left for b in right]
        self.pairs = pairs if len(pairs) <= _PAIRS else []
        self.width = first
        self._ensemble = Ensemble(first + len(self.pairs), hidden, members, seed, outputs=self.size)
        self.network: ReluNetwork | None = None
        self.middle, self.half = np.zeros(first), np.ones(first)
        self._mean, self._scale = np.zeros(self.size), np.ones(self.size)

    def fit(self, inputs: Array, outputs: Array, weights: Array, epochs: int) -> None:
        """Train on from where it is."""
        if self.network is None:  # once: later data is seen in the same units
            low, high = inputs.min(axis=0), inputs.max(axis=0)
            self.middle, self.half = (low + high) / 2, np.where(high > low, (high - low) / 2, 1.0)
        mean, scale = outputs.mean(axis=0), outputs.std(axis=0)
        self._mean, self._scale = mean, np.where(scale > 1e-12 * np.maximum(1.0, np.abs(mean)), scale, 1.0)
        self._ensemble.fit(self.features(inputs), (outputs - mean) / self._scale, weights, epochs)
        self.network = self._ensemble.merged(self._scale, mean)

    _KEPT = ("middle", "half", "_mean", "_scale")

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return {"weights": self._ensemble.state()} | {name: getattr(self, name).tolist() for name in self._KEPT}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state`` of a fitted surrogate of an equal step."""
        for name in self._KEPT:
            setattr(self, name, np.array(state[name], dtype=np.float64))
        self._ensemble.restore(state["weights"])
        self.network = self._ensemble.merged(self._scale, self._mean)

    def features(self, inputs: Array) -> Array:
        """Rows of features."""
        scaled = (inputs - self.middle) / self.half
        if not self.pairs:
            return scaled
        left, right = np.array(self.pairs).T
        return np.concatenate([scaled, scaled[:, left] * scaled[:, right]], axis=1)

    def __call__(self, inputs: Array) -> Array:
        """Rows of outputs."""
        if self.network is None:
            return np.zeros((len(inputs), self.size))
        return self.network(self.features(inputs))


class StructuredSurrogate(Surrogate):
    """Used like ``Surrogate``, on records that were observed (``Record.seen``).

    Args:
        hidden, members: of each node's ensemble.
    """

    def __init__(self, problem: RobustProblem, program: Program, *, hidden: int, members: int, seed: int) -> None:
        super().__init__(problem, hidden=hidden, members=1, seed=seed)
        self.problem, self.program = problem, program
        self._shape = (hidden, members, seed)
        self.nodes: dict[int, NodeSurrogate] = {}
        self.current: dict[str, str] = {}  # context key of each opaque step now

    @property
    def ready(self) -> bool:
        """Whether every opaque step has been fitted."""
        return all(k in self.nodes and self.nodes[k].network is not None for k in self.program.opaque)

    def fit(self, records: list[Record], *, epochs: int, near: Array | None = None, binary: bool = True) -> None:
        """Train each opaque step on what it did in the records; on those of its present context key only."""
        x, xi = np.array([r.x for r in records]), np.array([r.xi for r in records])
        values = np.array([r.value for r in records])
        fine = np.isfinite(values)
        if fine.any():
            self.scale = float(max(values[fine].std(), 1e-9 * np.abs(values[fine]).max(), 1e-12))
        weights = np.ones(len(records))
        if near is not None and binary:
            weights[np.abs(x - near).sum(axis=1) <= 2] = 5.0
        hidden, members, seed = self._shape
        before, self.nodes = self.nodes, {}
        for k in self.program.opaque:
            rows = self._rows(k, records)
            if rows is None:
                continue
            chosen, inputs, outputs = rows
            node = before.get(k)
            if node is None or node.what != self.program.signature(k):  # new, or what it looks at changed
                node = NodeSurrogate(self.program, k, hidden=hidden, members=members, seed=seed + k)
            node.fit(inputs, outputs, weights[chosen], epochs if node.network else max(epochs, 300))
            self.nodes[k] = node
        if not fine.all() and fine.any():
            self.fit_doubt(x, xi, fine, epochs)

    def state(self) -> dict[str, Any]:
        """Plain data."""
        nodes = [[k, node.what, node.state()] for k, node in self.nodes.items() if node.network is not None]
        return super().state() | {"nodes": nodes}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``; nodes that the program has no more are left out, and learned anew."""
        super().restore(state)
        hidden, members, seed = self._shape
        for k, what, given in state["nodes"]:
            if k in self.program.opaque and self.program.signature(k) == what:
                self.nodes[k] = NodeSurrogate(self.program, k, hidden=hidden, members=members, seed=seed + k)
                self.nodes[k].restore(given)

    def _rows(self, k: int, records: list[Record]) -> tuple[list[int], Array, Array] | None:
        """(records, inputs, outputs) for one step."""
        step, chosen, inputs, outputs = self.program.steps[k], [], [], []
        width = sum(self.program.steps[j].size for j in step.inputs)
        for row, record in enumerate(records):
            seen = record.seen
            if seen is None or step.name not in seen.values or seen.keys.get(step.name) != self.current.get(step.name):
                continue
            parts = [self._input(j, seen, record.x, record.xi) for j in step.inputs]
            known = [part for part in parts if part is not None]
            if len(known) == len(parts) and sum(map(len, known)) == width and len(seen.values[step.name]) == step.size:
                chosen.append(row)
                inputs.append(np.concatenate(known))
                outputs.append(seen.values[step.name])
        return (chosen, np.array(inputs), np.array(outputs)) if chosen else None

    def _input(self, j: int, seen: Observation, x: Array, xi: Array) -> Array | None:
        step = self.program.steps[j]
        if step.kind == "x":
            return x[step.first : step.first + step.size]
        return xi if step.kind == "xi" else seen.values.get(step.name)

    def values(self, x: Array, xi: Array) -> Array:
        """The second stage's value for rows of x and xi, minimised."""
        program = self.program
        found: dict[int, Array] = {}
        for k in program.live():
            step = program.steps[k]
            inputs = [found[j] for j in step.inputs]
            if step.kind == "x":
                found[k] = x[:, step.first : step.first + step.size]
            elif step.kind == "xi":
                found[k] = xi
            elif step.kind == "constant":
                found[k] = np.broadcast_to(np.asarray(step.value, dtype=np.float64).reshape(-1), (len(x), step.size))
            elif step.form is not None:
                found[k] = step.form(inputs)
            else:
                node = self.nodes.get(k)
                found[k] = node(np.concatenate(inputs, axis=1)) if node else np.zeros((len(x), step.size))
        result: Array = self.problem.sign * found[program.output][:, 0]
        return result

    def predict(self, x: Array, xi: Array) -> Array:
        """See Surrogate."""
        return self.values(x, xi) + self.penalty(x, xi)

    def slopes(self, x: Array, xi: Array) -> Array:
        """See Surrogate; by differences."""
        low, high = self.problem.uncertainty.low, self.problem.uncertainty.high
        step = np.where(xi > (low + high) / 2, -1e-4, 1e-4) * np.where(high > low, high - low, 1.0)
        size = xi.shape[1]
        moved = np.repeat(xi[:, None, :], size + 1, axis=1)
        moved[:, np.arange(size), np.arange(size)] += step
        points = moved.reshape(-1, size)
        values = self.values(np.broadcast_to(x, (len(points), len(x))), points).reshape(len(xi), size + 1)
        found: Array = (values[:, :size] - values[:, size:]) / step
        return found

    def add_value(
        self, model: Model, columns: Columns, domain: Domain, *, x: Array | None = None, xi: Array | None = None
    ) -> Affine | None:
        """See Surrogate: exact rows for exact steps, an embedded network for each opaque one."""
        if not self.ready:
            return None
        forms = Forms(model, columns, domain)
        found: dict[int, Any] = {}
        for k in self.program.live():
            step = self.program.steps[k]
            inputs = [found[j] for j in step.inputs]
            if step.kind == "x":
                places = slice(step.first, step.first + step.size)
                found[k] = forms.constant(x[places]) if x is not None else forms.columns(places)
            elif step.kind == "xi":
                found[k] = forms.constant(xi) if xi is not None else forms.columns(slice(None))
            elif step.kind == "constant":
                found[k] = forms.constant(np.asarray(step.value, dtype=np.float64).reshape(-1))
            elif isinstance(step.form, Linear):
                found[k] = forms.linear(step.form.matrix, step.form.constant, inputs)
            elif isinstance(step.form, Bilinear):
                found[k] = forms.bilinear(step.form.tensor, *inputs)
            elif isinstance(step.form, Largest):
                found[k] = forms.largest(step.form, inputs)
            else:
                found[k] = self._embedded(forms, self.nodes[k], inputs)
        return forms.affine(found[self.program.output], self.problem.sign)

    @staticmethod
    def _embedded(forms: Forms, node: NodeSurrogate, inputs: list[Any]) -> Any:
        together = forms.together(inputs)
        scaled = forms.linear(np.diag(1.0 / node.half), -node.middle / node.half, [together])
        if node.pairs:
            tensor = np.zeros((len(node.pairs), node.width, node.width))
            for o, (a, b) in enumerate(node.pairs):
                tensor[o, a, b] = 1.0
            products = forms.bilinear(tensor, scaled, scaled)
            scaled = forms.together([scaled, products])
        return scaled if node.network is None else forms.network(node.network, scaled)


def r_squared(found: Array, truth: Array) -> float:
    """Share of the variance that is explained."""
    spread = float(((truth - truth.mean()) ** 2).sum())
    return 1.0 - float(((found - truth) ** 2).sum()) / spread if spread > 0 else -math.inf
