"""What numpy and torch ask of an object that takes part in their functions. Neither is imported here."""

from __future__ import annotations

import operator
from typing import Any, ClassVar

from trace_core._torch import STOCHASTIC
from trace_core.errors import MutationError

_IN_PLACE = {  # what ``array += node`` means for the one who writes it: a new value under the old name
    "__iadd__": operator.add,
    "__isub__": operator.sub,
    "__imul__": operator.mul,
    "__itruediv__": operator.truediv,
    "__ifloordiv__": operator.floordiv,
    "__imod__": operator.mod,
    "__ipow__": operator.pow,
    "__imatmul__": operator.matmul,
    "__iand__": operator.and_,
    "__ior__": operator.or_,
    "__ixor__": operator.xor,
    "__ilshift__": operator.lshift,
    "__irshift__": operator.rshift,
}


class ArrayProtocols:
    """The part of Node that numpy and torch see."""

    __slots__ = ()

    __array_priority__: ClassVar[int] = 1000

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """Leaves the graph, for functions outside numpy's dispatch such as ``np.array(node)``."""
        import numpy

        return numpy.array(self.value, dtype=dtype, copy=copy)  # type: ignore[attr-defined]

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        from trace_core.node import apply
        from trace_core.operators import foreign

        if method == "at":
            raise _refuse(f"numpy.{ufunc.__name__}.at")
        out = kwargs.get("out")
        if out is not None:
            if method != "__call__" or len(out) != 1 or inputs[0] is not out[0]:
                raise _refuse(f"numpy.{ufunc.__name__}(..., out=...)")
            kwargs.pop("out")  # ``array += node``
        return apply(foreign(getattr(ufunc, method), ufunc.__name__ if method == "__call__" else None), inputs, kwargs)

    def __array_function__(self, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        from trace_core.node import apply
        from trace_core.operators import foreign

        if kwargs.get("out") is not None or func.__name__ in ("copyto", "put", "place", "putmask", "put_along_axis"):
            raise _refuse(f"numpy.{func.__name__}")
        return apply(foreign(func), args, kwargs)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        from trace_core._random_ops import random_operator
        from trace_core.node import apply
        from trace_core.operators import foreign

        name = getattr(func, "__name__", "")
        if name in _IN_PLACE:
            return apply(foreign(_IN_PLACE[name]), args, kwargs)
        private = name.startswith("_")
        if name == "__setitem__" or (name.endswith("_") and not private):
            raise _refuse(f"torch function {name!r}")
        if kwargs:
            if kwargs.get("out") is not None:
                raise _refuse(f"torch function {name!r} with out=")
            if kwargs.get("inplace") is True:
                raise _refuse(f"torch function {name!r} with inplace=True")
        if name in STOCHASTIC:
            return apply(random_operator(foreign(func), args, kwargs), args, kwargs)
        return apply(foreign(func), args, kwargs)


def _refuse(what: str) -> MutationError:
    return MutationError(
        f"{what} would write in place, and what is written would lose its history: nodes are immutable. "
        "Use the form that returns a new value, or do it inside a bundle"
    )
