"""Minibatches as a pure function: nothing to keep, nothing to restore."""

from __future__ import annotations

import random
from collections.abc import Set as AbstractSet
from functools import lru_cache


def minibatch(
    seed: int, ticket: int, batch_size: int, size: int, skip: AbstractSet[int] = frozenset()
) -> tuple[int, ...]:
    """Indices of the examples of a ticket (counted from 1), all different.

    The tickets walk through one endless row of shuffled epochs of ``size`` examples, ``batch_size`` each, so that every
    example comes once before any comes again. Those in ``skip`` are passed over while others are left within the next
    two epochs; what is missing then is filled up with them.
    """
    wanted = min(batch_size, size)
    position = (ticket - 1) * wanted
    chosen: dict[int, None] = {}
    passed: dict[int, None] = {}
    for at in range(position, position + 2 * size):
        index = _epoch(seed, at // size, size)[at % size]
        (passed if index in skip else chosen).setdefault(index)
        if len(chosen) == wanted:
            break
    return tuple([*chosen, *passed][:wanted])


@lru_cache(maxsize=8)
def _epoch(seed: int, number: int, size: int) -> tuple[int, ...]:
    order = list(range(size))
    random.Random(f"{seed}/epoch/{number}").shuffle(order)
    return tuple(order)
