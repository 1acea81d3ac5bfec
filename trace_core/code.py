"""Code as a parameter: the source of one function, and how a proposed version is made to run."""

from __future__ import annotations

import itertools
from types import FunctionType
from typing import TYPE_CHECKING, Any

from trace_core.code_runner import ISOLATIONS, CodeRunner, CodeVersion, default_runner
from trace_core.errors import ParameterError, SourceError
from trace_core.parameter import Parameter, Version

if TYPE_CHECKING:
    import ast
    from collections.abc import Callable, Mapping

    from trace_core.context import Frame

_numbers = itertools.count(1)


class CodeParameter(Parameter):
    """The source of a trainable function.

    The text holds one function of a fixed name and signature; helpers and imports may stand beside it. The original
    text runs as the function the user wrote; any other text is proposed code and runs where ``isolation`` says.
    """

    __slots__ = ("_isolation", "_names", "_original", "_text", "_tools", "function_name", "signature")

    function_name: str
    signature: str
    _original: Callable[..., Any]

    @classmethod
    def of_function(
        cls,
        fn: Callable[..., Any],
        *,
        name: str,
        description: str | None = None,
        source: str | None = None,
        isolation: str | CodeRunner | None = None,
        tools: Mapping[str, Callable[..., Any]] | None = None,
    ) -> CodeParameter:
        """The parameter for a function's source. Raises SourceError if it cannot be had."""
        import inspect

        from trace_core.source import dedented, function_source, parse_candidate, signature_of

        if not (isolation is None or isolation in ISOLATIONS or callable(getattr(isolation, "call", None))):
            raise SourceError(
                f"isolation must be None (the default), one of {', '.join(ISOLATIONS)}, or an object with the method "
                f"call of a sandbox; got {isolation!r}"
            )
        text = dedented(source) if source is not None else function_source(fn)
        function_name = getattr(inspect.unwrap(fn), "__name__", name)
        _, definition = parse_candidate(text, function_name)
        self = cls.__new__(cls)
        put = object.__setattr__
        put(self, "_original", fn)
        put(self, "_text", text)
        put(self, "_isolation", isolation)
        put(self, "_tools", dict(tools or {}))
        put(self, "_names", {})
        put(self, "function_name", function_name)
        put(self, "signature", signature_of(definition))
        Parameter.__init__(self, text, name=name, description=description, constraint=_CodeRule(self))
        return self

    @property
    def kind(self) -> str:
        """Always ``code``."""
        return "code"

    def function(self, frame: Frame | None, owner: Any) -> Callable[..., Any]:
        """The function to call for the version that is read here; built once per version."""
        version = self._read(frame)
        if not isinstance(version, Version):
            raise SourceError(f"parameter {self._title()}: cannot run {type(version).__name__}")
        if version.compiled is None:
            version.compiled = self._build(version)
        return version.compiled

    def _build(self, version: Version) -> Callable[..., Any]:
        text: str = version._value
        if text == self._text:
            return self._original
        label = f"v{version.index}" if version.index >= 0 else "candidate"
        # Candidates and parameters of the same function must not share a file name: tracebacks find the text by it.
        filename = f"<code {self.function_name} {label} #{next(_numbers)}>"
        if self._isolation == "inline":
            return compile_inline(text, self.function_name, filename, self._original, self._tools)
        return _isolated(self._code_version(text, filename), self._original, self._isolation)

    def _code_version(self, text: str, filename: str) -> CodeVersion:
        import ast

        from trace_core.source import parse_candidate, used_names, without_bundle

        definition = parse_candidate(text, self.function_name)[1]
        is_async = isinstance(definition, ast.AsyncFunctionDef)
        text = without_bundle(text, definition, self._original)
        return CodeVersion(text, self.function_name, filename, is_async, frozenset(used_names(text)), self._tools)

    def __deepcopy__(self, memo: dict[int, Any]) -> CodeParameter:
        twin = CodeParameter.of_function(
            self._original,
            name=self.name or self.function_name,
            description=self.description,
            source=self._text,
            isolation=self._isolation,
            tools=self._tools,
        )
        memo[id(self)] = twin
        value = self.value
        if value != self._text:
            twin.update(value)
        return twin

    def __reduce__(self) -> Any:
        import inspect

        plain = inspect.unwrap(self._original)
        place = (getattr(plain, "__module__", None), getattr(plain, "__qualname__", None))
        if None in place or "<locals>" in str(place[1]):
            raise TypeError(
                f"cannot pickle parameter {self._title()}: its function is not at the top level of a module"
            )
        return _rebuild_code, (*place, self.name, self.description, self._text, self._isolation, self.value)


