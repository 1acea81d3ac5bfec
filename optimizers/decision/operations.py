"""Operators of a traced graph that a MILP can hold exactly: linear maps, products of two, largest of several.

The maps are not written down operator by operator but probed: an operator that is known to be linear is run on unit
vectors, and once more on random ones to see that it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trace_core._values import is_tensor
from trace_core.nodes.decision._numpy import np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trace_core.nodes.decision.checks import Array

_LINEAR = frozenset(
    ["add", "sub", "subtract", "neg", "negative", "pos", "getitem", "sum", "mean", "cumsum", "pack"]
) | {
    *("concatenate", "stack", "hstack", "vstack", "array", "asarray", "ravel", "reshape", "flatten", "transpose"),
    *("squeeze", "list", "float", "iter"),
}
_PRODUCTS = frozenset(["mul", "multiply", "matmul", "dot", "inner", "vdot", "truediv", "true_divide", "divide"])
_LARGEST = frozenset(["maximum", "fmax", "max", "amax"])
_SMALLEST = frozenset(["minimum", "fmin", "min", "amin"])
_SIZES = frozenset(["abs", "absolute", "fabs"])


@dataclass(frozen=True)
class Linear:
    """``matrix @ inputs + constant``, all inputs one after the other."""

    matrix: Array
    constant: Array

    def __call__(self, inputs: Sequence[Array]) -> Array:
        """Rows of results for rows of each input."""
        found: Array = np.concatenate(inputs, axis=1) @ self.matrix.T + self.constant
        return found


@dataclass(frozen=True)
class Bilinear:
    """``sum of tensor[o, i, j] left[i] right[j]`` of two inputs."""

    tensor: Array

    def __call__(self, inputs: Sequence[Array]) -> Array:
        """Rows of results for rows of each input."""
        found: Array = np.einsum("oij,ri,rj->ro", self.tensor, *inputs, optimize=True)
        return found


@dataclass(frozen=True)
class Largest:
    """``sign * max over k of sign * (rows[k] @ inputs + constants[k])``: a maximum, or a minimum with sign -1."""

    rows: Array  # (k, out, in)
    constants: Array  # (k, out)
    sign: float

    def __call__(self, inputs: Sequence[Array]) -> Array:
        """Rows of results for rows of each input."""
        together = np.concatenate(inputs, axis=1)
        every = np.einsum("koi,ri->rko", self.rows, together) + self.constants
        found: Array = self.sign * (self.sign * every).max(axis=1)
        return found


Exact = Linear | Bilinear | Largest


def flat(value: Any) -> Array | None:
    """A value as a vector of float64; None if it is not made of numbers."""
    if is_tensor(value):
        value = value.detach().cpu().numpy()
    try:
        given = np.asarray(value)
    except (TypeError, ValueError):
        return None
    if given.dtype.kind not in "biuf" or given.size == 0:
        return None
    return np.array(given, dtype=np.float64).reshape(-1)


def like(model: Any, entries: Array) -> Any:
    """``entries`` in the shape and kind of container of ``model``, as floats."""
    if is_tensor(model):
        import torch

        return torch.as_tensor(entries.reshape(tuple(model.shape)))
    shaped = entries.reshape(np.shape(model))
    if isinstance(model, list | tuple):
        return type(model)(shaped.tolist())
    return shaped if np.ndim(model) else np.float64(shaped)


def known_as(op: Any, args: tuple[Any, ...]) -> str | None:
    """What an operator is called among those that may be exact: ``linear``, ``product``, ``max``, ``min``, ``abs``."""
    name = op.name
    if name == "method":
        name = args[1]
    for kind, names in (
        ("linear", _LINEAR),
        ("product", _PRODUCTS),
        ("max", _LARGEST),
        ("min", _SMALLEST),
        ("abs", _SIZES),
    ):
        if name in names:
            return kind
    return None


class _Unprobed(Exception):
    """An operator could not be run on floats."""


def exact_form(
    kind: str, run: Callable[[Sequence[Any]], Any], values: Sequence[Any], whole: bool, divides: bool
) -> Exact | None:
    """The exact form of an operator, or None if it has none.

    Args:
        kind: see ``known_as``.
        run: the operator as a function of its inputs that vary.
        values: these inputs' values in the trace.
        whole: for ``max`` and ``min``, whether the largest entry of one input is meant, not entries of two compared.
        divides: a quotient whose divisor varies is none of these.
    """
    sizes = [len(each) for each in map(flat, values) if each is not None]
    if len(sizes) != len(values) or divides:
        return None

    def at(vector: Array) -> Array | None:
        parts = np.split(vector, np.cumsum(sizes)[:-1])
        given = [like(value, part) for value, part in zip(values, parts, strict=True)]
        try:
            return flat(run(given))
        except Exception as error:  # user code: a node may be whatever takes part in an operator
            raise _Unprobed from error

    total = sum(sizes)
    try:
        if kind == "linear" or (kind == "product" and len(sizes) == 1):
            return _linear(at, total)
        if kind == "product":
            return _bilinear(at, sizes)
        return _largest(kind, at, total, whole)
    except _Unprobed:  # it has no exact form: it is learned
        return None


def _linear(at: Callable[[Array], Array | None], total: int) -> Linear | None:
    base = at(np.zeros(total))
    if base is None:
        return None
    columns = [at(unit) for unit in np.eye(total)]
    form = Linear(np.stack([each - base for each in columns if each is not None], axis=1), base)
    return form if _agrees(form, at, [total]) else None


def _bilinear(at: Callable[[Array], Array | None], sizes: list[int]) -> Bilinear | None:
    if len(sizes) != 2 or sizes[0] * sizes[1] > 2500:
        return None
    left, right = np.eye(sizes[0]), np.eye(sizes[1])
    cells = [[at(np.concatenate([a, b])) for b in right] for a in left]
    form = Bilinear(np.moveaxis(np.array(cells, dtype=np.float64), 2, 0))
    return form if _agrees(form, at, sizes) else None


def _largest(kind: str, at: Callable[[Array], Array | None], total: int, whole: bool) -> Largest | None:
    sign = -1.0 if kind == "min" else 1.0
    out = at(np.zeros(total))
    if out is None:
        return None
    if kind == "abs":
        rows, constants = np.array([np.eye(total), -np.eye(total)]), np.zeros((2, total))
    elif whole:
        rows, constants = np.eye(total)[:, None, :], np.zeros((total, 1))
    else:
        # Two arrays or an array and a constant, entry by entry: a far value of an entry shows where it is compared.
        far = -sign * 1e9
        low = at(np.full(total, far))
        if low is None:
            return None
        constant = np.where(np.abs(low - far) > 1.0, low, far)
        lists: list[list[Array]] = [[] for _ in out]
        for k, unit in enumerate(np.eye(total)):
            seen = at(np.where(unit > 0, -far, far))
            if seen is None:
                return None
            for o in np.flatnonzero(np.abs(seen + far) < 1.0):
                lists[o].append(np.eye(total)[k])
        width = max(len(each) for each in lists)
        compared = bool((constant != far).any())
        rows, constants = np.zeros((width + compared, len(out), total)), np.full((width + compared, len(out)), 0.0)
        for place, each in enumerate(lists):
            for k in range(width):
                rows[k, place] = each[min(k, len(each) - 1)]
        if compared:
            constants[-1] = constant
    form = Largest(rows, constants, sign)
    return form if _agrees(form, at, [total]) else None


def _agrees(form: Exact, at: Callable[[Array], Array | None], sizes: list[int]) -> bool:
    generator = np.random.default_rng(0)
    for _ in range(3):
        vector = generator.normal(size=sum(sizes)) * 3.0
        found = at(vector)
        expected = form([part[None] for part in np.split(vector, np.cumsum(sizes)[:-1])])[0]
        if found is None or not np.allclose(found, expected, rtol=1e-6, atol=1e-6):
            return False
    return True
