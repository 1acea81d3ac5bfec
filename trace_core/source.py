"""Sources of functions: finding them, taking them apart, comparing signatures. Text is parsed, never scraped."""

from __future__ import annotations

import ast
import sys
from typing import TYPE_CHECKING, Any

from trace_core.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def function_source(fn: Callable[..., Any]) -> str:
    """The definition of a function as unindented text.

    Decorators from ``bundle`` upward are left out (they made the operator); those below it are part of the function.
    Raises SourceError where Python does not keep the source (``exec``, builtins), and for lambdas.
    """
    import inspect

    plain = inspect.unwrap(fn)
    name = getattr(plain, "__name__", type(plain).__name__)
    code: CodeType | None = getattr(plain, "__code__", None)
    if name == "<lambda>":
        raise SourceError("a lambda cannot be trainable: give the function a name with def")
    if code is None:
        raise SourceError(f"{name!r} is not a Python function: only functions written with def can be trainable")
    try:
        found = _first_definition(inspect.getsource(plain), code, fn)
    except (OSError, TypeError):  # not in a file; IPython and newer REPLs count as files here
        found = _from_command_line(code, fn)
    except SyntaxError as error:
        raise SourceError(
            f"the file of {name!r} no longer holds its definition (edited since it was imported?)"
        ) from error
    if found is not None:
        return found
    raise SourceError(
        f"the source of {name!r} cannot be found (defined by exec or in a session that keeps no source); "
        f"pass it: bundle(trainable=True, source='def {name}(...): ...')"
    )


def _first_definition(text: str, code: CodeType, fn: Callable[..., Any]) -> str | None:
    """The first definition in ``text`` with the name and the arguments of ``code``."""
    tree, lines = parse_indented(text)
    for item in ast.walk(tree):
        if isinstance(item, FunctionNode) and item.name == code.co_name and _same_arguments(item, code):
            return definition_text(item, lines, fn)
    return None


def _same_arguments(definition: FunctionNode, code: CodeType) -> bool:
    arguments = definition.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return tuple(names) == code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def _from_command_line(code: CodeType, fn: Callable[..., Any]) -> str | None:
    """The definition from the argument of ``python -c``, if the function really came from there."""
    if code.co_filename != "<string>" or "-c" not in sys.orig_argv[:-1]:
        return None
    text = sys.orig_argv[sys.orig_argv.index("-c") + 1]
    try:
        pending: list[Any] = [compile(text, code.co_filename, "exec")]
    except (SyntaxError, ValueError):
        return None
    while pending:  # code made by exec has the same file name: compare what was compiled
        item = pending.pop()
        if item.co_name == code.co_name and item.co_code == code.co_code and item.co_firstlineno == code.co_firstlineno:
            lines = text.splitlines(keepends=True)
            for definition in ast.walk(ast.parse(text)):
                if isinstance(definition, FunctionNode) and _first_line(definition) == code.co_firstlineno:
                    return definition_text(definition, lines, fn)
        pending += [c for c in item.co_consts if hasattr(c, "co_code")]
    return None


def _first_line(definition: FunctionNode) -> int:
    return min([definition.lineno, *(d.lineno for d in definition.decorator_list)])


def parse_indented(text: str) -> tuple[ast.Module, list[str]]:
    """Parse a text whose first line may be indented; (tree, lines that fit the tree's positions)."""
    stripped = text.lstrip("\n")
    if stripped[:1] in (" ", "\t"):
        wrapped = "if True:\n" + stripped
        return ast.parse(wrapped), wrapped.splitlines(keepends=True)
    return ast.parse(text), text.splitlines(keepends=True)


def dedented(text: str) -> str:
    """Source text moved to the left margin, strings of several lines as they are. Raises SourceError if no text."""
    import textwrap

    if not isinstance(text, str):
        raise SourceError(f"expected source text, got {type(text).__name__}")
    if not text.lstrip("\n").startswith((" ", "\t")):
        return text
    try:
        tree, lines = parse_indented(text)
    except SyntaxError:
        return textwrap.dedent(text)  # reported by whoever parses it
    statements = tree.body[0].body if isinstance(tree.body[0], ast.If) else []
    definitions = [item for item in statements if isinstance(item, FunctionNode)]
    if len(definitions) == len(statements) == 1:
        return definition_text(definitions[0], lines, None)
    return textwrap.dedent(text)


def definition_text(definition: FunctionNode, lines: list[str], fn: Callable[..., Any] | None) -> str:
    """The text of a definition without the decorators from ``bundle`` upward, moved to the left margin."""
    inner = inner_decorators(definition, fn)
    first = min([definition.lineno, *(d.lineno for d in inner)])
    body = lines[first - 1 : definition.end_lineno]
    margin = definition.col_offset
    if margin:
        inside = _string_lines(definition)
        body = [
            line if (first + offset) in inside or not line[:margin].isspace() else line[margin:]
            for offset, line in enumerate(body)
        ]
    return "".join(body).rstrip() + "\n"


