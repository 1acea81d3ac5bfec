"""What a candidate may not do whatever its score: checked before it is run."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Any, Protocol

from trace_core.optimizers.base import OptimizerError
from trace_core.source import signature_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trace_core.parameter import Parameter

_WORD = re.compile(r"\w+")
_PLACEHOLDER = re.compile(r"\{\{\s*[A-Za-z_][\w.]*\s*\}\}|\$?\{[A-Za-z_][\w.]*\}")


class Guard(Protocol):
    """Refuses values."""

    def check(self, name: str, parameter: Parameter, old: Any, new: Any, train: Sequence[Any]) -> str | None:
        """Why ``new`` is refused in place of ``old``, the parent's; None if it is not. ``train``: the examples."""
        ...


class CopyGuard:
    """Refuses texts and code that carry training examples: a prompt that knows the answers says nothing of others.

    A row of ``words`` words that stands in an example, and did not stand in the old value, is a copy; so is the whole
    of a shorter text of an example, from ``least`` words on. Rows that many examples share, more than ``common`` of
    them, are wording and no secret.
    """

    def __init__(self, words: int = 8, least: int = 5, common: float = 0.2) -> None:
        if words < 2 or least < 2:
            raise OptimizerError(f"words and least must be at least 2, got {words} and {least}")
        self.words, self.least, self.common = words, least, common
        self._train: Sequence[Any] | None = None
        self._rows: dict[tuple[str, ...], int] = {}

    def check(self, name: str, parameter: Parameter, old: Any, new: Any, train: Sequence[Any]) -> str | None:
        """See Guard."""
        if not isinstance(new, str):
            return None
        known = self._known(train)
        before = set(self._windows(str(old), known))
        for row in self._windows(new, known):
            if row in known and row not in before:
                return f"{name} copies training example {known[row]}: {' '.join(row)!r}"
        return None

    def _known(self, train: Sequence[Any]) -> dict[tuple[str, ...], int]:
        """Row of words -> the first example that has it."""
        if self._train is not train:
            found: dict[tuple[str, ...], int] = {}
            counts: dict[tuple[str, ...], int] = {}
            for number, example in enumerate(train):
                rows: set[tuple[str, ...]] = set()
                for text in texts(example):
                    words = _words(text)
                    if self.least <= len(words) < self.words:
                        rows.add(tuple(words))
                    rows.update(_rows(words, self.words))
                for row in rows:
                    found.setdefault(row, number)
                    counts[row] = counts.get(row, 0) + 1
            most = max(1.0, self.common * len(train))
            self._rows, self._train = {row: n for row, n in found.items() if counts[row] <= most}, train
        return self._rows

    def _windows(self, text: str, known: dict[tuple[str, ...], int]) -> Iterator[tuple[str, ...]]:
        words = _words(text)
        for size in sorted({len(row) for row in known}):
            yield from _rows(words, size)


class LengthGuard:
    """Refuses texts that grow beyond ``characters``, or beyond ``growth`` times what they were, if that is given.

    What is longer already may become shorter.
    """

    def __init__(self, characters: int = 20_000, growth: float | None = None) -> None:
        self.characters, self.growth = characters, growth

    def check(self, name: str, parameter: Parameter, old: Any, new: Any, train: Sequence[Any]) -> str | None:
        """See Guard."""
        if not isinstance(new, str) or (isinstance(old, str) and len(new) <= len(old)):
            return None
        if len(new) > self.characters:
            return f"{name} has {len(new)} characters, at most {self.characters} are allowed"
        if self.growth is not None and isinstance(old, str) and len(new) > self.growth * max(len(old), 1):
            return f"{name} grows from {len(old)} to {len(new)} characters, at most {self.growth:g} times is allowed"
        return None


class PlaceholderGuard:
    """Refuses texts that lose a placeholder of the old one: ``{question}``, ``{{ question }}``, ``${question}``."""

    def check(self, name: str, parameter: Parameter, old: Any, new: Any, train: Sequence[Any]) -> str | None:
        """See Guard."""
        if not isinstance(old, str) or not isinstance(new, str) or parameter.kind == "code":
            return None
        lost = [field for field in _fields(old) if field not in _fields(new)]
        return f"{name} loses {', '.join(lost)}" if lost else None


class SignatureGuard:
    """Refuses code whose function has another name or other arguments, and data whose keys are others.

    Annotations and the values of defaults may change, as in ``CodeParameter``.
    """

    def check(self, name: str, parameter: Parameter, old: Any, new: Any, train: Sequence[Any]) -> str | None:
        """See Guard."""
        if parameter.kind == "code":
            was, now = _signature(old), _signature(new)
            return None if was is None or was == now else f"{name} must keep its signature {was}, got {now}"
        if isinstance(old, dict) and isinstance(new, dict) and old.keys() != new.keys():
            changed = sorted(str(key) for key in old.keys() ^ new.keys())
            return f"{name} must keep its keys, these come or go: {', '.join(changed)}"
        return None


def default_guards() -> tuple[Guard, ...]:
    """Those of a study that names none."""
    return CopyGuard(), LengthGuard(), PlaceholderGuard(), SignatureGuard()


def texts(example: Any) -> Iterator[str]:
    """Every text in an example, at any depth of containers and objects."""
    queue, seen = [example], set[int]()
    while queue:
        item = queue.pop()
        if isinstance(item, str):
            yield item
        elif item is None or isinstance(item, int | float | bytes | bool) or id(item) in seen:
            continue
        else:
            seen.add(id(item))
            if isinstance(item, dict):
                queue += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple | set | frozenset):
                queue += item
            else:
                queue += getattr(item, "__dict__", {}).values()


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _rows(words: list[str], size: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[i : i + size]) for i in range(len(words) - size + 1))


def _fields(text: str) -> list[str]:
    return list(dict.fromkeys(re.sub(r"\s", "", field) for field in _PLACEHOLDER.findall(text)))


def _signature(text: Any) -> str | None:
    """Name and arguments of the last function in a text; None if there is none."""
    try:
        found = [n for n in ast.parse(str(text)).body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    except SyntaxError:
        return None
    return signature_of(found[-1]) if found else None
