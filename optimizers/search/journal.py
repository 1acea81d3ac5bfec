"""A study in a ledger: candidates and evaluations are the pool; a step keeps what is small and changes."""

from __future__ import annotations

import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from trace_core.errors import StateError
from trace_core.integrations.store.rows import CandidateRow, EventRow
from trace_core.optimizers.search.acceptance import mean
from trace_core.optimizers.search.candidate import SEED, Candidate
from trace_core.optimizers.search.events import (
    Accepted,
    Chosen,
    Ended,
    NewBest,
    Proposed,
    Rejected,
    Started,
)
from trace_core.optimizers.search.ticket import REPETITION, Seen, Ticket

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trace_core.integrations.store import EvaluationRow, Run
    from trace_core.optimizers.search.driver import Driver
    from trace_core.optimizers.search.events import Event
    from trace_core.parameter import Parameter
    from trace_core.trace import Trace

_EVENTS: dict[str, Any] = {kind.kind: kind for kind in (Started, Chosen, Proposed, Rejected, Accepted, NewBest, Ended)}


class StudyJournal:
    """Writes a study into a run, under keys that a repeated ticket hits again, and takes it up from there."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._numbers: dict[int, int] = {}
        self._lock = threading.Lock()  # candidates are noted by the threads that make them

    # ---- while it goes

    def note_isolation(self, names: Mapping[Parameter, str]) -> None:
        """Write where proposed code runs and what was seen to hold it there, if there can be any."""
        from trace_core.nodes.code import isolation_of

        found = isolation_of(names)
        if found:
            self.run.note("isolation", found)

    def candidate(self, candidate: Candidate) -> None:
        """Write a candidate as it is now. Evaluations of other values under its id go."""
        detail = candidate.detail | {"note": candidate.note, "changed": list(candidate.changed)}
        with self._lock:
            self.run.put_candidate(
                CandidateRow(
                    candidate.id,
                    candidate.ticket,
                    candidate.parents,
                    candidate.status,
                    candidate.score,
                    candidate.reason,
                    detail,
                    candidate.values,
                )
            )

    def event(self, event: Event, step: int) -> None:
        """Write an event of a ticket."""
        self._put(step, event.kind, asdict(event))
        if isinstance(event, NewBest):
            self.run.best(event.candidate, event.score)
        elif isinstance(event, Started):
            self.run.best(SEED, event.score)

    def trace(self, step: int, candidate: str, example: str, trace: Trace) -> None:
        """Write the trace of a candidate on an example, for whoever wants to see it."""
        self._put(step, "trace", {"candidate": candidate, "example": example, "trace": trace.to_dict()})

    def _put(self, step: int, kind: str, data: dict[str, Any]) -> None:
        number = self._numbers.get(step, 0)
        self.run.put_event(EventRow(step, number, kind, data))
        self._numbers[step] = number + 1

    def checkpoint(self, driver: Driver) -> None:
        """Commit everything from which the next ticket is decided."""
        best = driver.pool.best
        state = {
            "spent": driver.spent,
            "idle": driver.idle,
            "improved": driver.improved,
            "merges": driver.merges,
            "merge_due": driver.merge_due,
            "failures": dict(driver.failures),
            "optimizer": driver.optimizer.state_dict(),
            "flying": [_stored(ticket) for ticket in driver.flying],
        }
        values = best.values if best is not None else {}
        score = best.score if best is not None else None
        self.run.save_step(driver.decided, score, values, state, seconds=driver.seconds)
        self._numbers = {step: number for step, number in self._numbers.items() if step >= driver.decided}

    def end(self, stopped: str, why: str) -> None:
        """Write how it ended."""
        status = {"interrupted": "interrupted", "error": "failed"}.get(stopped, "done")
        self.run.end(status, stopped=stopped, error=why or None)

    # ---- resuming

    def restore(self, driver: Driver) -> list[Event] | None:
        """Put the driver where the last step left it; the events until then. None for a run that has not begun.

        Raises StateError for damaged state and for a run that no study made, ParameterError for values that the
        parameters no longer take.
        """
        last = self.run.last_step()
        if last is None:
            return None
        if "flying" not in last.state:
            raise StateError(
                f"the run {self.run.id} was not made by a study, which cannot go on with it: start a new run"
            )
        state, decided = last.state, last.step
        driver.decided, driver.spent, driver.idle = decided, state["spent"], state["idle"]
        driver.improved, driver.merges, driver.merge_due = state["improved"], state["merges"], state["merge_due"]
        driver.failures = dict(state["failures"])
        driver.optimizer.load_state_dict(state["optimizer"])
        driver.before = self.run.row().seconds
        self._pool(driver, decided)
        driver.flying = [_taken_up(driver, ticket) for ticket in state["flying"]]
        self.forget(decided)
        events = [_event(row) for row in self.run.events() if row.kind in _EVENTS]
        chosen = [event.parents for event in events if isinstance(event, Chosen)]
        for parents in [*chosen, *(tuple(p.id for p in ticket.parents) for ticket in driver.flying)]:
            for parent in parents:
                driver.pool.chosen[parent] = driver.pool.chosen.get(parent, 0) + 1
        return events

    def forget(self, decided: int) -> None:
        """Drop what was said of tickets that are not decided: it will be said again."""
        self.run.forget_events(decided)
        self._numbers = {step: number for step, number in self._numbers.items() if step <= decided}

    def _pool(self, driver: Driver, decided: int) -> None:
        rows: dict[str, list[EvaluationRow]] = {}
        for row in self.run.evaluations():
            rows.setdefault(row.candidate, []).append(row)
        for known in self.run.candidates():
            if known.step > decided:
                continue
            detail = dict(known.detail)
            note, changed = detail.pop("note", ""), detail.pop("changed", ())
            candidate = Candidate(
                known.id,
                known.values,
                parents=known.parents,
                ticket=known.step,
                changed=changed,
                status=known.status,
                reason=known.reason,
                note=note,
                detail=detail,
            )
            mine = rows.get(known.id, [])
            validated = sorted((int(r.example[4:]), r) for r in mine if r.example.startswith("val "))
            candidate.add_scores({index: row.score for index, row in validated})
            candidate.note_outcomes(row for _, row in validated)
            if not candidate.in_pool:
                driver.pool.note(candidate)
                continue
            driver.pool.add(candidate)
            self._seen(driver, candidate, mine, decided)

    def _seen(self, driver: Driver, candidate: Candidate, rows: list[EvaluationRow], decided: int) -> None:
        """What the candidate did on training examples; of an example run for several tickets, the latest."""
        found: dict[tuple[int, int], list[float]] = {}
        for row in sorted(rows, key=lambda row: row.sample):
            if row.example.startswith("train ") and row.sample % REPETITION <= decided:
                found.setdefault((row.sample % REPETITION, int(row.example[6:])), []).append(row.score)
        if driver.search.reuse:
            for (sample, index), scores in sorted(found.items()):
                driver.seen[candidate.id, index] = Seen(sample, mean(scores), None)


def _stored(ticket: Ticket) -> dict[str, Any]:
    return {
        "number": ticket.number,
        "parents": [parent.id for parent in ticket.parents],
        "batch": [[index, sample] for index, sample in ticket.batch.items()],
        "seen": [[index, seen.sample, seen.score] for index, seen in ticket.seen.items()],
        "state": None if ticket.state is None else dict(ticket.state),
        "worst": ticket.worst,
        "contrast": [[other.id, index, seen.sample, seen.score] for other, index, seen in ticket.contrast],
        "known": ticket.known,
        "merged": None if ticket.merged is None else dict(ticket.merged),
    }


def _taken_up(driver: Driver, stored: dict[str, Any]) -> Ticket:
    return Ticket(
        stored["number"],
        tuple(driver.pool[parent] for parent in stored["parents"]),
        dict(stored["batch"]),
        {index: Seen(sample, score, None) for index, sample, score in stored["seen"]},
        state=stored["state"],
        worst=stored["worst"],
        merged=stored["merged"],
        contrast=[(driver.pool[c], index, Seen(sample, score, None)) for c, index, sample, score in stored["contrast"]],
        known=stored["known"],
    )


def _event(row: EventRow) -> Event:
    data = {name: tuple(value) if isinstance(value, list) else value for name, value in row.data.items()}
    event: Event = _EVENTS[row.kind](**data)
    return event
