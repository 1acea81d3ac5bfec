"""A candidate: values for all parameters, where they came from, how they did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core._codec import encode
from trace_core._values import is_tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from trace_core.integrations.store import EvaluationRow
    from trace_core.node import Node
    from trace_core.optimizers.base import Proposal
    from trace_core.optimizers.rollouts import Outcome
    from trace_core.parameter import Parameter

SEED = "0"
"""Id of the candidate that a study begins with."""


class Candidate:
    """Values for all parameters, and what became of them.

    Attributes:
        id: ``0`` for the seed, ``t.j`` for proposal j of ticket t, ``t.m`` for a merge.
        parents: ids.
        ticket: in which it was made; 0 for the seed.
        values: parameter name -> value, of every parameter.
        changed: names whose value differs from the first parent's.
        scores: index of a validation example -> score, of those it was validated on.
        status: ``start``, ``accepted``, ``merged`` (accepted, too), ``rejected`` or ``proposed`` (not decided yet).
        note: why that is, in words.
        reason: why it was proposed, in the optimizer's words.
        detail: plain data more: stage, scores at the gate, prompt, tokens, cost.
        errors: texts of the errors it had on validation examples.
    """

    __slots__ = (
        "_objectives",
        "_total",
        "_versions",
        "changed",
        "detail",
        "errors",
        "id",
        "note",
        "parents",
        "proposal",
        "reason",
        "scores",
        "status",
        "ticket",
        "values",
    )

    def __init__(
        self,
        id: str,
        values: Mapping[str, Any],
        *,
        parents: Sequence[str] = (),
        ticket: int = 0,
        changed: Sequence[str] = (),
        status: str = "proposed",
        reason: str = "",
        note: str = "",
        detail: Mapping[str, Any] | None = None,
        proposal: Proposal | None = None,
    ) -> None:
        self.id, self.values, self.parents, self.ticket = id, dict(values), tuple(parents), ticket
        self.changed, self.status, self.reason, self.note = tuple(changed), status, reason, note
        self.detail: dict[str, Any] = dict(detail or {})
        self.proposal = proposal
        self.scores: dict[int, float] = {}
        self.errors: list[str] = []
        self._total = 0.0
        self._objectives: dict[str, list[float]] = {}
        self._versions: dict[Parameter, Node] | None = None

    @property
    def score(self) -> float | None:
        """Mean over the validation examples it was run on; None if there are none."""
        return self._total / len(self.scores) if self.scores else None

    @property
    def in_pool(self) -> bool:
        """Whether it can be a parent."""
        return self.status in ("start", "accepted", "merged")

    def add_scores(self, scores: Mapping[int, float]) -> None:
        """Note scores on validation examples."""
        self.scores.update(scores)
        self._total = sum(self.scores.values())

    def note_outcomes(self, outcomes: Iterable[Outcome | EvaluationRow]) -> None:
        """Note objectives and errors of outcomes on validation examples."""
        for outcome in outcomes:
            if outcome.error is not None:
                self.errors.append(outcome.error)
            for name, score in (outcome.scores or {}).items():
                self._objectives.setdefault(name, []).append(score)

    @property
    def objectives(self) -> dict[str, float]:
        """Objective -> mean over the validation examples, where the metric gives several."""
        return {name: sum(scores) / len(scores) for name, scores in self._objectives.items()}

    def versions(self, names: Mapping[Parameter, str]) -> dict[Parameter, Node]:
        """parameter -> the version that holds the value, for ``using``. Made once, so that code compiles once."""
        if self._versions is None:
            self._versions = {p: p._candidate(_learning(p, self.values[name])) for p, name in names.items()}
        return self._versions

    def let_go(self) -> None:
        """Drop the copies of tensors that ``versions`` has made; they are made again if they are asked for."""
        if any(map(is_tensor, self.values.values())):
            self._versions = None

    def _repr_html_(self) -> str:
        from trace_core.optimizers.report.notebook import candidate_html

        return candidate_html(self)

    def __repr__(self) -> str:
        score = "" if self.score is None else f", {self.score:.3f}"
        return f"Candidate({self.id}: {self.status}{score})"


def first_values(names: Mapping[Parameter, str]) -> dict[str, Any]:
    """What the parameters hold, apart from them: tensors are copied, since optimizers change theirs in place."""
    found = {name: parameter.value for parameter, name in names.items()}
    return {name: value.detach().clone() if is_tensor(value) else value for name, value in found.items()}


def _learning(parameter: Parameter, value: Any) -> Any:
    """The value as a candidate: of a tensor that is learned, a leaf that gradients reach."""
    learned = is_tensor(value) and getattr(getattr(parameter, "tensor", None), "requires_grad", False)
    return value.detach().clone().requires_grad_(True) if learned else value


def facts(proposal: Proposal) -> dict[str, Any]:
    """What a proposal says of its making, as plain data."""
    return {
        "attempts": proposal.attempts,
        "prompt_tokens": proposal.prompt_tokens,
        "completion_tokens": proposal.completion_tokens,
        "cost": proposal.cost,
        "prompt": proposal.prompt,
        "dropped": [[item.name, encode(item.value), item.reason] for item in proposal.dropped],
    }
