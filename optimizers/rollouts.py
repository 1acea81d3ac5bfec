"""Evaluations of a run: on any engine, within the budget, written to the ledger, given in the order asked for."""

from __future__ import annotations

import contextlib
import inspect
import sys
import threading
import weakref
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from trace_core.context import using
from trace_core.errors import TraceCoreError
from trace_core.integrations.accounting import place
from trace_core.integrations.budget import Cost
from trace_core.integrations.engines.errors import RolloutCrash, RolloutTimeout
from trace_core.integrations.llm.errors import Deadline, Transient
from trace_core.optimizers.evaluation import MetricError, WorkflowError, aevaluate, evaluate, failed_outside
from trace_core.optimizers.llm.failing import Outages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from trace_core.integrations.accounting import Account
    from trace_core.integrations.budget import Budget, Reservation
    from trace_core.integrations.relay.server import CallServer, Ticket
    from trace_core.integrations.store import Run
    from trace_core.parameter import Parameter
    from trace_core.trace import Trace


_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


class Outcome(NamedTuple):
    """One example evaluated.

    Attributes:
        trace: with feedback; None where the score was known and no trace was asked for.
        score: higher is better.
        error: text of the error that the output was; None for none.
        scores: of several objectives, by name; None where there are none.
    """

    trace: Trace | None
    score: float
    error: str | None
    scores: Mapping[str, float] | None = None


class _Open(NamedTuple):
    """An evaluation under way."""

    number: int
    here: Account | None
    reservation: Reservation | None
    ticket: Ticket | None


class Example(NamedTuple):
    """An example with its name in the run, such as ``train 3``, and the index that its feedback carries."""

    name: str
    index: Any
    value: Any


def examples(kind: str, values: Iterable[Any]) -> list[Example]:
    """Examples named ``kind 0``, ``kind 1`` ..."""
    return [Example(f"{kind} {i}", i if kind == "train" else f"{kind} {i}", value) for i, value in enumerate(values)]


