"""One colour scale for scores, dark to light, that also those can read who do not tell red from green."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_STOPS = ((74, 42, 122), (54, 92, 150), (40, 142, 140), (112, 184, 92), (246, 214, 72))
ERROR = (214, 62, 62)


def rgb(share: float) -> tuple[int, int, int]:
    """The colour at ``share`` in [0, 1]."""
    place = min(1.0, max(0.0, share)) * (len(_STOPS) - 1)
    first = min(int(place), len(_STOPS) - 2)
    rest = place - first
    r, g, b = (round(x + (y - x) * rest) for x, y in zip(_STOPS[first], _STOPS[first + 1], strict=True))
    return r, g, b


def css(share: float) -> str:
    """The same as ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*rgb(share))


class Scale:
    """Scores -> [0, 1] between the lowest and the highest of them."""

    def __init__(self, scores: Iterable[float]) -> None:
        found = list(scores)
        self.low, self.high = (min(found), max(found)) if found else (0.0, 1.0)

    def share(self, score: float) -> float:
        """1 for every score where all are the same."""
        return (score - self.low) / (self.high - self.low) if self.high > self.low else 1.0

    def css(self, score: float) -> str:
        """Its colour."""
        return css(self.share(score))
