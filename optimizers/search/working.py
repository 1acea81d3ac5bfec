"""The work on a ticket: minibatch, proposal, gate. Runs in any thread and touches nothing that others read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core.context import using
from trace_core.feedback import Feedback
from trace_core.integrations.accounting import place
from trace_core.optimizers.search.acceptance import mean
from trace_core.optimizers.search.candidate import Candidate, facts
from trace_core.optimizers.search.ticket import REPETITION, Attempt, Work
from trace_core.trace import Trace
from trace_core.values import same_value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trace_core.optimizers.base import Optimizer, Proposal
    from trace_core.optimizers.rollouts import Example, Outcome, Rollouts
    from trace_core.optimizers.search.pool import Pool
    from trace_core.optimizers.search.search import Search
    from trace_core.optimizers.search.ticket import Seen, Ticket
    from trace_core.parameter import Parameter


class Worker:
    """Works on tickets.

    Args:
        rollouts: run the workflow.
        search: the strategies.
        names: of the parameters.
        pool: the members, of which those are looked at that a ticket knows.
        train, validation: examples.
        evaluated: told of each outcome with the id of the candidate, in whatever thread it comes.
        proposed: told of each candidate before it is run.
    """

    def __init__(
        self,
        rollouts: Rollouts,
        search: Search,
        names: Mapping[Parameter, str],
        pool: Pool,
        train: Sequence[Example],
        validation: Sequence[Example],
        evaluated: Callable[[str, Example, Outcome], None],
        proposed: Callable[[Candidate], None],
    ) -> None:
        self.rollouts, self.search, self.names = rollouts, search, names
        self.train, self.validation, self.pool = train, validation, pool
        self._examples = [example.value for example in train]
        self._evaluated, self._proposed = evaluated, proposed

    def evaluate(
        self,
        candidate: Candidate,
        examples: Sequence[Example],
        sample: int,
        *,
        traces: bool = False,
        keep: bool = True,
    ) -> list[Outcome]:
        """Outcomes of a candidate, in the order of the examples."""
        return self.rollouts.run(
            examples,
            candidate.id,
            sample,
            candidate.versions(self.names),
            traces=traces,
            keep=keep,
            done=lambda example, outcome: self._evaluated(candidate.id, example, outcome),
        )

    def do(self, ticket: Ticket) -> Work:
        """Everything up to the gate. An error is kept in the work: it counts when the ticket is decided."""
        work = Work(ticket)
        try:
            with place("workflow", str(ticket.number)) as here:
                if here is not None:
                    ticket.accounts.append(here)
                if ticket.merged is None:
                    self._propose(ticket, work)
                else:
                    self._merge(ticket, ticket.merged, work)
        except Exception as error:  # noqa: BLE001 - raised again in order, by whoever decides
            work.error = error
        return work

    # ---- proposals

    def _propose(self, ticket: Ticket, work: Work) -> None:
        parent = ticket.parents[0]
        traces, before = self._minibatch(ticket, work)
        perfect = self.search.perfect
        if perfect is not None and all(score >= perfect for score in before):
            why = f"nothing to learn: {len(before)} of {len(before)} outputs of the minibatch are perfect"
            work.attempts.append(Attempt(None, "empty", why, mean(before)))
            return
        optimizer = ticket.fork
        assert optimizer is not None  # noqa: S101 - only a merge has none
        if self.search.credit is not None:
            blamed = self.search.credit.choose(traces, self.names, ticket.number)
            optimizer.only = frozenset(blamed) or None
        traces += [self._contrasting(*other) for other in ticket.contrast]
        with using(parent.versions(self.names)), place("optimizer", str(ticket.number)) as here:
            if here is not None:
                ticket.accounts.append(here)
            for number, proposal in enumerate(optimizer.proposals(traces, self.search.proposals)):
                attempt = self._try(ticket, proposal, f"{ticket.number}.{number}", before, work)
                work.attempts.append(attempt)
                if not attempt.stage:
                    return

    def _minibatch(self, ticket: Ticket, work: Work) -> tuple[list[Trace], list[float]]:
        """Traces and scores of the parent, in the order of the minibatch."""
        parent, repeats = ticket.parents[0], self.search.acceptance.repeats
        traces: dict[int, Trace] = {}
        scores: dict[int, float] = {}
        by_sample: dict[int, list[int]] = {}
        for index, sample in ticket.batch.items():
            seen = ticket.seen.get(index)
            if seen is not None:
                scores[index] = seen.score
            if seen is not None and seen.trace is not None:
                traces[index] = seen.trace
            else:
                by_sample.setdefault(sample, []).append(index)
        for sample, indices in by_sample.items():
            found = self.evaluate(parent, [self.train[i] for i in indices], sample, traces=True)
            for index, outcome in zip(indices, found, strict=True):
                if outcome.trace is not None:
                    traces[index] = outcome.trace
                if index not in ticket.seen:
                    work.outcomes[index] = [outcome]
        new = list(work.outcomes)
        self._repeat(work, parent, new, work.outcomes, repeats)
        for index in new:
            scores[index] = mean([outcome.score for outcome in work.outcomes[index]])
        return [traces[i] for i in ticket.batch], [scores[i] for i in ticket.batch]

    def _repeat(
        self, work: Work, candidate: Candidate, indices: Sequence[int], into: dict[int, list[Outcome]], repeats: int
    ) -> None:
        """Repetitions from the second on; and the books of all of them."""
        for repetition in range(1, repeats if indices else 0):
            sample = work.ticket.number + repetition * REPETITION
            found = self.evaluate(candidate, [self.train[i] for i in indices], sample)
            for index, outcome in zip(indices, found, strict=True):
                into[index].append(outcome)
        work.spent += repeats * len(indices)
        work.failures += [outcome.error for index in indices for outcome in into[index] if outcome.error is not None]

    def _try(self, ticket: Ticket, proposal: Proposal, name: str, before: Sequence[float], work: Work) -> Attempt:
        if not proposal:
            return Attempt(None, "empty", proposal.reason or "no usable answer", error=proposal.error)
        parent, search = ticket.parents[0], self.search
        values = dict(parent.values) | {self.names[p]: p.check(value) for p, value in proposal.values.items()}
        changed = [self.names[p] for p in proposal.values]
        detail: dict[str, Any] = {"parent": parent.id, "minibatch": list(ticket.batch), **facts(proposal)}
        child = Candidate(
            name,
            values,
            parents=(parent.id,),
            ticket=ticket.number,
            changed=changed,
            reason=proposal.reason,
            detail=detail,
            proposal=proposal,
        )
        for parameter in proposal.values:
            refused = self._refused(ticket, parent, child, self.names[parameter], parameter)
            if refused is not None:
                child.detail["guard"], why = refused
                return Attempt(child, "guard", why, mean(before))
        self._proposed(child)
        passes = proposal.step and getattr(search.acceptance, "steps_pass", False)
        if passes or not (search.acceptance.gated and ticket.gated):
            return Attempt(child, "", "not gated", mean(before))
        attempt = Attempt(child, "gate", "", mean(before))
        batch = list(ticket.batch)
        found = self.evaluate(child, [self.train[i] for i in batch], ticket.number)
        attempt.outcomes = {index: [outcome] for index, outcome in zip(batch, found, strict=True)}
        self._repeat(work, child, batch, attempt.outcomes, search.acceptance.repeats)
        after = [mean([outcome.score for outcome in attempt.outcomes[index]]) for index in batch]
        attempt.after = mean(after)
        errors = [outcome.error for outcomes in attempt.outcomes.values() for outcome in outcomes]
        if all(error is not None for error in errors):
            attempt.failure = first_line(errors[0])
            attempt.why = f"dropped: it fails on every example, first with {attempt.failure}"
            return attempt
        verdict = search.acceptance.judge(before, after)
        attempt.why = verdict.why
        if verdict.accept:
            attempt.stage = ""
        return attempt

    def _refused(
        self, ticket: Ticket, parent: Candidate, child: Candidate, name: str, parameter: Parameter
    ) -> tuple[str, str] | None:
        """(guard, reason) if a candidate is not to be run."""
        same = self.pool.same_as(child.values)
        if same is not None and self.pool.number(same) < ticket.known:
            return "duplicate", f"candidate {same} has the same values"
        for guard in self.search.guards:
            why = guard.check(name, parameter, parent.values[name], child.values[name], self._examples)
            if why is not None:
                return type(guard).__name__, why
        return None

    def _contrasting(self, candidate: Candidate, index: int, seen: Seen) -> Trace:
        """The trace of another candidate, marked as such."""
        trace = seen.trace
        if trace is None:  # of an earlier part of the run: it is run again, which costs nothing
            trace = self.evaluate(candidate, [self.train[index]], seen.sample, traces=True)[0].trace
        assert trace is not None  # noqa: S101 - it was asked for
        said = trace.feedback
        text = f"(for comparison, with other values of the variables) {said.text}"
        marked = Feedback(text, said.score, said.scores, said.gradient, said.example)
        return Trace(trace.output, marked, trace.nodes, trace.unfolded)

    # ---- merges

    def _merge(self, ticket: Ticket, values: Mapping[str, Any], work: Work) -> None:
        """Gated on validation examples that the parents' scores are known of, so that nothing is run in vain."""
        better, other = ticket.parents
        batch = list(ticket.batch)
        changed = [name for name, value in values.items() if not same_value(value, better.values[name])]
        child = Candidate(
            f"{ticket.number}.m",
            values,
            parents=(better.id, other.id),
            ticket=ticket.number,
            changed=changed,
            reason=f"what {better.id} and {other.id} changed, in one",
            detail={"parent": better.id, "minibatch": batch, "merge": [better.id, other.id]},
        )
        self._proposed(child)
        found = self.evaluate(child, [self.validation[i] for i in batch], 0)
        work.spent += len(batch)
        work.failures += [outcome.error for outcome in found if outcome.error is not None]
        child.add_scores({index: outcome.score for index, outcome in zip(batch, found, strict=True)})
        child.note_outcomes(found)
        before = max(mean([parent.scores[i] for i in batch]) for parent in ticket.parents)
        after = mean([child.scores[i] for i in batch])
        why = f"{len(batch)} validation examples: the better parent {before:.3f}, merged {after:.3f}"
        work.attempts.append(Attempt(child, "" if after >= before else "gate", why, before, after))


def first_line(text: Any) -> str:
    """Of an error."""
    return str(text or "").strip().split("\n", 1)[0]


def forked(optimizer: Optimizer, number: int, state: Mapping[str, Any] | None) -> Optimizer:
    """The optimizer for a ticket, as it was when the ticket was chosen if ``state`` is given."""
    fork = optimizer.fork(number)
    if state is not None and fork is not optimizer:
        fork.load_state_dict(state)
    return fork
