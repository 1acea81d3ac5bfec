"""Which language models a workflow holds: the same list, in the same order, in every process that has loaded it."""

from __future__ import annotations

import functools
import sys
import types
from collections import deque
from typing import TYPE_CHECKING, Any

from trace_core.bundle import Bundle
from trace_core.module import Module
from trace_core.node import Node

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from trace_core.integrations.llm.protocol import LLM

_MOST = 100_000  # objects looked at


def held_models(*roots: Any) -> list[LLM]:
    """Model objects reachable from ``roots`` through attributes, containers, and the names that functions use.

    Only code outside of the standard library and of site-packages is looked through. A wrapper stands for what it
    wraps.
    """
    found: list[LLM] = []
    seen: dict[int, Any] = {}  # keeps what it has seen alive, so that no id is used twice
    queue = deque(roots)
    while queue and len(seen) < _MOST:
        value = queue.popleft()
        if value is None or isinstance(value, str | bytes | int | float | complex | Node) or id(value) in seen:
            continue
        seen[id(value)] = value
        if is_model(value):
            found.append(value)
        else:
            queue.extend(_parts(value))
    return found


def is_model(value: Any) -> bool:
    """Whether ``value`` is a language model, by what it offers."""
    if isinstance(value, type | types.ModuleType):
        return False
    offers = getattr(type(value), "complete", None), getattr(type(value), "acomplete", None)
    return all(callable(method) for method in offers) and isinstance(getattr(value, "model", None), str)


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, list | tuple | deque):
        return list(value)
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, Bundle):
        return [value.fn]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, property):
        return [value.fget]
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if isinstance(value, types.FunctionType):
        return _of_function(value) if _is_users(value.__module__) else []
    if isinstance(value, type):
        return list(vars(value).values()) if _is_users(value.__module__) else []
    return list(_of_object(value))


def _of_object(value: Any) -> Iterator[Any]:
    kinds = [kind for kind in type(value).__mro__ if _is_users(kind.__module__)]
    if kinds or isinstance(value, Module) or type(value).__module__.startswith("trace_core."):
        yield from vars(value).values() if hasattr(value, "__dict__") else ()
        yield from kinds


def _of_function(function: types.FunctionType) -> list[Any]:
    found = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    names = list(dict.fromkeys(_names(function.__code__)))
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, types.ModuleType):
            if _is_users(value.__name__):
                found += [vars(value)[inner] for inner in names if inner in vars(value)]
        else:
            found.append(value)
    wrapped = getattr(function, "__wrapped__", None)
    return found if wrapped is None else [*found, wrapped]


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


@functools.cache
def _is_users(module: str | None) -> bool:
    top = (module or "").partition(".")[0]
    if not top or top in sys.stdlib_module_names or top == "trace_core":
        return False
    file = getattr(sys.modules.get(module or ""), "__file__", None) or ""
    return "site-packages" not in file and "dist-packages" not in file
