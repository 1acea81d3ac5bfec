"""What a page shows of a run, read from its ledger and from nothing else."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from trace_core.optimizers.report.text import clean, environment_secrets
from trace_core.optimizers.search.pareto import Fronts
from trace_core.optimizers.search.ticket import REPETITION

if TYPE_CHECKING:
    from trace_core.integrations.budget import Cost
    from trace_core.integrations.llm.secrets import Secret
    from trace_core.integrations.store import CandidateRow, EvaluationRow, Run, RunRow

KEPT = ("start", "accepted", "merged")
_DROPPED = ("rejected", "empty")
_TEST = ("test", "held-out")
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
        tests: candidate id -> mean on the test examples, where they were run.
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
    tests: dict[str, float] = field(default_factory=dict)
    said: dict[tuple[str, str], str] = field(default_factory=dict)
    failed: set[tuple[str, str]] = field(default_factory=set)
    spent: dict[str, Spent] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    trace: tuple[str, str, dict[str, Any]] | None = None
    layers: Any = None
    by_id: dict[str, Candidate] = field(default_factory=dict)

    @property
    def pool(self) -> list[Candidate]:
        """The candidates that were kept."""
        return [candidate for candidate in self.candidates if candidate.kept]

    def winners(self) -> dict[str, tuple[int, int]]:
        """Candidate on the Pareto front -> (validation examples where none is better, those where it alone is best).

        Whose examples are all won by others as well is not on the front; see ``Fronts``.
        """
        pool = [candidate.id for candidate in self.pool if candidate.id in self.scores]
        place = {example: number for number, example in enumerate(self.examples)}
        fronts = Fronts()
        for cid in pool:
            fronts.add({place[example]: score for example, score in self.scores[cid].items()})
        best = [fronts.front(number) for number in place.values()]
        alone = Counter(front[0] for front in best if len(front) == 1)
        return {pool[number]: (first, alone[number]) for number, first in fronts.weights().items()}


def read_run(run: Run) -> RunData:
    """Read it all. Secrets that the environment holds are masked in every text."""
    secrets = environment_secrets()
    row = run.row()
    row = row._replace(**{name: clean(getattr(row, name), secrets) for name in ("name", "error", "fingerprint")})
    rows = [type(found)._make(clean(tuple(found), secrets)) for found in run.candidates()]
    events = run.events()
    data = RunData(row, [], "")
    found = _Evaluations(run.evaluations(), data, secrets)
    steps = run.ledger.query("SELECT step, score, made FROM steps WHERE run = ? ORDER BY step", (run.id,))
    made = _candidates(rows, data.scores, found.tried, steps[0][1] if steps else None)
    parents = {event.step: tuple(event.data.get("parents", ())) for event in events if event.kind == "chosen"}
    made += [
        _nothing(event.step, parents.get(event.step, ()), clean(event.data, secrets))
        for event in events
        if event.kind == "rejected" and event.data.get("candidate") == ""
    ]
    made.sort(key=lambda candidate: candidate.ticket)  # stable: within a ticket as it was
    data.candidates = [candidate._replace(number=number) for number, candidate in enumerate(made)]
    data.by_id = {candidate.id: candidate for candidate in data.candidates}
    data.best = row.best if row.best in data.by_id else next((c.id for c in data.candidates if c.kept), "")
    data.costs = run.spent()
    _spending(run, data, found.on_tickets, [(step, when) for step, _, when in steps])
    for event in events:
        if event.kind == "trace" and (data.trace is None or data.trace[0] != data.best):
            kept = clean(event.data, secrets)
            data.trace = str(kept.get("candidate", "")), str(kept.get("example", "")), kept.get("trace", {})
        elif event.kind == "sandbox":
            data.layers = clean(event.data, secrets)
    if data.layers is None:
        data.layers = clean(row.config.get("sandbox"), secrets)
    return data


class _Evaluations:
    """Sorts a run's evaluations into ``data``.

    Attributes:
        tried: candidates with evaluations on training examples.
        on_tickets: ticket -> evaluations of training examples for it; candidate -> of validation examples.
    """

    def __init__(self, rows: list[EvaluationRow], data: RunData, secrets: list[Secret]) -> None:
        kinds = {_kind(row.example) for row in rows}
        validation = next((kind for kind in ("validation", "val") if kind in kinds), "train")
        self.tried: set[str] = set()
        self.on_tickets: Counter[int | str] = Counter()
        scores: dict[str, dict[str, list[float]]] = {}
        parts: dict[str, dict[str, list[float]]] = {}
        tests: dict[str, list[float]] = {}
        names: set[str] = set()
        for row in rows:
            kind = _kind(row.example)
            if row.error is not None:
                data.failures[clean((row.error.splitlines() or [""])[0], secrets)] += 1
            if kind in _TEST:
                tests.setdefault(row.candidate, []).append(row.score)
                continue
            self.on_tickets[row.candidate if kind == validation else row.sample % REPETITION] += 1
            if kind != validation:
                self.tried.add(row.candidate)
                continue
            names.add(row.example)
            scores.setdefault(row.candidate, {}).setdefault(row.example, []).append(row.score)
            text = row.feedback if row.error is None else row.error
            if text:
                data.said[row.candidate, row.example] = clean(text, secrets)
            if row.error is not None:
                data.failed.add((row.candidate, row.example))
            for name, score in (row.scores or {}).items():
                parts.setdefault(row.candidate, {}).setdefault(name, []).append(score)
        data.examples = sorted(names, key=_natural)
        data.scores = {cid: {e: _mean(s) for e, s in of.items()} for cid, of in scores.items()}
        data.objectives = {cid: {name: _mean(s) for name, s in of.items()} for cid, of in parts.items()}
        data.tests = {cid: _mean(s) for cid, s in tests.items()}


def _mean(scores: list[float]) -> float:
    return sum(scores) / len(scores)


def _kind(example: str) -> str:
    return example.rpartition(" ")[0]


def _natural(name: str) -> tuple[str, int, str]:
    found = _NUMBER.fullmatch(name)
    return (found[1], int(found[2]), name) if found else (name, -1, name)


def _candidates(
    rows: list[CandidateRow], scores: dict[str, dict[str, float]], tried: set[str], start: float | None
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
        stage = "" if row.status in KEPT else str(detail.get("stage") or _stage(row, validated, row.id in tried))
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


def _nothing(ticket: int, parents: tuple[str, ...], data: dict[str, Any]) -> Candidate:
    """Stands for a ticket without a usable proposal."""
    note = str(data.get("reason", ""))
    stage = str(data.get("stage") or "empty")
    name = f"ticket {ticket}"
    return Candidate(0, name, ticket, parents, "empty", stage, None, data.get("before"), None, "", note, {}, (), {})


def _spending(run: Run, data: RunData, evaluated: Counter[int | str], made: list[tuple[int, float]]) -> None:
    """What was spent until each ticket was decided: evaluations by their tickets, calls by the clock."""
    calls = run.ledger.query(
        "SELECT coalesce(ended, began), coalesce(tokens, estimate_tokens), usd FROM calls WHERE run = ? ORDER BY 1",
        (run.id,),
    )
    priced = bool(calls) and all(usd is not None for _, _, usd in calls)
    paid: dict[int, tuple[float, float]] = {}
    tokens, usd, place = 0.0, 0.0, 0
    for step, when in made:
        while place < len(calls) and calls[place][0] <= when:
            tokens, usd, place = tokens + calls[place][1], usd + (calls[place][2] or 0.0), place + 1
        paid[step] = tokens, usd
    per_ticket = Counter({key: count for key, count in evaluated.items() if isinstance(key, int)})
    for candidate in data.candidates:
        per_ticket[candidate.ticket] += evaluated[candidate.id]
    running, total = {}, 0
    for ticket in sorted(per_ticket):
        total += per_ticket[ticket]
        running[ticket] = total
    for candidate in data.candidates:
        at = paid.get(candidate.ticket) if calls else None
        data.spent[candidate.id] = Spent(
            running.get(candidate.ticket, 0), at[0] if at else None, at[1] if at and priced else None
        )
