"""Looking at the user's objects from outside: what they are and hold, without calling any of their code."""

from __future__ import annotations

import inspect
import os
import sys
from functools import lru_cache
from types import FunctionType, ModuleType
from typing import Any

from trace_core.integrations.sandbox.codec import ATOMS
from trace_core.node import Node, unwrap

_FUTURE_ANNOTATIONS = 0x1000000  # the compiler flag of ``from __future__ import annotations``
_CONTAINERS = (list, tuple, dict, set, frozenset)


class _Missing:
    """No such attribute."""


MISSING = _Missing()


@lru_cache(maxsize=1024)
def is_library(module: str) -> bool:
    """Whether a module is installed (standard library, site-packages, this library) and not the user's own."""
    if module.partition(".")[0] in sys.stdlib_module_names | {"trace_core"}:
        return module != "__main__"
    file = getattr(sys.modules.get(module), "__file__", None)
    if not isinstance(file, str):
        return False
    parts = os.path.abspath(file).split(os.sep)
    return "site-packages" in parts or "dist-packages" in parts


def loaded_packages() -> set[str]:
    """Top-level names of what this program has imported, this library's and the standard library's left out."""
    names = {name.partition(".")[0] for name in list(sys.modules)}
    return names - sys.stdlib_module_names - {"__main__"}


def own_modules() -> dict[str, str]:
    """The user's own modules that are loaded, with their files."""
    found = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file.endswith(".py") and name != "__main__" and not is_library(name):
            found[name] = os.path.abspath(file)
    return found


def libraries_in(module: ModuleType) -> set[str]:
    """Installed modules that a module of the user's has among its names."""
    found = {v.__name__ for v in vars(module).values() if isinstance(v, ModuleType)}
    return {name for name in found if name in sys.modules and is_library(name)}


def is_node(value: Any) -> bool:
    """Whether looking at an attribute of the value would be recorded."""
    return isinstance(value, Node)


def without_nodes(value: Any) -> Any:
    """The value with nodes and parameters replaced by theirs, which makes them inputs of the running operator."""
    kind = type(value)
    if isinstance(value, Node) or kind in _CONTAINERS or is_record(kind):
        return unwrap(value)[0]
    return value


def is_ours(value: Any) -> bool:
    """Whether a module, function, class or instance belongs to this library."""
    if isinstance(value, ModuleType):
        name: Any = value.__name__
    elif isinstance(value, type | FunctionType):
        name = value.__module__
    else:
        name = type(value).__module__
    return isinstance(name, str) and name.partition(".")[0] == "trace_core"


def is_record(kind: type) -> bool:
    """Whether instances are dataclasses or pydantic models: data with named fields."""
    return hasattr(kind, "__dataclass_fields__") or hasattr(kind, "__pydantic_fields__")


def is_instance(value: Any) -> bool:
    """Whether the value is an object with attributes: neither data nor code."""
    kind = type(value)
    if kind in ATOMS or kind in _CONTAINERS or isinstance(value, type | ModuleType | FunctionType | Node):
        return False
    return hasattr(kind, "__dict__") and kind.__module__ != "builtins" and not kind.__module__.startswith("numpy")


def fields_of(value: Any) -> dict[str, Any]:
    """The attributes an object has of its own, in slots or its dictionary."""
    fields: dict[str, Any] = {}
    for kind in reversed(type(value).__mro__):
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                fields[name] = getattr(value, name)
    fields.update(getattr(value, "__dict__", {}))
    extra = fields.pop("__pydantic_extra__", None)
    for name in [name for name in fields if name.startswith("__")]:
        del fields[name]
    return {**fields, **extra} if isinstance(extra, dict) else fields


def static_attribute(value: Any, name: str) -> tuple[Any, bool]:
    """An attribute of the object's class, unevaluated, or MISSING; and whether a class of the user's own defines it."""
    for kind in type(value).__mro__:
        if name in vars(kind):
            return vars(kind)[name], not is_library(kind.__module__)
    return MISSING, False


def is_descriptor(value: Any) -> bool:
    """Whether reading it through an object runs code."""
    return hasattr(type(value), "__get__")


def wrapped_function(value: Any) -> FunctionType | None:
    """The plain function inside a decorated one (bundle, lru_cache, functools.wraps); None if there is none."""
    if isinstance(value, type | Node):
        return None
    found, seen = value, 0
    while seen < 100:
        inner = inspect.getattr_static(found, "__wrapped__", None)
        if inner is None:
            break
        found, seen = inner, seen + 1
    return found if seen and isinstance(found, FunctionType) else None


def reach(module: str, path: str) -> Any:
    """``module.path``, or MISSING."""
    found: Any = sys.modules.get(module, MISSING)
    for part in path.split("."):
        found = getattr(found, part, MISSING)
    return found


class Scope:
    """The names a function or class sees: ``inner`` from its closure, ``outer`` from its module."""

    def __init__(self, inner: dict[str, Any], outer: dict[str, Any]) -> None:
        self.inner, self.outer = inner, outer

    def __contains__(self, name: str) -> bool:
        return name in self.inner or name in self.outer

    def __getitem__(self, name: str) -> Any:
        return self.inner[name] if name in self.inner else self.outer[name]

    def get(self, name: str) -> Any:
        """The value, or None."""
        return self.inner.get(name, self.outer.get(name))


def scope_of(thing: type | FunctionType) -> Scope:
    """What a function, or the methods of a class, can see from where it was defined."""
    if isinstance(thing, FunctionType):
        return Scope(_closure(thing), thing.__globals__)
    inner: dict[str, Any] = {}
    for item in vars(thing).values():
        method = item if isinstance(item, FunctionType) else wrapped_function(item)
        if method is not None:
            inner.update(_closure(method))
    inner.pop("__class__", None)
    module = sys.modules.get(thing.__module__)
    outer = vars(module) if module is not None else {}
    for base in thing.__bases__:  # of a class made in a function, bases are in no closure
        package = base.__module__.partition(".")[0]
        for name, value in ((base.__name__, base), (package, sys.modules.get(package))):
            if name not in outer and value is not None:
                inner.setdefault(name, value)
    return Scope(inner, outer)


def _closure(function: FunctionType) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            values[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return values


def compiler_flags(thing: type | FunctionType) -> int:
    """How to compile it: annotations of functions are never evaluated, those of classes as in their module."""
    if isinstance(thing, FunctionType):
        return _FUTURE_ANNOTATIONS
    future = sys.modules.get("__future__")
    chosen = vars(sys.modules.get(thing.__module__, ModuleType(""))).get("annotations")
    return _FUTURE_ANNOTATIONS if future is not None and chosen is future.annotations else 0


__all__ = [
    "MISSING",
    "Scope",
    "compiler_flags",
    "fields_of",
    "is_descriptor",
    "is_instance",
    "is_library",
    "is_node",
    "is_ours",
    "is_record",
    "libraries_in",
    "loaded_packages",
    "own_modules",
    "reach",
    "scope_of",
    "static_attribute",
    "without_nodes",
    "wrapped_function",
]
