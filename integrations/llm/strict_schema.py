"""The JSON schema of a pydantic model, rewritten into what servers accept for constrained decoding.

OpenAI's strict mode wants closed objects with every property required, no keywords beside ``$ref``, and knows only
part of JSON Schema. What is stripped here is still checked afterwards: pydantic validates every answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

from trace_core.integrations.llm.protocol import Contract

if TYPE_CHECKING:
    from pydantic import BaseModel

Dialect: TypeAlias = Literal["openai", "llama"]

_KEPT = {
    *("type", "properties", "required", "additionalProperties", "items", "anyOf", "$ref", "$defs", "enum", "const"),
    *("description", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("minItems", "maxItems"),
}
_FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
_LONGEST_REPEAT = 500  # a grammar unrolls maxLength; beyond this the llama.cpp parser refuses it or crawls


class _Open(Exception):
    """The schema allows something that cannot be closed: an open dictionary or Any."""


class _Rewriter:
    def __init__(self, dialect: Dialect, *, close: bool) -> None:
        self._dialect = dialect
        self._close = close

    def node(self, schema: object) -> dict[str, object]:
        if not isinstance(schema, Mapping) or not (set(schema) - {"title", "description", "default", "examples"}):
            return self._open_ended(schema if isinstance(schema, Mapping) else {})
        source = dict(schema)
        if "$ref" in source:
            # pydantic puts a description beside $ref, which strict mode refuses; the definition has its own.
            return {"$ref": source["$ref"]}
        if "oneOf" in source:
            source["anyOf"] = source.pop("oneOf")
        if isinstance(all_of := source.pop("allOf", None), list) and len(all_of) == 1:
            return self.node({**source, **all_of[0]})
        if "prefixItems" in source:
            source["items"] = self._tuple_items(source.pop("prefixItems"))
        out = {key: value for key, value in source.items() if self._keeps(key, value)}
        if isinstance(branches := out.get("anyOf"), list):
            out["anyOf"] = [self.node(branch) for branch in branches]
        if "items" in out or out.get("type") == "array":
            out["items"] = self.node(out.get("items", {}))
        if out.get("type") == "object" or "properties" in out:
            self._object(out, source)
        return out

    def _object(self, out: dict[str, object], source: Mapping[str, object]) -> None:
        properties = source.get("properties")
        if isinstance(properties, Mapping):
            out["properties"] = {name: self.node(value) for name, value in properties.items()}
            out["required"] = list(properties)
            out["additionalProperties"] = False
        elif source.get("additionalProperties") is False:
            out.update(properties={}, required=[])
        else:
            if self._close:
                raise _Open
            values = source.get("additionalProperties", True)
            out["additionalProperties"] = self.node(values) if isinstance(values, Mapping) else True

    def _open_ended(self, schema: Mapping[str, object]) -> dict[str, object]:
        if self._close:
            raise _Open
        return {key: value for key, value in schema.items() if key == "description"}

    def _tuple_items(self, items: object) -> dict[str, object]:
        """Strict mode has no positional items: any of the positions' types, the length stays fixed."""
        options: list[object] = []
        for item in items if isinstance(items, list) else []:
            if item not in options:
                options.append(item)
        if len(options) == 1 and isinstance(options[0], dict):
            return options[0]
        return {"anyOf": options}

    def _keeps(self, key: str, value: object) -> bool:
        if self._dialect == "llama":
            if key in ("minLength", "maxLength", "maxItems", "minItems"):
                return isinstance(value, int) and value <= _LONGEST_REPEAT
            if key == "pattern":  # the grammar converter reads anchored patterns only
                return isinstance(value, str) and value.startswith("^") and value.endswith("$")
        if key == "format":
            return value in _FORMATS
        return key in _KEPT and key != "$defs"


def contract_of(model: type[BaseModel], dialect: Dialect = "openai") -> Contract | None:
    """The contract of ``model``, strict if it can be; None where the root is not an object (nothing to enforce)."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    name = re.sub(r"[^A-Za-z0-9_-]", "_", model.__name__)[:64] or "answer"
    root = schema
    if isinstance(reference := schema.get("$ref"), str):  # a recursive model is only a reference to itself
        root = definitions.get(reference.rpartition("/")[2], {})
    if root.get("type") != "object":
        return None
    for close in (True, False):
        rewriter = _Rewriter(dialect, close=close)
        try:
            out = rewriter.node(root)
            if definitions:
                out["$defs"] = {key: rewriter.node(value) for key, value in definitions.items()}
        except _Open:
            continue
        return Contract(name, out, strict=close)
    return None
