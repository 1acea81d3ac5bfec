"""What values a parameter may take. Checked on every update, whoever proposes it."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from trace_core._values import is_ndarray, is_tensor
from trace_core.errors import ParameterError

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Sequence


@runtime_checkable
class Constraint(Protocol):
    """A rule for a parameter's values. Any object with these three methods will do."""

    def check(self, value: Any) -> Any:
        """The value, normalised; raises ParameterError saying what was expected and what came."""
        ...

    def describe(self) -> str:
        """One line for a person or an LLM."""
        ...

    def annotation(self) -> Any:
        """A type for a pydantic field, as tight as pydantic can say it."""
        ...


def _refuse(expected: str, value: Any) -> ParameterError:
    return ParameterError(f"expected {expected}, got {type(value).__name__}: {value!r:.120}")


class OfType:
    """Values of the type of an example: what a parameter without a constraint gets.

    An int stays an int (4.0 becomes 4, 4.5 is refused), a float takes ints, a bool only bools; numbers are finite; an
    array or tensor keeps its shape and kind.
    """

    def __init__(self, example: Any) -> None:
        self.kind: type = type(example)
        self.shape: tuple[int, ...] | None = None
        self._dtype: Any = None
        if is_ndarray(example) or is_tensor(example):
            self.shape = tuple(example.shape)
            self._dtype = example.dtype

    def check(self, value: Any) -> Any:
        """See Constraint."""
        kind = self.kind
        if kind is bool:
            if type(value) is not bool:
                raise _refuse(self.describe(), value)
            return value
        if kind is int or kind is float:
            return _number(value, kind, self.describe())
        if self.shape is not None:
            return self._array(value)
        if not isinstance(value, kind):
            raise _refuse(self.describe(), value)
        if isinstance(value, complex) and not (isfinite(value.real) and isfinite(value.imag)):
            raise _refuse(self.describe(), value)
        return value

    def _array(self, value: Any) -> Any:
        if self.kind.__module__.partition(".")[0] == "numpy" and isinstance(
            value, self.kind | list | tuple | float | int
        ):
            import numpy

            try:
                given = numpy.asarray(value)
                value = given if given.dtype == self._dtype else given.astype(self._dtype)
            except (ValueError, TypeError, OverflowError) as error:
                raise _refuse(self.describe(), value) from error
            if given.dtype.kind not in "biufc" or (self._dtype.kind in "biu" and not bool((given == value).all())):
                raise _refuse(self.describe(), given)
        elif not isinstance(value, self.kind):
            raise _refuse(self.describe(), value)
        if tuple(value.shape) != self.shape:
            raise ParameterError(f"expected {self.describe()}, got shape {tuple(value.shape)}")
        if is_ndarray(value) and value.dtype.kind in "fc" and not bool((abs(value) < float("inf")).all()):
            raise ParameterError(f"expected {self.describe()} with finite entries, got NaN or Inf")
        return value

    def describe(self) -> str:
        """See Constraint."""
        words = {bool: "true or false", int: "an integer", float: "a finite number", str: "a text"}
        name = words.get(self.kind, f"a {self.kind.__name__}")
        return name if self.shape is None else f"{name} of shape {self.shape}"

    def annotation(self) -> Any:
        """See Constraint."""
        return self.kind if self.kind in (bool, int, float, str, list, dict, tuple) else Any


def _number(value: Any, kind: type, expected: str) -> Any:
    if isinstance(value, bool) or not (isinstance(value, int | float) or hasattr(value, "__float__")):
        raise _refuse(expected, value)
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise _refuse(expected, value) from error
    except OverflowError as error:
        if kind is int and isinstance(value, int):  # too big for a float, and a number still
            return value
        raise _refuse(expected, value) from error
    if not isfinite(number):
        raise _refuse(expected, value)
    if kind is float:
        return number
    if hasattr(value, "__index__"):
        return value.__index__()
    if number != int(number):
        raise _refuse(expected, value)
    return int(number)


