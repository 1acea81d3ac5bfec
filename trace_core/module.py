"""Module: an object with parameters."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

from trace_core._bound import BoundBundle
from trace_core._unwrap import is_record, record_fields
from trace_core._values import copy_of_tensor, without_history
from trace_core.bundle import CODE_SLOT, Bundle
from trace_core.errors import StateError
from trace_core.node import Node
from trace_core.parameter import Parameter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from os import PathLike

C = TypeVar("C", bound=type)

_SKIPPED = frozenset({CODE_SLOT, "__dict__", "__weakref__"})


class Module:
    """Base class of workflows with parameters.

    Parameters are found in attributes, in lists, tuples, dicts, deques, dataclasses and pydantic models in attributes,
    in nested modules, and as the code of trainable methods; not in sets, which have no order, nor in other objects. A
    parameter without a name gets that of the attribute it is first assigned to. Properties are never run in the search.
    """

    __slots__ = ()
    __trace_core_module__ = True

    def __setattr__(self, attribute: str, value: Any) -> None:
        super().__setattr__(attribute, value)
        if isinstance(value, Parameter) and value.name is None:
            value._rename(attribute)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Calls ``forward``, if there is one."""
        forward = getattr(self, "forward", None)
        if forward is None:
            raise TypeError(f"{type(self).__name__} has no forward method to call")
        return forward(*args, **kwargs)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(dotted path, parameter) for each parameter once, in order of definition: attributes, then methods' code."""
        yield from _walk(self, "", set(), set())

    def parameters(self) -> list[Parameter]:
        """The parameters, each once."""
        return [parameter for _, parameter in self.named_parameters()]

    def zero_feedback(self) -> None:
        """Forget the traces of all parameters."""
        for parameter in self.parameters():
            parameter.zero_feedback()

    def named_buffers(self) -> Iterator[tuple[str, Any]]:
        """(dotted path, tensor) of what is saved and not optimized: the persistent buffers of torch modules inside."""
        for path, module in _modules_in(self, "", {id(self)}):
            if type(module).named_buffers is not Module.named_buffers:
                yield from ((f"{path}.{name}", buffer) for name, buffer in module.named_buffers())

    def state_dict(self) -> dict[str, Any]:
        """The current value of each parameter and buffer by dotted path. Tensors are copies, without gradients."""
        return {path: copy_of_tensor(value) for path, value in self._state().items()}

    def _state(self) -> dict[str, Any]:
        values = {path: without_history(parameter.value) for path, parameter in self.named_parameters()}
        return values | dict(self.named_buffers())

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Set the parameters from ``state_dict`` values. All or nothing: if one is refused, none is changed.

        With ``strict=False``, unknown and missing entries are passed over. Raises StateError naming every unknown,
        missing and ill-typed entry.
        """
        from trace_core.state import load

        load(dict(self.named_parameters()), dict(self.named_buffers()), state, strict)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the state: JSON, and arrays or tensors to a safetensors file beside it. Never pickle."""
        from trace_core.state import write

        write(self._state(), path)

    def load(self, path: str | PathLike[str], *, strict: bool = True) -> None:
        """Read what ``save`` wrote; see ``load_state_dict``."""
        from trace_core.state import read

        self.load_state_dict(read(path), strict=strict)


def _walk(owner: Any, path: str, seen: set[int], parameters: set[Parameter]) -> Iterator[tuple[str, Parameter]]:
    if id(owner) in seen:
        return
    seen.add(id(owner))
    for name, value in _attributes(owner):
        yield from _visit(value, f"{path}{name}", seen, parameters)
    for name, code in _trainable_methods(owner):
        yield from _found(code, f"{path}{name}", parameters)


def _attributes(owner: Any) -> Iterator[tuple[str, Any]]:
    """Instance attributes as stored, then parameters kept as class attributes; nothing is evaluated."""
    own: dict[str, Any] = getattr(owner, "__dict__", {})
    yield from ((name, value) for name, value in list(own.items()) if name not in _SKIPPED)
    slots = set()
    for kind in type(owner).__mro__:
        declared = kind.__dict__.get("__slots__", ())
        for name in (declared,) if isinstance(declared, str) else declared:
            descriptor: Any = kind.__dict__.get(name)
            if name in _SKIPPED or name in slots or not hasattr(descriptor, "__get__"):
                continue
            slots.add(name)
            try:
                yield name, descriptor.__get__(owner, kind)  # a slot's own descriptor: no user code runs
            except AttributeError:
                continue  # declared, not set
    shadowed = set(own) | slots
    for kind in type(owner).__mro__:
        for name, value in kind.__dict__.items():
            if name not in shadowed and (
                isinstance(value, Node) or getattr(type(value), "__trace_core_module__", False)
            ):
                shadowed.add(name)
                yield name, value