class Rollouts:
    """Evaluates examples under candidates.

    Args:
        workflow, metric: see ``optimize``.
        names: parameter -> its name, for every parameter that candidates may change.
        run: where outcomes are written, and looked up before anything is run.
        budget: pays for metric calls.
        engine: where they run; None for one after the other in this thread.
        failure_score: of an output that is an error.
        outages: counts how often a language model could not be had; an example is run again until it stops the run.

    Attributes:
        tolerant: whether a MetricError or WorkflowError is the failure of its example, with the error as feedback.
            False at first: where the first values already fail so, the task is wrong.
        is_async: whether the workflow is a coroutine function, which needs an engine for coroutines.
    """

    def __init__(
        self,
        workflow: Callable[[Any], Any],
        metric: Callable[[Any, Any], Any],
        names: Mapping[Parameter, str],
        *,
        run: Run | None = None,
        budget: Budget | None = None,
        engine: Executor | None = None,
        failure_score: float = 0.0,
        outages: Outages | None = None,
    ) -> None:
        self.outages = outages or Outages(3)
        self.workflow, self.metric, self.names = workflow, metric, names
        self.ledger, self.budget, self.engine, self.failure_score = run, budget, engine, failure_score
        self.tolerant = False
        self._server: CallServer | None = None
        self._opening = threading.Lock()
        call = getattr(workflow, "target", workflow)
        call = getattr(call, "forward", call) if not inspect.isroutine(call) else call
        self.is_async = inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(type(call).__call__)

    def run(
        self,
        asked: Sequence[Example],
        candidate: str,
        sample: int = 0,
        values: Mapping[Parameter, Any] | None = None,
        *,
        traces: bool = True,
        keep: bool = True,
        done: Callable[[Example, Outcome], None] = lambda example, outcome: None,
    ) -> list[Outcome]:
        """Outcomes in the order of ``asked``.

        Args:
            asked: examples.
            candidate: id of the candidate in the run.
            sample: tells repetitions apart.
            values: of the candidate, over the parameters' present ones.
            traces: whether traces are needed; without, what the ledger knows is not run again.
            keep: whether traces that come all the same are kept; a thousand graphs are work for the garbage collector.
            done: called for each outcome as it comes.

        Raises what ``evaluate`` raises, BudgetExhausted, StoreError.
        """
        outcomes: dict[int, Outcome] = {}
        open_: dict[Future[Any], _Open] = {}
        ended: SimpleQueue[Future[Any]] = SimpleQueue()  # in constant time, which waiting for one of all is not

        def start(number: int, reservation: Reservation | None) -> None:
            example = asked[number]
            with place("workflow", f"{candidate}/{example.name}/{sample}") as here:
                future, ticket = self._submit(self.engine, example, values or {}, here)  # type: ignore[arg-type]
                open_[future] = _Open(number, here, reservation, ticket)
                future.add_done_callback(ended.put)

        def finish(
            number: int, outcome: Outcome, reservation: Reservation | None, failure: BaseException | None = None
        ) -> None:
            self._keep(asked[number], candidate, sample, outcome, reservation)
            if outcome.trace is not None and outcome.error is not None:
                failure = failure or outcome.trace.output.value
            self.outages.count("example", failure if isinstance(failure, Deadline) else None)
            outcomes[number] = outcome if keep else outcome._replace(trace=None)
            done(asked[number], outcome)

        with using(values or {}):
            try:
                for number, example in enumerate(asked):
                    known = self.ledger and self.ledger.evaluation(candidate, example.name, sample)
                    if known and not traces:
                        outcomes[number] = Outcome(None, known.score, known.error, known.scores)
                        done(example, outcomes[number])
                        continue
                    reservation = None
                    if self.budget is not None and not known:
                        reservation = self.budget.reserve(Cost(metric_calls=1), "workflow")
                    if self.engine is not None:
                        start(number, reservation)
                        continue
                    with reservation or _NOTHING:
                        trace, score = self._evaluate(example, f"{candidate}/{example.name}/{sample}")
                        finish(number, _outcome_of(trace, score), reservation)
                while open_:
                    ready = [ended.get()]
                    while not ended.empty():
                        ready.append(ended.get())
                    for future in sorted(ready, key=lambda f: open_[f].number):
                        number, here, reservation, ticket = open_[future]
                        try:
                            outcome, failure = self._outcome(future, asked[number], here, ticket)
                        except Transient as error:
                            self.outages.count("example", error)
                            del open_[future]
                            start(number, reservation)
                            continue
                        finish(number, outcome, reservation, failure)
                        del open_[future]
            finally:
                self._give_up(open_, asked, lambda number, *done: self._keep(asked[number], candidate, sample, *done))
        return [outcomes[number] for number in range(len(asked))]

    def _evaluate(self, example: Example, scope: str) -> tuple[Trace, float]:
        """Here and now; again while a language model is away. Each time at a fresh place: what was paid for counts."""
        while True:
            with place("workflow", scope):
                try:
                    return evaluate(self.workflow, self.metric, example.value, example.index, self.failure_score)
                except Transient as error:
                    self.outages.count("example", error)
                except (MetricError, WorkflowError) as error:
                    if not self.tolerant:
                        raise
                    return failed_outside(error, self.names, example.index, self.failure_score)

    def _submit(
        self, engine: Executor, example: Example, values: Mapping[Parameter, Any], here: Account | None
    ) -> tuple[Future[Any], Ticket | None]:
        arguments: tuple[Any, ...] = (self.workflow, self.metric, example.value, example.index, self.failure_score)
        if getattr(engine, "shares_memory", False):
            evaluation: Callable[..., Any] = aevaluate if self.is_async else evaluate
            return engine.submit(evaluation, *arguments), None
        if isinstance(engine, ThreadPoolExecutor):  # does not carry the context by itself
            context = copy_context()
            return engine.submit(lambda: context.run(evaluate, *arguments)), None
        from trace_core.integrations.relay import available
        from trace_core.optimizers.remote import check_named, order, rollout

        present = {name: values.get(p, p.value) for p, name in self.names.items()}
        what = (self.workflow, self.metric, present, example.value, example.index, self.failure_score)
        check_named(self.workflow, self.metric)
        if not available():  # calls of language models are refused there
            return engine.submit(rollout, *order(*what, None)), None
        ticket, channel = self._calls().open(here)
        try:
            return engine.submit(rollout, *order(*what, channel)), ticket
        except BaseException:
            self._calls().end(ticket)
            raise

    def _calls(self) -> CallServer:
        """Where rollouts in other processes ask for calls of language models."""
        with self._opening:  # several threads run examples at once
            if self._server is None:
                from trace_core.integrations.relay.held import held_models
                from trace_core.integrations.relay.server import CallServer

                held = held_models(self.workflow.target, self.metric.target)  # type: ignore[attr-defined]
                self._server = CallServer(held)
                weakref.finalize(self, self._server.close)
            return self._server

    def _outcome(
        self, future: Future[Any], example: Example, here: Account | None, ticket: Ticket | None
    ) -> tuple[Outcome, BaseException | None]:
        """With the failure of a language model in another process that the output is, if it is one."""
        failure: BaseException | None = None
        try:
            answer = future.result()
        except (RolloutTimeout, RolloutCrash) as error:
            if here is not None:  # what an abandoned thread still does is not to be paid for
                here.closed = f"this rollout was given up: {error}"
            trace, score = failed_outside(error, self.names, example.index, self.failure_score)
        except (MetricError, WorkflowError) as error:
            if not self.tolerant:
                raise
            trace, score = failed_outside(error, self.names, example.index, self.failure_score)
        else:
            if isinstance(answer, dict):
                from trace_core.optimizers.remote import read

                trace, score, failure = read(answer, {name: parameter for parameter, name in self.names.items()})
            else:
                trace, score = answer
        finally:
            if ticket is not None:
                self._calls().end(ticket)
        return _outcome_of(trace, score), failure

    def _keep(
        self, example: Example, candidate: str, sample: int, outcome: Outcome, reservation: Reservation | None
    ) -> None:
        if reservation is not None:
            reservation.settle(Cost(metric_calls=1))
        if self.ledger is None or outcome.trace is None:
            return
        from trace_core.integrations.store import EvaluationRow

        scores = dict(outcome.scores) if outcome.scores else None
        said = outcome.trace.feedback.text
        self.ledger.put_evaluation(
            EvaluationRow(candidate, example.name, sample, outcome.score, scores, said, outcome.error)
        )

    def _give_up(
        self,
        left: Mapping[Future[Any], _Open],
        asked: Sequence[Example],
        keep: Callable[[int, Outcome, Reservation | None], None],
    ) -> None:
        """After an error: what waits is cancelled; what runs is waited for, so that nothing is paid for afterwards.

        An interrupt does not wait: what runs may make no further calls.
        """
        for future in left:
            future.cancel()
        if isinstance(sys.exception(), KeyboardInterrupt):
            for _, here, _, ticket in left.values():
                if here is not None:
                    here.closed = "the run was interrupted"
                if ticket is not None:
                    self._calls().end(ticket)
        elif left:
            wait(left, return_when="ALL_COMPLETED")
        for future, (number, here, reservation, ticket) in left.items():
            outcome = None
            if future.done() and not future.cancelled() and future.exception() is None:
                with contextlib.suppress(TraceCoreError):  # of another process: this one failed, too
                    outcome = self._outcome(future, asked[number], here, ticket)[0]
            elif ticket is not None:
                self._calls().end(ticket)
            if outcome is not None:
                keep(number, outcome, reservation)
            elif reservation is not None:
                reservation.release()


def _outcome_of(trace: Trace, score: float) -> Outcome:
    return Outcome(trace, score, trace.error, trace.feedback.scores or None)
