"""Affine forms over a growing set of columns of a model, with bounds: what a program is embedded with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.errors import InvalidProblem
from trace_core.optimizers.decision.relu import Affine, Domain, Embedding, ReluNetwork

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trace_core.nodes.decision.checks import Array
    from trace_core.nodes.decision.milp import Columns, Model
    from trace_core.optimizers.decision.operations import Largest


def _larger() -> ReluNetwork:
    """max(a, b) = b + max(0, a - b) as a network of two inputs."""
    return ReluNetwork([([[1.0, -1.0]], [0.0]), ([[1.0]], [0.0])], skip=[[0.0, 1.0]])


@dataclass(frozen=True)
class Form:
    """``matrix @ (the first columns) + constant``."""

    matrix: Array
    constant: Array


class Forms:
    """Makes forms; new columns are added to the model as they are needed.

    Args:
        columns: that everything depends on.
        domain: where they may lie.
    """

    def __init__(self, model: Model, columns: Columns, domain: Domain) -> None:
        self.model, self._columns, self.domain = model, np.asarray(columns), domain
        self._first = len(self._columns)

    def constant(self, values: Array) -> Form:
        """Numbers."""
        return Form(np.zeros((len(values), 0)), np.array(values, dtype=np.float64))

    def columns(self, places: slice) -> Form:
        """Some of the first columns themselves."""
        matrix = np.eye(self._first)[places]
        return Form(matrix, np.zeros(len(matrix)))

    def together(self, forms: Sequence[Form]) -> Form:
        """One after the other."""
        width = max(form.matrix.shape[1] for form in forms)
        return Form(
            np.concatenate([_wide(f.matrix, width) for f in forms]), np.concatenate([f.constant for f in forms])
        )

    def linear(self, matrix: Array, constant: Array, inputs: Sequence[Form]) -> Form:
        """A linear map of forms."""
        joined = self.together(inputs)
        return Form(matrix @ joined.matrix, matrix @ joined.constant + constant)

    def bilinear(self, tensor: Array, left: Form, right: Form) -> Form:
        """``sum tensor[o, i, j] left[i] right[j]``: by folding in what is fixed, else by rows for binary entries."""
        width = max(left.matrix.shape[1], right.matrix.shape[1])
        matrix, constant = np.zeros((len(tensor), width)), np.zeros(len(tensor))
        extra: list[tuple[int, float, Form]] = []
        for o, i, j in np.argwhere(tensor):
            factor, a, b = float(tensor[o, i, j]), _entry(left, i), _entry(right, j)
            if a.matrix.any() and b.matrix.any():
                extra.append((int(o), factor, self._product(a, b)))
                continue
            if a.matrix.any():
                a, b = b, a
            matrix[o, : b.matrix.shape[1]] += factor * a.constant[0] * b.matrix[0]
            constant[o] += factor * a.constant[0] * b.constant[0]
        for o, factor, form in extra:
            matrix = _wide(matrix, max(matrix.shape[1], form.matrix.shape[1]))
            matrix[o, : form.matrix.shape[1]] += factor * form.matrix[0]
            constant[o] += factor * form.constant[0]
        return Form(matrix, constant)

    def _product(self, a: Form, b: Form) -> Form:
        """A binary entry times a form, exactly: McCormick (1976)."""
        if not self._binary(a):
            a, b = b, a
        if not self._binary(a):
            raise InvalidProblem("a product", "of two forms that vary, none of them binary, has no exact rows")
        low, high = self._bounds(b)
        width = max(a.matrix.shape[1], b.matrix.shape[1])
        z, f = _wide(a.matrix, width), _wide(b.matrix, width)
        every, fixed, start = self._columns[:width], b.constant, a.constant
        w = self.model.add_columns(1, np.minimum(low, 0.0), np.maximum(high, 0.0))
        # low z <= w <= high z and f - high (1 - z) <= w <= f - low (1 - z), where z and f have constants too
        one = np.ones((1, 1))
        self.model.add_rows([(w, one), (every, -high * z)], high=high * start)
        self.model.add_rows([(w, one), (every, -low * z)], low=low * start)
        self.model.add_rows([(w, one), (every, -f - high * z)], low=fixed - high + high * start)
        self.model.add_rows([(w, one), (every, -f - low * z)], high=fixed - low + low * start)
        return self._new(w, np.minimum(low, 0.0), np.maximum(high, 0.0))

    def _binary(self, form: Form) -> bool:
        """Whether a form is one of the first columns that only take 0 and 1."""
        (places,) = np.nonzero(form.matrix[0])
        if len(places) != 1 or places[0] >= self._first or form.matrix[0, places[0]] != 1.0 or form.constant[0] != 0.0:
            return False
        k = places[0]
        return bool(
            self.domain.low[k] >= 0.0 and self.domain.high[k] <= 1.0 and self.model.is_integer(self._columns[k])
        )

    def largest(self, what: Largest, inputs: Sequence[Form]) -> Form:
        """A maximum or minimum of linear maps of forms, entry by entry."""
        options = [
            self.linear(what.sign * rows, what.sign * constants, inputs)
            for rows, constants in zip(what.rows, what.constants, strict=True)
        ]
        found = []
        for o in range(what.rows.shape[1]):
            best = _entry(options[0], o)
            for option in options[1:]:
                other = _entry(option, o)
                difference = self.together([other, best])
                if np.array_equal(difference.matrix[0], difference.matrix[1]) and other.constant == best.constant:
                    continue
                low, high = self._bounds(difference)
                size = max(float(np.abs([low, high]).max()), 1e-9)  # in units of what it may be, whatever costs are
                scaled = self.linear(np.eye(2) / size, np.zeros(2), [difference])
                best = self.linear(np.array([[size]]), np.zeros(1), [self.network(_larger(), scaled)])
            found.append(best)
        joined = self.together(found)
        return Form(what.sign * joined.matrix, what.sign * joined.constant)

    def network(self, network: ReluNetwork, inputs: Form) -> Form:
        """An embedded network; its outputs become columns, so that later steps stay small."""
        matrix = _wide(inputs.matrix, len(self._columns))
        if not matrix.any():
            return self.constant(network(inputs.constant[None])[0])
        inside = Embedding(self.model, self._columns, network, matrix, inputs.constant, self.domain)
        out, size = inside.output, network.outputs
        low, high = _reach(network, inside, matrix, inputs.constant, self.domain)
        t = self.model.add_columns(size, low, high)
        self.model.add_rows([(t, np.eye(size)), (out.columns, -out.matrix)], low=out.constant, high=out.constant)
        return self._new(t, low, high)

    def affine(self, form: Form, sign: float) -> Affine:
        """For use outside: ``sign`` times the form."""
        width = form.matrix.shape[1]
        return Affine(self._columns[:width], sign * form.matrix, sign * form.constant)

    def _bounds(self, form: Form) -> tuple[Array, Array]:
        width = form.matrix.shape[1]
        return _interval(form.matrix, form.constant, self.domain.low[:width], self.domain.high[:width])

    def _new(self, columns: Columns, low: Array, high: Array) -> Form:
        before, size = len(self._columns), len(columns)
        self._columns = np.concatenate([self._columns, columns])
        old = self.domain
        rows = _wide(old.matrix, before + size)
        self.domain = Domain(np.concatenate([old.low, low]), np.concatenate([old.high, high]), rows, old.right)
        matrix = np.zeros((size, before + size))
        matrix[:, before:] = np.eye(size)
        return Form(matrix, np.zeros(size))


def _entry(form: Form, k: int) -> Form:
    return Form(form.matrix[k : k + 1], form.constant[k : k + 1])


def _wide(matrix: Array, width: int) -> Array:
    wide = np.zeros((len(matrix), width))
    wide[:, : matrix.shape[1]] = matrix
    return wide


def _interval(matrix: Array, constant: Array, low: Array, high: Array) -> tuple[Array, Array]:
    up, down = np.maximum(matrix, 0.0), np.minimum(matrix, 0.0)
    room = 1e-9 * (1.0 + np.abs(matrix) @ np.maximum(np.abs(low), np.abs(high)) + np.abs(constant))
    return up @ low + down @ high + constant - room, up @ high + down @ low + constant + room


def _reach(
    network: ReluNetwork, inside: Embedding, matrix: Array, offset: Array, domain: Domain
) -> tuple[Array, Array]:
    """Bounds of the outputs, from those of the last hidden layer and of the linear part."""
    weights, biases = network.layers[-1]
    below, above = (np.maximum(each, 0.0) for each in inside.bounds[-1])
    low, high = _interval(weights, biases, below, above)
    straight = _interval(network.skip @ matrix, network.skip @ offset, domain.low, domain.high)
    return low + straight[0], high + straight[1]
