"""A ticket: one unit of work, from a chosen parent to a candidate that passed its minibatch, or none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trace_core.integrations.accounting import Account
    from trace_core.optimizers.base import Optimizer
    from trace_core.optimizers.rollouts import Outcome
    from trace_core.optimizers.search.candidate import Candidate
    from trace_core.trace import Trace


#: Samples of repetition r are counted from r times this, so that r = 0 has the number of the ticket itself.
REPETITION = 1_000_000


class Seen(NamedTuple):
    """What a candidate did on a training example: the sample it was run as, its score, its trace where that is kept."""

    sample: int
    score: float
    trace: Trace | None


@dataclass(slots=True)
class Ticket:
    """What was chosen. Everything the work on it depends on is here, so it can be done anywhere, and again.

    Attributes:
        number: counted from 1.
        parents: one, or the two that are merged.
        batch: index of an example -> the sample it is run as: ``number`` for a new run, else that of an earlier one.
            Training examples; for a merge, validation examples.
        seen: by index, outcomes of earlier tickets that are used again.
        fork: the optimizer at work on it.
        state: of the fork as it was chosen; None for an optimizer that works on one ticket at a time.
        worst: evaluations it may take at most.
        merged: the values, for a merge.
        contrast: other candidates, each with what it did on a training example, to be shown beside the minibatch.
        known: how many members the pool had: a candidate that equals one of these is none.
        gated: whether the candidate is run on the minibatch at all.
        started: whether the work has begun.
        accounts: of the calls made for it, where a run or a budget is in force.
    """

    number: int
    parents: tuple[Candidate, ...]
    batch: dict[int, int]
    seen: dict[int, Seen] = field(default_factory=dict)
    fork: Optimizer | None = None
    state: Mapping[str, Any] | None = None
    worst: int = 0
    merged: Mapping[str, Any] | None = None
    contrast: list[tuple[Candidate, int, Seen]] = field(default_factory=list)
    known: int = 0
    gated: bool = True
    started: bool = False
    accounts: list[Account] = field(default_factory=list)


@dataclass(slots=True)
class Attempt:
    """One candidate of a ticket, as far as the ticket's own work goes.

    Attributes:
        stage: where it was rejected: ``empty``, ``guard``, ``gate``; "" if it passed.
        candidate: None for a proposal without values.
        failure: the error, if it failed on every example.
        outcomes: on the minibatch, by index of the example, repetitions one after the other.
    """

    candidate: Candidate | None
    stage: str
    why: str
    before: float | None = None
    after: float | None = None
    error: Any = None
    failure: str = ""
    outcomes: dict[int, list[Outcome]] = field(default_factory=dict)


@dataclass(slots=True)
class Work:
    """What came of a ticket.

    Attributes:
        ticket: which.
        outcomes: of the parent on the minibatch, new ones only.
        attempts: in order of proposing; only the last can have passed.
        failures: texts of the errors of outputs, in order.
        spent: evaluations.
        error: what ended the work early.
    """

    ticket: Ticket
    outcomes: dict[int, list[Outcome]] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    spent: int = 0
    error: BaseException | None = None
