"""One run in a ledger: its candidates, evaluations, steps and events, under keys that a repetition hits again."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

from trace_core.integrations.store.errors import Drift, StoreError
from trace_core.integrations.store.packing import pack, unpack
from trace_core.integrations.store.rows import CandidateRow, EvaluationRow, EventRow, RunRow, StepRow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from trace_core.integrations.budget import Cost
    from trace_core.integrations.store.ledger import Ledger

#: ``running`` also stands for a run whose process was killed: nobody could write anything else.
STATUSES = ("running", "done", "interrupted", "failed")


_RUN = "id, name, status, started, updated, seconds, fingerprint, config, parent, stopped, error, best, score"


class Run:
    """Reads and writes the rows of one run. Writing a key again replaces its row, so a repeated step changes nothing.

    Attributes:
        ledger: the file.
        id: of this run.
    """

    def __init__(self, ledger: Ledger, run: str) -> None:
        self.ledger, self.id = ledger, run

    @classmethod
    def create(
        cls, ledger: Ledger, name: str, fingerprint: Mapping[str, str], config: Mapping[str, Any], parent: str = ""
    ) -> Run:
        """See Ledger.new_run."""
        stem = re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-") or "run"
        now = time.time()
        with ledger.transaction():
            taken = {row[0] for row in ledger.query("SELECT id FROM runs")}
            number = 1
            while f"{stem}-{number}" in taken:
                number += 1
            run = f"{stem}-{number}"
            ledger.write(
                "INSERT INTO runs (id, name, status, started, updated, fingerprint, config, parent) "
                "VALUES (?, ?, 'running', ?, ?, ?, ?, ?)",
                (run, name, now, now, _json(dict(fingerprint)), _json(dict(config)), parent or None),
            )
        return cls(ledger, run)

    @classmethod
    def resume(cls, ledger: Ledger, run: str, fingerprint: Mapping[str, str], on_drift: str = "refuse") -> Run:
        """The run, to go on with.

        Args:
            ledger: open for writing.
            run: its id, or the beginning of it.
            fingerprint: of what is there now.
            on_drift: ``refuse`` raises Drift where the fingerprints differ; ``fork`` makes a new run then, that goes on
                from the last step under what is there now and leaves the old one as it is.
        """
        if on_drift not in ("refuse", "fork"):
            raise StoreError(f"on_drift must be 'refuse' or 'fork', got {on_drift!r}")
        old = cls(ledger, ledger.find_run(run))
        row = old.row()
        parts = sorted(row.fingerprint.keys() | fingerprint.keys())
        changes = {
            part: (row.fingerprint.get(part, "nothing"), fingerprint.get(part, "nothing"))
            for part in parts
            if row.fingerprint.get(part) != fingerprint.get(part)
        }
        if not changes:
            ledger.write(
                "UPDATE runs SET status = 'running', stopped = NULL, error = NULL, updated = ? WHERE id = ?",
                (time.time(), old.id),
            )
            return old
        if on_drift == "refuse":
            what = "; ".join(f"{part}: {then} then, {now} now" for part, (then, now) in changes.items())
            raise Drift(
                f"the run {old.id} cannot go on as it was, because what it ran has changed ({what}): undo the change, "
                "or fork the run, which makes a new one that goes on from its last step",
                changes,
            )
        new = cls.create(ledger, row.name, fingerprint, row.config, old.id)
        last = ledger.query("SELECT max(step) FROM steps WHERE run = ?", (old.id,))[0][0]
        with ledger.transaction():
            for table, columns in _COPIED.items():
                rows = f"SELECT ?, {columns} FROM {table} WHERE run = ? AND step <= ?"
                ledger.write(
                    f"INSERT INTO {table} (run, {columns}) {rows}", (new.id, old.id, -1 if last is None else last)
                )
            ledger.write("UPDATE runs SET best = ?, score = ? WHERE id = ?", (row.best, row.score, new.id))
        return new

    # ---- the run as a whole

    def row(self) -> RunRow:
        """What the ledger knows of it."""
        rows = self.ledger.query(f"SELECT {_RUN} FROM runs WHERE id = ?", (self.id,))
        if not rows:
            raise StoreError(f"{self.ledger.path} has no run {self.id!r} any more")
        return _run_row(rows[0])

    def best(self, candidate: str, score: float) -> None:
        """Note the best candidate so far."""
        self.ledger.write(
            "UPDATE runs SET best = ?, score = ?, updated = ? WHERE id = ?", (candidate, score, time.time(), self.id)
        )

    def end(self, status: str, *, stopped: str, error: str | None = None) -> None:
        """Note how the run, or this part of it, ended. Raises StoreError for a status that is none."""
        if status not in STATUSES:
            raise StoreError(f"status must be one of {', '.join(STATUSES)}, got {status!r}")
        self.ledger.write(
            "UPDATE runs SET status = ?, stopped = ?, error = ?, updated = ? WHERE id = ?",
            (status, stopped, error, time.time(), self.id),
        )

    def spent(self) -> dict[str, Cost]:
        """See Ledger.spent."""
        return self.ledger.spent(self.id)

    # ---- steps

    def save_step(
        self, step: int, score: float | None, values: Mapping[str, Any], state: Any, *, seconds: float = 0.0
    ) -> None:
        """Commit the state after a step. Of earlier steps only values and scores are kept.

        Args:
            step: its number.
            score: the best so far; None before there is one.
            values: parameter name -> value now.
            state: plain data and arrays from which the next step goes on: RNG, queues, optimizer state.
            seconds: of work so far, over all parts of the run.

        Raises StateError naming what cannot be kept.
        """
        packed, value_arrays = pack(dict(values), "the values of a step")
        text, arrays = pack(state, "the state of a step")
        with self.ledger.transaction():
            self.ledger.write(
                'INSERT OR REPLACE INTO steps (run, step, score, "values", value_arrays, state, arrays, made) '
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (self.id, step, score, packed, value_arrays, text, arrays, time.time()),
            )
            self.ledger.write(
                "UPDATE steps SET state = NULL, arrays = NULL WHERE run = ? AND step = ?", (self.id, step - 1)
            )
            self.ledger.write("UPDATE runs SET updated = ?, seconds = ? WHERE id = ?", (time.time(), seconds, self.id))

    def trim(self, step: int, events: int, candidates: int) -> None:
        """Drop what an earlier, unfinished try of a step has written beyond what its repetition did."""
        self.ledger.write(
            "DELETE FROM events WHERE run = ? AND (step > ? OR (step = ? AND number >= ?))",
            (self.id, step, step, events),
        )
        keep = [f"{step}.{number}" for number in range(candidates)]
        self.ledger.write(
            f"DELETE FROM candidates WHERE run = ? AND step >= ? AND id NOT IN ({','.join('?' * len(keep))})",
            (self.id, max(1, step), *keep),
        )

    def forget_events(self, step: int) -> None:
        """Drop the events of steps after ``step``."""
        self.ledger.write("DELETE FROM events WHERE run = ? AND step > ?", (self.id, step))

    def last_step(self) -> StepRow | None:
        """The last committed step; None before the first."""
        rows = self.ledger.query(
            'SELECT step, score, "values", value_arrays, state, arrays FROM steps WHERE run = ? '
            "ORDER BY step DESC LIMIT 1",
            (self.id,),
        )
        if not rows:
            return None
        step, score, values, value_arrays, state, arrays = rows[0]
        return StepRow(int(step), score, unpack(values, value_arrays), unpack(state, arrays))

    def steps(self) -> Iterator[StepRow]:
        """Every step, without its state."""
        for step, score, values, arrays in self.ledger.query(
            'SELECT step, score, "values", value_arrays FROM steps WHERE run = ? ORDER BY step', (self.id,)
        ):
            yield StepRow(int(step), score, unpack(values, arrays), None)

    # ---- candidates and evaluations

    def put_candidate(self, candidate: CandidateRow) -> None:
        """Write a candidate, in place of an earlier state of it. If the values differ, its evaluations go."""
        values, arrays = pack(candidate.values, f"candidate {candidate.id}")
        place = (self.id, candidate.id)
        with self.ledger.transaction():
            known = self.ledger.query('SELECT "values", arrays FROM candidates WHERE run = ? AND id = ?', place)
            if known and known[0] != (values, arrays):
                self.ledger.write("DELETE FROM evaluations WHERE run = ? AND candidate = ?", place)
            self._put_candidate(candidate, values, arrays)

    def _put_candidate(self, candidate: CandidateRow, values: str, arrays: bytes | None) -> None:
        self.ledger.write(
            "INSERT OR REPLACE INTO candidates (run, id, step, parents, status, score, reason, detail, "
            '"values", arrays) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)',
            (
                self.id,
                candidate.id,
                candidate.step,
                _json(list(candidate.parents)),
                candidate.status,
                candidate.score,
                candidate.reason,
                _json(candidate.detail),
                values,
                arrays,
            ),
        )

    def candidates(self, only: str | None = None) -> list[CandidateRow]:
        """Every candidate in order of making, or the one with the id ``only``."""
        rows = self.ledger.query(
            'SELECT id, step, parents, status, score, reason, detail, "values", arrays FROM candidates '
            "WHERE run = ? AND (? IS NULL OR id = ?) ORDER BY step, rowid",
            (self.id, only, only),
        )
        return [
            CandidateRow(i, step, tuple(json.loads(p)), status, score, reason, json.loads(d), unpack(values, arrays))
            for i, step, p, status, score, reason, d, values, arrays in rows
        ]

    def put_evaluation(self, row: EvaluationRow) -> None:
        """Write the outcome of one example under one candidate."""
        scores = None if row.scores is None else _json(row.scores)
        self.ledger.write(
            f"INSERT OR REPLACE INTO evaluations (run, {_EVALUATION}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (self.id, row.candidate, row.example, row.sample, row.score, scores, row.feedback, row.error),
        )

    def evaluation(self, candidate: str, example: str, sample: int = 0) -> EvaluationRow | None:
        """The outcome, if it is known."""
        rows = self.ledger.query(
            f"SELECT {_EVALUATION} FROM evaluations WHERE run = ? AND candidate = ? AND example = ? AND sample = ?",
            (self.id, candidate, example, sample),
        )
        return _evaluation(rows[0]) if rows else None

    def evaluations(self, candidate: str | None = None) -> list[EvaluationRow]:
        """Every outcome, or those of one candidate."""
        rows = self.ledger.query(
            f"SELECT {_EVALUATION} FROM evaluations WHERE run = ? AND (? IS NULL OR candidate = ?)",
            (self.id, candidate, candidate),
        )
        return [_evaluation(row) for row in rows]

    # ---- events

    def put_event(self, event: EventRow) -> None:
        """Write an event."""
        self.ledger.write(
            "INSERT OR REPLACE INTO events (run, step, number, kind, data) VALUES (?, ?, ?, ?, ?)",
            (self.id, event.step, event.number, event.kind, _json(event.data)),
        )

    def events(self, until: int | None = None) -> list[EventRow]:
        """Events in order, up to and with those of step ``until``."""
        rows = self.ledger.query(
            "SELECT step, number, kind, data FROM events WHERE run = ? AND (? IS NULL OR step <= ?) "
            "ORDER BY step, number",
            (self.id, until, until),
        )
        return [EventRow(step, number, kind, json.loads(data)) for step, number, kind, data in rows]


#: What a fork takes over: not the evaluations, which another code might not repeat.
_COPIED = {
    "steps": 'step, score, "values", value_arrays, state, arrays, made',
    "candidates": 'id, step, parents, status, score, reason, detail, "values", arrays',
    "events": "step, number, kind, data",
}
_EVALUATION = "candidate, example, sample, score, scores, feedback, error"


def all_runs(ledger: Ledger) -> list[RunRow]:
    """Every run, in order of starting."""
    return [_run_row(row) for row in ledger.query(f"SELECT {_RUN} FROM runs ORDER BY started, rowid")]


def _run_row(row: Sequence[Any]) -> RunRow:
    return RunRow._make([*row[:6], json.loads(row[6]), json.loads(row[7]), *row[8:]])


def _evaluation(row: Sequence[Any]) -> EvaluationRow:
    scores = None if row[4] is None else json.loads(row[4])
    return EvaluationRow._make([*row[:4], scores, *row[5:]])


def _json(value: Any) -> str:
    try:
        return json.dumps(value, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise StoreError(f"the ledger keeps plain JSON data here: {error}") from error
