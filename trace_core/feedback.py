"""Feedback: what an oracle says about an output."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any, TypeAlias

from trace_core.errors import FeedbackError, TraceCoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

FeedbackLike: TypeAlias = (
    "Feedback | str | float | int | bool | tuple[float, str] | Mapping[str, float] | BaseException"
)


class Feedback:
    """Feedback on one output; every part is optional.

    Attributes:
        text: what is right or wrong with the output, in words.
        score: finite number, higher is better.
        scores: several objectives by name, each finite, higher is better.
        gradient: derivative of the loss with respect to the output (an array of its shape), for numeric optimizers.
        example: id of the example the output belongs to.

    Raises FeedbackError for a text that is no string or a score that is not a finite number. A pydantic model can have
    a field of this type.
    """

    __slots__ = ("example", "gradient", "score", "scores", "text")

    text: str
    score: float | None
    scores: Mapping[str, float]
    gradient: Any
    example: str | int | None

    def __init__(
        self,
        text: str = "",
        score: float | None = None,
        scores: Mapping[str, float] | None = None,
        gradient: Any = None,
        example: str | int | None = None,
    ) -> None:
        if not isinstance(text, str):
            raise FeedbackError(f"feedback text must be a str, got {type(text).__name__}: {text!r:.80}")
        put = object.__setattr__  # the instance is frozen
        put(self, "text", text)
        put(self, "score", None if score is None else _finite(score, "score"))
        put(self, "scores", {str(k): _finite(v, f"scores[{k!r}]") for k, v in (scores or {}).items()})
        put(self, "gradient", gradient)
        put(self, "example", example)

    def __setattr__(self, attribute: str, value: object) -> None:
        raise AttributeError(f"Feedback is immutable: make a new one to change {attribute!r}")

    def __delattr__(self, attribute: str) -> None:
        raise AttributeError(f"Feedback is immutable: make a new one to change {attribute!r}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Feedback):
            return NotImplemented
        mine, theirs = self._key(), other._key()
        return mine == theirs and (self.gradient is other.gradient or bool(_equal(self.gradient, other.gradient)))

    def __hash__(self) -> int:
        return hash((self.text, self.score, self.example))

    def _key(self) -> tuple[Any, ...]:
        return self.text, self.score, dict(self.scores), self.example

    def __reduce__(self) -> Any:
        return Feedback, (self.text, self.score, dict(self.scores), self.gradient, self.example)

    def __repr__(self) -> str:
        given = [("text", self.text), ("score", self.score), ("scores", dict(self.scores)), ("gradient", self.gradient)]
        given.append(("example", self.example))
        shown = [
            f"{name}={value!r}"
            for name, value in given
            if value is not None and not (isinstance(value, str | dict) and not value)
        ]
        return f"Feedback({', '.join(shown)})"

    @classmethod
    def of(cls, value: FeedbackLike) -> Feedback:
        """Feedback from a text, a number (the score), ``(score, text)``, a dict of scores, an exception (its text)."""
        from trace_core.node import Node

        if isinstance(value, Node):
            value = value.value
        if isinstance(value, Feedback):
            return value
        if isinstance(value, str):
            return cls(text=value)
        if isinstance(value, BaseException):
            from trace_core.tracebacks import headline

            return cls(text=str(value) if isinstance(value, TraceCoreError) else headline(value))
        if isinstance(value, tuple):
            if len(value) == 2 and isinstance(value[1], str):
                return cls(text=value[1], score=_finite(value[0], "score"))
        elif isinstance(value, dict) or (hasattr(value, "items") and hasattr(value, "keys")):
            return cls(scores=value)  # type: ignore[arg-type]  # any mapping
        elif _is_number(value):
            return cls(score=_finite(value, "score"))
        raise FeedbackError(
            "feedback must be a str, a finite number, (score, text), a dict of scores or a Feedback; "
            f"got {type(value).__name__}: {value!r:.80}"
        )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Lets pydantic models have Feedback fields; ``trace_core`` itself does not import pydantic for it."""
        from pydantic_core import core_schema

        def build(value: Any) -> Feedback:
            return cls(**value) if isinstance(value, dict) else cls.of(value)

        return core_schema.no_info_plain_validator_function(
            build, serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value.to_dict())
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data; a gradient becomes nested lists."""
        data: dict[str, Any] = {
            "text": self.text,
            "score": self.score,
            "scores": dict(self.scores),
            "example": self.example,
        }
        if self.gradient is not None:
            data["gradient"] = self.gradient.tolist() if hasattr(self.gradient, "tolist") else self.gradient
        return data

    def summary(self) -> str:
        """One line for a person or an LLM: scores first, then the text."""
        parts = [] if self.score is None else [f"score {self.score:g}"]
        parts += [f"{name} {value:g}" for name, value in self.scores.items()]
        head = ", ".join(parts)
        return f"{head}: {self.text}" if head and self.text else head or self.text


def _equal(left: Any, right: Any) -> Any:
    if left is None or right is None:
        return False
    same = left == right
    return same.all() if hasattr(same, "all") else same


def _is_number(value: Any) -> bool:
    """Whether value is one number; arrays and tensors of one element are."""
    count = value.numel() if hasattr(value, "numel") else getattr(value, "size", 1)
    return isinstance(value, int | float) or (hasattr(value, "__float__") and count == 1)


def _finite(value: Any, what: str) -> float:
    if not _is_number(value):
        raise FeedbackError(f"{what} must be a finite number, got {type(value).__name__}: {value!r:.80}")
    try:
        number = float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, OverflowError) as error:
        raise FeedbackError(f"{what} must be a finite number, got {type(value).__name__}: {value!r:.80}") from error
    if not isfinite(number):
        raise FeedbackError(f"{what} must be a finite number, got {number}")
    return number
