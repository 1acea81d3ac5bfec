"""The plain optimization loop: minibatches, a gate on the same minibatch, then on the validation set."""

from __future__ import annotations

import math
import random
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from trace_core.errors import RunnerError, TraceCoreError
from trace_core.integrations.accounting import account, place
from trace_core.integrations.budget import BudgetExhausted
from trace_core.integrations.store.errors import StoreError
from trace_core.optimizers.base import OptimizerError
from trace_core.optimizers.evaluation import MetricError, WorkflowError, evaluate, stops_the_run
from trace_core.optimizers.journal import SEED, Journal
from trace_core.optimizers.llm.failing import Outages
from trace_core.optimizers.llm.memory import score_of
from trace_core.optimizers.rollouts import Example, Rollouts, examples

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor

    from trace_core.integrations.budget import Budget
    from trace_core.integrations.store import Run
    from trace_core.node import Node
    from trace_core.optimizers.base import Optimizer, Proposal
    from trace_core.optimizers.rollouts import Outcome
    from trace_core.parameter import Parameter
    from trace_core.trace import Trace

__all__ = ["Event", "MetricError", "Result", "WorkflowError", "evaluate", "optimize"]


class Event(NamedTuple):
    """Progress of a run.

    Attributes:
        kind: ``start`` (the first validation is done), ``batch`` (a minibatch was run), ``proposed``, ``evaluated`` (an
            example was run), ``gated`` (a proposal was tried on the minibatch), ``accepted``, ``rejected``, ``end``.
        step: counted from 1; 0 before the first step.
        score: the score the event is about, if any.
        best: best validation score so far.
        proposal: the proposal the event is about, if any.
        note: in words.
    """

    kind: str
    step: int
    score: float | None = None
    best: float | None = None
    proposal: Proposal | None = None
    note: str = ""


class Result:
    """What a run found.

    Attributes:
        best: parameter -> best value; applied to the parameters.
        score: its validation score; ``start_score`` is that of the first values.
        steps: steps done.
        stopped: why it ended: ``steps``, ``seconds``, ``patience``, ``perfect``, ``budget``, ``interrupted`` or
            ``error``; ``why`` says more where there is more to say.
        error: the error that ended it, if one did.
        history: every event except those of single examples.
        failures: error text -> how many outputs failed with it.
    """

    def __init__(self, best: Mapping[Parameter, Any], start: Mapping[Parameter, Any]) -> None:
        self.best = dict(best)
        self.start = dict(start)
        self.score = math.nan
        self.start_score = math.nan
        self.steps = 0
        self.stopped = "steps"
        self.why = ""
        self.error: BaseException | None = None
        self.history: list[Event] = []
        self.failures: dict[str, int] = {}
        self.seconds = 0.0

    @property
    def changed(self) -> dict[Parameter, tuple[Any, Any]]:
        """parameter -> (first value, best value), for those that differ."""
        return {p: (self.start[p], value) for p, value in self.best.items() if self.start[p] != value}


def optimize(
    workflow: Callable[[Any], Node],
    metric: Callable[[Any, Any], Any],
    train: Sequence[Any],
    validation: Sequence[Any] | None = None,
    *,
    optimizer: Optimizer,
    steps: int = 10,
    batch_size: int = 4,
    proposals: int = 1,
    seed: int = 0,
    seconds: float | None = None,
    patience: int | None = None,
    failure_score: float = 0.0,
    perfect: float | None = 1.0,
    max_outages: int = 3,
    on_event: Callable[[Event], None] | None = None,
    run: Run | None = None,
    budget: Budget | None = None,
    engine: Executor | None = None,
) -> Result:
    """Improve the optimizer's parameters for the workflow.

    Each step runs the workflow on a minibatch of training examples, asks the optimizer for proposals one by one, tries
    each on the same minibatch, and takes the first that gains to the validation set; it is kept if it gains there.
    Candidates are evaluated under an overlay: the parameters change only when a candidate is kept.

    Args:
        workflow: takes an example, returns a node.
        metric: ``metric(output value, example)`` -> score, (score, text), or Feedback with a score; higher is better.
        train: examples whose feedback the optimizer sees.
        validation: examples that decide what is kept; by default the training examples.
        optimizer: any Optimizer over the workflow's parameters.
        steps: at most this many.
        batch_size: examples in a minibatch; failing ones are preferred.
        proposals: asked for in each step, at most.
        seed: of the minibatch order.
        seconds: no new step starts after so many.
        patience: the run ends after so many steps in a row without an improvement; None for no such limit.
        failure_score: score of an output that is an error.
        perfect: a minibatch whose scores all reach this is skipped, a validation score that does ends the run; None for
            neither.
        max_outages: the run ends when the language model could not be had so many times in a row, each time after its
            retries: for proposals, or on an example, which is run again until then.
        on_event: called with every Event, in this thread.
        run: of a ledger, new or resumed. Everything is written to it, and a resumed one goes on after its last step;
            what was finished of the next one is not paid for again. ``steps`` and ``seconds`` count all parts.
        budget: limits of everything the run spends, in all roles; when it is used up the run ends with the best so far
            (``stopped == "budget"``). With a resumed run, earlier parts count.
        engine: where examples are evaluated, several at once: any Executor, such as ``ThreadEngine(8, timeout=60)``.
            What is decided does not depend on it. By default one after the other in this thread.

    A KeyboardInterrupt ends the run with the best so far in the Result (``stopped == "interrupted"``); so does an error
    that no proposal can mend: one that the language model's gateway calls fatal (``Unavailable`` after
    ``max_outages``), a WaitTooLong of a server that asks for a long pause, a RunnerError of the place where proposed
    code runs, a MetricError or WorkflowError on a single example (``stopped == "error"``, the error in
    ``error``). Raises OptimizerError for an empty train set, and what ``evaluate`` raises on the validation examples
    before the first step.
    """
    if not train:
        raise OptimizerError("expected at least one training example, got none")
    rollouts = Rollouts(
        workflow,
        metric,
        optimizer.names,
        run=run,
        budget=budget,
        engine=engine,
        failure_score=failure_score,
        outages=Outages(max_outages),
    )
    loop = _Run(rollouts, list(train), list(validation or train), optimizer, batch_size, seed, perfect, on_event)
    if budget is not None:
        row = run.row() if run is not None else None
        budget.start(run.spent() if run is not None else None, row.seconds if row is not None else 0.0)
    with account(run=run, budget=budget):
        return loop.go(steps, proposals, seconds, patience)


