"""A good and a bad trace of the same input, side by side: what differs is what matters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trace_core.optimizers.search.candidate import Candidate
    from trace_core.optimizers.search.pool import Pool
    from trace_core.optimizers.search.ticket import Seen


class Contrast(Protocol):
    """Chooses traces of other candidates to be shown beside those of the minibatch."""

    def choose(
        self, parent: Candidate, batch: Mapping[int, int], seen: Mapping[tuple[str, int], Seen], pool: Pool
    ) -> list[tuple[Candidate, int]]:
        """(candidate, index of a training example) pairs, all of them in ``seen``."""
        ...


class BetterTrace:
    """For an example of the minibatch, the trace of the member that did best on it, if that beats the parent.

    Args:
        limit: pairs at most, those with the largest gain.
        gain: how much better it has to be.
    """

    def __init__(self, limit: int = 1, gain: float = 0.1) -> None:
        self.limit, self.gain = limit, gain

    def choose(
        self, parent: Candidate, batch: Mapping[int, int], seen: Mapping[tuple[str, int], Seen], pool: Pool
    ) -> list[tuple[Candidate, int]]:
        """See Contrast. An example on which the parent was not run yet counts by its distance to the worst seen."""
        found: list[tuple[float, int, Candidate]] = []
        for index in batch:
            on_it = {name: was.score for (name, i), was in seen.items() if i == index and name in pool.everything}
            others = {name: score for name, score in on_it.items() if name != parent.id}
            if not others:
                continue
            best = max(others, key=lambda name: others[name])
            gain = others[best] - on_it.get(parent.id, min(others.values()))
            if gain >= self.gain:
                found.append((gain, index, pool[best]))
        found.sort(key=lambda item: (-item[0], item[1]))
        return [(candidate, index) for _, index, candidate in found[: self.limit]]
