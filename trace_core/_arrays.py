"""What numpy asks of an object that takes part in its functions. It is not imported here."""

from __future__ import annotations

from typing import Any, ClassVar

from trace_core.errors import MutationError


class ArrayProtocols:
    """The part of Node that numpy sees; torch's part is in _fast.py."""

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
            raise refuse_in_place(f"numpy.{ufunc.__name__}.at")
        out = kwargs.get("out")
        if out is not None:
            if method != "__call__" or len(out) != 1 or inputs[0] is not out[0]:
                raise refuse_in_place(f"numpy.{ufunc.__name__}(..., out=...)")
            kwargs.pop("out")  # ``array += node``
        return apply(foreign(getattr(ufunc, method), ufunc.__name__ if method == "__call__" else None), inputs, kwargs)

    def __array_function__(self, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        from trace_core.node import apply
        from trace_core.operators import foreign

        if kwargs.get("out") is not None or func.__name__ in ("copyto", "put", "place", "putmask", "put_along_axis"):
            raise refuse_in_place(f"numpy.{func.__name__}")
        return apply(foreign(func), args, kwargs)


def refuse_in_place(what: str) -> MutationError:
    return MutationError(
        f"{what} would write in place, and what is written would lose its history: nodes are immutable. "
        "Use the form that returns a new value, or do it inside a bundle"
    )
