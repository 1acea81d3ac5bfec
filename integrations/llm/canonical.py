"""Calls and their results as plain data: for keys, files and comparisons."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from trace_core.integrations.llm.parsing import ParseFailure, parse_answer
from trace_core.integrations.llm.protocol import Completion, Usage

if TYPE_CHECKING:
    from pydantic import BaseModel

    from trace_core.integrations.llm.wrapping import Call


def describe_call(call: Call, model: str) -> dict[str, Any]:
    """Everything that decides what is asked; what is at its default is left out."""
    told: dict[str, Any] = {"model": model, "messages": [dict(message) for message in call.messages]}
    if call.schema is not None:
        told["schema"] = call.schema.model_json_schema()
        told["repair"] = call.repair
    if call.n != 1:
        told["n"] = call.n
    for name in ("temperature", "seed", "max_tokens"):
        if (value := getattr(call, name)) is not None:
            told[name] = value
    return told


def canonical(data: Any) -> str:
    """One text for equal data."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest(data: Any) -> str:
    """A key for ``data``, 64 hexadecimal digits."""
    return hashlib.sha256(canonical(data).encode()).hexdigest()


def pack(completion: Completion) -> dict[str, Any]:
    """A completion without its parsed values, which come from its texts, and its time."""
    return {
        "texts": list(completion.texts),
        "finish_reason": completion.finish_reason,
        "model": completion.model,
        "usage": asdict(completion.usage),
        "cost": completion.cost,
        "attempts": completion.attempts,
    }


def unpack(data: Mapping[str, Any], schema: type[BaseModel] | None) -> Completion:
    """The completion in what ``pack`` gave. Raises KeyError or TypeError for anything else."""
    texts = tuple(str(text) for text in data["texts"])
    parsed = tuple(_parsed(text, schema) for text in texts) if schema is not None else ()
    return Completion(
        text=texts[0],
        texts=texts,
        parsed=next((value for value in parsed if value is not None), None),
        usage=Usage(**data["usage"]),
        cost=data["cost"],
        model=data["model"],
        finish_reason=data["finish_reason"],
        attempts=data["attempts"],
        parsed_all=parsed,
    )


def _parsed(text: str, schema: type[BaseModel]) -> BaseModel | None:
    try:
        return parse_answer(text, schema)
    except ParseFailure:
        return None
