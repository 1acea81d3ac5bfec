"""bundle: make a function one operator of the graph."""

from __future__ import annotations

import functools
import weakref
from time import perf_counter
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, overload

from trace_core._bound import BoundBundle
from trace_core._extra import note_seconds
from trace_core._functions import COROUTINE, code_flags, first_line, mark_coroutine, named_arguments
from trace_core._values import ATOMIC, UNSET
from trace_core.context import Frame, body_frame, current
from trace_core.errors import SourceError
from trace_core.node import Node, failure, link, unwrap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from trace_core.code import CodeParameter
    from trace_core.code_runner import CodeRunner
    from trace_core.parameter import Parameter

_STREAMS = (CoroutineType, GeneratorType, AsyncGeneratorType)
CODE_SLOT = "__trace_core_code__"


class Bundle:
    """A function as an operator: calling it runs the plain function on plain values and records one node.

    Made by ``bundle``. Is a descriptor, so it works as a method; behaves as the function to ``inspect`` and friends.

    Attributes:
        name: short name, from the function.
        description: one line for people and LLMs; by default the first line of the docstring.
        fn: the plain function.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        name: str | None = None,
        description: str | None = None,
        trainable: bool = False,
        transparent: bool = False,
        unpack: int | None = None,
        catch: bool = True,
        isolation: str | CodeRunner | None = None,
        source: str | None = None,
        tools: dict[str, Callable[..., Any]] | Iterable[Callable[..., Any]] = (),
    ) -> None:
        if isinstance(fn, Bundle):
            fn = fn.fn
        self._static = isinstance(fn, staticmethod)
        self._class = isinstance(fn, classmethod)
        if isinstance(fn, staticmethod | classmethod):
            fn = fn.__func__
        if not callable(fn):
            raise SourceError(f"bundle expects a function or another callable, got {type(fn).__name__}: {fn!r:.80}")
        self.fn: Callable[..., Any] = fn
        self.__name__: str = getattr(fn, "__name__", type(fn).__name__)
        functools.update_wrapper(self, fn, updated=())
        base = fn.func if isinstance(fn, functools.partial) else fn
        plain_name: str = name or getattr(base, "__name__", None) or type(base).__name__
        self.name: str = "lambda" if plain_name == "<lambda>" else plain_name
        self.description = description if description is not None else first_line(getattr(base, "__doc__", None))
        self.transparent = transparent
        self.unpack = unpack
        self.catch = catch
        self.isolation = isolation
        named = tools if isinstance(tools, dict) else {tool.__name__: tool for tool in tools}
        self.tools: dict[str, Callable[..., Any]] = dict(named)
        self.trainable = trainable
        self._given_source = source
        self._flags = code_flags(base)
        self._signature: Any = None
        self._code: CodeParameter | None = None
        self._slotted: dict[int, tuple[weakref.ref[Any], CodeParameter]] = {}
        self._in_class = "." in getattr(fn, "__qualname__", "").rpartition("<locals>.")[2]
        self._method = (
            self._in_class and not self._static
        )  # whether the first argument is the object a method belongs to
        if self._flags & COROUTINE:
            mark_coroutine(self)
        if trainable and (not self._in_class or self._static or self._class):
            self._code = self._new_code()

    # ---- calling

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run and record. The result is a Node (a coroutine of one, or a generator of nodes, for such functions)."""
        return self._run(args, kwargs, self._code_for(args) if self.trainable else None)

    def _run(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], code: CodeParameter | None, whole: bool = False
    ) -> Any:
        if self._flags:
            from trace_core import _streams

            return _streams.start(self, args, kwargs, code, whole)
        outer = current.get()
        call_args, kept_args, call_kwargs, kept_kwargs = self.unwrap_inputs(args, kwargs)
        frame = body_frame(outer)
        token = current.set(frame)
        started = perf_counter()
        try:
            fn = self.fn if code is None else code.function(frame, self)
            result = fn(*call_args, **call_kwargs)
            inner = None
            if type(result) not in ATOMIC:
                if type(result) in _STREAMS:  # a function that returns a coroutine or generator made elsewhere
                    from trace_core import _streams

                    return _streams.adopt(self, result, kept_args, kept_kwargs, frame, outer, whole)
                result, inner = unwrap(result)
        except Exception as error:
            if not self.catch:
                raise
            reads = frame.external_reads()
            raise failure(self, kept_args, kept_kwargs, reads, error, outer) from error  # type: ignore[arg-type]
        finally:
            current.reset(token)
        return self.record(result, inner, kept_args, kept_kwargs, frame, outer, whole, started)

    def unwrap_inputs(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Any, tuple[Any, ...], Mapping[str, Any], dict[str, Any] | None]:
        """(arguments for the body, recorded arguments, the same for keywords)."""
        call_args: Any = []
        kept: list[Any] = []
        ordinary = current.get() is None
        owned = self._method and bool(args) and not isinstance(args[0], Node)
        if owned:  # ``self`` is no data: the body needs the very object
            call_args.append(args[0])
            kept.append(args[0])
        for value in args[1:] if owned else args:
            kind = type(value)
            if kind in ATOMIC:
                call_args.append(value)
                kept.append(value)
            elif kind is Node and ordinary and value._snap is UNSET:
                call_args.append(value._value)
                kept.append(value)
            else:
                plain, recorded = unwrap(value)
                call_args.append(plain)
                kept.append(recorded)
        if self.transparent:
            call_args = [value if type(value) in ATOMIC else _as_node(value) for value in kept[owned:]]
            if owned:
                call_args.insert(0, args[0])
        if not kwargs:
            return call_args, tuple(kept), kwargs, None
        call_kwargs: dict[str, Any] = {}
        kept_kwargs: dict[str, Any] = {}
        for key, value in kwargs.items():
            call_kwargs[key], kept_kwargs[key] = unwrap(value)
        if self.transparent:
            call_kwargs = {key: _as_node(value) for key, value in kept_kwargs.items()}
        return call_args, tuple(kept), call_kwargs, kept_kwargs

    def record(
        self,
        result: Any,
        inner: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        frame: Frame,
        outer: Frame | None,
        whole: bool = False,
        started: float | None = None,
    ) -> Any:
        """The node for a result; with ``unpack=n``, a tuple of n nodes (unless ``whole``)."""
        node = link(result, self, args, kwargs, frame.external_reads(), outer)  # type: ignore[arg-type]
        if started is not None:
            note_seconds(node, started)
        if self.transparent and inner is not None:
            node._more().inner = inner
        if self.unpack is None or whole:
            return node
        parts = tuple(node)
        if len(parts) != self.unpack:
            error = ValueError(f"{self.name}: expected {self.unpack} values (unpack={self.unpack}), got {len(parts)}")
            raise failure(self, (node,), None, (), error, outer) from error  # type: ignore[arg-type]
        return parts

    # ---- being an operator

    def rerun(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run on new inputs and record the result (see OperatorLike)."""
        return self._run(args, kwargs, self._code_for(args) if self.trainable else None, whole=True)

    def input_names(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """Inputs by the function's own parameter names; ``*args`` as ``args[0]``, ``**kwargs`` by key."""
        return named_arguments(self.signature, args, kwargs)

    @property
    def signature(self) -> Any:
        """``inspect.signature`` of the function, or None where it has none (some builtins). Made once."""
        if self._signature is None:
            import inspect

            try:
                self._signature = inspect.signature(self.fn)
            except (TypeError, ValueError):
                self._signature = False
        return self._signature or None

    # ---- methods

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Bundle | BoundBundle: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> Bundle | BoundBundle: ...
    def __get__(self, instance: object | None, owner: type | None = None) -> Bundle | BoundBundle:
        if self._static:
            return self
        if self._class:
            return BoundBundle(self, owner if instance is None else type(instance))
        if instance is None:
            return self
        self._method = True
        return BoundBundle(self, instance)

    # ---- trainable code

    @property
    def code(self) -> CodeParameter:
        """The source as a Parameter. Raises SourceError if the bundle is not trainable, or the code is per instance."""
        if not self.trainable:
            raise SourceError(f"bundle {self.name!r} has no code parameter: make it with bundle(trainable=True)")
        names = getattr(getattr(self.fn, "__code__", None), "co_varnames", ())
        if self._code is None and names[:1] != ("self",):  # a static or class method, decorated from outside
            return self.shared_code()
        if self._code is None:
            raise SourceError(
                f"bundle {self.name!r} is a method: each instance has code of its own, use instance.{self.name}.code"
            )
        return self._code

    def parameters(self) -> list[Parameter]:
        """The code parameter, if trainable and not per instance."""
        return [self._code] if self._code is not None else []

    def _code_for(self, args: tuple[Any, ...]) -> CodeParameter:
        """The code of a call: the bundle's own, or that of the object whose method this is."""
        if self._code is not None:
            return self._code
        owner = args[0] if args else None
        if any(kind.__dict__.get(self.__name__) is self for kind in type(owner).__mro__):
            return self.code_of(owner)
        return self.shared_code()

    def shared_code(self) -> CodeParameter:
        """One code parameter for all callers: of functions, and of static and class methods."""
        if self._code is None:
            self._code = self._new_code()
        return self._code

    def _new_code(self) -> CodeParameter:
        from trace_core.code import CodeParameter

        return CodeParameter.of_function(
            self.fn,
            name=self.name,
            description=self.description,
            source=self._given_source,
            isolation=self.isolation,
            tools=self.tools,
        )

    def code_of(self, instance: object) -> CodeParameter:
        """The code parameter of one instance; made at the first look."""
        if self._code is not None:
            return self._code
        if isinstance(instance, type):  # a class method
            return self.shared_code()
        try:
            table: dict[Bundle, CodeParameter] = object.__getattribute__(instance, "__dict__").setdefault(CODE_SLOT, {})
        except (AttributeError, TypeError):  # __slots__: no place in the instance
            return self._code_of_slotted(instance)
        if self not in table:
            table[self] = self._new_code()
        return table[self]

    def _code_of_slotted(self, instance: object) -> CodeParameter:
        key = id(instance)  # not the instance itself: two equal ones are still two
        known = self._slotted.get(key)
        if known is not None and known[0]() is instance:
            return known[1]
        slotted = self._slotted
        try:
            reference = weakref.ref(instance, lambda _: slotted.pop(key, None))
        except TypeError as error:
            raise SourceError(
                f"trainable method {self.name!r} needs a place for each instance's code: give class "
                f"{type(instance).__name__} a __dict__ or '__weakref__' in its __slots__"
            ) from error
        code = self._new_code()
        slotted[key] = (reference, code)
        return code

    def __deepcopy__(self, memo: dict[int, Any]) -> Bundle:
        """A function is shared by copies of what holds it; a trainable one is copied with its code."""
        if self._code is None:
            return self
        import copy

        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, _slotted={}, _code=copy.deepcopy(self._code, memo))
        memo[id(self)] = twin
        return twin

    def __reduce__(self) -> str:
        name = getattr(self, "__qualname__", None)
        if not isinstance(name, str):
            raise TypeError(f"cannot pickle bundle {self.name!r}: it has no name in a module")
        return name

    def __repr__(self) -> str:
        return f"<bundle {self.name}>"


