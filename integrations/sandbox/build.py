"""The candidate's side of what crosses: functions, classes, modules and attribute bags made from data. Stand-alone.

A request carries a table of entries that refer to each other by index. An entry is built when it is first needed; the
names a function only uses when it is called are bound at the end, so functions may refer to each other in circles.
"""

from __future__ import annotations

import ast
import linecache
import sys
from collections import namedtuple
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
if TYPE_CHECKING or __package__:
    from trace_core.integrations.sandbox import codec
else:
    codec = sys.modules["_sandbox_codec"]  # put there by the worker

# extension codes: a table entry, something to import, something left behind, a function of the host's
REFERENCE, IMPORTED, ABSENT, TOOL = 64, 65, 66, 67
CODE_MODULE = "candidate_code"
_ANNOTATIONS = 0x1000000  # __future__.annotations.compiler_flag: annotations are not evaluated

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


class Unavailable(RuntimeError):
    """Something the code refers to stayed behind in the main process."""


def _refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
    raise Unavailable(object.__getattribute__(self, "_reason"))


class Absent:
    """Stands for a value that cannot be sent. Any use of it raises Unavailable with the reason."""

    def __init__(self, reason: str) -> None:
        object.__setattr__(self, "_reason", reason)

    def __repr__(self) -> str:
        return f"<not available here: {object.__getattribute__(self, '_reason')}>"

    def __getattribute__(self, name: str) -> Any:
        if name in ("__class__", "__dict__", "__repr__", "__doc__", "__module__"):
            return object.__getattribute__(self, name)
        raise Unavailable(object.__getattribute__(self, "_reason"))


_OPERATIONS = """
    call setattr getitem setitem delitem iter next len contains bool str int float index add radd sub rsub mul rmul
    truediv rtruediv floordiv rfloordiv mod rmod pow rpow matmul rmatmul and rand or ror xor rxor neg pos abs invert
    lt le gt ge enter exit aenter aexit await aiter anext mro_entries instancecheck subclasscheck
"""
for _name in _OPERATIONS.split():
    setattr(Absent, f"__{_name}__", _refuse)


class Bag:
    """The data of an object without its class: attributes, and those of its methods that the code uses."""

    _absent: dict[str, str] = {}  # noqa: RUF012 - replaced, never changed, in the class made for each object

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({fields})"

    def __getattr__(self, name: str) -> Any:
        reason = type(self)._absent.get(name)
        if reason is not None:
            raise Unavailable(reason)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def _same_fields(self: Any, other: Any) -> Any:
    if not isinstance(other, Bag) or type(other).__name__ != type(self).__name__:
        return NotImplemented
    return vars(self) == vars(other)


def _hash_fields(self: Any) -> int:
    return hash((type(self).__name__, tuple(vars(self).items())))


class _InProgress(Exception):
    """A definition that is needed to finish itself; the name is bound when it is done."""


class ImportRefused(ImportError):
    """The source imports a module that is not on the list."""


