"""Which candidate a ticket starts from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import random

    from trace_core.optimizers.search.candidate import Candidate
    from trace_core.optimizers.search.pool import Pool


class Parents(Protocol):
    """Selects parents."""

    def select(self, pool: Pool, rng: random.Random, ticket: int) -> Candidate:
        """A member of the pool, which is not empty. ``rng`` is this ticket's: the same each time it is chosen."""
        ...


class Best:
    """The best so far."""

    def select(self, pool: Pool, rng: random.Random, ticket: int) -> Candidate:
        """See Parents."""
        return pool.best or pool.latest


class Latest:
    """The one that joined last: for numeric optimizers, whose steps go on from each other."""

    def select(self, pool: Pool, rng: random.Random, ticket: int) -> Candidate:
        """See Parents."""
        return pool.latest


class EpsilonGreedy:
    """The best, and with probability ``epsilon`` any member."""

    def __init__(self, epsilon: float = 0.1) -> None:
        self.epsilon = epsilon

    def select(self, pool: Pool, rng: random.Random, ticket: int) -> Candidate:
        """See Parents."""
        if rng.random() < self.epsilon:
            return rng.choice(pool.members)
        return pool.best or pool.latest


class TopK:
    """One of the ``k`` best, each as likely."""

    def __init__(self, k: int = 5) -> None:
        self.k = k

    def select(self, pool: Pool, rng: random.Random, ticket: int) -> Candidate:
        """See Parents."""
        return rng.choice(pool.ranked()[: self.k])


class Beam:
    """The ``width`` best in turn: each is worked on equally often."""

    def __init__(self, width: int = 4) -> None:
        self.width = width

    def select(self, pool: Pool, rng: random.Random, ticket: int) -> Candidate:
        """See Parents."""
        beam = pool.ranked()[: self.width]
        return beam[ticket % len(beam)]


class UCB:
    """The highest upper confidence bound: mean score plus ``c * sqrt(ln N / n)``, n how often it was a parent.

    Source: "Finite-time Analysis of the Multiarmed Bandit Problem" (Auer, Cesa-Bianchi, Fischer, 2002), section 2.
    Scores are scaled to the range seen in the pool.
    """

    def __init__(self, c: float = math.sqrt(2)) -> None:
        self.c = c

    def select(self, pool: Pool, rng: random.Random, ticket: int) -> Candidate:
        """See Parents."""
        scores = [member.score or 0.0 for member in pool]
        low, span = min(scores), max(scores) - min(scores) or 1.0
        total = math.log(1 + sum(pool.chosen.values()))

        def bound(number: int) -> float:
            times = pool.chosen.get(pool.members[number].id, 0)
            return math.inf if not times else (scores[number] - low) / span + self.c * math.sqrt(total / times)

        return pool.members[max(range(len(scores)), key=bound)]


class Pareto:
    """One of those that are best on some validation example, by the number of examples they are best on.

    Source: GEPA (Agrawal et al., ICLR 2026), algorithm 2. See ``Fronts``.
    """

    def select(self, pool: Pool, rng: random.Random, ticket: int) -> Candidate:
        """See Parents."""
        weights = pool.fronts.weights()
        if not weights:
            return pool.best or pool.latest
        return pool.members[rng.choices(list(weights), list(weights.values()))[0]]


class MultiObjective:
    """One of those that no other beats in all objectives, each as likely.

    The objectives are the means of the scores that the metric gives by name; with a single score it is the best.
    """

    def select(self, pool: Pool, rng: random.Random, ticket: int) -> Candidate:
        """See Parents."""
        return rng.choice(non_dominated(pool.members) or [pool.best or pool.latest])


def non_dominated(members: list[Candidate]) -> list[Candidate]:
    """Those for which no other is at least as good in every objective and better in one. Of equal ones, the first."""
    front: list[tuple[dict[str, float], Candidate]] = []
    for member in members:
        mine = member.objectives or ({"score": member.score} if member.score is not None else {})
        if not mine or any(_covers(other, mine) for other, _ in front):
            continue
        front = [(other, kept) for other, kept in front if not _covers(mine, other)] + [(mine, member)]
    return [member for _, member in front]


def _covers(one: dict[str, float], other: dict[str, float]) -> bool:
    return all(one.get(name, -math.inf) >= value for name, value in other.items())
