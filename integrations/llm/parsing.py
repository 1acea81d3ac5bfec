"""From the text of an answer to a value, or to a reason fit to be shown to the model that wrote it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

    ModelT = TypeVar("ModelT", bound=BaseModel)

MAX_TEXT = 1_000_000
"""Longest text of one sample, in characters; what is beyond is cut and the sample counts as ended by length."""

_UNENCODABLE = re.compile("[\x00\ud800-\udfff]")
_FENCE = re.compile(r"^(?P<indent> {0,3})(?P<fence>`{3,}|~{3,})[ \t]*(?P<tag>[^\s`{]*)[^`\n]*$")
_SAME_LANGUAGE = {"py": "python", "python3": "python", "js": "javascript", "ts": "typescript", "sh": "bash"}
_MAX_ERRORS = 8
_MAX_DEPTH_SHOWN = 6


class ParseFailure(ValueError):
    """An answer does not fit; ``str()`` is text for the model. ``truncated``: it stops before its end."""

    def __init__(self, reason: str, *, truncated: bool = False) -> None:
        super().__init__(reason)
        self.truncated = truncated


def clean_text(text: str) -> str:
    """``text`` with NUL and lone surrogates, which no file, database or JSON encoder accepts, as U+FFFD."""
    return _UNENCODABLE.sub("\ufffd", text)


# --- fenced blocks ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FencedBlock:
    """One fenced block. ``language`` is its tag in lower case ("" without one); ``closed`` is False if the text ends
    inside it."""

    language: str
    body: str
    closed: bool = True


def fenced_blocks(text: str) -> list[FencedBlock]:
    """All fenced blocks of ``text`` in order. The closing fence is at least as long as the opening one."""
    blocks: list[FencedBlock] = []
    fence, indent, language, body = "", 0, "", list[str]()
    for line in text.splitlines():
        if fence:
            bare = line.strip()
            if bare.startswith(fence) and not bare.strip(fence[0]):
                blocks.append(FencedBlock(language, "\n".join(body)))
                fence = ""
            else:
                body.append(line[indent:] if not line[:indent].strip() else line)
        elif found := _FENCE.match(line):
            fence, indent, body = found["fence"], len(found["indent"]), []
            tag = found["tag"].lower()
            language = _SAME_LANGUAGE.get(tag, tag)
    if fence:
        blocks.append(FencedBlock(language, "\n".join(body), closed=False))
    return blocks


def extract_fenced(text: str, language: str = "python") -> str | None:
    """The body of the first fenced block in ``language``, else of the first block without a tag, else None.

    A block that the end of the text cuts off counts only if there is no complete one: small models forget the last
    fence. Callers that let the model answer with bare code use the whole text on None.
    """
    wanted = _SAME_LANGUAGE.get(language.lower(), language.lower())
    blocks = fenced_blocks(text)
    for closed in (True, False):
        for tag in (wanted, ""):
            for block in blocks:
                if block.language == tag and block.closed is closed and block.body.strip():
                    return block.body
    return None


# --- JSON ------------------------------------------------------------------------------------------------------------


def _no_constant(name: str) -> float:
    raise ParseFailure(f"{name} is not a JSON number; give a finite number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ParseFailure(f"the number {digits[:40]} is too large; give a finite number")
    return value


def _clean_value(value: object) -> object:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [_clean_value(item) for item in value]
    if isinstance(value, dict):
        return {clean_text(key): _clean_value(item) for key, item in value.items()}
    return value


def load_json(text: str) -> object:
    """Decode ``text`` as strict JSON: no NaN, no infinities, no unencodable characters in strings.

    Raises:
        ParseFailure: with the position and kind of the error.
    """
    try:
        return _clean_value(json.loads(text, parse_constant=_no_constant, parse_float=_finite))
    except json.JSONDecodeError as error:
        reason = f"invalid JSON: {error.msg} at line {error.lineno} column {error.colno}"
    except RecursionError:
        reason = "invalid JSON: nested too deeply"
    except ParseFailure:
        raise
    except ValueError as error:  # an integer of thousands of digits
        reason = f"invalid JSON: {error}"
    raise ParseFailure(reason)


def truncation_report(text: str) -> str | None:
    """Where a JSON text that starts with ``{`` or ``[`` stops too early; None if its brackets close.

    Example: ``'{"plan": {"code": "def'`` gives "inside the text of key 'plan.code'".
    """
    start = min((i for i in (text.find("{"), text.find("[")) if i >= 0), default=-1)
    if start < 0:
        return None
    path: list[str] = []
    kinds: list[str] = []
    key, string, escaped, is_key = "", "", False, True
    in_string = False
    for char in text[start:]:
        if in_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
                if is_key and kinds and kinds[-1] == "{":
                    key = string
                continue
            string += char if len(string) < 80 else ""
        elif char == '"':
            in_string, string = True, ""
        elif char in "{[":
            kinds.append(char)
            path.append(key)
            key, is_key = "", True
        elif char in "}]":
            if not kinds:
                return None
            kinds.pop()
            key = path.pop()
            if not kinds:
                return None
        elif char == ":":
            is_key = False
        elif char == ",":
            key, is_key = "", True
    parts = [part for part in [*path, "" if in_string and is_key else key] if part]
    dotted = ".".join(parts[-_MAX_DEPTH_SHOWN:])
    where = f"key {dotted!r}" if dotted else "the outermost " + ("object" if text[start] == "{" else "list")
    return f"inside the text of {where}" if in_string and not is_key else f"inside {where}"


def _json_texts(text: str) -> Iterator[str]:
    """The places where the JSON of an answer may be, most trustworthy first."""
    yield text.strip()
    blocks = fenced_blocks(text)
    for block in blocks:
        if block.closed and block.language in ("json", ""):
            yield block.body
    first, last = text.find("{"), text.rfind("}")
    if 0 <= first < last:
        yield text[first : last + 1]


def _all_finite(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(_all_finite(item) for item in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return all(_all_finite(item) for item in value)
    return True


def _explain(error: ValidationError) -> str:
    lines = []
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    for problem in problems[:_MAX_ERRORS]:
        where = ".".join(str(part) for part in problem["loc"]) or "the whole answer"
        lines.append(f"{where}: {problem['msg']}")
    if len(problems) > _MAX_ERRORS:
        lines.append(f"and {len(problems) - _MAX_ERRORS} more")
    return "; ".join(lines)


def parse_answer(text: str, schema: type[ModelT]) -> ModelT:
    """Read ``text`` as ``schema``: exact JSON, else a fenced block, else what the outermost braces enclose.

    Raises:
        ParseFailure: why not, in words for the model. Of several candidates the one that is JSON explains best.
    """
    from pydantic import ValidationError

    first_syntax: ParseFailure | None = None
    mismatch: ParseFailure | None = None
    for candidate in _json_texts(text):
        try:
            value = load_json(candidate)
        except ParseFailure as failure:
            first_syntax = first_syntax or failure
            continue
        try:
            parsed = schema.model_validate_json(json.dumps(value, ensure_ascii=False, allow_nan=False))
        except ValidationError as error:
            mismatch = mismatch or ParseFailure(_explain(error))
            continue
        if _all_finite(parsed.model_dump()):  # a lax float field would take the string "nan"
            return parsed
        mismatch = mismatch or ParseFailure("a number is not finite; give finite numbers")
    if mismatch is not None:
        raise mismatch
    where = truncation_report(text)
    if where is not None:
        raise ParseFailure(f"the answer stops {where}, after {len(text)} characters", truncated=True)
    if first_syntax is None or "{" not in text:
        raise ParseFailure("the answer contains no JSON object")
    raise first_syntax
