"""What happens in a study, as values: callbacks get them, the ledger keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias


@dataclass(frozen=True, slots=True)
class Started:
    """The seed is validated; ``score`` is its mean."""

    kind: ClassVar[str] = "started"
    score: float

    def describe(self) -> str:
        """In words."""
        return f"the seed scores {self.score:.3f}"


@dataclass(frozen=True, slots=True)
class Chosen:
    """A ticket begins: the ids of its parents, and the training examples of its minibatch."""

    kind: ClassVar[str] = "chosen"
    ticket: int
    parents: tuple[str, ...]
    minibatch: tuple[int, ...]

    def describe(self) -> str:
        """In words."""
        return f"ticket {self.ticket}: from {' and '.join(self.parents)} on {len(self.minibatch)} examples"


@dataclass(frozen=True, slots=True)
class Proposed:
    """A candidate was made: the names it changes, and why, in the optimizer's words."""

    kind: ClassVar[str] = "proposed"
    ticket: int
    candidate: str
    changed: tuple[str, ...]
    reason: str

    def describe(self) -> str:
        """In words."""
        return f"candidate {self.candidate} changes {', '.join(self.changed)}"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A candidate, or a ticket that gave none, came to nothing.

    Attributes:
        candidate: its id; "" if there was none.
        stage: ``empty`` (no usable proposal), ``guard``, ``gate``, ``validation`` or ``error``.
        reason: in words.
        before, after: mean scores that were compared; None where none were.
    """

    kind: ClassVar[str] = "rejected"
    ticket: int
    candidate: str
    stage: str
    reason: str
    before: float | None = None
    after: float | None = None

    def describe(self) -> str:
        """In words."""
        what = f"candidate {self.candidate}" if self.candidate else f"ticket {self.ticket}"
        return f"{what} rejected ({self.stage}): {self.reason}"


@dataclass(frozen=True, slots=True)
class Accepted:
    """A candidate joined the pool; ``score`` is its mean over the validation examples."""

    kind: ClassVar[str] = "accepted"
    ticket: int
    candidate: str
    score: float

    def describe(self) -> str:
        """In words."""
        return f"candidate {self.candidate} accepted with {self.score:.3f}"


@dataclass(frozen=True, slots=True)
class NewBest:
    """A candidate is better than all others; ``before`` is the best score until now."""

    kind: ClassVar[str] = "new_best"
    ticket: int
    candidate: str
    score: float
    before: float

    def describe(self) -> str:
        """In words."""
        return f"new best: candidate {self.candidate}, {self.before:.3f} -> {self.score:.3f}"


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One example was run, such as ``train 3`` or ``val 0``. Comes as it happens, and is not in the events table."""

    kind: ClassVar[str] = "evaluated"
    candidate: str
    example: str
    score: float
    error: str | None = None

    def describe(self) -> str:
        """In words."""
        failed = f": {self.error}" if self.error else ""
        return f"candidate {self.candidate} on {self.example}: {self.score:.3f}{failed}"


@dataclass(frozen=True, slots=True)
class Ended:
    """The run is over.

    Attributes:
        why: ``steps``, ``seconds``, ``patience``, ``perfect``, ``budget``, ``stalled``, ``stopped``, ``interrupted`` or
            ``error``.
        score: of the best candidate; None if not even the seed was validated.
    """

    kind: ClassVar[str] = "ended"
    why: str
    score: float | None

    def describe(self) -> str:
        """In words."""
        return f"ended: {self.why}" + ("" if self.score is None else f", best {self.score:.3f}")


Event: TypeAlias = "Started | Chosen | Proposed | Rejected | Accepted | NewBest | Evaluated | Ended"