class Range:
    """A finite number between ``low`` and ``high``, both included; ``integer=True`` for whole numbers."""

    def __init__(self, low: float | None = None, high: float | None = None, *, integer: bool = False) -> None:
        if any(bound is not None and not (isinstance(bound, int | float) and isfinite(bound)) for bound in (low, high)):
            raise ParameterError(f"Range: bounds must be finite numbers or None, got {low!r} and {high!r}")
        if low is not None and high is not None and low > high:
            raise ParameterError(f"Range: low must not be above high, got {low} > {high}")
        self.low, self.high, self.integer = low, high, integer

    def check(self, value: Any) -> Any:
        """See Constraint."""
        number = _number(value, int if self.integer else float, self.describe())
        if (self.low is not None and number < self.low) or (self.high is not None and number > self.high):
            raise _refuse(self.describe(), value)
        return value if type(value) in (int, float) and not self.integer else number

    def describe(self) -> str:
        """See Constraint."""
        noun = "an integer" if self.integer else "a number"
        if self.low is not None and self.high is not None:
            return f"{noun} from {self.low!r} to {self.high!r}"
        if self.low is not None:
            return f"{noun}, at least {self.low!r}"
        return f"{noun}, at most {self.high!r}" if self.high is not None else noun

    def annotation(self) -> Any:
        """See Constraint."""
        from typing import Annotated

        from pydantic import Field

        return Annotated[int if self.integer else float, Field(ge=self.low, le=self.high)]


class Choices:
    """One of the given values. Comparison is by value and type: ``True`` is not taken for ``1``, but 1 is for 1.0."""

    def __init__(self, options: Sequence[Any]) -> None:
        self.options = list(options)
        if not self.options:
            raise ParameterError("Choices: expected at least one option, got none")

    def check(self, value: Any) -> Any:
        """See Constraint."""
        for option in self.options:
            if option is value or (_alike(option, value) and option == value):
                return option
        raise _refuse(self.describe(), value)

    def describe(self) -> str:
        """See Constraint."""
        return "one of " + ", ".join(repr(option) for option in self.options)

    def annotation(self) -> Any:
        """See Constraint."""
        from typing import Literal

        if all(isinstance(option, str | int | bool) for option in self.options):
            return Literal[tuple(self.options)]
        return Any


def _alike(left: Any, right: Any) -> bool:
    return type(left) is type(right) or {type(left), type(right)} == {int, float}


class Regex:
    """A text that the pattern matches as a whole."""

    def __init__(self, pattern: str | re.Pattern[str]) -> None:
        import re

        try:
            self.pattern = re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ParameterError(f"Regex: {pattern!r:.80} is no pattern: {error}") from error
        if not isinstance(self.pattern.pattern, str):
            raise ParameterError("Regex: expected a pattern for text, got one for bytes")

    def check(self, value: Any) -> Any:
        """See Constraint."""
        if not isinstance(value, str) or self.pattern.fullmatch(value) is None:
            raise _refuse(self.describe(), value)
        return value

    def describe(self) -> str:
        """See Constraint."""
        return f"a text matching {self.pattern.pattern}"

    def annotation(self) -> Any:
        """See Constraint."""
        return str


class Predicate:
    """Values for which ``function(value)`` returns something true, or None, and does not raise."""

    def __init__(self, function: Callable[[Any], Any], description: str | None = None, like: Any = None) -> None:
        self.function = function
        self.description = description or (getattr(function, "__doc__", None) or getattr(function, "__name__", "valid"))
        self._base = None if like is None else OfType(like)

    def check(self, value: Any) -> Any:
        """See Constraint."""
        if self._base is not None:
            value = self._base.check(value)
        try:
            answer = self.function(value)
            accepted = answer is None or bool(answer)
        except Exception as error:
            raise ParameterError(
                f"expected {self.describe()}; {type(error).__name__}: {error} (got {value!r:.120})"
            ) from error
        if not accepted:
            raise _refuse(self.describe(), value)
        return value

    def describe(self) -> str:
        """See Constraint."""
        return " ".join(str(self.description).split())

    def annotation(self) -> Any:
        """See Constraint."""
        return Any if self._base is None else self._base.annotation()