def _as_node(value: Any) -> Any:
    if isinstance(value, Node) or callable(value) or type(value) in ATOMIC:
        return value
    return Node(value)


@overload
def bundle(fn: Callable[..., Any], /) -> Bundle: ...
@overload
def bundle(
    fn: None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    trainable: bool = False,
    transparent: bool = False,
    unpack: int | None = None,
    catch: bool = True,
    isolation: str | CodeRunner | None = None,
    source: str | None = None,
    tools: dict[str, Callable[..., Any]] | Iterable[Callable[..., Any]] = (),
) -> Callable[[Callable[..., Any]], Bundle]: ...
def bundle(fn: Any = None, /, **options: Any) -> Any:
    """Make a function one operator of the traced graph: ``@bundle`` or ``@bundle(option=...)``.

    The body runs as plain Python on plain values: nodes in the arguments are replaced by their values at any depth of
    list, tuple, dict, set, dataclass and pydantic model. Every node passed or read by the body (closure, global,
    ``self.attribute``) becomes an input of the one node that is recorded. Threads that the body starts must carry its
    context (``asyncio.to_thread``, ``ContextThreadPool``): what a bare thread reads is not seen.

    Args:
        name: name of the operator; by default the function's.
        description: one line for the optimizer; by default the docstring's first paragraph.
        trainable: the source becomes a Parameter (``f.code``; for a method, one per instance).
        transparent: arguments stay nodes and the body is recorded as a nested graph, which ``Trace.of(unfold=True)``
            shows; otherwise the call is one folded operator, recursion included.
        unpack: the number of values returned; the call gives a tuple of that many nodes.
        catch: False lets an exception of the body through as it is; by default it becomes an ExecutionError (which is
            also an instance of the exception's own class) whose node feedback can flow back from.
        isolation: where proposed code of a trainable function runs: None for the default (a jail where there is one,
            else a separate process), ``"jail"``, ``"process"``, ``"monty"``, ``"inline"`` for this process,
            unprotected; or a sandbox of your own.
        tools: functions that proposed code may call by name. They run in this process; everything else is denied.
        source: the function's source, where Python cannot find it (``exec``).

    Raises SourceError if ``trainable`` and the source cannot be had.
    """
    if fn is None:
        return lambda function: Bundle(function, **options)
    return Bundle(fn, **options)
