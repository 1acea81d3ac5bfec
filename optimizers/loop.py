"""The plain optimization loop: minibatches, a gate on the same minibatch, then on the validation set."""

from __future__ import annotations

import math
import random
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from trace_core.context import using
from trace_core.errors import ExecutionError, FeedbackError, RunnerError, TraceCoreError
from trace_core.feedback import Feedback
from trace_core.node import Node
from trace_core.optimizers.base import OptimizerError
from trace_core.optimizers.llm.failing import Outages
from trace_core.optimizers.llm.memory import score_of
from trace_core.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trace_core.optimizers.base import Optimizer, Proposal
    from trace_core.parameter import Parameter


class MetricError(TraceCoreError):
    """A metric returned something that is no feedback with a finite score."""


class WorkflowError(TraceCoreError):
    """A workflow cannot be optimized: it raises outside of its bundles, or does not return a node."""


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
        stopped: why it ended: ``steps``, ``seconds``, ``patience``, ``perfect``, ``interrupted`` or ``error``.
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
        self.error: BaseException | None = None
        self.history: list[Event] = []
        self.failures: dict[str, int] = {}
        self.seconds = 0.0

    @property
    def changed(self) -> dict[Parameter, tuple[Any, Any]]:
        """parameter -> (first value, best value), for those that differ."""
        return {p: (self.start[p], value) for p, value in self.best.items() if self.start[p] != value}