def _visit(value: Any, path: str, seen: set[int], parameters: set[Parameter]) -> Iterator[tuple[str, Parameter]]:
    if isinstance(value, Parameter):
        yield from _found(value, path, parameters)
    elif isinstance(value, Bundle | BoundBundle):
        for parameter in value.parameters():
            yield from _found(parameter, path, parameters)
    elif getattr(type(value), "__trace_core_module__", False):
        if type(value).named_parameters is not Module.named_parameters:  # it knows its parameters better
            if id(value) not in seen:
                seen.add(id(value))
                for name, parameter in value.named_parameters():
                    yield from _found(parameter, f"{path}.{name}", parameters)
            return
        yield from _walk(value, f"{path}.", seen, parameters)
    elif (items := _items(value)) is not None:
        if id(value) in seen:
            return
        seen.add(id(value))
        for key, item in items:
            yield from _visit(item, f"{path}.{key}", seen, parameters)


def _modules_in(owner: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Module]]:
    """(dotted path, module) of the modules inside, each once."""
    pending = list(_attributes(owner))[::-1]
    while pending:
        name, value = pending.pop()
        if id(value) in seen:
            continue
        if getattr(type(value), "__trace_core_module__", False):
            seen.add(id(value))
            yield f"{path}{name}", value
            if type(value).named_parameters is Module.named_parameters:
                yield from _modules_in(value, f"{path}{name}.", seen)
        elif not isinstance(value, Node) and (items := _items(value)) is not None:
            seen.add(id(value))
            pending += [(f"{name}.{key}", item) for key, item in items][::-1]


def _items(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """(key, item) of what is searched for parameters; None for what is not."""
    if isinstance(value, list | tuple | deque):
        return enumerate(value)
    if isinstance(value, dict):
        return value.items()
    return record_fields(value).items() if is_record(type(value)) and not isinstance(value, type) else None


def _found(parameter: Parameter, path: str, parameters: set[Parameter]) -> Iterator[tuple[str, Parameter]]:
    if parameter not in parameters:
        parameters.add(parameter)
        yield path, parameter


def _trainable_methods(owner: Any) -> Iterator[tuple[str, Parameter]]:
    """(name, code) of the trainable methods; those overridden but called with ``super()`` under ``Base.name``."""
    overridden: dict[str, bool] = {}  # method name -> whether all overriding ones use super()
    for base in type(owner).__mro__:
        for name, value in base.__dict__.items():
            plain = value.__func__ if isinstance(value, staticmethod | classmethod) else value
            if isinstance(plain, Bundle) and plain.trainable and overridden.get(name, True):
                code = plain.code_of(owner) if plain is value else plain.shared_code()
                yield (f"{base.__name__}.{name}" if name in overridden else name), code
            function = getattr(plain, "fn", plain)
            uses_super = "__class__" in getattr(getattr(function, "__code__", None), "co_freevars", ())
            overridden[name] = overridden.get(name, True) and uses_super


def model(cls: C) -> C:
    """Class decorator: the class, as a Module. For plain classes, dataclasses, classes with ``__slots__``."""
    if isinstance(cls, type) and issubclass(cls, Module):
        return cls
    if not isinstance(cls, type):
        raise StateError(f"@model decorates a class, got {type(cls).__name__}")
    body: dict[str, Any] = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__trace_core_model__": cls,
    }
    if "__slots__" in cls.__dict__:
        body["__slots__"] = ()
    if getattr(cls, "__parameters__", ()):  # still generic in the same type variables
        generic: Any = cls
        body["__orig_bases__"] = (generic[generic.__parameters__], Module)
    metaclass: Any = type(cls)
    made: C = metaclass(cls.__name__, (cls, Module), body)
    return made
