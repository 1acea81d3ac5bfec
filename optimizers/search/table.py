"""Candidates as rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core._lazy import require

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trace_core.optimizers.search.candidate import Candidate

_FACTS = ("stage", "before", "after", "prompt_tokens", "completion_tokens", "cost")


def records(candidates: Iterable[Candidate]) -> list[dict[str, Any]]:
    """One dict for each candidate, in order; parameters as ``value.NAME``."""
    rows = []
    for candidate in candidates:
        row: dict[str, Any] = {
            "id": candidate.id,
            "ticket": candidate.ticket,
            "parents": candidate.parents,
            "status": candidate.status,
            "score": candidate.score,
            "validated": len(candidate.scores),
            "changed": candidate.changed,
            "note": candidate.note,
            "reason": candidate.reason,
        }
        row |= {fact: candidate.detail.get(fact) for fact in _FACTS}
        row |= {f"objective.{name}": score for name, score in candidate.objectives.items()}
        row |= {f"value.{name}": value for name, value in candidate.values.items()}
        rows.append(row)
    return rows


def to_dataframe(candidates: Iterable[Candidate]) -> Any:
    """The records as a pandas DataFrame, indexed by id. Raises MissingExtra without pandas."""
    pandas = require("pandas", extra="pandas")
    return pandas.DataFrame(records(candidates)).set_index("id")
