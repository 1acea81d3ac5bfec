"""What a piece of source text needs from outside: names, attributes, imports. Parsed and scoped, never guessed."""

from __future__ import annotations

import ast
import inspect
import symtable
import textwrap
import weakref
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from trace_core.integrations.sandbox.build import parse_block, strip

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

_SCOPED_EARLY = ("lambda", "genexpr", "listcomp", "setcomp", "dictcomp")
_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)  # the parser's limits show as any of these
_ACCESSORS = frozenset({"property", "staticmethod", "classmethod", "cached_property", "setter", "getter", "deleter"})


@dataclass(frozen=True)
class Needs:
    """What a source refers to.

    Attributes:
        early: names looked up while it is defined (decorators, default values, bases, class bodies).
        late: all other names that it looks up outside itself.
        attributes: attribute names and identifier-like strings anywhere in it.
        imports: modules it imports, as written.
        defines: names it binds at top level.
    """

    early: frozenset[str] = frozenset()
    late: frozenset[str] = frozenset()
    attributes: frozenset[str] = frozenset()
    imports: frozenset[str] = frozenset()
    defines: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Definition:
    """The source of one function, lambda or class of the user's, and what it needs.

    ``drop`` are the positions of the decorators that stay behind; ``rework`` says that the text cannot simply be
    compiled: decorators to drop, ``nonlocal`` at its top, an indentation that cannot be taken off.
    """

    text: str
    name: str
    needs: Needs
    drop: tuple[int, ...] = ()
    is_class: bool = False
    is_lambda: bool = False
    rework: bool = False


@lru_cache(maxsize=512)
def needs_of(text: str) -> Needs:
    """What a module's source refers to; nothing if it does not parse, for the worker to say so."""
    try:
        return _needs(ast.parse(text))
    except _UNREADABLE:
        return Needs()


@lru_cache(maxsize=512)
def takes_self(text: str, name: str) -> bool:
    """Whether the function's first parameter is called ``self``."""
    try:
        tree = ast.parse(text)
    except _UNREADABLE:
        return False
    for item in tree.body:
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and item.name == name:
            first = [*item.args.posonlyargs, *item.args.args][:1]
            return bool(first) and first[0].arg == "self"
    return False


