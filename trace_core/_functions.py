"""What sort of callable something is."""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

GENERATOR, COROUTINE, ASYNC_GENERATOR = 0x20, 0x80, 0x200


def first_line(doc: str | None) -> str | None:
    if not doc:
        return None
    return doc.strip().split("\n\n")[0].replace("\n", " ").strip()


def code_flags(fn: Any) -> int:
    """The kind of function: 0 for an ordinary one, else the code flag of coroutine, generator or async generator."""
    while isinstance(fn, MethodType):
        fn = fn.__func__
    code = getattr(fn, "__code__", None)
    if code is None:
        call = getattr(type(fn), "__call__", None)  # noqa: B004 - its code is wanted, not whether there is one
        code = getattr(call, "__code__", None)
    flags: int = getattr(code, "co_flags", 0)
    return flags & (GENERATOR | COROUTINE | ASYNC_GENERATOR)


def mark_coroutine(target: Any) -> None:
    """Make asyncio and inspect see an async function."""
    import asyncio.coroutines
    import inspect

    mark = getattr(inspect, "markcoroutinefunction", None)
    if mark is not None:
        mark(target)
    else:
        target._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]


def named_arguments(signature: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Arguments by the names of the parameters; ``*args`` as ``args[0]``, ``**kwargs`` by key."""
    plain = [(f"arg{index}", value) for index, value in enumerate(args)] + list(kwargs.items())
    if signature is None:
        return plain
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:  # the call itself failed for its arguments
        return plain
    named: list[tuple[str, Any]] = []
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is kind.VAR_POSITIONAL:
            named += [(f"{name}[{index}]", item) for index, item in enumerate(value)]
        elif kind is kind.VAR_KEYWORD:
            named += list(value.items())
        else:
            named.append((name, value))
    return named
