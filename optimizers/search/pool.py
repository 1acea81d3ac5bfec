"""The pool: every candidate that can be a parent, and everything else that was tried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core.optimizers.search.candidate import SEED, Candidate
from trace_core.optimizers.search.pareto import Fronts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from trace_core.optimizers.search.acceptance import Acceptance


class Pool:
    """Accepted candidates in order of joining; the seed is the first.

    Attributes:
        members: those that can be parents.
        everything: all candidates by id, rejected ones as well.
        best: the member with the highest mean on the validation examples; the earliest of several. With ``leading``,
            a new best is one whose gain that accepts, too.
        fronts: where each member is best, by its number in ``members``.
        chosen: id -> how often it was taken as a parent.
    """

    def __init__(self, leading: Acceptance | None = None) -> None:
        self._leading = leading
        self.members: list[Candidate] = []
        self.everything: dict[str, Candidate] = {}
        self.fronts = Fronts()
        self.chosen: dict[str, int] = {}
        self.best: Candidate | None = None
        self._numbers: dict[str, int] = {}
        self._values: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.members)

    def __getitem__(self, candidate: str) -> Candidate:
        return self.everything[candidate]

    def note(self, candidate: Candidate) -> None:
        """Keep one that was tried; it is no parent."""
        self.everything[candidate.id] = candidate

    def add(self, candidate: Candidate) -> bool:
        """A validated candidate joins. Returns whether it is the best now."""
        self.everything[candidate.id] = candidate
        if self.members:
            self.members[-1].let_go()
        self._numbers[candidate.id] = len(self.members)
        self.members.append(candidate)
        self.fronts.add(candidate.scores)
        key = key_of(candidate.values)
        if key is not None:
            self._values.setdefault(key, candidate.id)
        if self._leads(candidate):
            self.best = candidate
            return True
        return False

    def _leads(self, candidate: Candidate) -> bool:
        best, score = self.best, candidate.score
        if best is None or best.score is None or score is None or score <= best.score:
            return best is None or (best.score is None and score is not None)
        both = [index for index in candidate.scores if index in best.scores]
        if self._leading is None or not both:
            return True
        verdict = self._leading.judge([best.scores[i] for i in both], [candidate.scores[i] for i in both])
        why = f"; no new best over {best.id}: {verdict.why.removeprefix('minibatch ')}"
        if not verdict.accept and not candidate.note.endswith(why):  # it has it already if it was read from a ledger
            candidate.note += why
        return verdict.accept

    @property
    def seed(self) -> Candidate:
        """What the study began with."""
        return self.everything[SEED]

    @property
    def latest(self) -> Candidate:
        """The member that joined last."""
        return self.members[-1]

    def ranked(self) -> list[Candidate]:
        """Members, the best first; earlier ones first among equals."""
        return sorted(self.members, key=lambda c: float("-inf") if c.score is None else c.score, reverse=True)

    def number(self, candidate: str) -> int:
        """Its place in ``members``."""
        return self._numbers[candidate]

    def same_as(self, values: Mapping[str, Any]) -> str | None:
        """Id of the member that has exactly these values; None if there is none, or they are no plain data."""
        key = key_of(values)
        return None if key is None else self._values.get(key)

    def ancestors(self, candidate: str) -> list[str]:
        """Ids of a candidate and all before it, nearest first."""
        found: dict[str, None] = {}
        queue = [candidate]
        for now in queue:
            if now not in found:
                found[now] = None
                queue.extend(self.everything[now].parents if now in self.everything else ())
        return list(found)


_PLAIN = (str, int, float, bool, type(None))


def key_of(values: Mapping[str, Any]) -> str | None:
    """A text that is the same for the same values only; None where there are others than plain data."""
    return repr(sorted(values.items())) if all(_is_plain(value) for value in values.values()) else None


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return isinstance(value, _PLAIN)
