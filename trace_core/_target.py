"""What the command line names: a workflow and a metric by module and name, and how an example is passed to them."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_core.bundle import Bundle
from trace_core.errors import TraceCoreError
from trace_core.module import Module
from trace_core.node import Node

if TYPE_CHECKING:
    from collections.abc import Sequence


class CliError(TraceCoreError):
    """The command line names something that cannot be used."""


def load_object(spec: str, what: str) -> Any:
    """The object named ``module:name`` or ``file.py:name``. Raises CliError saying which part is wrong."""
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise CliError(f"{what} must be given as module:name or file.py:name, got {spec!r}")
    try:
        if place.endswith(".py"):
            module = _load_file(Path(place), what)
        else:
            sys.path.insert(0, str(Path.cwd()))
            module = importlib.import_module(place)
    except CliError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and place.split(".")[0] == error.name.split(".")[0]:
            raise CliError(
                f"{what}: no module named {place!r} (looked in {Path.cwd()} and the installed packages)"
            ) from error
        raise CliError(f"{what}: importing {place!r} failed: {error}") from error
    except Exception as error:
        raise CliError(f"{what}: importing {place!r} failed: {type(error).__name__}: {error}") from error
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            offers = ", ".join(sorted(n for n in vars(module) if not n.startswith("_"))[:12])
            raise CliError(f"{what}: {place!r} has no {name!r}; it has: {offers}")
        found = getattr(found, part)
    return found


def _load_file(path: Path, what: str) -> Any:
    from importlib.util import module_from_spec, spec_from_file_location

    if not path.is_file():
        raise CliError(f"{what}: no file {str(path)!r}")
    sys.path.insert(0, str(path.resolve().parent))
    if path.stem in sys.modules and getattr(sys.modules[path.stem], "__file__", None) == str(path.resolve()):
        return sys.modules[path.stem]
    spec = spec_from_file_location(path.stem, path.resolve())
    if spec is None or spec.loader is None:
        raise CliError(f"{what}: {str(path)!r} cannot be imported")
    module = module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


class Workflow:
    """A function of one example: its fields by name where they match the target's arguments, else the whole.

    Which of the two is decided once, for all examples.

    Attributes:
        target: what is called.
        note: what a user should know of how examples are passed; "" if nothing.

    Raises CliError if the target cannot be called, or an example lacks a field that others have.
    """

    def __init__(self, target: Any, examples: Sequence[Any]) -> None:
        if isinstance(target, type):
            try:
                target = target()
            except TypeError as error:
                raise CliError(f"workflow class {target.__name__} cannot be made without arguments: {error}") from error
        if not callable(target):
            raise CliError(f"the workflow must be callable, got {type(target).__name__}")
        self.target: Any = target
        self.note = ""
        plain = target.forward if isinstance(target, Module) and hasattr(target, "forward") else target
        signature = inspect.signature(plain.fn if isinstance(plain, Bundle) else plain)
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        named = [p for p in signature.parameters.values() if p.kind in kinds]
        self._names = [p.name for p in named]
        self._required = [p.name for p in named if p.default is p.empty]
        takes_one = len(self._required) == 1 or not self._required
        fits = [self._lacking(example) is None for example in examples]
        self._by_name = any(fits)
        if self._by_name and not all(fits):
            number = fits.index(False)
            raise CliError(f"example {number + 1} {self._lacking(examples[number])}")
        if not self._by_name and not takes_one:
            raise CliError(f"example 1 {self._lacking(examples[0])}")
        if not self._by_name and any(isinstance(example, dict) for example in examples):
            wanted = ", ".join(self._required or self._names) or "any argument"
            self.note = (
                f"each example is passed as a whole: none has a field named as the workflow's argument, {wanted}"
            )

    def _lacking(self, example: Any) -> str | None:
        """What is missing for passing the example by name."""
        if not isinstance(example, dict):
            return (
                f"is no JSON object with the fields {', '.join(self._required)}, but of type {type(example).__name__}"
            )
        missing = [name for name in self._required if name not in example]
        if missing or not any(name in example for name in self._names):
            wanted = ", ".join(missing or self._names)
            return f"has no field {wanted}, which the workflow needs; it has: {', '.join(map(str, example))}"
        return None

    def __call__(self, example: Any) -> Node:
        if self._by_name:
            result: Node = self.target(**{name: example[name] for name in self._names if name in example})
        else:
            result = self.target(example)
        return result


def has_named_parameters(call: Workflow) -> bool:
    """Whether the parameters can be found without running the workflow."""
    owner = call.target
    return hasattr(owner, "named_parameters") or (isinstance(owner, Bundle) and bool(owner.parameters()))


def find_parameters(call: Workflow, example: Any) -> Sequence[Any]:
    """Named parameters of a Module or bundle; of a function, those that its output on one example depends on."""
    from trace_core.errors import ExecutionError
    from trace_core.trace import Trace
    from trace_core.tracebacks import describe

    owner = call.target
    if hasattr(owner, "named_parameters"):
        found: list[Any] = list(owner.named_parameters())
    elif isinstance(owner, Bundle) and owner.parameters():
        found = owner.parameters()
    else:
        try:
            output = call(example)
        except ExecutionError as error:
            output = error.node
        except TraceCoreError:
            raise
        except Exception as error:
            raise CliError(
                f"the workflow raised an error on the first example: {describe('workflow', error)}"
            ) from error
        found = Trace.of(output).parameters if isinstance(output, Node) else []
    if not found:
        raise CliError(
            "the workflow has no parameters: mark values with tc.node(value, trainable=True) or functions with "
            "tc.bundle(trainable=True)"
        )
    return found
