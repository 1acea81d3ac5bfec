"""Real text that is installed anyway, as tokens of a vocabulary made from it.

The text: ``pydoc_data.topics`` and the Python sources of the standard library, of torch, and of what torch installs.
One file in thirty, chosen by a hash of its text, is for validation; texts that occur twice are taken once.

The vocabulary: a regular expression cuts the text into words, digits, indentation and punctuation; the most frequent
pieces of the training text are tokens, whatever is rarer is spelled byte by byte. So every text can be written, and
every token stands for a known number of bytes, which makes losses per token comparable with losses per byte.
"""

from __future__ import annotations

import hashlib
import importlib.util
import pydoc_data.topics
import re
import sysconfig
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "sympy", "networkx", "numpy", "jinja2", "triton")
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "testing", "idle_test"}
_PIECE = re.compile(rb"[ _.]?[A-Za-z]+|[0-9]|\n *|[ \t]+| ?[^\sA-Za-z0-9]{1,3}|.", re.DOTALL)
END = 256  # after each text; the tokens below are bytes


def texts() -> Iterable[bytes]:
    yield from (topic.encode() for topic in pydoc_data.topics.topics.values())
    roots = [Path(sysconfig.get_path("stdlib"))]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            roots.append(Path(spec.origin).parent)
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            if not _LEFT_OUT & set(path.relative_to(root).parts):
                yield path.read_bytes()


@dataclass(frozen=True)
class Corpus:
    """``training`` and ``validation``: int64 tokens; ``widths``: how many bytes each token of the vocabulary spells."""

    training: Any
    validation: Any
    widths: Any
    training_bytes: int

    def to(self, device: str) -> Corpus:
        return Corpus(self.training.to(device), self.validation.to(device), self.widths.to(device), self.training_bytes)


def corpus(vocabulary: int, limit: int | None = None) -> Corpus:
    """Read, cut and count; ``limit`` in bytes. The same installation gives the same tokens."""
    cut: dict[bool, list[list[bytes]]] = {True: [], False: []}
    seen: set[bytes] = set()
    size = 0
    for text in texts():
        digest = hashlib.sha256(text).digest()
        if digest not in seen and (limit is None or size < limit):
            seen.add(digest)
            size += len(text)
            cut[digest[0] * 256 + digest[1] < 65536 // 30].append(_PIECE.findall(text))
    counts = Counter(piece for pieces in cut[False] for piece in pieces if len(piece) > 1)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: vocabulary - END - 1]
    known = {piece: number for number, (piece, _) in enumerate(ranked, start=END + 1)}
    known.update({bytes([value]): value for value in range(256)})
    widths = torch.ones(vocabulary, dtype=torch.float32)
    widths[END] = 0.0
    for piece, number in known.items():
        widths[number] = len(piece)
    training, validation = (_tokens(cut[flag], known) for flag in (False, True))
    return Corpus(training, validation, widths, int(widths[training].sum(dtype=torch.float64)))


def _tokens(cut: list[list[bytes]], known: dict[bytes, int]) -> Any:
    numbers = array("q")
    for pieces in cut:
        for piece in pieces:
            number = known.get(piece)
            if number is None:
                numbers.extend(piece)  # a bytes object is a sequence of its values
            else:
                numbers.append(number)
        numbers.append(END)
    return torch.frombuffer(numbers, dtype=torch.int64)
