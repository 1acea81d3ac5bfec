"""The study: a workflow, a metric, examples, an optimizer, and a search over what it proposes."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from trace_core.errors import RunnerError, TraceCoreError
from trace_core.integrations.accounting import account
from trace_core.integrations.budget import BudgetExhausted
from trace_core.integrations.store.errors import StoreError
from trace_core.optimizers.base import OptimizerError
from trace_core.optimizers.evaluation import MetricError, WorkflowError, stops_the_run
from trace_core.optimizers.llm.failing import Outages
from trace_core.optimizers.rollouts import Rollouts, examples
from trace_core.optimizers.search.acceptance import mean
from trace_core.optimizers.search.asking import Asking
from trace_core.optimizers.search.driver import Driver
from trace_core.optimizers.search.events import Evaluated
from trace_core.optimizers.search.journal import StudyJournal
from trace_core.optimizers.search.result import StudyResult
from trace_core.optimizers.search.search import Search, described, search_from
from trace_core.optimizers.search.session import Limits
from trace_core.optimizers.search.store import Store, name_of
from trace_core.optimizers.search.table import records, to_dataframe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Executor
    from os import PathLike

    from trace_core.integrations.budget import Budget
    from trace_core.integrations.store import Ledger, Run
    from trace_core.optimizers.base import Optimizer
    from trace_core.optimizers.search.candidate import Candidate
    from trace_core.optimizers.search.events import Event


class Study:
    """A search for better values of a workflow's parameters.

    Args:
        workflow: a Module, a bundle or any callable that takes an example and returns a node.
        metric: ``metric(output value, example)`` -> score, (score, text), a dict of scores or Feedback; higher is
            better.
        train: examples whose traces and feedback the optimizer sees.
        val: examples that decide which candidate is best; by default the training examples.
        test: examples that nothing is decided by; the seed and the best are run on them once, at the end.
        optimizer: proposes new values; see ``Optimizer``.
        search: ``pareto``, ``best``, ``epsilon``, ``topk``, ``beam``, ``ucb``, ``multi``, ``latest``, or a ``Search``.
        budget: limits of everything the run spends, in all roles.
        store: where everything is written as it happens: the path of a ledger, which is made where there is none, an
            open Ledger, or a Run of one. None for nowhere.
        resume: a run in ``store`` to go on with: its id, the beginning of it, or ``"latest"``. What it has decided and
            paid for is taken over, and what follows is what would have followed.
        on_drift: what to do if workflow, metric, examples or search are not those of the run: ``refuse`` or ``fork``.
        name: of the run; by default the workflow's.
        engine: where examples are run, several at once; see ``optimize``.
        seed: of parents and minibatches.
        steps: tickets at most.
        seconds: no ticket is decided after so many.
        callbacks: functions that get every event, in the thread that runs the study. Those that have a ``close()`` are
            closed at the end of each run, also by an error.
        failure_score: score of an output that is an error.
        max_outages: the run ends when the language model could not be had so many times in a row.

    The workflow's parameters stay as they are until ``apply_best()``: candidates are evaluated under ``tc.using``.

    Raises OptimizerError for arguments that cannot work.
    """

    def __init__(
        self,
        workflow: Callable[[Any], Any],
        metric: Callable[[Any, Any], Any],
        train: Sequence[Any],
        val: Sequence[Any] | None = None,
        test: Sequence[Any] | None = None,
        *,
        optimizer: Optimizer,
        search: Search | str = "pareto",
        budget: Budget | None = None,
        store: str | PathLike[str] | Ledger | Run | None = None,
        resume: str | None = None,
        on_drift: str = "refuse",
        name: str | None = None,
        engine: Executor | None = None,
        seed: int = 0,
        steps: int | None = None,
        seconds: float | None = None,
        callbacks: Sequence[Callable[[Event], None]] = (),
        failure_score: float = 0.0,
        max_outages: int = 3,
    ) -> None:
        if not train:
            raise OptimizerError("expected at least one training example, got none")
        self.search = search_from(search, chained=optimizer.chained, gated=optimizer.gated)
        if self.search.in_flight > 1 and not optimizer.concurrent:
            raise OptimizerError(
                f"{type(optimizer).__name__} works on one ticket at a time: Search(in_flight=1), or give the optimizer "
                "a fork() of its own"
            )
        if steps is None and seconds is None and budget is None and self.search.patience is None:
            raise OptimizerError(
                "nothing would end this study: give budget=Budget(metric_calls=...), steps= or seconds="
            )
        self.workflow, self.metric, self.optimizer, self.seed = workflow, metric, optimizer, seed
        self.budget, self.engine = budget, engine
        self.callbacks = list(callbacks)
        self._test = examples("test", test or ())
        self._tested: dict[str, float] = {}
        data = {"train": list(train), "validation": list(val or train), "test": list(test or ())}
        self._store = Store(store, resume, on_drift, name or name_of(workflow)) if store is not None else None
        self._parts = {"code": {"workflow": workflow, "metric": metric}, "data": data, "config": self._config()}
        self._begun = False
        self.result = StudyResult()
        rollouts = Rollouts(
            workflow,
            metric,
            optimizer.names,
            budget=budget,
            engine=engine,
            failure_score=failure_score,
            outages=Outages(max_outages),
        )
        self._driver = Driver(
            rollouts,
            optimizer,
            self.search,
            examples("train", train),
            examples("val", val or train),
            seed,
            Limits(steps, seconds, 2 * len(self._test)),
            self._tell,
            lambda: bool(self.callbacks),
        )

        self._asking = Asking(self._driver)

    # ---- running

    def run(self) -> StudyResult:
        """Search until something ends it; what was found. A second call goes on, if the limits were raised meanwhile.

        An interrupt, a used-up budget and an error that no proposal can mend end the run with the best so far in the
        result. Raises what the workflow or the metric raise on the validation examples with the first values, and
        errors of strategies and callbacks.
        """
        driver, result = self._driver, self.result
        if self._asking.open:
            raise OptimizerError(f"tell() the scores of {', '.join(self._asking.open)} before run()")
        result.error, result.why, driver.stopping = None, "", False
        with contextlib.ExitStack() as open_:
            open_.callback(self._close_callbacks)
            run = open_.enter_context(self._store.opened(self._parts)) if self._store is not None else None
            self._begin(run)
            if run is not None or self.budget is not None:
                open_.enter_context(account(run=run, budget=self.budget))
            with self._threads():
                self._go()
            if result.stopped not in ("interrupted", "error"):
                self._guarded(self._measure)
            result.seconds = driver.seconds
            driver.ended(result.stopped)
            self._end()
        return result

    def _begin(self, run: Run | None) -> None:
        """Take up what an earlier part has left, once; and start the clocks."""
        driver = self._driver
        driver.rollouts.ledger = run
        driver.began, driver.before = time.monotonic(), driver.seconds if self._begun else 0.0
        if run is not None:
            driver.journal = driver.journal or StudyJournal(run)
            driver.journal.run = run
            driver.journal.note_isolation(self.optimizer.names)
        if self._begun:
            self.result.forget(driver.decided)
            if driver.journal is not None:
                driver.journal.forget(driver.decided)
            return
        self._begun = True
        events = driver.journal.restore(driver) if driver.journal is not None else None
        if events is not None:
            self.result.note(*events)
            driver.rollouts.tolerant = True
        if self.budget is not None:
            self.budget.start(run.spent() if run is not None else None, driver.before)
            if run is None:
                driver.foreign = self.budget.spent.metric_calls

    def _end(self) -> None:
        result, journal = self.result, self._driver.journal
        if journal is not None:
            try:
                journal.end(result.stopped, result.why)
            except StoreError as error:  # a full disk ends a run and takes no note of it; what is committed is whole
                result.stopped, result.error = "error", result.error or error

    def _go(self) -> None:
        def go() -> None:
            self.result.stopped = self._driver.go()

        try:
            self._guarded(go)
        finally:
            self._note()

    def _guarded(self, do: Callable[[], None]) -> None:
        """``do``; what ends a run with the best so far is noted, and everything else raised."""
        from trace_core.integrations.llm.errors import Fatal, WaitTooLong

        result = self.result
        try:
            do()
        except KeyboardInterrupt:
            result.stopped = "interrupted"
        except BudgetExhausted as error:
            result.stopped, result.why = "budget", str(error)
        except (Fatal, WaitTooLong, RunnerError, MetricError, WorkflowError) as error:
            if self.best is None and isinstance(error, MetricError | WorkflowError):
                raise
            result.stopped, result.error, result.why = "error", error, str(error)
        except TraceCoreError as error:
            if self.best is None or not stops_the_run(error):
                raise
            result.stopped, result.error, result.why = "error", error, str(error)

    @contextlib.contextmanager
    def _threads(self) -> Iterator[None]:
        """Threads for the tickets in flight, and an event loop for coroutines, as long as the run goes."""
        from trace_core.integrations.engines.tasks import AsyncEngine
        from trace_core.integrations.engines.threads import ThreadEngine

        driver = self._driver
        with contextlib.ExitStack() as open_:
            if driver.rollouts.engine is None and driver.rollouts.is_async:
                driver.rollouts.engine = AsyncEngine()
                open_.callback(driver.rollouts.engine.shutdown)
                open_.callback(setattr, driver.rollouts, "engine", None)
            if self.search.in_flight > 1:
                driver.threads = ThreadEngine(self.search.in_flight)
                open_.callback(driver.threads.shutdown, wait=False)
                open_.callback(setattr, driver, "threads", None)
            yield

    def _note(self) -> None:
        driver, result = self._driver, self.result
        result.best = driver.pool.best
        result.seed = driver.pool.members[0] if len(driver.pool) else None
        result.candidates = list(driver.pool.everything.values())
        result.steps, result.evaluations = driver.decided, driver.spent
        result.failures = dict(driver.failures)

    def _measure(self) -> None:
        """The seed and the best on the test examples, once each."""
        result = self.result
        if not self._test or result.best is None or result.seed is None:
            return
        for candidate in (result.seed, result.best):
            if candidate.id not in self._tested:
                found = self._driver.worker.evaluate(candidate, self._test, 0)
                self._tested[candidate.id] = mean([outcome.score for outcome in found])
                for outcome in found:
                    self._driver.count_failure(outcome.error)
                result.failures = dict(self._driver.failures)
        result.test_start, result.test_score = (self._tested[c.id] for c in (result.seed, result.best))

    async def arun(self) -> StudyResult:
        """``run`` for use inside a running event loop, which goes on meanwhile: the study runs in a thread.

        Callbacks are called in that thread. A cancellation stops the study after the ticket being decided, and waits
        for it.
        """
        import asyncio

        running = asyncio.ensure_future(asyncio.to_thread(self.run))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            self.stop()
            await asyncio.wait([running])
            raise

    # ---- evaluated elsewhere

    def ask(self) -> Candidate:
        """A candidate to be evaluated by somebody else; its values are ``candidate.values``.

        The seed is validated and minibatches are run here, since the optimizer needs traces; the gate is held on what
        ``tell`` says. Several can be asked for before the first is told of. Not with ``store=``.

        Raises OptimizerError if no valid proposal comes in ``Search.stalled`` tickets, and what the workflow raises.
        """
        self._by_hand()
        with self._accounts():
            return self._asking.ask()

    def tell(self, candidate: Candidate, scores: Mapping[int, float] | Sequence[float] | float) -> bool:
        """How a candidate did; whether it joined the pool.

        Args:
            candidate: that was asked for.
            scores: of the validation examples, in their order or by index; one number stands for all of them.

        It joins if ``Search.acceptance`` finds it better than its parent on the examples that both have scores for.
        """
        self._by_hand()
        joined = self._asking.tell(candidate, scores)
        self._note()
        return joined

    def _by_hand(self) -> None:
        if self._store is not None:
            raise OptimizerError("ask() and tell() keep nothing in a store: leave store= out, or use run()")
        if not self._begun:
            self._begin(None)

    def _accounts(self) -> contextlib.AbstractContextManager[None]:
        return account(budget=self.budget) if self.budget is not None else contextlib.nullcontext()

    def stop(self) -> None:
        """End the run after the ticket that is being decided. For callbacks and other threads."""
        self._driver.stopping = True

    # ---- looking

    @property
    def run_id(self) -> str | None:
        """The id of the run in the store; None before ``run`` and without a store."""
        return self._store.run_id if self._store is not None else None

    def _config(self) -> dict[str, Any]:
        names = sorted(self.optimizer.names.values())
        return {
            "search": described(self.search),
            "optimizer": type(self.optimizer).__name__,
            "parameters": names,
            "seed": self.seed,
        }

    @property
    def best(self) -> Candidate | None:
        """The best candidate so far; None before the seed is validated."""
        return self._driver.pool.best

    @property
    def candidates(self) -> list[Candidate]:
        """All that were tried so far, in order."""
        return list(self._driver.pool.everything.values())

    def records(self) -> list[dict[str, Any]]:
        """One dict for each candidate, in order: id, parents, status, scores, note, values ..."""
        return records(self.candidates)

    def to_dataframe(self) -> Any:
        """``records`` as a pandas DataFrame, indexed by id. Raises MissingExtra without the extra ``pandas``."""
        return to_dataframe(self.candidates)

    def apply_best(self) -> None:
        """Give the workflow's parameters the best values. Until then they are as they were.

        Raises OptimizerError before there is a best candidate.
        """
        if self.best is None:
            raise OptimizerError("there is no best candidate yet: run() comes first")
        values = self.best.values
        checked = {p: p.check(values[name]) for p, name in self.optimizer.names.items()}
        for parameter, value in checked.items():
            parameter.update(value)

    def _repr_html_(self) -> str:
        from trace_core.optimizers.report.notebook import study_html

        return study_html(self)

    def _close_callbacks(self) -> None:
        """Those that hold something while a run goes, such as a terminal, give it back, whatever ended it."""
        for callback in self.callbacks:
            close = getattr(callback, "close", None)
            if callable(close):
                close()

    def _tell(self, event: Event) -> None:
        if not isinstance(event, Evaluated):
            self.result.note(event)
        for callback in self.callbacks:
            callback(event)