def _needs(tree: ast.Module) -> Needs:
    attributes: set[str] = set()
    imports: set[str] = set()
    for item in ast.walk(tree):
        if isinstance(item, ast.Attribute):
            attributes.add(item.attr)
        elif isinstance(item, ast.Constant) and isinstance(item.value, str) and item.value.isidentifier():
            attributes.add(item.value)  # getattr(self, "name")
        elif isinstance(item, ast.Import):
            imports.update(alias.name for alias in item.names)
        elif isinstance(item, ast.ImportFrom) and item.module and not item.level:
            imports.add(item.module)
    top = symtable.symtable(ast.unparse(tree), "<source>", "exec")
    early = {s.get_name() for s in top.get_symbols() if s.is_referenced()}
    late: set[str] = set()
    for table, at_once in _tables(top, True):
        names = {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
        (early if at_once else late).update(names)
    defines = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    return Needs(*map(frozenset, (early, late - early, attributes, imports, defines)))


def _tables(table: symtable.SymbolTable, at_once: bool) -> Iterator[tuple[symtable.SymbolTable, bool]]:
    """All scopes inside, each with whether it runs as soon as the source does."""
    for child in table.get_children():
        early = at_once and (child.get_type() != "function" or child.get_name() in _SCOPED_EARLY)
        yield child, early
        yield from _tables(child, early)


_definitions: weakref.WeakKeyDictionary[Any, Definition | str] = weakref.WeakKeyDictionary()


def definition_of(thing: Any, ours: Any) -> Definition | str:
    """The definition of a plain function or a class; or a sentence saying why it cannot be had.

    ``ours(expression)`` says whether a decorator belongs to this library: those stay behind, with all above them.
    """
    found = _definitions.get(thing)
    if found is None:
        try:
            found = _find(thing, ours)
        except (OSError, TypeError, SyntaxError, ValueError, IndentationError) as error:
            found = f"its source cannot be found ({error})"
        _definitions[thing] = found
    return found


def _find(thing: Any, ours: Any) -> Definition | str:
    text = _text(thing)
    if isinstance(thing, type):
        return _class(thing, text, ours)
    if thing.__name__ == "<lambda>":
        return _lambda(thing, text)
    for item in ast.walk(parse_block(text)):
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and item.name == thing.__code__.co_name:
            drop = _dropped(item.decorator_list, ours)
            item.decorator_list = [d for i, d in enumerate(item.decorator_list) if i not in drop]
            rework = bool(drop) or text[0].isspace() or any(isinstance(s, ast.Nonlocal) for s in item.body)
            return Definition(text, item.name, _needs(ast.Module([strip(item)], [])), drop, rework=rework)
    return "its source cannot be found"


def _text(thing: Any) -> str:
    try:
        return _unindented(inspect.getsource(thing))
    except OSError:
        if isinstance(thing, type) or thing.__name__ == "<lambda>":
            raise
        from trace_core.errors import SourceError
        from trace_core.source import function_source  # also knows python -c

        try:
            return function_source(thing)
        except SourceError as error:
            raise OSError(str(error)) from error


def _unindented(text: str) -> str:
    """The text at the left margin, if that does not change a string that goes over several lines."""
    moved = textwrap.dedent(text)
    if moved == text:
        return text
    try:
        block: Any = parse_block(text).body[0]
        same = ast.dump(ast.Module(block.body, [])) == ast.dump(ast.parse(moved))
    except SyntaxError:  # such a string reaches further left than the code; or this is part of a longer statement
        return text
    return moved if same else text


def _class(thing: type, text: str, ours: Any) -> Definition | str:
    for item in ast.walk(parse_block(text)):
        if isinstance(item, ast.ClassDef) and item.name == thing.__name__:
            drop = _dropped(item.decorator_list, ours)
            item.decorator_list = [d for i, d in enumerate(item.decorator_list) if i not in drop]
            rework = bool(drop) or text[0].isspace()
            return Definition(text, item.name, _needs(ast.Module([item], [])), drop, is_class=True, rework=rework)
    return "its source cannot be found"


def _lambda(thing: Any, text: str) -> Definition | str:
    """The lambda in the text that compiles to the same; a line may hold several, and more than an expression."""
    wanted = thing.__code__
    found: dict[str, bool] = {}
    for item in ast.walk(_surroundings(text)):
        if isinstance(item, ast.Lambda):
            shown = ast.unparse(item)
            code = next(c for c in compile(shown, "<lambda>", "eval").co_consts if hasattr(c, "co_code"))
            if _traits(code) == _traits(wanted):
                found[shown] = code.co_code == wanted.co_code
    exact = [shown for shown, same in found.items() if same]
    for candidates in (exact, list(found)):
        if len(candidates) == 1:
            return Definition(candidates[0], "<lambda>", _needs(ast.parse(candidates[0])), is_lambda=True)
    return "its source cannot be told apart from its surroundings; use def"


def _traits(code: CodeType) -> tuple[Any, ...]:
    """What stays the same when a free variable becomes a global."""
    constants = [c for c in code.co_consts if not hasattr(c, "co_code")]
    return code.co_varnames, constants, sorted({*code.co_names, *code.co_freevars})


def _surroundings(text: str) -> ast.AST:
    """The text as a tree; from its first ``lambda`` on where it is a fragment of a longer statement."""
    try:
        return parse_block(text)
    except SyntaxError:
        fragment = text[text.index("lambda") :].strip()
    for end in range(len(fragment), len("lambda"), -1):
        try:
            return ast.parse(fragment[:end], mode="eval")
        except SyntaxError:
            continue
    return ast.Module([], [])


def _dropped(decorators: list[ast.expr], ours: Any) -> tuple[int, ...]:
    """Positions of decorators to leave out: this library's with all above them, and kinds of methods."""
    last = max((i for i, d in enumerate(decorators) if ours(_root(d))), default=-1)
    return tuple(i for i, d in enumerate(decorators) if i <= last or _last_name(d) in _ACCESSORS)


def _root(decorator: ast.expr) -> str:
    while isinstance(decorator, ast.Call | ast.Attribute):
        decorator = decorator.func if isinstance(decorator, ast.Call) else decorator.value
    return decorator.id if isinstance(decorator, ast.Name) else ""


def _last_name(decorator: ast.expr) -> str:
    while isinstance(decorator, ast.Call):
        decorator = decorator.func
    return decorator.attr if isinstance(decorator, ast.Attribute) else getattr(decorator, "id", "")


__all__ = ["Definition", "Needs", "definition_of", "needs_of", "takes_self"]
