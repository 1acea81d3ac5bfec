"""The split by whole tensors: which of a group's tensors keep state until the next refresh."""

from __future__ import annotations

from collections.abc import Sequence

from trace_core.optimizers.tensor.frugal.seeding import permutation


def choose_tensors(
    sizes: Sequence[int], density: float, order: str, cursor: int, *, seed: int, refresh: int, tensor: int
) -> tuple[list[int], int]:
    """Positions of the chosen tensors (ascending) and the cursor for the next refresh.

    ``sizes`` are element counts; tensors are taken while that brings the sum nearer to ``density`` times the total, so
    memory is off by half a tensor at most, whichever tensors are drawn. ``random`` goes through a fresh permutation;
    ``ascending`` and ``descending`` walk round the list and go on where the last refresh stopped.
    """
    count = len(sizes)
    if count == 0:
        return [], 0
    budget = density * sum(sizes)
    if order == "random":
        return sorted(_fill(sizes, permutation(count, seed, refresh, tensor), budget)[0]), 0
    step = 1 if order == "ascending" else -1
    start = cursor % count if order == "ascending" else (count - 1 - cursor) % count
    walk = [(start + step * i) % count for i in range(count)]
    chosen, passed = _fill(sizes, walk, budget, contiguous=True)
    return sorted(chosen), (cursor + passed) % count


def _fill(
    sizes: Sequence[int], walk: Sequence[int], budget: float, *, contiguous: bool = False
) -> tuple[list[int], int]:
    """What is taken of ``walk``, and how much of it was passed. ``contiguous`` stops at the first that is too big."""
    chosen: list[int] = []
    total = 0
    passed = 0
    for place, position in enumerate(walk, start=1):
        if total + sizes[position] / 2 <= budget and sizes[position] > 0:
            chosen.append(position)
            total += sizes[position]
            passed = place
        elif contiguous and chosen:
            break
    return chosen, passed