class Builder:
    """Makes the objects of one request. ``files`` maps the file names of all compiled sources to their lines.

    ``region`` is where big arrays lie; ``tool`` gives the function for the name of a tool.
    """

    def __init__(
        self, table: list[dict[str, Any]], region: Any = None, tool: Callable[[str], Any] | None = None
    ) -> None:
        self._table = table
        self._region = region
        self._tool = tool
        self._made: dict[int, Any] = {}
        self._spaces: dict[int, dict[str, Any]] = {}
        self._pending: list[tuple[dict[str, Any], dict[str, bytes]]] = []
        self._building: set[int] = set()
        self.files: dict[str, list[str]] = {}

    def value(self, payload: bytes) -> Any:
        """The value that was sent, with all it refers to."""
        value = codec.decode(payload, self._extension, region=self._region)
        self._bind_pending()
        return value

    def forget_instances(self) -> None:
        """Build attribute bags anew at the next use: one example must not see what another did to them."""
        for index, entry in enumerate(self._table):
            if entry["kind"] in ("bag", "record"):
                self._made.pop(index, None)

    def candidate(
        self, source: str, name: str, filename: str, context: dict[str, bytes], imports: list[str] | None = None
    ) -> Callable[..., Any]:
        """Run the proposed source as a module and return its function. Raises whatever the source raises.

        ``imports`` are modules, with all below them, that the source may import beyond those that any may; None
        for no limit.
        """
        self._remember(filename, source)
        # annotations may name what is there for type checkers only, or nowhere: models forget such imports
        code = compile(source, filename, "exec", dont_inherit=True, flags=_ANNOTATIONS)
        module = _module(CODE_MODULE)
        if imports is not None and _guard is not None:
            _guard.allowed.update(imports)
            module.__dict__["__builtins__"] = _guard.names
        for key, payload in context.items():
            self._bind(module.__dict__, key, payload)
        self._bind_pending()
        exec(code, module.__dict__)  # noqa: S102 - this process is here for that
        found = module.__dict__.get(name)
        if not callable(found):
            raise NameError(f"the source defines no function {name!r}")
        return found  # type: ignore[no-any-return]

    def _remember(self, filename: str, source: str) -> None:
        lines = source.splitlines(keepends=True)
        self.files[filename] = lines
        linecache.cache[filename] = (len(source), None, lines, filename)

    def _bind_pending(self) -> None:
        """Bind the names that functions use when they are called, except those that wait for one being built."""
        waiting = []
        while self._pending:
            space, names = self._pending.pop()
            waiting += [(space, {name: item}) for name, item in names.items() if not self._bind(space, name, item)]
        self._pending = waiting

    def _bind(self, space: dict[str, Any], name: str, payload: bytes) -> bool:
        if name not in space:
            try:
                space[name] = codec.decode(payload, self._extension, region=self._region)
            except _InProgress:
                return False
        return True

    def _extension(self, code: int, payload: bytes) -> Any:
        if code == REFERENCE:
            return self._entry(int.from_bytes(payload, "big"))
        if code == IMPORTED:
            module, path = codec.decode(payload)
            return _import(module, path)
        if code == ABSENT:
            return Absent(codec.decode(payload))
        if code == TOOL and self._tool is not None:
            return self._tool(codec.decode(payload))
        raise codec.CodecError(f"unknown extension {code}")

    def _entry(self, index: int) -> Any:
        if index in self._made:
            return self._made[index]
        if index in self._building:
            raise _InProgress
        entry = self._table[index]
        make = getattr(self, "_make_" + entry["kind"])
        self._building.add(index)
        try:
            made = make(index, entry)
        except _InProgress:
            raise
        except Exception as error:  # noqa: BLE001 - a helper that cannot be made only matters if the code touches it
            made = Absent(f"{entry.get('name', 'a value')!r} could not be set up here: {type(error).__name__}: {error}")
        finally:
            self._building.discard(index)
        self._made[index] = made
        return made

    def _make_data(self, index: int, entry: dict[str, Any]) -> Any:
        return codec.decode(entry["value"], self._extension, region=self._region)

    def _make_member(self, index: int, entry: dict[str, Any]) -> Any:
        return getattr(codec.decode(entry["class"], self._extension), entry["name"])

    def _make_record(self, index: int, entry: dict[str, Any]) -> Any:
        made: Any = namedtuple(entry["name"], entry["fields"], rename=True)  # type: ignore[misc]
        return made(*codec.decode(entry["value"], self._extension, region=self._region))

    def _make_bag(self, index: int, entry: dict[str, Any]) -> Any:
        body: dict[str, Any] = {"_absent": entry["absent"], "__module__": CODE_MODULE, "__qualname__": entry["name"]}
        if entry["compare"]:
            body["__eq__"] = _same_fields
            body["__hash__"] = _hash_fields if entry["frozen"] else None
        kind = type(entry["name"], (Bag,), body)
        bag = kind()
        self._made[index] = bag  # before its attributes: they may lead back to it
        for name, (how, payload) in entry["methods"].items():
            setattr(kind, name, _METHODS[how](codec.decode(payload, self._extension)))
        for name, payload in entry["fields"].items():
            vars(bag)[name] = codec.decode(payload, self._extension, region=self._region)
        return bag

    def _make_function(self, index: int, entry: dict[str, Any]) -> Any:
        space = self._space(entry["space"], entry["module"])
        for name, payload in entry["needs"].items():  # decorators, default values, base classes
            self._bind(space, name, payload)
        self._bind_pending()  # a decorator is called at once, and needs what it uses
        source, filename = entry["source"], entry["file"]
        self._remember(filename, source)
        if entry["lambda"]:
            made = eval(compile(source.strip(), filename, "eval", dont_inherit=True), space)  # noqa: S307 - the user's own
        else:
            what: Any = _definition(source, entry) if entry["rework"] else source
            code = compile(what, filename, "exec", dont_inherit=True, flags=entry["flags"])
            exec(code, space)  # noqa: S102 - the user's own
            made = space[entry["name"]]
        self._made[index] = made
        self._pending.append((space, entry["names"]))
        return made

    def _space(self, number: int, module: str) -> dict[str, Any]:
        if number not in self._spaces:
            # never the module's own name: importing that module must still give the real one
            self._spaces[number] = _module(f"copied{number}.{module}").__dict__
        return self._spaces[number]


