"""What sort of callable something is."""

from __future__ import annotations

from types import MethodType
from typing import Any

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
