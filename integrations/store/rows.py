"""The rows of a run as values."""

from __future__ import annotations

from typing import Any, NamedTuple


class RunRow(NamedTuple):
    """A run as the ledger knows it.

    Attributes:
        id, name: of the run.
        status: one of STATUSES.
        started, updated: seconds since 1970.
        seconds: of work, over all its parts.
        fingerprint: what it ran, part by part.
        config: what its maker wrote down to start it again.
        parent: the run it was forked from; None for none.
        stopped: why it ended; ``error`` what ended it.
        best: id of the best candidate, ``score`` its score.
    """

    id: str
    name: str
    status: str
    started: float
    updated: float
    seconds: float
    fingerprint: dict[str, str]
    config: dict[str, Any]
    parent: str | None
    stopped: str | None
    error: str | None
    best: str | None
    score: float | None


class StepRow(NamedTuple):
    """The state after a step.

    Attributes:
        step: its number; 0 is the state before the first.
        score: the best score then.
        values: parameter name -> value.
        state: what its maker needs to go on; None for all but the last step.
    """

    step: int
    score: float | None
    values: dict[str, Any]
    state: Any


class CandidateRow(NamedTuple):
    """A candidate: values, where they came from, what became of them.

    Attributes:
        id: within the run.
        step: in which it was made.
        parents: ids.
        status: such as ``accepted`` or ``rejected``.
        score: on the validation examples, if it got so far.
        reason: why it was proposed, in the optimizer's words.
        detail: plain data more: tokens, dropped values, why it was rejected.
        values: parameter name -> value, of those it changes.
    """

    id: str
    step: int
    parents: tuple[str, ...]
    status: str
    score: float | None
    reason: str
    detail: dict[str, Any]
    values: dict[str, Any]


class EvaluationRow(NamedTuple):
    """One example under one candidate.

    Attributes:
        candidate, example: ids; ``sample`` tells repetitions apart.
        score: higher is better; ``scores`` of several objectives.
        feedback: in words.
        error: text of the error that the output was; None for none.
    """

    candidate: str
    example: str
    sample: int
    score: float
    scores: dict[str, float] | None = None
    feedback: str = ""
    error: str | None = None


class EventRow(NamedTuple):
    """Something that happened: ``number`` counts within a step, ``data`` is plain data."""

    step: int
    number: int
    kind: str
    data: dict[str, Any]