_METHODS: dict[str, Callable[[Any], Any]] = {
    "method": lambda function: function,
    "static": staticmethod,
    "class": classmethod,
    "property": property,
}


def _module(name: str) -> ModuleType:
    """An empty module that is known to the import system: dataclasses and pickling look there."""
    module = ModuleType(name)
    module.__dict__["__builtins__"] = __builtins__
    sys.modules[name] = module
    return module


class _Guard:
    """Builtins whose import statement knows a list. It tells early and in words; what holds is the kernel's layers."""

    def __init__(self, allowed: list[str]) -> None:
        self.allowed = set(allowed)
        self.names = dict(__builtins__ if isinstance(__builtins__, dict) else vars(__builtins__))
        self.names["__import__"] = self._import
        self._plain = __import__

    def _import(self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if level == 0 and name.partition(".")[0] not in self.allowed:
            raise ImportRefused(f"import {name}")
        return self._plain(name, globals, locals, fromlist, level)


_guard: _Guard | None = None


def guard_imports(allowed: list[str] | None) -> None:
    """What candidates may import, for all of this process; None for anything. Made once: copying it touches pages."""
    global _guard
    _guard = None if allowed is None else _Guard(allowed)


class Finder:
    """Finds the user's own modules by name where their folders cannot be listed."""

    def __init__(self, files: dict[str, str]) -> None:
        self._files = files

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """As in ``importlib.abc.MetaPathFinder``."""
        from importlib.util import spec_from_file_location

        file = self._files.get(name)
        if file is None:
            return None
        folder, _, last = file.rpartition("/")
        below = [folder] if last.startswith("__init__.") else None
        return spec_from_file_location(name, file, submodule_search_locations=below)


def _import(module: str, path: str) -> Any:
    try:
        found: Any = import_module(module)
        for part in path.split(".") if path else ():
            found = getattr(found, part)
    except Exception as error:  # noqa: BLE001 - only matters if the code touches it; then it is told why
        return Absent(f"{module}{'.' if path else ''}{path} cannot be imported here: {type(error).__name__}: {error}")
    return found


def _definition(source: str, entry: dict[str, Any]) -> ast.Module:
    """The definition ready to be compiled at top level: without annotations, its free variables as globals."""
    tree = parse_block(source)
    wanted = (ast.ClassDef,) if entry["class"] else (ast.FunctionDef, ast.AsyncFunctionDef)
    found: Any = next(n for n in ast.walk(tree) if isinstance(n, wanted) and n.name == entry["name"])
    found.decorator_list = [d for i, d in enumerate(found.decorator_list) if i not in entry["drop"]]
    if isinstance(found, FunctionNode):
        found = strip(found)
    return ast.Module(body=[found], type_ignores=[])


def parse_block(source: str) -> ast.Module:
    """Parse a definition that may be indented; lines keep their numbers."""
    if source[:1].isspace():
        return ast.increment_lineno(ast.parse("if 1:\n" + source), -1)
    return ast.parse(source)


def strip(definition: Any) -> Any:
    """Take the annotations off a function and turn its ``nonlocal`` into ``global``: it will stand at top level."""
    arguments = definition.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
        if argument is not None:
            argument.annotation = None
    definition.returns = None
    outer = definition.body
    for index, statement in enumerate(outer):
        if isinstance(statement, ast.Nonlocal):
            outer[index] = ast.copy_location(ast.Global(names=statement.names), statement)
    return definition


__all__ = [
    "ABSENT",
    "IMPORTED",
    "REFERENCE",
    "TOOL",
    "Absent",
    "Bag",
    "Builder",
    "Finder",
    "ImportRefused",
    "Unavailable",
    "guard_imports",
    "parse_block",
    "strip",
]