class _Run:
    """State of one ``optimize`` call."""

    def __init__(
        self,
        rollouts: Rollouts,
        train: list[Any],
        validation: list[Any],
        optimizer: Optimizer,
        batch_size: int,
        seed: int,
        perfect: float | None,
        on_event: Callable[[Event], None] | None,
    ) -> None:
        self.rollouts, self.optimizer, self.batch_size = rollouts, optimizer, min(batch_size, len(train))
        self.train, self.validation = examples("train", train), examples("validation", validation)
        self.random = random.Random(seed)
        self.perfect, self.on_event = perfect, on_event
        start = {p: p.value for p in optimizer.parameters}
        self.result = Result(start, start)
        self.queue: list[int] = []
        self.known: dict[int, float] = {}  # training example -> its last score under the current values
        self.step = 0
        self.improved = 0  # the step of the last improvement
        self.candidate = SEED  # id of the current values
        self.trying: str | None = None  # id of the proposal that events are about
        self.tried = 0  # proposals of this step
        self.journal = Journal(rollouts.ledger, optimizer.names) if rollouts.ledger is not None else None
        self.began, self.before = time.monotonic(), 0.0

    @property
    def seconds(self) -> float:
        """Of work, earlier parts of a resumed run included."""
        return self.before + time.monotonic() - self.began

    def go(self, steps: int, proposals: int, seconds: float | None, patience: int | None) -> Result:
        result = self.result
        from trace_core.integrations.llm.errors import Fatal, WaitTooLong

        try:
            self._begin()
            while self.step < steps:
                self.step += 1
                if self._is_perfect(result.score):
                    result.stopped = "perfect"
                    break
                if seconds is not None and self.seconds > seconds:
                    result.stopped = "seconds"
                    break
                if patience is not None and self.step - self.improved > patience:
                    result.stopped = "patience"
                    break
                self._one_step(proposals)
                result.steps = self.step
                self._checkpoint()
        except KeyboardInterrupt:
            result.stopped = "interrupted"
        except BudgetExhausted as error:
            result.stopped, result.why = "budget", str(error)
        except (Fatal, WaitTooLong, RunnerError, MetricError, WorkflowError) as error:
            if math.isnan(result.start_score) and isinstance(error, MetricError | WorkflowError):
                self._end("error", str(error))
                raise
            result.stopped, result.error, result.why = "error", error, str(error)
        except TraceCoreError as error:
            if math.isnan(result.start_score) or not stops_the_run(error):
                raise
            result.stopped, result.error, result.why = "error", error, str(error)
        result.seconds = self.seconds
        self._end(result.stopped, result.why)
        self._say("end", score=result.score, note=result.stopped)
        return result

    def _begin(self) -> None:
        """The first validation, or everything that a resumed run has from its earlier parts."""
        if self.journal is not None:
            before = self.journal.restore(self)
            if before is not None:
                self.before = before
                return
            self.journal.begin()
        self.result.start_score = self.result.score = self._mean(SEED)
        self._say("start", score=self.result.score)
        self._checkpoint()

    def _checkpoint(self) -> None:
        if self.journal is not None:
            self.journal.checkpoint(self, self.tried, self.seconds)

    def _end(self, stopped: str, why: str) -> None:
        if self.journal is None:
            return
        try:
            self.journal.end(stopped, why)
        except StoreError as error:  # a full disk ends a run and takes no note of it; what is committed is whole
            self.result.stopped, self.result.error = "error", self.result.error or error

    def _one_step(self, proposals: int) -> None:
        self.tried, self.trying = 0, None
        if self.journal is not None:
            self.journal.begin_step(self)
        batch = self._minibatch()
        traces, before = self._run_batch(batch, self.candidate)
        self.known.update({index: score_of(trace) or 0.0 for index, trace in zip(batch, traces, strict=True)})
        self._say("batch", score=before)
        if self.perfect is not None and all((score_of(t) or 0.0) >= self.perfect for t in traces):
            self._say("rejected", score=before, note="nothing to learn: every output of the minibatch is perfect")
            return
        with place("optimizer", str(self.step)):
            for proposal in self.optimizer.proposals(traces, proposals):
                self.trying = f"{self.step}.{self.tried}"
                self.tried += 1
                if self._try(proposal, batch, before):
                    return

    def _try(self, proposal: Proposal, batch: list[int], before: float) -> bool:
        """Whether a proposal gets to the validation examples, which ends the step."""
        if not proposal:
            self._say("rejected", proposal=proposal, note=proposal.reason or "no usable answer")
            self.rollouts.outages.count("proposal", proposal.error)
            return False
        self.rollouts.outages.count("proposal", None)
        self._say("proposed", proposal=proposal)
        after = self._run_batch(batch, str(self.trying), proposal.values)[1]
        self._say("gated", score=after, proposal=proposal)
        if after > before:
            self._validate(proposal)
            return True
        self.optimizer.remember(proposal.values, after, "no better on its minibatch")
        proposal.status = "rejected"
        self._say("rejected", score=after, proposal=proposal, note=f"minibatch {before:.3f} -> {after:.3f}")
        return False

    def _validate(self, proposal: Proposal) -> None:
        score = self._mean(str(self.trying), proposal.values)
        self.optimizer.remember(proposal.values, score, "validated")
        best = self.result.score
        if score > best:
            self.optimizer.apply(proposal)
            self.result.score = score
            self.result.best = {p: p.value for p in self.optimizer.parameters}
            self.known.clear()
            self.improved, self.candidate = self.step, str(self.trying)
            self._say("accepted", score=score, proposal=proposal, note=f"validation {best:.3f} -> {score:.3f}")
        else:
            proposal.status = "rejected"
            self._say("rejected", score=score, proposal=proposal, note=f"validation {best:.3f}, with it {score:.3f}")

    def _minibatch(self) -> list[int]:
        """The next examples in shuffled order; known perfect ones are passed over while others are left."""
        chosen: list[int] = []
        passed: list[int] = []
        for _ in range(2 * len(self.train)):
            if len(chosen) == self.batch_size:
                break
            if not self.queue:
                self.queue = list(range(len(self.train)))
                self.random.shuffle(self.queue)
            index = self.queue.pop()
            if index in chosen or index in passed:
                continue
            perfect = self.perfect is not None and self.known.get(index, -math.inf) >= self.perfect
            (passed if perfect else chosen).append(index)
        return (chosen + passed)[: self.batch_size]

    def _run_batch(
        self, batch: list[int], candidate: str, values: Mapping[Parameter, Any] | None = None
    ) -> tuple[list[Trace], float]:
        """(traces, mean score); with ``values`` of a candidate, only the score is needed."""
        asked = [self.train[index] for index in batch]
        outcomes = self._evaluate(asked, candidate, values, traces=values is None)
        traces = [outcome.trace for outcome in outcomes if outcome.trace is not None]
        return traces, sum(outcome.score for outcome in outcomes) / len(outcomes)

    def _mean(self, candidate: str, values: Mapping[Parameter, Any] | None = None) -> float:
        outcomes = self._evaluate(self.validation, candidate, values, traces=False)
        return sum(outcome.score for outcome in outcomes) / len(outcomes)

    def _evaluate(
        self, asked: list[Example], candidate: str, values: Mapping[Parameter, Any] | None, *, traces: bool
    ) -> list[Outcome]:
        outcomes = self.rollouts.run(asked, candidate, self.step, values, traces=traces, done=self._evaluated)
        for outcome in outcomes:  # in their order, whichever came first
            if outcome.error is not None:
                first = outcome.error.splitlines()[0]
                self.result.failures[first] = self.result.failures.get(first, 0) + 1
        return outcomes

    def _evaluated(self, example: Example, outcome: Outcome) -> None:
        self._say("evaluated", score=outcome.score)

    def _is_perfect(self, score: float) -> bool:
        return self.perfect is not None and score >= self.perfect

    def _say(self, kind: str, score: float | None = None, proposal: Proposal | None = None, note: str = "") -> None:
        best = None if math.isnan(self.result.score) else self.result.score
        event = Event(kind, self.step, score, best, proposal, note)
        if kind != "evaluated":
            self.result.history.append(event)
        if self.journal is not None:
            self.journal.event(event, self.trying)
        if self.on_event is not None:
            self.on_event(event)
