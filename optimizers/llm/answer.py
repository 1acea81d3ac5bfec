"""What the model is asked to answer with, and what becomes of its answer.

One field per parameter that may change, typed from the parameter, the reasoning first: a model that writes its reason
before the value reasons better, and closed names leave no room for invented ones.
"""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from trace_core._values import is_ndarray, is_tensor
from trace_core.errors import ParameterError
from trace_core.optimizers.base import Dropped
from trace_core.optimizers.llm.code_answer import whole_function

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel

    from trace_core.parameter import Parameter

REASONING = "reasoning"


class AnswerModels:
    """The answer models made so far: with hundreds of parameters, making one costs more than all the rest of a step."""

    def __init__(self, size: int = 8) -> None:
        self._size = size
        self._made: dict[Any, type[BaseModel]] = {}
        self._texts: dict[type[BaseModel], str] = {}
        self._lock = threading.Lock()  # forks of one optimizer share the models

    def get(self, names: Mapping[Parameter, str], *, brief: bool, several: int = 1) -> type[BaseModel]:
        """The model for these parameters; see ``answer_model``."""
        key = (brief, several, tuple((name, repr(field_type(parameter))) for parameter, name in names.items()))
        with self._lock:
            if key not in self._made:
                while len(self._made) >= self._size:
                    self._texts.pop(self._made.pop(next(iter(self._made))), None)
                self._made[key] = answer_model(names, brief=brief, several=several)
            return self._made[key]

    def text(self, model: type[BaseModel]) -> str:
        """The JSON schema that goes with a request, as text: it takes part of the prompt's budget."""
        known = self._texts.get(model)
        if known is None:
            known = self._texts[model] = json.dumps(model.model_json_schema(), separators=(",", ":"))
        return known


def answer_model(names: Mapping[Parameter, str], *, brief: bool = False, several: int = 1) -> type[BaseModel]:
    """A pydantic model: ``reasoning``, then one field per parameter; of several parameters, null keeps one.

    ``brief`` asks a server that enforces schemas to end the reasoning early: a small model spends its tokens there.
    ``several`` makes the field of a single parameter a list of that many alternatives.
    """
    from pydantic import ConfigDict, Field, create_model

    limit: Any = {"maxLength": 160} if brief else None
    hint = "What is wrong and what to change, in one or two sentences."
    fields: dict[str, Any] = {REASONING: (str, Field(description=hint, json_schema_extra=limit))}
    for parameter, name in names.items():
        kind = field_type(parameter)
        if len(names) > 1:
            fields[name] = (kind | None, Field(description=f"New value of {name}; null keeps it."))
        elif several > 1:
            bounds: Any = {"minItems": several, "maxItems": several}
            plain = int if isinstance(parameter.value, int) else float
            fields[name] = (list[plain], Field(description=f"New values of {name} to try.", json_schema_extra=bounds))  # type: ignore[valid-type]
        else:
            fields[name] = (kind, Field(description=f"New value of {name}."))
    config = ConfigDict(extra="forbid", allow_inf_nan=False)
    made: type[BaseModel] = create_model("Answer", __config__=config, **fields)
    return made


def field_type(parameter: Parameter) -> Any:
    """The type of a parameter's field; arrays are nested lists, and what JSON has no type for is a string of JSON."""
    value = parameter.value
    if is_ndarray(value) or is_tensor(value):
        kind: Any = float
        for _ in value.shape:
            kind = list[kind]
        return kind
    annotation = parameter.constraint.annotation()
    return str if annotation is Any else annotation


def to_values(
    answer: BaseModel, names: Mapping[Parameter, str], several: int = 1
) -> tuple[list[dict[Parameter, Any]], list[Dropped]]:
    """Validate an answer: (sets of changed values, refused ones with the reason).

    Fields left null or unchanged are neither. There is one set, or, with ``several``, one for each usable alternative.
    """
    dropped: list[Dropped] = []
    if several > 1:
        parameter, name = next(iter(names.items()))
        sets: list[dict[Parameter, Any]] = []
        for given in getattr(answer, name):
            values: dict[Parameter, Any] = {}
            check_one(parameter, name, given, values, dropped)
            if values and values not in sets:
                sets.append(values)
        return sets, dropped
    together: dict[Parameter, Any] = {}
    for parameter, name in names.items():
        given = getattr(answer, name)
        if given is not None:
            check_one(parameter, name, given, together, dropped)
    return [together] if together else [], dropped


def check_one(
    parameter: Parameter, name: str, given: Any, values: dict[Parameter, Any], dropped: list[Dropped]
) -> None:
    """Put ``given`` among the values if the parameter accepts it and it is new, else among the dropped."""
    if isinstance(given, str) and not isinstance(parameter.value, str):
        with suppress(ValueError):  # no JSON: the parameter says below what it expects
            given = json.loads(given)
    if parameter.kind == "code" and isinstance(given, str):
        given = whole_function(given, parameter.value, getattr(parameter, "function_name", name))
    try:
        checked = parameter.check(given)
    except ParameterError as error:
        dropped.append(Dropped(name, given, str(error)))
        return
    if not same_value(checked, parameter.value):
        values[parameter] = checked


def same_value(left: Any, right: Any) -> bool:
    """Whether a proposal changes nothing; texts are compared without surrounding space."""
    if isinstance(left, str) and isinstance(right, str):
        return left.strip() == right.strip()
    same = left == right
    return bool(same.all()) if hasattr(same, "all") else bool(same)
