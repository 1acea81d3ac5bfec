"""The loop of a study: tickets are chosen, worked on, and decided in their order."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from trace_core.integrations.budget import BudgetExhausted
from trace_core.optimizers.search.acceptance import mean
from trace_core.optimizers.search.candidate import SEED, Candidate, first_values
from trace_core.optimizers.search.choosing import choose
from trace_core.optimizers.search.events import (
    Accepted,
    Chosen,
    Ended,
    Evaluated,
    NewBest,
    Proposed,
    Rejected,
    Started,
)
from trace_core.optimizers.search.pool import Pool
from trace_core.optimizers.search.session import Closing, Session
from trace_core.optimizers.search.ticket import Seen, Ticket
from trace_core.optimizers.search.working import Worker, first_line, forked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from trace_core.optimizers.base import Optimizer
    from trace_core.optimizers.rollouts import Example, Outcome, Rollouts
    from trace_core.optimizers.search.events import Event
    from trace_core.optimizers.search.journal import StudyJournal
    from trace_core.optimizers.search.search import Search
    from trace_core.optimizers.search.session import Limits
    from trace_core.optimizers.search.ticket import Attempt, Work
    from trace_core.optimizers.search.validation import Validation
    from trace_core.trace import Trace


class Driver:
    """State of a study, and the loop.

    Ticket t is chosen when ticket t - in_flight is decided, and the work on it depends on nothing but what was chosen;
    tickets are decided in their order. So nothing depends on which of them ends first. One thread runs all methods.
    """

    def __init__(
        self,
        rollouts: Rollouts,
        optimizer: Optimizer,
        search: Search,
        train: Sequence[Example],
        validation: Sequence[Example],
        seed: int,
        limits: Limits,
        emit: Callable[[Event], None],
        listened: Callable[[], bool] = lambda: True,
    ) -> None:
        self.rollouts, self.optimizer, self.search, self.seed, self.limits = rollouts, optimizer, search, seed, limits
        self.train, self.validation = list(train), list(validation)
        self.pool = Pool(search.leading)
        self.worker = Worker(
            rollouts, search, optimizer.names, self.pool, self.train, self.validation, self._evaluated, self._row
        )
        self.journal: StudyJournal | None = None
        self.flying: list[Ticket] = []
        self.decided = 0
        self.spent = 0  # evaluations of decided tickets and of the seed
        self.foreign = 0  # evaluations in the budget that are not this study's
        self.idle = 0  # tickets in a row without an evaluation
        self.improved = 0  # the ticket of the last new best
        self.merges = 0
        self.merge_due = False  # whether a candidate has joined since the last merge was looked for
        self.failures: dict[str, int] = {}
        self.seen: dict[tuple[str, int], Seen] = {}
        self.stopping = False
        self.began, self.before = time.monotonic(), 0.0
        self._emit, self._listened = emit, listened
        self._shown: Trace | None = None
        self.threads: Executor | None = None
        self._local = threading.local()
        self._session = Session()

    @property
    def seconds(self) -> float:
        """Of work, earlier parts included."""
        return self.before + time.monotonic() - self.began

    def go(self) -> str:
        """Go on until something ends it, and say what. Raises what ended it, if that was an error."""
        self._session = Session()
        try:
            if not len(self.pool):
                self.seed_pool()
            while True:
                why = self._over()
                if why:
                    return why
                self._fill()
                first = self.flying[0]
                if not first.started:
                    return "steps" if self._is_last(first) else "budget"
                self._decide(self._wait(first.number))
                self._checkpoint()
        finally:
            self._close()

    def _over(self) -> str:
        best = self.pool.best.score if self.pool.best is not None else None
        if self.stopping:
            return "stopped"
        if self.search.perfect is not None and best is not None and best >= self.search.perfect:
            return "perfect"
        if self.search.patience is not None and self.decided - self.improved >= self.search.patience:
            return "patience"
        if self.limits.seconds is not None and self.seconds >= self.limits.seconds:
            return "seconds"
        if self.idle >= self.search.stalled:
            return "stalled"
        return ""

    def _fill(self) -> None:
        """Choose tickets up to ``in_flight``, and start those that the limits allow.

        What is chosen does not depend on the limits, so a run that goes on with higher ones is the run that had them.
        """
        while len(self.flying) < self.search.in_flight:
            ticket = choose(self, self.decided + len(self.flying) + 1)
            self.flying.append(ticket)
            for parent in ticket.parents:
                self.pool.chosen[parent.id] = self.pool.chosen.get(parent.id, 0) + 1
        for ticket in self.flying:
            if not ticket.started:
                if self._is_last(ticket) or not self._affordable(ticket.worst):
                    return
                self._start(ticket)

    def _is_last(self, ticket: Ticket) -> bool:
        return self.limits.steps is not None and ticket.number > self.limits.steps

    def _affordable(self, more: int) -> bool:
        """Whether ``more`` evaluations fit the budget whatever the tickets in flight take of it."""
        limit = self.rollouts.budget.limits.get("metric_calls") if self.rollouts.budget is not None else None
        if limit is None:
            return True
        flying = sum(ticket.worst for ticket in self.flying if ticket.started)
        held = self.foreign + self.spent + flying + self.limits.kept_back
        return held + more <= limit

    # ---- working

    def _start(self, ticket: Ticket) -> None:
        ticket.started = True
        if ticket.merged is None:
            ticket.fork = forked(self.optimizer, ticket.number, ticket.state)
        self.tell_chosen(ticket)
        if self.threads is None:
            return  # done when it is waited for
        self._session.working.add(ticket.number)
        self.threads.submit(self._work, ticket, self._session)

    def _work(self, ticket: Ticket, session: Session) -> None:
        self._local.session = session
        session.inbox.put(self.worker.do(ticket))

    def _wait(self, number: int) -> Work:
        """The work on a ticket; meanwhile, what happens elsewhere is told."""
        session = self._session
        if self.threads is None and number not in session.done:
            return self.worker.do(next(ticket for ticket in self.flying if ticket.number == number))
        while number not in session.done:
            self._receive(session.inbox.get())
        return session.done.pop(number)

    def _receive(self, item: Any) -> None:
        if isinstance(item, Evaluated):
            self._emit(item)
        else:
            self._session.working.discard(item.ticket.number)
            self._session.done[item.ticket.number] = item

    def _evaluated(self, candidate: str, example: Example, outcome: Outcome) -> None:
        """Told in any thread."""
        session: Session | None = getattr(self._local, "session", None)
        if session is not None and session.closing:
            raise Closing
        if not self._listened():
            return
        event = Evaluated(candidate, example.name, outcome.score, outcome.error)
        if session is None:
            self._emit(event)
        else:
            session.inbox.put(event)

    def _row(self, candidate: Candidate) -> None:
        if self.journal is not None:
            self.journal.candidate(candidate)

    def _close(self) -> None:
        """Nothing works on when the loop is over: what is in flight ends at its next example, and is waited for.

        An interrupt does not wait: what runs may make no further calls.
        """
        session = self._session
        session.closing = True
        if isinstance(sys.exception(), KeyboardInterrupt):
            for ticket in self.flying:
                for account in ticket.accounts:
                    account.closed = "the run was interrupted"
        else:
            while session.working:
                self._receive(session.inbox.get())
        for ticket in self.flying:  # another run takes them up as they were chosen
            ticket.fork, ticket.accounts, ticket.started = None, [], False

    # ---- deciding

    def seed_pool(self) -> None:
        """Validate the values that the study begins with."""
        seed = Candidate(SEED, first_values(self.optimizer.names), status="start")
        if not self._affordable(len(self.validation)):
            raise BudgetExhausted(
                f"the budget does not allow for the {len(self.validation)} validation examples of the seed",
                "metric_calls",
            )
        self._row(seed)
        self._validated(seed, range(len(self.validation)))
        self.rollouts.tolerant = True
        self.pool.add(seed)
        self._row(seed)
        self.say(Started(seed.score or 0.0), 0)
        self._show(seed, 0)
        self._checkpoint()

    def _validated(self, candidate: Candidate, indices: Sequence[int]) -> list[float]:
        """Scores on validation examples, noted on the candidate. Raises BudgetExhausted before it would be passed."""
        new = [index for index in indices if index not in candidate.scores]
        if not self._affordable(len(new)):
            self._settle()
        if not self._affordable(len(new)):
            raise BudgetExhausted(
                f"the budget does not allow for {len(new)} more validation examples of candidate {candidate.id}",
                "metric_calls",
            )
        found = self.worker.evaluate(candidate, [self.validation[i] for i in new], 0, keep=self.journal is not None)
        self.spent += len(new)
        for outcome in found:
            self.count_failure(outcome.error)
        candidate.add_scores({index: outcome.score for index, outcome in zip(new, found, strict=True)})
        candidate.note_outcomes(found)
        if 0 in new:
            self._shown = found[new.index(0)].trace
        return [candidate.scores[index] for index in indices]

    def _settle(self) -> None:
        """Find out what the tickets in flight really take of the budget."""
        for ticket in self.flying:
            if not ticket.started:
                return
            work = self._session.done[ticket.number] = self._wait(ticket.number)
            ticket.worst = work.spent

    def count_failure(self, error: str | None) -> None:
        """Count an output that failed, by the first line of its error."""
        if error is not None:
            self.failures[first_line(error)] = self.failures.get(first_line(error), 0) + 1

    def _decide(self, work: Work) -> None:
        ticket = self.flying[0]
        if work.error is not None:
            raise work.error
        spent, failures = self.spent, dict(self.failures)
        self.flying.pop(0)
        self.book(work)
        try:
            improved = [self.judge(ticket, attempt) for attempt in work.attempts]
        except BaseException:
            self.flying.insert(0, ticket)  # another run decides it
            self.spent, self.failures = spent, failures
            raise
        self.learn(work, any(improved))
        self.idle = 0 if self.spent > spent else self.idle + 1

    def book(self, work: Work) -> None:
        """Note what the work took and what failed."""
        self.spent += work.spent
        for error in work.failures:
            self.count_failure(error)
        for index, outcomes in work.outcomes.items():
            self._see(work.ticket.parents[0], index, work.ticket.number, outcomes)

    def learn(self, work: Work, improved: bool) -> None:
        """The ticket is decided: the optimizer takes over what its fork has learned, and hears of its candidates."""
        if work.ticket.fork is not None:
            self.optimizer.join(work.ticket.fork, improved)
        self._remember(work)
        self.decided = max(self.decided, work.ticket.number)

    def judge(self, ticket: Ticket, attempt: Attempt, validation: Validation | None = None) -> bool:
        """One attempt of a ticket; whether it is the best now. ``validation`` stands in for the search's own."""
        child, self._shown = attempt.candidate, None
        self.rollouts.outages.count("proposal", attempt.error)
        if child is None:
            self.say(Rejected(ticket.number, "", attempt.stage, attempt.why, attempt.before), ticket.number)
            return False
        self.say(Proposed(ticket.number, child.id, child.changed, child.reason), ticket.number)
        child.detail.update(before=attempt.before, after=attempt.after)
        if attempt.stage:
            self._reject(child, attempt.stage, attempt.why, attempt.before, attempt.after)
            return False
        best = self.pool.best.score if self.pool.best is not None else None
        verdict = (validation or self.search.validation).run(
            child, self.pool, len(self.validation), lambda indices: self._validated(child, indices)
        )
        if child.errors and len(child.errors) == len(child.scores):
            attempt.failure = first_line(child.errors[0])
            why = f"dropped: it fails on every validation example, first with {attempt.failure}"
            self._reject(child, "validation", why, best, child.score)
            return False
        if not verdict.accept:
            self._reject(child, "validation", verdict.why, best, child.score)
            return False
        child.status = "merged" if ticket.merged is not None else "accepted"
        child.note = f"{attempt.why}; validation {child.score or 0.0:.3f}"
        improved = self.pool.add(child)
        self.merge_due = True
        for index, outcomes in attempt.outcomes.items():
            if ticket.merged is None:
                self._see(child, index, ticket.number, outcomes)
        if child.proposal is not None:
            self.optimizer.commit(child.proposal)
        self._row(child)
        self.say(Accepted(ticket.number, child.id, child.score or 0.0), ticket.number)
        if improved:
            self.improved = ticket.number
            self.say(NewBest(ticket.number, child.id, child.score or 0.0, best or 0.0), ticket.number)
            self._show(child, ticket.number)
        return improved

    def _reject(self, child: Candidate, stage: str, why: str, before: float | None, after: float | None) -> None:
        child.status, child.note = "rejected", why
        child.detail["stage"] = stage
        self.pool.note(child)
        self._row(child)
        self.say(Rejected(child.ticket, child.id, stage, why, before, after), child.ticket)

    def _see(self, candidate: Candidate, index: int, sample: int, outcomes: Sequence[Outcome]) -> None:
        if self.search.reuse:
            trace = outcomes[0].trace
            self.seen[candidate.id, index] = Seen(sample, mean([outcome.score for outcome in outcomes]), trace)

    def _remember(self, work: Work) -> None:
        """Tell the optimizer how its candidates did."""
        for attempt in work.attempts:
            child = attempt.candidate
            if child is None or child.proposal is None:
                continue
            if attempt.stage != "guard":
                note = attempt.failure or ("validated" if child.in_pool else "no better on its minibatch")
                score = None if attempt.failure else child.score if child.in_pool else attempt.after
                values = {p: child.values[name] for p, name in self.optimizer.names.items()}
                self.optimizer.remember(values, score, note)
            child.proposal.status = "accepted" if child.in_pool else "rejected"
            child.proposal = None  # of a numeric step it has a copy of the optimizer

    # ---- telling

    def _show(self, candidate: Candidate, step: int) -> None:
        """Keep the trace of the best on the first validation example, so that it can be looked at."""
        if self.journal is None:
            return
        example = self.validation[0]
        trace = self._shown or self.worker.evaluate(candidate, [example], 0, traces=True)[0].trace
        if trace is not None:
            self.journal.trace(step, candidate.id, example.name, trace)

    def tell_chosen(self, ticket: Ticket) -> None:
        """Tell what a ticket is about to do."""
        self.say(Chosen(ticket.number, tuple(p.id for p in ticket.parents), tuple(ticket.batch)), ticket.number)

    def say(self, event: Event, step: int) -> None:
        """Journal an event and tell it."""
        if self.journal is not None:
            self.journal.event(event, step)
        self._emit(event)

    def _checkpoint(self) -> None:
        self.seen = {k: seen for k, seen in self.seen.items() if seen.sample >= self.decided - self.search.reuse}
        if self.journal is not None:
            self.journal.checkpoint(self)

    def ended(self, why: str) -> None:
        """Tell that the run is over."""
        best = self.pool.best
        self.say(Ended(why, best.score if best is not None else None), self.decided + 1)