class PydanticType:
    """Values that pydantic accepts (strictly: no "3" for 3) for a type such as ``Annotated[int, Field(ge=1)]``."""

    def __init__(self, annotation: Any) -> None:
        self._annotation = annotation
        self._adapter: Any = None

    def check(self, value: Any) -> Any:
        """See Constraint."""
        import pydantic

        if self._adapter is None:
            self._adapter = _type_adapter(self._annotation)
        try:
            try:
                checked = self._adapter.validate_python(value, strict=True)
            except pydantic.ValidationError:
                text = _json_text(
                    value
                )  # a proposal comes as JSON: lists for tuples, dicts for models, texts for dates
                if text is None:
                    raise
                checked = self._adapter.validate_json(text, strict=True)
        except pydantic.ValidationError as error:
            raise ParameterError(f"{_first_errors(error)} (got {value!r:.120})") from error
        if isinstance(checked, float) and not isfinite(checked):
            raise _refuse("a finite number", value)
        return checked

    def describe(self) -> str:
        """See Constraint."""
        import json

        import pydantic

        try:
            schema = _type_adapter(self._annotation).json_schema()
        except (pydantic.errors.PydanticInvalidForJsonSchema, pydantic.PydanticUserError):
            return f"a {getattr(self._annotation, '__name__', self._annotation)}"
        schema.pop("title", None)
        return json.dumps(schema)

    def annotation(self) -> Any:
        """See Constraint."""
        return self._annotation


def _type_adapter(annotation: Any) -> Any:
    import pydantic

    try:
        return pydantic.TypeAdapter(annotation)
    except pydantic.PydanticSchemaGenerationError:  # a class pydantic knows nothing of: instances of it
        try:
            return pydantic.TypeAdapter(annotation, config=pydantic.ConfigDict(arbitrary_types_allowed=True))
        except (pydantic.PydanticUserError, TypeError) as error:
            raise ParameterError(
                f"constraint {annotation!r:.80} is no type that pydantic can check: {error}"
            ) from error
    except (pydantic.PydanticUserError, TypeError) as error:
        raise ParameterError(f"constraint {annotation!r:.80} is no type that pydantic can check: {error}") from error


def _json_text(value: Any) -> str | None:
    import json

    if not isinstance(value, list | dict | str):
        return None
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None


def _first_errors(error: Any) -> str:
    lines = []
    for item in error.errors()[:3]:
        where = ".".join(str(part) for part in item["loc"])
        lines.append(f"{where}: {item['msg']}" if where else str(item["msg"]))
    return "; ".join(lines)


class Guidance:
    """Words for the optimizer, checked by nobody, beside the type of the value: a str given as constraint."""

    def __init__(self, text: str, like: Any) -> None:
        self.text = text
        self._base = OfType(like)

    def check(self, value: Any) -> Any:
        """See Constraint."""
        return self._base.check(value)

    def describe(self) -> str:
        """See Constraint."""
        return self.text

    def annotation(self) -> Any:
        """See Constraint."""
        return self._base.annotation()


class Anything:
    """No rule at all; to be asked for by name."""

    def check(self, value: Any) -> Any:
        """See Constraint."""
        return value

    def describe(self) -> str:
        """See Constraint."""
        return "any value"

    def annotation(self) -> Any:
        """See Constraint."""
        return Any


def constraint_from(given: Any, example: Any) -> Constraint:
    """Make a Constraint of what a user passes.

    None: the type of the present value. A Constraint: itself. A str: Guidance. A compiled pattern: Regex. A list or
    tuple of values: Choices. A type or ``Annotated[...]``: PydanticType. A function: Predicate. Raises ParameterError
    for anything else.
    """
    import re
    from types import UnionType

    if given is None:
        return Anything() if example is None else OfType(example)
    if isinstance(given, str):
        return Guidance(given, example)
    if isinstance(given, re.Pattern):
        return Regex(given)
    if isinstance(given, list | tuple | set | frozenset):
        return Choices(sorted(given, key=repr) if isinstance(given, set | frozenset) else list(given))
    if isinstance(given, type) and hasattr(given, "check") and hasattr(given, "describe"):
        raise ParameterError(
            f"constraint must be an object, got the class {given.__name__}: call it, {given.__name__}(...)"
        )
    if isinstance(given, type | UnionType) or hasattr(given, "__origin__") or hasattr(given, "__metadata__"):
        return PydanticType(given)
    if isinstance(given, Constraint):
        return given
    if callable(given):
        return Predicate(given, like=example)
    raise ParameterError(
        "constraint must be a Constraint, a type, a list of choices, a compiled pattern, a function or a text; "
        f"got {type(given).__name__}: {given!r:.80}"
    )
