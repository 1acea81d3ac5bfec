"""Numbers and arrays from users, as float64 of a known shape, or an error that names the entry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from trace_core._values import is_tensor
from trace_core.node import unwrap
from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.errors import InvalidProblem

if TYPE_CHECKING:
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[np.float64]"
Mask: TypeAlias = "NDArray[np.bool_]"


def array(field: str, value: Any, shape: tuple[int | None, ...], *, infinite: bool = False) -> Array:
    """``value`` as a new float64 array.

    Args:
        field: how errors call it.
        value: numbers, nested lists, arrays, tensors of any device, nodes of these.
        shape: the wanted shape; None takes any length there.
        infinite: whether infinities are allowed; NaN never is.

    Raises InvalidProblem naming field, index and value.
    """
    plain = unwrap(value)[0]
    if is_tensor(plain):
        plain = plain.detach().cpu().numpy()
    try:
        given = np.asarray(plain)
    except (TypeError, ValueError) as error:
        raise InvalidProblem(field, f"is no regular array of numbers: {error}", value=value) from error
    if given.dtype.kind not in "iuf":
        raise InvalidProblem(
            field, f"must hold numbers, got {type(plain).__name__} of dtype {given.dtype}: {plain!r:.80}", value=value
        )
    if given.ndim != len(shape) or any(
        want is not None and want != n for want, n in zip(shape, given.shape, strict=True)
    ):
        wanted = "x".join("any" if n is None else str(n) for n in shape) or "one number"
        raise InvalidProblem(field, f"has shape {given.shape}, expected {wanted}", value=value)
    numbers = np.array(given, dtype=np.float64)
    bad = np.isnan(numbers) if infinite else ~np.isfinite(numbers)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        found = float(numbers[index])
        raise InvalidProblem(field, f"is {found}, expected a finite number", index=index or None, value=found)
    return numbers


def number(field: str, value: Any) -> float:
    """One finite number. Raises InvalidProblem."""
    return float(array(field, value, ()))


def spread(field: str, value: Any, size: int, *, infinite: bool = False) -> Array:
    """A vector of ``size`` numbers; a single number stands for ``size`` equal ones. Raises InvalidProblem."""
    plain = unwrap(value)[0]
    if np.ndim(plain) == 0 and not is_tensor(plain):
        return np.full(size, float(array(field, plain, (), infinite=infinite)))
    return array(field, plain, (size,), infinite=infinite)


def count(field: str, value: Any, least: int | None = 1) -> int:
    """A whole number of at least ``least`` (None: any). Raises InvalidProblem."""
    wrong = isinstance(value, bool) or not isinstance(value, int | np.integer)
    if wrong or (least is not None and value < least):
        wanted = "a whole number" if least is None else f"a whole number of at least {least}"
        raise InvalidProblem(field, f"must be {wanted}, got {value!r:.80}", value=value)
    return int(value)


def mask(field: str, value: Any, size: int) -> Mask:
    """A vector of ``size`` truth values; a single one stands for all. Raises InvalidProblem."""
    given = np.asarray(unwrap(value)[0])
    if given.dtype.kind != "b" or given.shape not in ((), (size,)):
        raise InvalidProblem(field, f"must be True, False or {size} of these, got {value!r:.80}", value=value)
    return np.broadcast_to(given, (size,)).copy()


def ordered(field: str, low: Array, high: Array) -> None:
    """Raises InvalidProblem at the first entry whose lower bound is above its upper bound."""
    wrong = np.flatnonzero(low > high)
    if wrong.size:
        index = int(wrong[0])
        raise InvalidProblem(
            field,
            f"has a lower bound above the upper one: {low[index]:g} > {high[index]:g}",
            index=(index,),
            value=(float(low[index]), float(high[index])),
        )
