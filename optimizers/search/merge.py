"""Two candidates that grew from one, and what each changed, in one candidate."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from trace_core.optimizers.search.pool import key_of
from trace_core.values import same_value

if TYPE_CHECKING:
    import random

    from trace_core.optimizers.search.candidate import Candidate
    from trace_core.optimizers.search.pool import Pool


class Merged(NamedTuple):
    """A merge: the parents, the better first, the ancestor they have in common, and the values."""

    parents: tuple[Candidate, Candidate]
    ancestor: Candidate
    values: dict[str, Any]


class Merge(Protocol):
    """Looks for two members of the pool to merge.

    Attributes:
        most: merges in a run, at most.
        examples: validation examples that a merge is gated on: its parents' scores on them are known.
    """

    most: int
    examples: int

    def pair(self, pool: Pool, rng: random.Random) -> Merged | None:
        """A merge that has not been tried; None if there is none."""
        ...


class MergeBranches:
    """Merges two candidates that are each best somewhere: per parameter, the side that changed since their ancestor.

    Where both changed it, the side with the better mean counts. The last common ancestor is taken, whatever it scored.
    Source: GEPA (Agrawal et al., ICLR 2026), appendix on merge.
    """

    def __init__(self, most: int = 5, examples: int = 5) -> None:
        self.most, self.examples = most, examples

    def pair(self, pool: Pool, rng: random.Random) -> Merged | None:
        """See Merge. Pairs are tried in random order."""
        weights = pool.fronts.weights()
        members = [pool.members[number] for number in sorted(weights)]
        tried = {frozenset(c.parents) for c in pool.everything.values() if len(c.parents) == 2}
        pairs = [(a, b) for i, a in enumerate(members) for b in members[i + 1 :]]
        rng.shuffle(pairs)
        for a, b in pairs:
            if frozenset((a.id, b.id)) in tried:
                continue
            merged = merge(pool, a, b)
            if merged is not None:
                return merged
        return None


def merge(pool: Pool, a: Candidate, b: Candidate) -> Merged | None:
    """The merge of two; None where one grew from the other, nothing is in common, or nothing new comes."""
    above_a, above_b = pool.ancestors(a.id), pool.ancestors(b.id)
    if a.id in above_b or b.id in above_a:
        return None
    shared = set(above_b)
    common = next((pool[name] for name in above_a if name in shared), None)
    if common is None:
        return None
    score_a, score_b = (float("-inf") if c.score is None else c.score for c in (a, b))
    better, other = (a, b) if score_a >= score_b else (b, a)
    values = {}
    for name, was in common.values.items():
        kept = same_value(better.values[name], was)
        values[name] = other.values[name] if kept else better.values[name]
    same = any(all(same_value(values[name], c.values[name]) for name in values) for c in (a, b))
    if same or (key_of(values) is not None and pool.same_as(values) is not None):
        return None
    return Merged((better, other), common, values)


def telling(a: Candidate, b: Candidate, limit: int, rng: random.Random) -> list[int]:
    """Validation examples to gate a merge on: in turn those that the one, the other, and neither did better on."""
    shared = sorted(a.scores.keys() & b.scores.keys())
    rng.shuffle(shared)
    gaps = {index: a.scores[index] - b.scores[index] for index in shared}
    groups = [
        [i for i in shared if gaps[i] > 0],
        [i for i in shared if gaps[i] < 0],
        [i for i in shared if gaps[i] == 0],
    ]
    rounds = zip_longest(*groups)
    return [index for together in rounds for index in together if index is not None][:limit]
