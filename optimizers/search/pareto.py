"""Which candidates are best on which examples, as bits: one int per candidate, one bit per example."""

from __future__ import annotations

from itertools import accumulate
from operator import or_
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Fronts:
    """For each example the candidates with the best score on it, kept up as candidates come.

    Source: GEPA (Agrawal et al., ICLR 2026), section 3.3 and algorithm 2. Scores that are equal share a front.
    """

    def __init__(self) -> None:
        self._best: dict[int, float] = {}
        self._bits: list[int] = []  # by candidate: the examples where it is best
        self._means: list[float] = []
        self._weights: dict[int, int] | None = None

    def __len__(self) -> int:
        return len(self._bits)

    def add(self, scores: Mapping[int, float]) -> None:
        """The next candidate, with its scores by example; they may be of some examples only."""
        mine, beaten = bytearray(), bytearray()
        if scores:
            size = (max(scores) >> 3) + 1
            mine, beaten = bytearray(size), bytearray(size)
        best = self._best
        for example, score in scores.items():
            known = best.get(example)
            if known is None or score > known:
                best[example] = score
                beaten[example >> 3] |= 1 << (example & 7)
                mine[example >> 3] |= 1 << (example & 7)
            elif score == known:
                mine[example >> 3] |= 1 << (example & 7)
        lost = int.from_bytes(beaten, "little")
        if lost:
            self._bits = [bits & ~lost if bits & lost else bits for bits in self._bits]
        self._bits.append(int.from_bytes(mine, "little"))
        self._means.append(sum(scores.values()) / len(scores) if scores else float("-inf"))
        self._weights = None

    def front(self, example: int) -> list[int]:
        """Numbers of the candidates that are best on an example."""
        return [number for number, bits in enumerate(self._bits) if bits >> example & 1]

    def best_on(self, example: int) -> float:
        """The best score on an example; minus infinity if nobody was run on it."""
        return self._best.get(example, float("-inf"))

    def is_best_somewhere(self, number: int) -> bool:
        """Whether a candidate is on any front."""
        return bool(self._bits[number])

    def weights(self) -> dict[int, int]:
        """Candidate -> on how many fronts it is, for those that are left after pruning.

        From the lowest mean upwards, a candidate goes whose fronts all hold another one that is left. Candidates are
        looked at once, so "left" is what was kept below it and everything above it: two running unions.
        """
        if self._weights is None:
            bits, means = self._bits, self._means
            order = sorted((number for number in range(len(bits)) if bits[number]), key=means.__getitem__)
            above = list(accumulate((bits[number] for number in reversed(order)), or_, initial=0))[:-1]
            kept, weights = 0, {}
            for number, others in zip(order, reversed(above), strict=True):
                mine = bits[number]
                if mine & ~(kept | others):
                    kept |= mine
                    weights[number] = mine.bit_count()
            self._weights = weights
        return self._weights