def evaluate(
    workflow: Callable[[Any], Node],
    metric: Callable[[Any, Any], Any],
    example: Any,
    index: Any = None,
    failure_score: float = 0.0,
) -> tuple[Trace, float]:
    """Run the workflow on one example; (trace with feedback, score). Changes no parameter and deposits no feedback.

    An ExecutionError is a result: its node with ``failure_score`` and the error as feedback. ``metric(output value,
    example)`` returns anything ``Feedback.of`` takes, with a score.

    Raises MetricError for feedback without a finite score and a metric that raises, WorkflowError if the workflow
    returns no node or raises something else than an ExecutionError; errors of this library pass as they are. So do
    failures of a language model inside the workflow that say nothing of the parameters: a wrong key, a server that is
    away.
    """
    from trace_core.integrations.llm.errors import Fatal
    from trace_core.optimizers.llm.failing import is_no_result
    from trace_core.tracebacks import describe

    where = "" if index is None else f" on example {index}"

    try:
        output = workflow(example)
    except ExecutionError as error:
        if isinstance(error, Fatal | RunnerError) or is_no_result(error):
            raise  # no proposal can mend a wrong key, a broken sandbox or an outage, and no optimizer should see it
        feedback = Feedback(text=str(error), score=failure_score, example=index)
        return Trace.of(error.node, feedback), failure_score
    except TraceCoreError:
        raise
    except Exception as error:
        raise WorkflowError(f"the workflow raised an error{where}: {describe('workflow', error)}") from error
    if not isinstance(output, Node):
        raise WorkflowError(
            f"the workflow must return a node, got {type(output).__name__}: decorate the function that makes the "
            "result with tc.bundle"
        )
    try:
        said = metric(output.value, example)
    except Exception as error:
        raise MetricError(f"the metric raised an error{where}: {describe('metric', error)}") from error
    try:
        feedback = Feedback.of(said)
    except FeedbackError as error:
        raise MetricError(
            f"the metric must return a finite score, (score, text) or a Feedback{where}: {error}"
        ) from error
    feedback = Feedback(feedback.text, feedback.score, feedback.scores, feedback.gradient, feedback.example or index)
    trace = Trace.of(output, feedback)
    score = score_of(trace)
    if score is None:
        raise MetricError(f"the metric gave no score{where}, only {said!r:.80}: return a number or (score, text)")
    return trace, score


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

    A KeyboardInterrupt ends the run with the best so far in the Result (``stopped == "interrupted"``); so does an error
    that no proposal can mend: one that the language model's gateway calls fatal (``Unavailable`` after
    ``max_outages``), a WaitTooLong of a server that asks for a long pause, a RunnerError of the place where proposed
    code runs, a MetricError or WorkflowError on a single example (``stopped == "error"``, the error in
    ``error``). Raises OptimizerError for an empty train set, and what ``evaluate`` raises on the validation examples
    before the first step.
    """
    if not train:
        raise OptimizerError("expected at least one training example, got none")
    run = _Run(
        workflow,
        metric,
        list(train),
        list(validation or train),
        optimizer,
        batch_size,
        seed,
        failure_score,
        perfect,
        max_outages,
        on_event,
    )
    return run.go(steps, proposals, seconds, patience)


class _Run:
    """State of one ``optimize`` call."""

    def __init__(
        self,
        workflow: Callable[[Any], Node],
        metric: Callable[[Any, Any], Any],
        train: list[Any],
        validation: list[Any],
        optimizer: Optimizer,
        batch_size: int,
        seed: int,
        failure_score: float,
        perfect: float | None,
        max_outages: int,
        on_event: Callable[[Event], None] | None,
    ) -> None:
        self.workflow, self.metric, self.train, self.validation = workflow, metric, train, validation
        self.optimizer, self.batch_size = optimizer, min(batch_size, len(train))
        self.random = random.Random(seed)
        self.failure_score, self.perfect, self.on_event = failure_score, perfect, on_event
        start = {p: p.value for p in optimizer.parameters}
        self.result = Result(start, start)
        self.queue: list[int] = []
        self.known: dict[int, float] = {}  # training example -> its last score under the current values
        self.step = 0
        self.outages = Outages(max_outages)
        self.improved = 0  # the step of the last improvement

    def go(self, steps: int, proposals: int, seconds: float | None, patience: int | None) -> Result:
        began = time.monotonic()
        result = self.result
        from trace_core.integrations.llm.errors import Fatal, WaitTooLong

        try:
            result.start_score = result.score = self._mean(self.validation, "validation")
            self._say("start", score=result.score)
            for self.step in range(1, steps + 1):
                if self._is_perfect(result.score):
                    result.stopped = "perfect"
                    break
                if seconds is not None and time.monotonic() - began > seconds:
                    result.stopped = "seconds"
                    break
                if patience is not None and self.step - self.improved > patience:
                    result.stopped = "patience"
                    break
                self._one_step(proposals)
                result.steps = self.step
        except KeyboardInterrupt:
            result.stopped = "interrupted"
        except (Fatal, WaitTooLong, RunnerError, MetricError, WorkflowError) as error:
            if math.isnan(result.start_score) and isinstance(error, MetricError | WorkflowError):
                raise
            result.stopped, result.error = "error", error
        result.seconds = time.monotonic() - began
        self._say("end", score=result.score, note=result.stopped)
        return result

    def _one_step(self, proposals: int) -> None:
        batch = self._minibatch()
        traces, before = self._run_batch(batch)
        self.known.update({index: score_of(trace) or 0.0 for index, trace in zip(batch, traces, strict=True)})
        self._say("batch", score=before)
        if self.perfect is not None and all((score_of(t) or 0.0) >= self.perfect for t in traces):
            self._say("rejected", score=before, note="nothing to learn: every output of the minibatch is perfect")
            return
        for proposal in self.optimizer.proposals(traces, proposals):
            if not proposal:
                self._say("rejected", proposal=proposal, note=proposal.reason or "no usable answer")
                self.outages.count("proposal", proposal.error)
                continue
            self.outages.count("proposal", None)
            self._say("proposed", proposal=proposal)
            with using(proposal.values):
                after = self._run_batch(batch)[1]
            self._say("gated", score=after, proposal=proposal)
            if after > before:
                self._validate(proposal)
                return
            self.optimizer.remember(proposal.values, after, "no better on its minibatch")
            proposal.status = "rejected"
            self._say("rejected", score=after, proposal=proposal, note=f"minibatch {before:.3f} -> {after:.3f}")

    def _validate(self, proposal: Proposal) -> None:
        with using(proposal.values):
            score = self._mean(self.validation, "validation")
        self.optimizer.remember(proposal.values, score, "validated")
        best = self.result.score
        if score > best:
            self.optimizer.apply(proposal)
            self.result.score = score
            self.result.best = {p: p.value for p in self.optimizer.parameters}
            self.known.clear()
            self.improved = self.step
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

    def _run_batch(self, batch: list[int]) -> tuple[list[Trace], float]:
        traces, scores = [], []
        for index in batch:
            trace, score = self._evaluate(self.train[index], index)
            traces.append(trace)
            scores.append(score)
        return traces, sum(scores) / len(scores)

    def _mean(self, examples: list[Any], what: str) -> float:
        scores = [self._evaluate(example, f"{what} {index}")[1] for index, example in enumerate(examples)]
        return sum(scores) / len(scores)

    def _evaluate(self, example: Any, index: Any) -> tuple[Trace, float]:
        from trace_core.integrations.llm.errors import Transient

        while True:
            try:
                trace, score = evaluate(self.workflow, self.metric, example, index, self.failure_score)
            except Transient as error:
                self.outages.count("example", error)
            else:
                self.outages.count("example", None)
                break
        if trace.error is not None:
            first = trace.error.splitlines()[0]
            self.result.failures[first] = self.result.failures.get(first, 0) + 1
        self._say("evaluated", score=score)
        return trace, score

    def _is_perfect(self, score: float) -> bool:
        return self.perfect is not None and score >= self.perfect

    def _say(self, kind: str, score: float | None = None, proposal: Proposal | None = None, note: str = "") -> None:
        best = None if math.isnan(self.result.score) else self.result.score
        event = Event(kind, self.step, score, best, proposal, note)
        if kind != "evaluated":
            self.result.history.append(event)
        if self.on_event is not None:
            self.on_event(event)
