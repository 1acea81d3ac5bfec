"""The loop's state in a ledger: written after each step, taken up again by a run that is resumed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from trace_core._codec import decode, encode
from trace_core.optimizers.base import Dropped, Proposal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trace_core.integrations.store import Run
    from trace_core.optimizers.loop import Event, _Run
    from trace_core.parameter import Parameter

SEED = "0"  # id of the candidate that the run began with


class Journal:
    """Writes what a loop does into a run, under keys that a repeated step hits again.

    Attributes:
        run: of the ledger.
    """

    def __init__(self, run: Run, names: Mapping[Parameter, str]) -> None:
        self.run = run
        self._names = names
        self._by_name = {name: parameter for parameter, name in names.items()}
        self._events = 0
        self._parent = SEED

    # ---- while it goes

    def event(self, event: Event, candidate: str | None) -> None:
        """Write an event; with a proposal, the candidate as it is now."""
        if event.kind in ("evaluated", "end"):  # the one is in the evaluations, the other in the run's own row
            return
        from trace_core.integrations.store import EventRow

        with self.run.ledger.transaction():
            if event.proposal is not None and candidate is not None:
                self._candidate(event, event.proposal, candidate)
            data = {"score": event.score, "best": event.best, "note": event.note}
            if candidate is not None and event.proposal is not None:
                data["candidate"] = candidate
            self.run.put_event(EventRow(event.step, self._events, event.kind, data))
            if event.kind == "accepted" and candidate is not None and event.score is not None:
                self.run.best(candidate, event.score)
        self._events += 1

    def _candidate(self, event: Event, proposal: Proposal, candidate: str) -> None:
        from trace_core.integrations.store import CandidateRow

        status = event.kind if event.kind in ("accepted", "rejected") else proposal.status
        detail = {
            "note": event.note,
            "attempts": proposal.attempts,
            "prompt_tokens": proposal.prompt_tokens,
            "completion_tokens": proposal.completion_tokens,
            "cost": proposal.cost,
            "prompt": proposal.prompt,
            "dropped": [[item.name, encode(item.value), item.reason] for item in proposal.dropped],
            "state": proposal.status,
        }
        values = {self._names[parameter]: value for parameter, value in proposal.values.items()}
        self.run.put_candidate(
            CandidateRow(candidate, event.step, (self._parent,), status, event.score, proposal.reason, detail, values)
        )

    def begin(self) -> None:
        """Write the values that the run begins with."""
        from trace_core.integrations.store import CandidateRow

        values = {name: parameter.value for parameter, name in self._names.items()}
        self.run.put_candidate(CandidateRow(SEED, 0, (), "start", None, "", {}, values))

    def begin_step(self, loop: _Run) -> None:
        """A step begins, perhaps again."""
        self._events, self._parent = 0, loop.candidate

    def checkpoint(self, loop: _Run, proposals: int, seconds: float) -> None:
        """Commit everything from which the next step goes on."""
        result = loop.result
        state = {
            "improved": loop.improved,
            "candidate": loop.candidate,
            "queue": list(loop.queue),
            "known": dict(loop.known),
            "random": loop.random.getstate(),
            "score": result.score,
            "start_score": result.start_score,
            "failures": dict(result.failures),
            "start": {self._names[p]: value for p, value in result.start.items()},
            "best": {self._names[p]: value for p, value in result.best.items()},
            "optimizer": loop.optimizer.state_dict(),
        }
        score = None if math.isnan(result.score) else result.score
        values = {name: parameter.value for parameter, name in self._names.items()}
        with self.run.ledger.transaction():
            self.run.trim(loop.step, self._events, proposals)
            if loop.step == 0 and score is not None:
                self.run.best(SEED, score)
            self.run.save_step(loop.step, score, values, state, seconds=seconds)

    def end(self, stopped: str, why: str) -> None:
        """Write how it ended."""
        status = {"interrupted": "interrupted", "error": "failed"}.get(stopped, "done")
        self.run.end(status, stopped=stopped, error=why or None)

    # ---- resuming

    def restore(self, loop: _Run) -> float | None:
        """Put the loop where the last step left it; seconds of work so far, None for a run that has not begun.

        Raises StateError for damaged state, ParameterError for values that the parameters no longer take.
        """
        last = self.run.last_step()
        if last is None:
            return None
        state = last.state
        for name, value in last.values.items():
            self._by_name[name].update(value)
        result = loop.result
        loop.step, result.steps = last.step, last.step
        loop.improved, loop.candidate = state["improved"], state["candidate"]
        loop.queue, loop.known = list(state["queue"]), dict(state["known"])
        loop.random.setstate(state["random"])
        result.score, result.start_score = state["score"], state["start_score"]
        result.failures = dict(state["failures"])
        result.start = {self._by_name[name]: value for name, value in state["start"].items()}
        result.best = {self._by_name[name]: value for name, value in state["best"].items()}
        loop.optimizer.load_state_dict(state["optimizer"])
        result.history = self._history(last.step)
        return self.run.row().seconds

    def _history(self, until: int) -> list[Event]:
        from trace_core.optimizers.loop import Event

        proposals = {row.id: self._proposal(row) for row in self.run.candidates() if row.id != SEED}
        return [
            Event(
                e.kind,
                e.step,
                e.data["score"],
                e.data["best"],
                proposals.get(e.data.get("candidate", "")),
                e.data["note"],
            )
            for e in self.run.events(until)
        ]

    def _proposal(self, row: Any) -> Proposal:
        detail = row.detail
        return Proposal(
            {self._by_name[name]: value for name, value in row.values.items()},
            reason=row.reason,
            status=detail["state"],
            dropped=[Dropped(name, decode(value), reason) for name, value, reason in detail["dropped"]],
            attempts=detail["attempts"],
            prompt_tokens=detail["prompt_tokens"],
            completion_tokens=detail["completion_tokens"],
            cost=detail["cost"],
            prompt=detail["prompt"],
        )