def inner_decorators(definition: FunctionNode, fn: Callable[..., Any] | None) -> list[ast.expr]:
    """Decorators below ``bundle``; all of them when ``bundle`` was called on the finished function.

    ``fn`` gives the names their meaning, so that ``bundle`` is known under any name it was imported by.
    """
    decorators = definition.decorator_list
    for index in reversed(range(len(decorators))):
        if _is_bundle(decorators[index], fn):
            return decorators[index + 1 :]
    return [d for d in decorators if getattr(d, "id", "") not in ("staticmethod", "classmethod")]


def without_bundle(text: str, definition: FunctionNode, fn: Callable[..., Any]) -> str:
    """``text`` with the decorators from ``bundle`` upward made blank lines: proposed code may repeat them."""
    kept = inner_decorators(definition, fn)
    lines = text.splitlines(keepends=True)
    for decorator in definition.decorator_list:
        if decorator not in kept:
            first, last = decorator.lineno, decorator.end_lineno or decorator.lineno
            lines[first - 1 : last] = ["\n"] * (last - first + 1)
    return "".join(lines)


def _is_bundle(decorator: ast.expr, fn: Callable[..., Any] | None) -> bool:
    from trace_core.bundle import Bundle, bundle

    while isinstance(decorator, ast.Call):
        decorator = decorator.func
    parts: list[str] = []
    while isinstance(decorator, ast.Attribute):
        parts.insert(0, decorator.attr)
        decorator = decorator.value
    if not isinstance(decorator, ast.Name):
        return False
    import inspect

    found: Any = getattr(inspect.unwrap(fn), "__globals__", {}).get(decorator.id) if fn is not None else None
    for part in parts:
        found = getattr(found, part, None)
    if found is None:  # a local name: go by what it is called
        return (parts[-1] if parts else decorator.id) == "bundle"
    return found in (bundle, Bundle)


def _string_lines(definition: FunctionNode) -> set[int]:
    """Lines that continue a string literal: moving them would change the string."""
    inside: set[int] = set()
    for item in ast.walk(definition):
        is_text = isinstance(item, ast.JoinedStr) or (
            isinstance(item, ast.Constant) and isinstance(item.value, str | bytes)
        )
        if is_text and isinstance(item, ast.expr) and item.end_lineno:
            inside.update(range(item.lineno + 1, item.end_lineno + 1))
    return inside


def parse_candidate(text: str, name: str) -> tuple[ast.Module, FunctionNode]:
    """Parse proposed code; (tree, the definition of ``name`` at top level).

    Helpers, imports, constants and classes may stand beside it. Raises SourceError with the reason: not a text, a
    syntax error with its line, no function of that name, something that would run at definition time.
    """
    if not isinstance(text, str):
        raise SourceError(f"expected the source text of function {name!r}, got {type(text).__name__}")
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        line = (error.text or "").rstrip()
        raise SourceError(f"syntax error in line {error.lineno}: {error.msg}: {line.strip()!r}") from error
    except ValueError as error:  # NUL characters
        raise SourceError(f"not a source text: {error}") from error
    found = [n for n in tree.body if isinstance(n, FunctionNode)]
    definition = next((n for n in reversed(found) if n.name == name), None)
    if definition is None:
        seen = ", ".join(n.name for n in found) or "none"
        raise SourceError(f"the function must still be called {name!r}; functions defined in the text: {seen}")
    allowed = (*FunctionNode.__args__, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.ClassDef)
    for statement in tree.body:
        docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if not isinstance(statement, allowed) and not docstring:
            raise SourceError(
                f"line {statement.lineno}: beside {name!r} there may be only imports, helper functions, classes and "
                f"constants, got {type(statement).__name__.lower()}"
            )
    return tree, definition


def signature_of(definition: FunctionNode) -> str:
    """``name(a, b=..., *, c)``: names, kinds and which have defaults; annotations and default values do not count."""
    arguments = definition.args
    parts: list[str] = []
    positional = [*arguments.posonlyargs, *arguments.args]
    first_default = len(positional) - len(arguments.defaults)
    for index, argument in enumerate(positional):
        parts.append(argument.arg + ("=..." if index >= first_default else ""))
        if arguments.posonlyargs and index == len(arguments.posonlyargs) - 1:
            parts.append("/")
    if arguments.vararg:
        parts.append("*" + arguments.vararg.arg)
    elif arguments.kwonlyargs:
        parts.append("*")
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parts.append(argument.arg + ("=..." if default is not None else ""))
    if arguments.kwarg:
        parts.append("**" + arguments.kwarg.arg)
    return f"{definition.name}({', '.join(parts)})"


def used_names(text: str) -> set[str]:
    """Names the code takes from outside: what may have to come from the globals and closure of what it replaces.

    Local variables are none of them: a global parameter of the same name would count as read.
    """
    from symtable import symtable

    try:
        pending = [symtable(text, "<code>", "exec")]
    except SyntaxError:  # ``nonlocal``, for which the closure of the replaced function is missing here
        return {n.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)}
    names: set[str] = set()
    while pending:
        scope = pending.pop()
        outermost = scope.get_type() == "module"
        names |= {s.get_name() for s in scope.get_symbols() if s.is_global() or (outermost and s.is_referenced())}
        pending += scope.get_children()
    return names
