"""Calls, completions and errors as data between a worker and the process that makes its calls."""

from __future__ import annotations

import builtins
import importlib
import sys
from typing import TYPE_CHECKING, Any

from trace_core.errors import ExecutionError, RunnerError, TraceCoreError
from trace_core.integrations.accounting import AccountingError
from trace_core.integrations.budget import BudgetExhausted, UnknownPrice
from trace_core.integrations.llm import errors
from trace_core.integrations.llm.canonical import pack, unpack
from trace_core.integrations.llm.wrapping import Call
from trace_core.integrations.store import errors as store_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel

    from trace_core.integrations.llm.protocol import Completion

#: Bytes of a ticket: 128 random bits as hexadecimal digits.
TICKET = 32
_KINDS: dict[str, type[TraceCoreError]] = {
    name: kind
    for home in (errors, store_errors)
    for name, kind in vars(home).items()
    if isinstance(kind, type) and issubclass(kind, TraceCoreError)
} | {kind.__name__: kind for kind in (BudgetExhausted, UnknownPrice, AccountingError, RunnerError)}
del _KINDS["TraceCoreError"]


def call_as_data(call: Call) -> dict[str, Any]:
    """The arguments of a ``complete``; a schema by its name. Raises AccountingError if it has none to be found by."""
    data = call.options() | {"messages": [dict(message) for message in call.messages]}
    if call.schema is not None:
        data["schema"] = f"{call.schema.__module__}:{call.schema.__qualname__}"
        if _schema(data["schema"]) is not call.schema:
            raise AccountingError(_no_schema(data["schema"]))
    return data


def call_of(data: Mapping[str, Any]) -> Call:
    """What ``call_as_data`` described. Raises AccountingError for a schema that is not known here."""
    schema = None
    if data["schema"] is not None and (schema := _schema(data["schema"])) is None:
        raise AccountingError(_no_schema(data["schema"]))
    messages = tuple({"role": m["role"], "content": m["content"]} for m in data["messages"])
    rest = {name: data[name] for name in ("n", "temperature", "seed", "max_tokens", "repair")}
    return Call(messages, schema, **rest)  # type: ignore[arg-type]


def _schema(spec: str) -> type[BaseModel] | None:
    module, _, name = spec.partition(":")
    try:
        found: Any = sys.modules.get(module) or importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    return found if isinstance(found, type) else None


def _no_schema(spec: str) -> str:
    return (
        f"the schema {spec} cannot be found by its name in another process: define it at the top of a module, or run "
        "this workflow on a ThreadEngine"
    )


def completion_as_data(completion: Completion) -> dict[str, Any]:
    """A completion without its parsed values, which are read anew from its texts."""
    return pack(completion) | {"seconds": completion.seconds}


def completion_of(data: Mapping[str, Any], schema: type[BaseModel] | None) -> Completion:
    """What ``completion_as_data`` described."""
    from dataclasses import replace

    return replace(unpack(data, schema), seconds=float(data["seconds"]))


def error_as_data(error: BaseException) -> dict[str, Any] | None:
    """An error that has the same meaning in every process; None for another. Of a failed operator, what it raised."""
    if isinstance(error, ExecutionError):
        error = error.exception
    kind = next((c for c in type(error).__mro__ if _KINDS.get(c.__name__) is c), None)
    if kind is None:
        kind = next((c for c in type(error).__mro__ if getattr(builtins, c.__name__, None) is c), None)
        if kind is None or not issubclass(kind, Exception) or kind is Exception:
            return None
    facts = {k: v for k, v in vars(error).items() if v is None or isinstance(v, str | int | float)}
    spent = getattr(error, "completion", None)
    said = str(error.args[0]) if error.args else ""
    completion = None if spent is None else completion_as_data(spent)
    return {"kind": kind.__name__, "message": said, "facts": facts, "completion": completion}


def error_of(data: Mapping[str, Any], schema: type[BaseModel] | None = None) -> Exception:
    """What ``error_as_data`` described."""
    kind: type[Exception] = _KINDS.get(data["kind"]) or getattr(builtins, data["kind"])
    error = kind.__new__(kind)
    error.args = (data["message"],)
    for name, value in data["facts"].items():
        setattr(error, name, value)
    if data["completion"] is not None and isinstance(error, errors.Unusable):
        error.completion = completion_of(data["completion"], schema)
    return error
