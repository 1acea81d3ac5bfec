"""Candidates x validation examples as one small picture, and the numbers behind it packed for the page's script."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from array import array
from typing import TYPE_CHECKING, Any

from trace_core.optimizers.report.colour import ERROR, Scale, rgb
from trace_core.optimizers.report.text import visible
from trace_core.values import elide

if TYPE_CHECKING:
    from trace_core.optimizers.report.reading import Candidate, RunData

_LEVELS = 254  # of the palette: 0 is a cell without a score, 1 an error
_STEPS = 65_000  # of a score that is kept in two bytes
_SAID_ROOM = 1_500_000  # characters of feedback
_SAID_CELLS = 60_000
_SAID_LONGEST = 240


class Matrix:
    """Rows are candidates, the best first; columns are examples, the hardest first.

    Attributes:
        rows, columns: what they stand for.
        scale: of the colours.
    """

    def __init__(self, data: RunData) -> None:
        self.data = data
        self.rows: list[Candidate] = sorted(
            (c for c in data.candidates if c.id in data.scores), key=lambda c: (-_mean(data.scores[c.id]), c.number)
        )
        totals = {example: [0.0, 0] for example in data.examples}
        for candidate in self.rows:
            for example, score in data.scores[candidate.id].items():
                total = totals[example]
                total[0] += score
                total[1] += 1
        place = {example: number for number, example in enumerate(data.examples)}
        self.columns = sorted(data.examples, key=lambda e: (totals[e][0] / max(1, totals[e][1]), place[e]))
        self.scale = Scale(score for c in self.rows for score in data.scores[c.id].values())

    def picture(self) -> str:
        """A PNG with one pixel for each cell, as a data URL."""
        lines = bytearray()
        for candidate in self.rows:
            scores = self.data.scores[candidate.id]
            lines.append(0)  # no filter
            for example in self.columns:
                score = scores.get(example)
                if score is None:
                    lines.append(0)
                elif (candidate.id, example) in self.data.failed:
                    lines.append(1)
                else:
                    lines.append(2 + round(self.scale.share(score) * (_LEVELS - 1)))
        palette = bytes([0, 0, 0, *ERROR, *(part for level in range(_LEVELS) for part in rgb(level / (_LEVELS - 1)))])
        head = struct.pack(">IIBBBBB", len(self.columns), len(self.rows), 8, 3, 0, 0, 0)
        parts = ((b"IHDR", head), (b"PLTE", palette), (b"tRNS", b"\0"), (b"IDAT", zlib.compress(bytes(lines), 9)))
        png = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in (*parts, (b"IEND", b"")))
        return f"data:image/png;base64,{base64.b64encode(png).decode()}"

    def packed(self) -> dict[str, Any]:
        """Names, scores and feedback for the script.

        ``cells`` is base64 of little-endian 16-bit numbers, row by row: 0 for no score, else 1 + place in ``values``,
        or where there are too many different ones 1 + steps of ``step`` above ``low``. ``said`` maps the number of a
        cell to one of ``texts``.
        """
        rounded = {c.id: {e: round(s, 6) for e, s in self.data.scores[c.id].items()} for c in self.rows}
        distinct = sorted({score for scores in rounded.values() for score in scores.values()})
        few = len(distinct) <= _STEPS
        place = {score: number for number, score in enumerate(distinct)} if few else {}
        step = (self.scale.high - self.scale.low) / _STEPS or 1.0
        cells = array("H")
        for candidate in self.rows:
            scores = rounded[candidate.id]
            for example in self.columns:
                score = scores.get(example)
                if score is None:
                    cells.append(0)
                else:
                    cells.append(1 + (place[score] if few else round((score - self.scale.low) / step)))
        if struct.pack("=H", 1) != struct.pack("<H", 1):
            cells.byteswap()
        texts, said = self._said()
        return {
            "rows": [[c.number, c.id, c.status, None if c.score is None else round(c.score, 6)] for c in self.rows],
            "columns": self.columns,
            "cells": base64.b64encode(cells.tobytes()).decode(),
            "values": distinct if few else None,
            "low": self.scale.low,
            "step": step,
            "texts": texts,
            "said": said,
        }

    def _said(self) -> tuple[list[str], dict[str, int]]:
        """Feedback of as many cells as there is room for: the best first, then the seed, then the other rows."""
        texts: dict[str, int] = {}
        said: dict[str, int] = {}
        room, width = _SAID_ROOM, len(self.columns)
        seeds = [number for number, c in enumerate(self.rows) if c.status == "start"]
        kept = [number for number, c in enumerate(self.rows) if c.kept]
        for row in dict.fromkeys([*kept[:1], *seeds, *kept, *range(len(self.rows))]):
            for column, example in enumerate(self.columns):
                text = self.data.said.get((self.rows[row].id, example))
                if not text:
                    continue
                short = visible(elide(text, _SAID_LONGEST))
                if short not in texts:
                    room -= len(json.dumps(short))
                    if room < 0:
                        return list(texts), said
                    texts[short] = len(texts)
                said[str(row * width + column)] = texts[short]
                if len(said) >= _SAID_CELLS:
                    return list(texts), said
        return list(texts), said


def _mean(scores: dict[str, float]) -> float:
    return sum(scores.values()) / len(scores)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element: no text in it can end the element or begin a comment."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
