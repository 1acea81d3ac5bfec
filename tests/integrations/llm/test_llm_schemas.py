"""The schemas sent to servers: closed, complete, and without what strict mode refuses."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel, create_model

from trace_core.integrations.llm.strict_schema import contract_of


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Leaf(BaseModel):
    """A leaf."""

    kind: Literal["leaf"] = "leaf"
    size: Annotated[int, Field(ge=0, le=9)] = 3


class Branch(BaseModel):
    kind: Literal["branch"] = "branch"
    left: Tree
    right: Tree | None = None


class Tree(BaseModel):
    node: Annotated[Leaf | Branch, Field(discriminator="kind")]


class Everything(BaseModel):
    model_config = ConfigDict(extra="allow", title="All kinds")
    name: Annotated[str, Field(min_length=2, max_length=40, title="The name", examples=["x"])]
    code: Annotated[str, Field(pattern="^[a-z]+$")]
    loose: Annotated[str, Field(pattern="[a-z]+")]
    colour: Colour = Colour.RED
    leaf: Leaf = Field(description="beside a reference", default=Leaf())
    pair: tuple[int, str]
    many: Annotated[list[float], Field(min_length=1, max_length=3)]
    maybe: int | None = None
    path: Annotated[str, Field(json_schema_extra={"format": "path"})]


ALLOWED = {
    *("type", "properties", "required", "additionalProperties", "items", "anyOf", "$ref", "$defs", "enum", "const"),
    *("description", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("minItems", "maxItems"),
}


def nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """Every subschema (the maps of names to subschemas are not schemas themselves)."""
    yield schema
    for key in ("properties", "$defs"):
        for value in schema.get(key, {}).values():
            yield from nodes(value)
    for value in schema.get("anyOf", []):
        yield from nodes(value)
    if isinstance(schema.get("items"), dict):
        yield from nodes(schema["items"])


@pytest.mark.parametrize("model", [Everything, Tree, Leaf])
def test_strict_mode_accepts_the_schema(model: type[BaseModel]) -> None:
    contract = contract_of(model)
    assert contract is not None
    assert contract.strict
    assert contract.schema["type"] == "object"
    for node in nodes(contract.schema):
        assert set(node) <= ALLOWED, node
        if "$ref" in node:
            assert set(node) == {"$ref"}
        if node.get("type") == "object":
            assert node["additionalProperties"] is False
            assert node["required"] == list(node["properties"])
        if node.get("type") == "array":
            assert node["items"]


def test_what_strict_mode_knows_is_kept() -> None:
    contract = contract_of(Everything)
    assert contract is not None
    properties: Any = contract.schema["properties"]
    assert properties["code"]["pattern"] == "^[a-z]+$"
    assert properties["many"] == {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 3}
    assert properties["pair"]["minItems"] == properties["pair"]["maxItems"] == 2
    definitions: Any = contract.schema["$defs"]
    assert definitions["Leaf"]["properties"]["size"] == {"type": "integer", "minimum": 0, "maximum": 9}
    assert definitions["Leaf"]["description"] == "A leaf."


def test_the_llama_dialect_keeps_lengths_and_drops_loose_patterns() -> None:
    contract = contract_of(Everything, "llama")
    assert contract is not None
    properties: Any = contract.schema["properties"]
    assert (properties["name"]["minLength"], properties["name"]["maxLength"]) == (2, 40)
    assert properties["code"]["pattern"] == "^[a-z]+$"
    assert "pattern" not in properties["loose"]


def test_an_open_dictionary_is_sent_without_strict_mode() -> None:
    class Open(BaseModel):
        scores: dict[str, int]
        anything: Any

    contract = contract_of(Open)
    assert contract is not None
    assert not contract.strict
    properties: Any = contract.schema["properties"]
    assert properties["scores"] == {"type": "object", "additionalProperties": {"type": "integer"}}
    assert contract.schema["additionalProperties"] is False


def test_what_is_no_object_is_not_enforced() -> None:
    assert contract_of(RootModel[list[int]]) is None


def test_field_names_that_look_like_keywords_survive() -> None:
    model = create_model("Odd model!", title=(str, ...), default=(int, 3), format=(str, "x"))
    contract = contract_of(model)
    assert contract is not None
    assert contract.name == "Odd_model_"
    assert contract.schema["required"] == ["title", "default", "format"]
