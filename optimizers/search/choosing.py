"""What a ticket is to do: parent, minibatch, merge. Depends on what is decided, and on nothing at work."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from trace_core.optimizers.base import OptimizerError
from trace_core.optimizers.search.candidate import Candidate
from trace_core.optimizers.search.merge import telling
from trace_core.optimizers.search.minibatches import minibatch
from trace_core.optimizers.search.ticket import Ticket

if TYPE_CHECKING:
    from trace_core.optimizers.search.driver import Driver


def choose(driver: Driver, number: int) -> Ticket:
    """Ticket ``number``, from what is decided now."""
    merge = _merge(driver, number)
    if merge is not None:
        return merge
    rng = random.Random(f"{driver.seed}/parent/{number}")
    parent = _parent(driver, rng, number)
    size, perfect = len(driver.train), driver.search.perfect
    recent = number - driver.search.reuse
    known = {}
    for index in range(size):
        before = driver.seen.get((parent.id, index))
        if before is not None and before.sample >= recent:
            known[index] = before
    skip = {i for i, before in known.items() if perfect is not None and before.score >= perfect}
    batch = minibatch(driver.seed, number, driver.search.batch_size, size, skip)
    seen = {index: known[index] for index in batch if index in known}
    fresh = len(batch) - len(seen)
    repeats = driver.search.acceptance.repeats
    children = driver.search.proposals * len(batch) if driver.search.acceptance.gated else 0
    fork = driver.optimizer.fork(number)
    contrast = driver.search.contrast
    others = contrast.choose(parent, dict.fromkeys(batch, number), driver.seen, driver.pool) if contrast else []
    return Ticket(
        number,
        (parent,),
        {index: seen[index].sample if index in seen else number for index in batch},
        seen,
        None,
        fork.state_dict() if fork is not driver.optimizer else None,
        repeats * (fresh + children),
        contrast=[(other, index, driver.seen[other.id, index]) for other, index in others],
        known=len(driver.pool),
    )


def _merge(driver: Driver, number: int) -> Ticket | None:
    """A merge, if one is due: after a candidate joined, once."""
    merge = driver.search.merge
    if merge is None or not driver.merge_due or driver.merges >= merge.most:
        return None
    driver.merge_due = False
    rng = random.Random(f"{driver.seed}/merge/{number}")
    found = merge.pair(driver.pool, rng)
    if found is None:
        return None
    driver.merges += 1
    batch = telling(*found.parents, merge.examples, rng)
    return Ticket(number, found.parents, dict.fromkeys(batch, 0), worst=len(batch), merged=found.values)


def _parent(driver: Driver, rng: random.Random, number: int) -> Candidate:
    """A parent from the strategy. Raises OptimizerError if it gives something else."""
    found = driver.search.parents.select(driver.pool, rng, number)
    if not isinstance(found, Candidate) or not found.in_pool:
        raise OptimizerError(f"Parents.select must return a member of the pool, got {found!r:.80}")
    return found
