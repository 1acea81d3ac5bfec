"""A call as data: arguments, and what the code finds in its surroundings.

Plain data is copied. Modules, and functions and classes of installed packages, are imported where the code runs. The
user's own functions and classes cross by their source, with what that needs in turn. An object crosses as a bag of its
attributes. What cannot cross stays behind: for an argument that is an error here; for a name or an attribute, the code
is told when it touches it.
"""

from __future__ import annotations

import enum
import functools
import sys
from collections import deque
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, ModuleType
from typing import TYPE_CHECKING, Any

import msgpack

from trace_core.integrations.sandbox import codec
from trace_core.integrations.sandbox.build import ABSENT, IMPORTED, REFERENCE, TOOL
from trace_core.integrations.sandbox.errors import CannotCross
from trace_core.integrations.sandbox.source import definition_of, takes_self
from trace_core.integrations.sandbox.things import (
    MISSING,
    compiler_flags,
    fields_of,
    is_descriptor,
    is_instance,
    is_library,
    is_node,
    is_ours,
    is_record,
    libraries_in,
    reach,
    scope_of,
    static_attribute,
    without_nodes,
    wrapped_function,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trace_core.integrations.sandbox.blobs import Store
    from trace_core.integrations.sandbox.runner import Code
    from trace_core.integrations.sandbox.source import Definition
    from trace_core.integrations.sandbox.things import Scope

_ACCESSORS = (
    (staticmethod, "static", "__func__"),
    (classmethod, "class", "__func__"),
    (property, "property", "fget"),
    (functools.cached_property, "property", "func"),
)


class Packer:
    """Encodes values of one request; what they refer to is collected in ``table``."""

    def __init__(
        self,
        attributes: frozenset[str],
        store: Store | None = None,
        tools: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        self.table: list[dict[str, Any]] = []
        self.modules: set[str] = set()  # libraries that crossing things need
        self.mentioned: set[str] = set()  # modules that their sources import
        self.imported: set[str] = set()  # modules that crossing things are, or are found in
        self._store = store
        self._attributes = set(attributes)  # named anywhere in the sources so far
        self._known: dict[int, Any] = {
            id(tool): msgpack.ExtType(TOOL, codec.pack(name)) for name, tool in (tools or {}).items()
        }
        self._alive: list[Any] = []  # ids are only good while their objects live
        self._spaces: dict[Any, int] = {}
        self._bags: list[_OpenBag] = []
        self._lenient = False

    def arguments(self, code: Code, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """Encode the arguments of one call. Raises CannotCross."""
        given = list(args)
        bound = bool(given) and is_instance(given[0]) and self._is_owner(code, given[0])
        if bound:
            given[0] = self._known.get(id(args[0])) or self._open_bag(args[0])
        rest = ((f"argument {i + 1}", value) for i, value in enumerate(given) if i or not bound)
        for where, value in (*rest, *kwargs.items()):
            try:
                codec.check(value, self._extra)
            except codec.NotPlain as error:
                at = f", at {error.path.strip()}," if error.path else ""
                raise CannotCross(
                    f"{where} of {code.name}(){at} is {error.what}, which cannot be sent to the process that runs "
                    f"proposed code. What can: {codec.ALLOWED}; dataclass and pydantic instances; functions, classes, "
                    "modules. Pass plain data, or run the code here with isolation='inline'"
                ) from error
        return codec.pack((tuple(given), dict(kwargs)), self._extra, self._store)

    def needs_own_modules(self, mentioned: frozenset[str]) -> bool:
        """Whether some source imports, or some value lies in, a module that is not installed."""
        named = {*mentioned, *self.mentioned, *self.imported}
        return any(name in sys.modules and not is_library(name) for name in named)

    def _is_owner(self, code: Code, value: Any) -> bool:
        """Whether the first argument is the object whose method is called, whatever the method calls it."""
        return takes_self(code.source, code.name) or static_attribute(value, code.name)[0] is not MISSING

    def name(self, name: str, value: Any) -> bytes:
        """Encode what a name stands for; a placeholder that tells the code why, if it cannot cross."""
        return self._lenient_value(value, f"{name!r}")

    def finish(self) -> None:
        """Complete the bags with the methods and attributes that sources found on the way make use of."""
        done = -1
        while done != (done := len(self._attributes) + len(self._bags) + len(self.table)):
            for bag in list(self._bags):
                self._complete(bag)

    # --- values --------------------------------------------------------------------------------------------------

    def _lenient_value(self, value: Any, title: str) -> bytes:
        before, self._lenient = self._lenient, True
        try:
            value = without_nodes(value)
            if type(value) in (list, dict, set, deque) and len(value):
                return codec.pack(self._shared(value))
            return self._encode(value)
        except codec.NotPlain as error:
            where = f" (at {error.path.strip()})" if error.path else ""
            return codec.pack(msgpack.ExtType(ABSENT, codec.pack(_reason(title, error.what + where))))
        finally:
            self._lenient = before

    def _encode(self, value: Any) -> bytes:
        codec.check(value, self._extra)
        return codec.pack(value, self._extra, self._store)

    def _shared(self, value: Any) -> Any:
        """A mutable value that several names may stand for: sent once."""
        if id(value) not in self._known:
            payload = self._encode(value)
            self._enter(value, {"kind": "data", "value": payload})
        return self._known[id(value)]

    def _extra(self, value: Any) -> Any:
        """How a value that is not plain crosses: an extension value, or None for not at all."""
        if id(value) in self._known:
            return self._known[id(value)]
        return self._see(value)

    def _see(self, value: Any) -> Any:
        kind = type(value)
        if kind is msgpack.ExtType or is_node(value):
            return None
        if isinstance(value, ModuleType):
            return self._import(value, value.__name__, "")
        if isinstance(value, type | FunctionType | BuiltinFunctionType):
            return self._see_definition(value)
        wrapped = wrapped_function(value)
        if wrapped is not None:
            return self._see_definition(wrapped, stands_for=value)
        if isinstance(value, enum.Enum):
            member = {"kind": "member", "class": codec.encode(kind, self._extra), "name": value.name}
            return self._enter(value, member)
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            fields = self._encode(tuple(value))
            record = {"kind": "record", "name": kind.__name__, "fields": list(kind._fields), "value": fields}
            return self._enter(value, record)
        if is_record(kind) or (self._lenient and is_instance(value) and not is_library(kind.__module__)):
            return self._open_bag(value)
        return self._import_by_name(value)

    def _enter(self, value: Any, entry: dict[str, Any]) -> Any:
        self._alive.append(value)
        self._known[id(value)] = msgpack.ExtType(REFERENCE, len(self.table).to_bytes(4, "big"))
        self.table.append(entry)
        return self._known[id(value)]

    def _import(self, value: Any, module: str, path: str) -> Any:
        if module == "__main__" or module not in sys.modules:
            return None
        # the user's own modules are not kept in the worker: they may be edited while it lives
        self.imported.add(module)
        self.modules |= {module} if is_library(module) else libraries_in(sys.modules[module])
        self._alive.append(value)
        made = msgpack.ExtType(IMPORTED, codec.pack((module, path)))
        self._known[id(value)] = made
        return made

    def _import_by_name(self, value: Any) -> Any:
        """Import what can be found under its own name in the module it belongs to, or that of its ``__self__``."""
        owner = type(getattr(value, "__self__", None))
        for module in (getattr(value, "__module__", None), type(value).__module__, owner.__module__):
            if isinstance(module, str) and is_library(module):
                for attribute in ("__qualname__", "__name__", "_name"):
                    path = getattr(value, attribute, None)
                    if isinstance(path, str) and reach(module, path) is value:
                        return self._import(value, module, path)
        return None

    # --- functions and classes -----------------------------------------------------------------------------------

    def _see_definition(self, thing: Any, stands_for: Any = None, method: bool = False) -> Any:
        key = thing if stands_for is None else stands_for
        if type(thing) is BuiltinFunctionType or is_library(thing.__module__ or "builtins"):
            return None if method else self._import_by_name(key)
        plain = thing if isinstance(thing, type) else wrapped_function(thing) or thing
        if not isinstance(plain, type | FunctionType):
            return self._import_by_name(key)
        scope = scope_of(plain)
        found = definition_of(plain, lambda root: is_ours(scope.get(root)))
        if isinstance(found, str):
            return None
        entry: dict[str, Any] = {"kind": "function", "needs": {}, "names": {}}
        made = self._enter(key, entry)
        self._attributes |= found.needs.attributes
        self.mentioned |= found.needs.imports
        entry |= {
            "name": found.name,
            "source": found.text,
            "file": f"<{'class' if found.is_class else 'helper'} {found.name.strip('<>')}>",
            "class": found.is_class,
            "lambda": found.is_lambda,
            "drop": list(found.drop),
            "rework": found.rework,
            "flags": compiler_flags(plain),
            "module": plain.__module__ or "unknown",
            "space": self._space(plain, found, scope, method),
            "needs": self._names(found.needs.early - {found.name}, scope),
            "names": self._names(found.needs.late, scope),
        }
        return made

    def _names(self, names: frozenset[str], scope: Scope) -> dict[str, bytes]:
        return {name: self.name(name, scope[name]) for name in sorted(names) if name in scope}

    def _space(self, plain: Any, found: Definition, scope: Scope, method: bool) -> int:
        """Functions of one module share their globals; one that is no global itself has its names for itself."""
        standing = scope.outer.get(found.name)
        shared = wrapped_function(standing) or standing
        key = ("module", id(scope.outer)) if shared is plain and not method and not scope.inner else ("own", id(plain))
        return self._spaces.setdefault(key, len(self._spaces))

    # --- attribute bags ------------------------------------------------------------------------------------------

    def _open_bag(self, value: Any) -> Any:
        kind = type(value)
        parameters = getattr(kind, "__dataclass_params__", None)
        entry = {
            "kind": "bag",
            "name": kind.__name__,
            "compare": is_record(kind),
            "frozen": bool(getattr(parameters, "frozen", False)),
            "fields": {},
            "absent": {},
            "methods": {},
        }
        made = self._enter(value, entry)
        bag = _OpenBag(value, entry, fields_of(value))
        self._bags.append(bag)
        self._complete(bag)
        return made

    def _complete(self, bag: _OpenBag) -> None:
        """Send attributes that are data in any case, and others as far as some source names them."""
        entry = bag.entry
        for name in [n for n in bag.waiting if n not in entry["fields"]]:
            used = name in self._attributes
            if used:
                value = bag.waiting.pop(name)
                payload = self._lenient_value(value, f"attribute {name!r} of {entry['name']}")
                entry["absent"].pop(name, None)
                entry["fields"][name] = payload
            elif name not in entry["absent"]:
                self._strict_attribute(bag, name)
        for name in sorted(self._attributes - bag.seen):
            bag.seen.add(name)
            if name not in entry["fields"] and name not in entry["absent"] and not name.startswith("__"):
                self._class_attribute(bag, name)

    def _strict_attribute(self, bag: _OpenBag, name: str) -> None:
        value, before = bag.waiting[name], self._lenient
        self._lenient = False
        try:
            bag.entry["fields"][name] = self._encode(value)
        except codec.NotPlain as error:
            bag.entry["absent"][name] = _reason(f"attribute {name!r} of {bag.entry['name']}", error.what)
        finally:
            self._lenient = before

    def _class_attribute(self, bag: _OpenBag, name: str) -> None:
        found, is_own = static_attribute(bag.value, name)
        if found is MISSING or type(found) is MemberDescriptorType:  # a slot that is not set
            return
        title = f"attribute {name!r} of {bag.entry['name']}"
        for kind, how, inner in _ACCESSORS:
            if isinstance(found, kind):
                found, method = getattr(found, inner), how
                break
        else:
            method = "method"
        function = wrapped_function(found) or found
        if is_own and isinstance(function, FunctionType):
            self._method(bag, name, method, function)
        elif is_own and not is_descriptor(found):
            bag.entry["fields"][name] = self._lenient_value(found, title)
        else:
            bag.entry["absent"][name] = _reason(title, f"a {codec.type_name(found)}")

    def _method(self, bag: _OpenBag, name: str, how: str, function: Any) -> None:
        made = self._known.get(id(function)) or self._see_definition(function, method=True)
        if made is None:
            what = "a function whose source cannot be found"
            bag.entry["absent"][name] = _reason(f"method {name!r} of {bag.entry['name']}", what)
        else:
            bag.entry["methods"][name] = (how, codec.pack(made))


class _OpenBag:
    """An attribute bag that may still grow; ``waiting`` are the attributes that were not sent leniently."""

    def __init__(self, value: Any, entry: dict[str, Any], waiting: dict[str, Any]) -> None:
        self.value, self.entry, self.waiting = value, entry, waiting
        self.seen: set[str] = set()


def _reason(title: str, what: str) -> str:
    return f"{title} is {what}; it stays in the main process and is not available to this code"


__all__ = ["Packer"]
