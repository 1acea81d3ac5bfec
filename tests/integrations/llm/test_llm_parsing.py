"""From text to values: fenced code, JSON in its many wrappings, and words for what is wrong."""

from __future__ import annotations

import contextlib
import json
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from trace_core.integrations.llm import extract_fenced, fenced_blocks
from trace_core.integrations.llm.parsing import ParseFailure, clean_text, load_json, parse_answer, truncation_report


class Plan(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    share: Annotated[float, Field(ge=0, le=1)]


GOOD = '{"name": "a", "share": 0.5}'
WRAPPED = [
    GOOD,
    f"  {GOOD}\n",
    f"```json\n{GOOD}\n```",
    f"```\n{GOOD}\n```",
    f"Here you are:\n\n```json\n{GOOD}\n```\nAnything else?",
    f"The answer is {GOOD} as you wished.",
    f"```python\nx = {{}}\n```\nand\n```json\n{GOOD}\n```",
]


@pytest.mark.parametrize("text", WRAPPED)
def test_json_is_found_in_its_wrapping(text: str) -> None:
    assert parse_answer(text, Plan) == Plan(name="a", share=0.5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no idea", "no JSON object"),
        ("", "no JSON object"),
        ('{"name": "a", "share": 2}', "share: .*less than or equal to 1"),
        ('{"name": "a"}', "share: Field required"),
        ('{"name": "a", "share": 0.5, "code": 1}', "code: Extra inputs"),
        ('{"name": "a", "share": NaN}', "NaN is not a JSON number"),
        ('{"name": "a", "share": -Infinity}', "-Infinity is not a JSON number"),
        ('{"name": "a", "share": 1e999}', "too large"),
        ('{"name": "a", "share": "nan"}', "share|finite"),
        ('{"name": "a" "share": 0.5}', "line 1 column 14"),
        (f'{{"name": "a", "share": {"1" * 5000}}}', "invalid JSON"),
        ("[1, 2]", "JSON object|valid dictionary|Input should be"),
    ],
)
def test_what_is_wrong_is_said(text: str, words: str) -> None:
    with pytest.raises(ParseFailure, match=words) as caught:
        parse_answer(text, Plan)
    assert not caught.value.truncated


def test_a_lax_float_does_not_let_nan_in() -> None:
    class Loose(BaseModel):
        x: float

    for text in ('{"x": "nan"}', '{"x": "inf"}'):
        with pytest.raises(ParseFailure, match="finite"):
            parse_answer(text, Loose)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"plan": {"code": "def f', "inside the text of key 'plan.code'"),
        ('{"plan": {"code": "a\\"b', "inside the text of key 'plan.code'"),
        ('{"name": "a", "sha', "inside the outermost object"),
        ('{"name": "a", "share":', "inside key 'share'"),
        ('{"items": [1, 2', "inside key 'items'"),
        ('{"items": [{"a": 1}, {"b": "x', "inside the text of key 'items.b'"),
        ('```json\n{"name": "a",', "inside the outermost object"),
        ("[1, 2", "inside the outermost list"),
    ],
)
def test_a_truncated_answer_says_where(text: str, where: str) -> None:
    assert truncation_report(text) == where
    with pytest.raises(ParseFailure, match="the answer stops inside") as caught:
        parse_answer(text, Plan)
    assert caught.value.truncated


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(JSON_VALUES)
def test_every_proper_beginning_of_an_object_is_truncated(value: object) -> None:
    text = json.dumps({"k": value})
    assert truncation_report(text) is None
    assert all(truncation_report(text[:end]) is not None for end in range(1, len(text)))


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    for candidate in (text, "{" + text, f"```json\n{text}"):
        with contextlib.suppress(ParseFailure):
            parse_answer(candidate, Plan)


def test_deep_nesting_is_a_failure_not_a_crash() -> None:
    for text in ("[" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000):
        with pytest.raises(ParseFailure):
            parse_answer(text, Plan)


def test_strings_in_json_are_made_storable() -> None:
    value = load_json('{"a\\ud800": ["x\\u0000", "\\ud83d\\ude00"]}')
    assert value == {"a\ufffd": ["x\ufffd", "\U0001f600"]}
    assert clean_text("ok") == "ok"


# --- fenced code -----------------------------------------------------------------------------------------------------

CODE = "def f(x):\n    return x + 1"


@pytest.mark.parametrize(
    "text",
    [
        f"```python\n{CODE}\n```",
        f"Sure!\n```py\n{CODE}\n```\nDone.",
        f"```Python3\n{CODE}\n```",
        f"~~~python\n{CODE}\n~~~",
        f"```\n{CODE}\n```",
        f"```json\n{{}}\n```\n```python\n{CODE}\n```\n```python\nf(1)\n```",
        f"```\nsome text\n```\n```python\n{CODE}\n```",
        f"```python\n{CODE}",
        "  ```python\n  def f(x):\n      return x + 1\n  ```",
        f"````python\n{CODE}\n````",
        f"```python title=x\n{CODE}\n```",
    ],
)
def test_code_is_found(text: str) -> None:
    assert extract_fenced(text) == CODE


@pytest.mark.parametrize("text", ["", CODE, "```json\n{}\n```", "```python\n```", "see `f(x)`", "``python\nx\n``"])
def test_no_code_is_none(text: str) -> None:
    assert extract_fenced(text) is None


def test_a_longer_fence_holds_a_shorter_one() -> None:
    text = "````markdown\n```python\nx\n```\n````"
    (block,) = fenced_blocks(text)
    assert (block.language, block.body, block.closed) == ("markdown", "```python\nx\n```", True)


def test_another_language() -> None:
    assert extract_fenced("```sh\nls\n```\n```sql\nselect 1\n```", "sql") == "select 1"
    assert extract_fenced("```shell\nls\n```", "sql") is None


@given(st.lists(st.sampled_from(["x = 1", "", "    y", "# ```", "def f():"]), min_size=1))
def test_a_fenced_body_comes_back_unchanged(lines: list[str]) -> None:
    body = "\n".join(lines)
    expected = body if body.strip() else None
    assert extract_fenced(f"before\n```python\n{body}\n```\nafter") == expected
