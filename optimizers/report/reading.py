"""What a page shows of a run, read from its ledger and from nothing else."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from trace_core.optimizers.report.text import clean, environment_secrets

if TYPE_CHECKING:
    from trace_core.integrations.budget import Cost
    from trace_core.integrations.store import CandidateRow, EvaluationRow, Run, RunRow

KEPT = ("start", "accepted", "merged")
_DROPPED = ("rejected", "empty")
_NUMBER = re.compile(r"(.*?)(\d+)\Z", re.DOTALL)


class Candidate(NamedTuple):
    """A candidate with what became of it.

    Attributes:
        number: place in the order of making; ``id`` and ``parents`` as in the ledger.
        ticket: the step in which it was made.
        status: ``start``, ``accepted``, ``merged``, ``rejected``, ``empty``, or what it was when the run was cut off.
        stage: where it was rejected: guard, gate, validation, empty, error; empty for one that was not.
        score: mean on the validation examples; None if it did not get there.
        before, after: means of parent and candidate on the minibatch.
        reason: the optimizer's words; ``note`` why it was kept or rejected.
        values: of all parameters; ``changed`` names those that differ from the first parent's.
        detail: the rest.
    """

    number: int
    id: str
    ticket: int
    parents: tuple[str, ...]
    status: str
    stage: str
    score: float | None
    before: float | None
    after: float | None
    reason: str
    note: str
    values: dict[str, Any]
    changed: tuple[str, ...]
    detail: dict[str, Any]

    @property
    def kept(self) -> bool:
        """Whether it got into the pool."""
        return self.status in KEPT


class Spent(NamedTuple):
    """What the run had spent when a candidate was decided; tokens and dollars None where they are not known."""

    calls: int
    tokens: float | None
    usd: float | None


@dataclass
class RunData:
    """Everything on the page.

    Attributes:
        row: the run's own row.
        candidates: in order of making; ``by_id`` the same by their ids.
        best: id of the best.
        examples: names of the validation examples.
        scores: candidate id -> validation example -> mean score.
        objectives: candidate id -> objective -> mean over the validation examples, where there are several.
        said: (candidate id, example) -> feedback or error text; ``failed`` those that are errors.
        spent: candidate id -> what was spent until then.
        costs: role -> what it took in all.
        failures: first line of an error -> how many outputs failed with it.
        trace: stored trace of the best candidate, with the example's name; None if none was kept.
        layers: what the sandbox reported, if it was recorded.
    """

    row: RunRow
    candidates: list[Candidate]
    best: str
    examples: list[str] = field(default_factory=list)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    objectives: dict[str, dict[str, float]] = field(default_factory=dict)
    said: dict[tuple[str, str], str] = field(default_factory=dict)
    failed: set[tuple[str, str]] = field(default_factory=set)
    spent: dict[str, Spent] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    trace: tuple[str, str, dict[str, Any]] | None = None
    layers: Any = None

    def __post_init__(self) -> None:
        self.by_id = {candidate.id: candidate for candidate in self.candidates}

    @property
    def pool(self) -> list[Candidate]:
        """The candidates that were kept."""
        return [candidate for candidate in self.candidates if candidate.kept]

    def winners(self) -> dict[str, tuple[int, int]]:
        """Kept candidate -> (validation examples on which none is better, those on which it alone is best)."""
        pool = [(c.id, self.scores[c.id]) for c in self.pool if c.id in self.scores]
        counts = {cid: [0, 0] for cid, _ in pool}
        for example in self.examples:
            seen = [(scores[example], cid) for cid, scores in pool if example in scores]
            top = max((score for score, _ in seen), default=0.0)
            best = [cid for score, cid in seen if score == top]
            for cid in best:
                counts[cid][0] += 1
                counts[cid][1] += len(best) == 1
        return {cid: (first, alone) for cid, (first, alone) in counts.items() if first}


def read_run(run: Run) -> RunData:
    """Read it all. Secrets that the environment holds are masked in every text."""
    secrets = environment_secrets()
    row = run.row()
    rows = [type(found)._make(clean(tuple(found), secrets)) for found in run.candidates()]
    evaluations = run.evaluations()
    kind = _validation_kind(evaluations)
    data = RunData(row._replace(**{n: clean(getattr(row, n), secrets) for n in ("name", "error", "fingerprint")}), [], "")
    train: dict[str, set[str]] = {}
    sums: dict[str, dict[str, list[float]]] = {}
    parts: dict[str, dict[str, list[float]]] = {}
    names: set[str] = set()
    for item in evaluations:
        if item.error is not None:
            data.failures[clean((item.error.splitlines() or [""])[0], secrets)] += 1
        if _kind(item.example) != kind:
            train.setdefault(item.candidate, set()).add(item.example)
            continue
        names.add(item.example)
        sums.setdefault(item.candidate, {}).setdefault(item.example, []).append(item.score)
        text = item.error if item.error is not None else item.feedback
        if text:
            data.said[item.candidate, item.example] = clean(text, secrets)
        if item.error is not None:
            data.failed.add((item.candidate, item.example))
        for name, score in (item.scores or {}).items():
            parts.setdefault(item.candidate, {}).setdefault(name, []).append(score)
    data.examples = sorted(names, key=_natural)
    data.scores = {cid: {e: sum(s) / len(s) for e, s in of.items()} for cid, of in sums.items()}
    data.objectives = {
        cid: {name: sum(scores) / len(scores) for name, scores in of.items()} for cid, of in parts.items()
    }
    steps = run.ledger.query("SELECT step, score, made FROM steps WHERE run = ? ORDER BY step", (run.id,))
    start = steps[0][1] if steps else None
    data.candidates = _candidates(rows, data.scores, train, start)
    data.__post_init__()
    data.best = row.best if row.best in data.by_id else (data.candidates[0].id if data.candidates else "")
    data.costs = run.spent()
    _spending(run, data, train, {step: made for step, _, made in steps})
    for event in run.events():
        if event.kind == "trace" and (data.trace is None or data.trace[0] != data.best):
            found = clean(event.data, secrets)
            data.trace = str(found.get("candidate", "")), str(found.get("example", "")), found.get("trace", {})
        elif event.kind == "sandbox":
            data.layers = clean(event.data, secrets)
    if data.layers is None:
        data.layers = clean(row.config.get("sandbox"), secrets)
    return data


def _kind(example: str) -> str:
    return example.rpartition(" ")[0]


def _natural(name: str) -> tuple[str, int, str]:
    found = _NUMBER.fullmatch(name)
    return (found[1], int(found[2]), name) if found else (name, -1, name)


def _validation_kind(evaluations: list[EvaluationRow]) -> str:
    """The first word of the names of validation examples; a run without any is judged by its training examples."""
    kinds = {_kind(item.example) for item in evaluations}
    return next((kind for kind in ("validation", "val") if kind in kinds), "train")


def _candidates(
    rows: list[CandidateRow], scores: dict[str, dict[str, float]], train: dict[str, set[str]], start: float | None
) -> list[Candidate]:
    made: dict[str, Candidate] = {}
    for number, row in enumerate(rows):
        detail = row.detail
        inherited = made[row.parents[0]].values if row.parents and row.parents[0] in made else {}
        changed = detail.get("changed")
        if changed is None:
            changed = [name for name, value in row.values.items() if not _same(inherited, name, value)]
        validated = row.id in scores
        score, after = row.score, detail.get("after")
        if score is not None and row.status not in KEPT and not validated:  # of its minibatch
            score, after = None, after if after is not None else score
        if row.status == "start" and score is None:
            score = start
        stage = "" if row.status in KEPT else str(detail.get("stage") or _stage(row, validated, row.id in train))
        made[row.id] = Candidate(
            number=number,
            id=row.id,
            ticket=row.step,
            parents=row.parents,
            status=row.status,
            stage=stage,
            score=score,
            before=detail.get("before"),
            after=after,
            reason=row.reason,
            note=str(detail.get("note", "")),
            values={**inherited, **row.values},
            changed=tuple(changed) if row.status != "start" else (),
            detail=detail,
        )
    return list(made.values())


def _same(inherited: dict[str, Any], name: str, value: Any) -> bool:
    from trace_core.values import same_value

    return name in inherited and same_value(inherited[name], value)


def _stage(row: CandidateRow, validated: bool, tried: bool) -> str:
    if row.status not in _DROPPED:
        return "unfinished"
    if validated:
        return "validation"
    if tried:
        return "gate"
    return "guard" if row.values and row.status != "empty" else "empty"


def _spending(run: Run, data: RunData, train: dict[str, set[str]], made: dict[int, float]) -> None:
    """What was spent until each candidate was decided.

    Evaluations have no time of their own in a ledger: a minibatch is counted with the candidate for which it was run.
    """
    calls = run.ledger.query(
        "SELECT coalesce(ended, began), coalesce(tokens, estimate_tokens), usd FROM calls WHERE run = ? ORDER BY 1",
        (run.id,),
    )
    priced = bool(calls) and all(usd is not None for _, _, usd in calls) and any(usd for _, _, usd in calls)
    ends = sorted(made.items())
    tokens_at: dict[int, tuple[int, float]] = {}
    tokens, usd, place = 0, 0.0, 0
    for step, when in ends:
        while place < len(calls) and calls[place][0] <= when:
            tokens, usd, place = tokens + calls[place][1], usd + (calls[place][2] or 0.0), place + 1
        tokens_at[step] = tokens, usd
    seen: dict[str, set[str]] = {}
    total = 0
    for candidate in data.candidates:
        asked = [(candidate.id, train.get(candidate.id, set()))]
        batch = candidate.detail.get("minibatch")
        if batch is not None:
            names = {name if isinstance(name, str) else f"train {name}" for name in batch}
            asked = [(cid, names & train.get(cid, set())) for cid in (*candidate.parents[:1], candidate.id)]
        for cid, examples in asked:
            known = seen.setdefault(cid, set())
            total += len(examples - known)
            known |= examples
        total += len(data.scores.get(candidate.id, ()))
        at = tokens_at.get(candidate.ticket, (tokens, usd) if tokens_at else None)
        known_tokens = at is not None and bool(calls)
        data.spent[candidate.id] = Spent(
            total, at[0] if at and known_tokens else None, at[1] if at and known_tokens and priced else None
        )