def _rebuild_code(
    module: str, qualname: str, name: str, description: str | None, source: str, isolation: str | None, value: str
) -> CodeParameter:
    """Find the function where it was defined (there, a bundle stands for it) and give it the parameter's value."""
    import inspect
    from importlib import import_module

    from trace_core.bundle import Bundle

    found: Any = import_module(module)
    for part in qualname.split("."):
        found = inspect.getattr_static(found, part)
        found = found.__func__ if isinstance(found, staticmethod | classmethod) else found
    fn = found.fn if isinstance(found, Bundle) else found
    tools = found.tools if isinstance(found, Bundle) else None
    twin = CodeParameter.of_function(
        fn, name=name, description=description, source=source, isolation=isolation, tools=tools
    )
    if value != source:
        twin.update(value)
    return twin


class _CodeRule:
    """Constraint of a code parameter: it parses, and the function keeps its name and signature."""

    def __init__(self, parameter: CodeParameter) -> None:
        self._name, self._signature = parameter.function_name, parameter.signature
        self._free = sorted(_closure_names(parameter._original))
        self._tools = [_signature(name, tool) for name, tool in parameter._tools.items()]

    def check(self, value: Any) -> Any:
        """The text; raises ParameterError with the reason."""
        from trace_core.source import parse_candidate, signature_of

        try:
            tree, definition = parse_candidate(value, self._name)
            try:
                compile(value, f"<code {self._name}>", "exec", dont_inherit=True)
            except SyntaxError as error:
                if "nonlocal" not in error.msg:
                    raise
                compile(
                    _within_scope(tree.body, self._name, self._free), f"<code {self._name}>", "exec", dont_inherit=True
                )
        except SourceError as error:
            raise ParameterError(str(error)) from error
        except SyntaxError as error:  # what only the compiler notices, such as return outside a function
            raise ParameterError(f"syntax error in line {error.lineno}: {error.msg}") from error
        came = signature_of(definition)
        if came != self._signature:
            raise ParameterError(f"the signature must stay {self._signature}, got {came}")
        return value

    def describe(self) -> str:
        """One line."""
        tools = f"; it may call {', '.join(self._tools)}" if self._tools else ""
        return f"Python code that defines {self._signature}; helpers and imports may stand beside it{tools}"

    def annotation(self) -> Any:
        """A string."""
        return str


def _signature(name: str, tool: Callable[..., Any]) -> str:
    """How a tool is called, and the first line of what is written about it."""
    import inspect

    from trace_core._functions import first_line

    try:
        bare = [p.replace(annotation=p.empty) for p in inspect.signature(tool).parameters.values()]
        shown = f"{name}{inspect.Signature(bare)}"
    except (TypeError, ValueError):  # a builtin without one
        shown = f"{name}(...)"
    about = first_line(getattr(tool, "__doc__", None))
    return f"{shown} ({about})" if about else shown


def names_in_scope(fn: Callable[..., Any], names: frozenset[str]) -> dict[str, Any]:
    """What the function's closure and globals hold for the given names, as of now."""
    import inspect

    plain = inspect.unwrap(fn)
    scope: Mapping[str, Any] = getattr(plain, "__globals__", {})
    found = {name: scope[name] for name in names if name in scope}
    for name, value in _closure(plain).items():
        if name in names:
            found[name] = value
    return found


def _closure_names(fn: Any) -> tuple[str, ...]:
    import inspect

    names: tuple[str, ...] = getattr(getattr(inspect.unwrap(fn), "__code__", None), "co_freevars", ())
    return names


