"""Examples from JSON Lines files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_core.errors import TraceCoreError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike


class DataError(TraceCoreError, ValueError):
    """A data file cannot be used; the message names the file and the line."""


def load_jsonl(path: str | PathLike[str]) -> list[Any]:
    """The values of a JSON Lines file (UTF-8, one JSON value a line, blank lines passed over).

    Raises DataError if the file cannot be read, a line is no JSON, or there is no example at all.
    """
    source = Path(path)
    try:
        text = source.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{source}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source} cannot be read as UTF-8 text: {error}") from error
    examples = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            examples.append(json.loads(line, parse_constant=_no_constant))
        except ValueError as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(f"{source}, line {number}: not valid JSON ({reason}): {line.strip()[:80]!r}") from error
    if not examples:
        raise DataError(f"{source} holds no examples: expected one JSON value on each line")
    return examples


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def split(examples: Sequence[Any], shares: Sequence[float], seed: int = 0) -> list[list[Any]]:
    """Shuffle by ``seed`` and cut into parts of the given shares (which are scaled to sum 1).

    Every part with a share above 0 gets at least one example. Raises DataError with fewer examples than such parts.
    """
    wanted = [share for share in shares if share > 0]
    if len(examples) < len(wanted):
        raise DataError(f"{len(examples)} examples cannot be split into {len(wanted)} parts: more data is needed")
    order = list(examples)
    random.Random(seed).shuffle(order)
    total = sum(shares)
    sizes = [max(1, int(len(order) * share / total)) if share > 0 else 0 for share in shares]
    while sum(sizes) > len(order):
        sizes[sizes.index(max(sizes))] -= 1
    sizes[sizes.index(max(sizes))] += len(order) - sum(sizes)
    parts, start = [], 0
    for size in sizes:
        parts.append(order[start : start + size])
        start += size
    return parts
