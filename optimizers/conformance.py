"""What a Study expects of an optimizer, as tests that a test class inherits."""

from __future__ import annotations

import contextlib
import json
import tempfile
import unittest
from contextvars import Context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trace_core.bundle import bundle
from trace_core.context import using
from trace_core.integrations.engines import ThreadEngine
from trace_core.integrations.store.packing import pack, unpack
from trace_core.optimizers.evaluation import evaluate
from trace_core.optimizers.search.candidate import Candidate, first_values
from trace_core.optimizers.search.search import Search, search_from
from trace_core.optimizers.search.study import Study

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trace_core.optimizers.base import Optimizer, Proposal
    from trace_core.optimizers.search.events import Event
    from trace_core.optimizers.search.result import StudyResult
    from trace_core.trace import Trace


class Problem(NamedTuple):
    """A small problem for an optimizer: what ``Study`` takes."""

    workflow: Callable[[Any], Any]
    optimizer: Optimizer
    metric: Callable[[Any, Any], Any]
    train: Sequence[Any]
    val: Sequence[Any]


class OptimizerConformance:
    """Tests of an optimizer in a ``Study``. Subclass it in a test module, under pytest, and say what to test::

        class TestMine(OptimizerConformance):
            def make(self):
                workflow = Workflow()
                return workflow, MyOptimizer(workflow), metric, train, val

    Each test makes the problem several times and runs a few tickets of it, so make it small: some milliseconds for an
    example. A language model must answer by the prompt alone, not by a list of answers, or no two runs are the same.
    Values and state are compared bit for bit.

    Attributes:
        steps: tickets of a study; at least 2.
        improves: whether so many tickets are enough to do better than the first values.
        failure_score: of an output that is an error: lower than the score of any other.
        batch_size: training examples in a minibatch.
    """

    steps = 4
    improves = True
    failure_score = 0.0
    batch_size = 2

    def make(self) -> tuple[Any, Optimizer, Any, Sequence[Any], Sequence[Any]]:
        """(workflow, optimizer, metric, train, val): new objects each time, equal to those before."""
        raise NotImplementedError("a conformance test needs make() -> (workflow, optimizer, metric, train, val)")

    # ---- proposals

    def test_proposals_are_allowed_values_and_change_nothing(self) -> None:
        problem = self._problem()
        before = _live(problem)
        versions = {p: p.version for p in problem.optimizer.parameters}
        made = _proposals(problem, self._traces(problem))
        assert made, "propose() must give at least one Proposal, an empty one if there is nothing to propose"
        for proposal in made:
            for parameter, value in proposal.values.items():
                assert parameter in problem.optimizer.names, f"a value for {parameter!r}, which is not its own"
                parameter.check(value)
        problem.optimizer.commit(made[0])
        assert _live(problem) == before, "propose() or commit() changed a parameter"
        assert {p: p.version for p in versions} == versions, "propose() or commit() updated a parameter"

    # ---- in a study

    def test_a_study_gives_the_best_it_saw(self) -> None:
        problem = self._problem()
        study = self._study(problem)
        result = study.run()
        assert result.error is None, result.why
        assert len(result.candidates) > 1, f"no candidate in {self.steps} tickets: {_reasons(result)}"
        assert result.score is not None
        assert result.start_score is not None
        assert result.score == max(c.score for c in result.candidates if c.in_pool and c.score is not None)
        if self.improves:
            assert result.score > result.start_score, f"no better in {self.steps} tickets: {_reasons(result)}"

    def test_the_workflow_stays_as_it_is_until_the_best_is_applied(self) -> None:
        problem = self._problem()
        before = _live(problem)
        changed: list[str] = []

        def look(event: Event) -> None:
            if _live(problem) != before:
                changed.append(event.describe())

        study = self._study(problem, callbacks=[look])
        study.run()
        assert not changed, f"the workflow's own parameters had changed at: {changed[0]}"
        study.apply_best()
        assert study.best is not None
        assert _live(problem) == _exact(study.best.values)

    def test_an_example_that_fails_ends_nothing(self) -> None:
        made = self._problem()
        result = self._study(self._failing(made, every=False), batch_size=len(made.train)).run()
        assert result.stopped in _ENDS, f"{result.stopped}: {result.why}"
        assert result.failures, "the failing example was never run"
        assert result.score is not None
        assert result.start_score is not None
        assert result.score >= result.start_score

    def test_examples_that_all_fail_end_nothing(self) -> None:
        made = self._problem()
        result = self._study(self._failing(made, every=True), steps=2).run()
        assert result.stopped in _ENDS, f"{result.stopped}: {result.why}"
        assert result.failures, "no failing example was run"

    # ---- state

    def test_state_is_plain_data_and_goes_on_the_same(self) -> None:
        first = self._problem()
        study = self._study(first, steps=2)
        study.run()
        text, arrays = pack(first.optimizer.state_dict(), "the state of the optimizer")  # raises for what is no data
        json.loads(text)
        second = self._problem()
        second.optimizer.load_state_dict(unpack(text, arrays))
        values = study.candidates[-1].values if study.candidates[-1].in_pool else study.candidates[0].values
        made = [self._next(problem, values) for problem in (first, second)]
        assert made[0] == made[1], "after load_state_dict() the next proposal is another"

    def _next(self, problem: Problem, values: Mapping[str, Any]) -> str:
        names = problem.optimizer.names
        with using(Candidate("0", values).versions(names)):
            made = _proposals(problem, self._traces(problem))
        return _exact([{names[p]: value for p, value in proposal.values.items()} for proposal in made])

    # ---- resuming, engines

    def test_interrupted_after_any_ticket_and_resumed_it_is_the_run_that_was_not(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            whole = self._study(self._problem(), store=Path(folder, "whole.sqlite"))
            whole.run()
            assert whole.result.stopped in _ENDS, whole.result.why
            wanted = summary(whole)
            for ticket in range(1, whole.result.steps + 1):
                place = Path(folder, f"{ticket}.sqlite")
                first = self._study(self._problem(), store=place, callbacks=[_InterruptAt(ticket)])
                assert first.run().stopped == "interrupted"
                again = self._study(self._problem(), store=place, resume="latest")
                again.run()
                assert summary(again) == wanted, f"interrupted in ticket {ticket} and resumed it went another way"

    def test_it_is_the_same_on_one_worker_and_on_four(self) -> None:
        found = []
        for workers in (0, 4):
            with contextlib.ExitStack() as open_:
                engine = open_.enter_context(ThreadEngine(workers)) if workers else None
                study = self._study(self._problem(), engine=engine)
                study.run()
                found.append(summary(study))
        assert found[0] == found[1]

    def test_several_tickets_at_once_are_the_same_on_any_number_of_workers(self) -> None:
        found = []
        for workers in (0, 4):
            problem = self._problem()
            if not problem.optimizer.concurrent:
                raise unittest.SkipTest("one ticket at a time is what this optimizer says it can do")
            with contextlib.ExitStack() as open_:
                engine = open_.enter_context(ThreadEngine(workers)) if workers else None
                study = self._study(problem, engine=engine, in_flight=3)
                study.run()
                found.append(summary(study))
        assert found[0] == found[1]

    # ---- parts

    def _failing(self, made: Problem, every: bool) -> Problem:
        """The problem with an operator at the end that fails on the first training example, or on all of them."""
        fails = bundle(name="may_fail")(_fail)
        return Problem(
            lambda example: fails(made.workflow(example[1]), example[0]),
            made.optimizer,
            lambda output, example: made.metric(output, example[1]),
            [(every or number == 0, example) for number, example in enumerate(made.train)],
            [(False, example) for example in made.val],
        )

    def _problem(self) -> Problem:
        return Problem(*self.make())

    def _study(self, problem: Problem, in_flight: int = 1, batch_size: int | None = None, **more: Any) -> Study:
        optimizer = problem.optimizer
        usual = search_from("pareto", chained=optimizer.chained, gated=optimizer.gated)
        search = Search(
            parents=usual.parents,
            acceptance=usual.acceptance,
            reuse=usual.reuse,
            in_flight=in_flight,
            batch_size=batch_size or self.batch_size,
            perfect=None,
        )
        return Study(
            problem.workflow,
            problem.metric,
            problem.train,
            problem.val,
            optimizer=optimizer,
            search=search,
            failure_score=self.failure_score,
            **{"steps": self.steps, "name": "conformance", **more},
        )

    def _traces(self, problem: Problem) -> list[Trace]:
        examples = list(problem.train)[: self.batch_size]
        return [
            evaluate(problem.workflow, problem.metric, example, index, self.failure_score)[0]
            for index, example in enumerate(examples)
        ]


_ENDS = ("steps", "stalled")


class _InterruptAt:
    """Interrupts when a ticket is decided, before that is written down."""

    def __init__(self, ticket: int) -> None:
        self.ticket = ticket

    def __call__(self, event: Event) -> None:
        if event.kind in ("accepted", "rejected") and event.ticket == self.ticket:  # type: ignore[union-attr]
            raise KeyboardInterrupt


def summary(study: Study) -> str:
    """Everything that a study decided, as a text that is the same for the same decisions."""
    result = study.result
    candidates = [
        [c.id, c.parents, c.ticket, c.values, c.changed, c.status, c.note, c.reason, c.score, c.scores]
        for c in result.candidates
    ]
    ends = [result.steps, result.evaluations, result.stopped, result.best.id if result.best else None]
    return _exact([candidates, [event.describe() for event in result.history], ends, dict(result.failures)])


def _exact(value: Any) -> str:
    """A text that is the same for values that are the same bit for bit."""
    text, arrays = pack(value, "a value")
    return f"{text}{'' if arrays is None else arrays.hex()}"


def _live(problem: Problem) -> str:
    """The parameters' own values, whatever candidate is being looked at here."""
    return _exact(Context().run(first_values, problem.optimizer.names))


def _proposals(problem: Problem, traces: Sequence[Trace]) -> list[Proposal]:
    return list(problem.optimizer.fork(1).proposals(traces))


def _reasons(result: StudyResult) -> str:
    return "; ".join(event.describe() for event in result.history if event.kind == "rejected") or "no rejection"


def _fail(output: Any, fails: bool) -> Any:
    if fails:
        raise ValueError("this example fails on purpose")
    return output