def _closure(fn: Any) -> dict[str, Any]:
    code, cells = getattr(fn, "__code__", None), getattr(fn, "__closure__", None)
    if code is None or not cells:
        return {}
    values = {}
    for name, cell in zip(code.co_freevars, cells, strict=True):
        try:
            values[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return values


def _isolated(
    code: CodeVersion, original: Callable[..., Any], isolation: str | CodeRunner | None
) -> Callable[..., Any]:
    """A function that sends its call to the runner of a tier, or to the one given."""
    from trace_core._functions import COROUTINE, code_flags
    from trace_core.node import Node, unwrap

    def context() -> dict[str, Any]:
        found = names_in_scope(original, code.names)
        # Nodes and parameters cross as their values; reading them here makes them inputs of the running operator.
        return {name: unwrap(value)[0] if isinstance(value, Node) else value for name, value in found.items()}

    def run(*args: Any, **kwargs: Any) -> Any:
        runner = default_runner(isolation) if isolation is None or isinstance(isolation, str) else isolation
        return runner.call(code, args, kwargs, context=context())

    async def run_async(*args: Any, **kwargs: Any) -> Any:
        import asyncio

        return await asyncio.to_thread(run, *args, **kwargs)

    return run_async if code_flags(original) & COROUTINE else run


def compile_inline(
    text: str,
    name: str,
    filename: str,
    original: Callable[..., Any],
    tools: Mapping[str, Callable[..., Any]] | None = None,
) -> Callable[..., Any]:
    """Compile proposed code in this process, with the globals and the closure of the function it replaces, and tools.

    No protection at all: for code that is trusted.
    """
    import ast
    import inspect
    import linecache
    import weakref
    from contextlib import suppress

    from trace_core.source import inner_decorators, parse_candidate

    tree, definition = parse_candidate(text, name)
    definition.decorator_list = inner_decorators(definition, original) if definition.decorator_list else []
    # The future import belongs to a module; its effect on annotations is switched on for all: names that exist for type
    # checkers only must not make a proposal fail.
    body = [n for n in tree.body if not (isinstance(n, ast.ImportFrom) and n.module == "__future__")]
    plain = inspect.unwrap(original)
    outer_globals: dict[str, Any] = getattr(plain, "__globals__", {})
    cells = dict(zip(plain.__code__.co_freevars, plain.__closure__ or (), strict=True)) if _has_closure(plain) else {}
    given = {name: tool for name, tool in (tools or {}).items() if name not in cells}
    free = sorted({*cells, *given})
    module = _within_scope(body, name, free)
    scratch: dict[str, Any] = {}
    compiled = compile(module, filename, "exec", _ANNOTATIONS, dont_inherit=True)
    exec(compiled, outer_globals, scratch)  # noqa: S102 - asked for: isolation="inline"
    made = scratch["__make__"](*_closure_arguments(cells, given, free))
    if isinstance(made, FunctionType) and made.__closure__ and not definition.decorator_list:
        # the cells of the original function, so that later assignments to its closure are seen
        kept = tuple(cells.get(n, cell) for n, cell in zip(made.__code__.co_freevars, made.__closure__, strict=True))
        defaults, keyword_defaults = made.__defaults__, made.__kwdefaults__
        made = FunctionType(made.__code__, outer_globals, made.__name__, defaults, kept)
        made.__kwdefaults__ = keyword_defaults
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    with suppress(TypeError):  # what a decorator made may not take weak references: its lines stay known
        weakref.finalize(made, linecache.cache.pop, filename, None)
    if isinstance(definition, ast.AsyncFunctionDef) and not inspect.iscoroutinefunction(plain):
        return _awaited(made)
    return made  # type: ignore[no-any-return]


_ANNOTATIONS = 0x1000000  # __future__.annotations.compiler_flag


def _has_closure(fn: Any) -> bool:
    return isinstance(fn, FunctionType) and fn.__closure__ is not None


def _closure_arguments(cells: Mapping[str, Any], given: Mapping[str, Any], names: list[str]) -> list[Any]:
    values = []
    for name in names:
        if name in given:
            values.append(given[name])
            continue
        try:
            values.append(cells[name].cell_contents)
        except ValueError:
            values.append(None)
    return values


def _within_scope(body: list[ast.stmt], name: str, free: list[str]) -> ast.Module:
    """A module with one function, whose arguments stand for the closure and whose body is the proposed text."""
    import ast

    text = f"def __make__({', '.join(free)}):\n    return {name}"
    module = ast.parse(text)
    factory = module.body[0]
    if isinstance(factory, ast.FunctionDef):
        factory.body[:0] = body
    return module


def _awaited(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Run an ``async def`` that replaces an ordinary function."""

    def call(*args: Any, **kwargs: Any) -> Any:
        import asyncio

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(fn(*args, **kwargs))
        from trace_core.pool import ContextThreadPool

        with ContextThreadPool(1) as pool:  # the loop that runs here waits, as for any ordinary function
            return pool.submit(lambda: asyncio.run(fn(*args, **kwargs))).result()

    return call


__all__ = ["CodeParameter", "CodeRunner", "CodeVersion", "compile_inline", "default_runner"]
