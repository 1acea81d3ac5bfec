"""Running a workflow on examples: what it gives, how good that is, and what stays of it when it fails."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from trace_core.bundle import bundle
from trace_core.errors import ExecutionError, FeedbackError, RunnerError, TraceCoreError
from trace_core.feedback import Feedback
from trace_core.integrations.accounting import role
from trace_core.node import Node
from trace_core.optimizers.llm.memory import score_of
from trace_core.parameter import Parameter
from trace_core.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable


class MetricError(TraceCoreError):
    """A metric returned something that is no feedback with a finite score."""


class WorkflowError(TraceCoreError):
    """A workflow cannot be optimized: it raises outside of its bundles, or does not return a node."""


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
    failures of a language model that say nothing of the parameters: a wrong key, a server that is away.
    """
    output: Any
    try:
        output = workflow(example)
    except Exception as error:  # noqa: BLE001 - sorted out and raised again there
        output = error
    if inspect.iscoroutine(output):
        output.close()
        raise WorkflowError("the workflow is a coroutine: run it on an engine for coroutines, engine=AsyncEngine()")
    return _judged(output, metric, example, index, failure_score)


async def aevaluate(
    workflow: Callable[[Any], Awaitable[Node]],
    metric: Callable[[Any, Any], Any],
    example: Any,
    index: Any = None,
    failure_score: float = 0.0,
) -> tuple[Trace, float]:
    """``evaluate`` for a workflow that is a coroutine function."""
    output: Any
    try:
        output = await workflow(example)
    except Exception as error:  # noqa: BLE001 - sorted out and raised again there
        output = error
    return _judged(output, metric, example, index, failure_score)


def _judged(
    output: Any, metric: Callable[[Any, Any], Any], example: Any, index: Any, failure_score: float
) -> tuple[Trace, float]:
    """The trace and score of an output, or of the error that came in its place."""
    if not isinstance(output, Node):
        return _failed(output, index, failure_score)
    where = "" if index is None else f" on example {index}"
    try:
        with role("judge"):
            said = metric(output.value, example)
    except Exception as error:
        from trace_core.integrations.llm.errors import Fatal
        from trace_core.optimizers.llm.failing import is_no_result
        from trace_core.tracebacks import describe

        if isinstance(error, Fatal) or is_no_result(error) or stops_the_run(error):  # of a model that judges
            raise
        raise MetricError(f"the metric raised an error{where}: {describe('metric', error)}") from error
    try:
        feedback = Feedback.of(said)
    except FeedbackError as error:
        raise MetricError(
            f"the metric must return a finite score, (score, text) or a Feedback{where}: {error}"
        ) from error
    if not isinstance(said, Feedback | Node):
        object.__setattr__(feedback, "example", index)  # made here a moment ago: nobody else has it
    elif not feedback.example:
        feedback = Feedback(feedback.text, feedback.score, feedback.scores, feedback.gradient, index)
    trace = Trace(output if not isinstance(output, Parameter) else Trace.of(output).output, feedback, None)
    score = score_of(trace)
    if score is None:
        raise MetricError(f"the metric gave no score{where}, only {said!r:.80}: return a number or (score, text)")
    return trace, score


def _failed(output: Any, index: Any, failure_score: float) -> tuple[Trace, float]:
    """The trace and score where there is no node, if that says something of the parameters; else the error is raised.

    What is imported here is needed by failures alone, and looking it up would be a good part of an evaluation.
    """
    from trace_core.integrations.llm.errors import Fatal
    from trace_core.optimizers.llm.failing import is_no_result
    from trace_core.tracebacks import describe

    where = "" if index is None else f" on example {index}"
    if isinstance(output, ExecutionError):
        if isinstance(output, Fatal | RunnerError) or is_no_result(output) or stops_the_run(output):
            raise output  # no proposal can mend a wrong key, a broken sandbox or an outage
        feedback = Feedback(text=str(output), score=failure_score, example=index)
        return Trace.of(output.node, feedback), failure_score
    if isinstance(output, TraceCoreError):
        raise output
    if isinstance(output, Exception):
        raise WorkflowError(f"the workflow raised an error{where}: {describe('workflow', output)}") from output
    raise WorkflowError(
        f"the workflow must return a node, got {type(output).__name__}: decorate the function that makes the "
        "result with tc.bundle"
    )


def stops_the_run(error: BaseException) -> bool:
    """Whether an error is about money or the ledger, which is nobody's fault and no feedback."""
    from trace_core.integrations.accounting import AccountingError
    from trace_core.integrations.budget import BudgetExhausted, UnknownPrice
    from trace_core.integrations.store.errors import StoreError

    return isinstance(error, BudgetExhausted | UnknownPrice | AccountingError | StoreError)


def failed_outside(
    error: TraceCoreError, parameters: Iterable[Parameter], index: Any, failure_score: float
) -> tuple[Trace, float]:
    """Trace and score of a rollout that left none: one operator over all parameters that failed with ``error``."""

    @bundle(name="workflow", description="The workflow as a whole.")
    def workflow(*values: Any) -> Any:
        raise error

    try:
        workflow(*parameters)
    except ExecutionError as failure:
        text = f"{type(error).__name__}: {error}"
        return Trace.of(failure.node, Feedback(text=text, score=failure_score, example=index)), failure_score
    raise AssertionError("the operator above always raises")  # pragma: no cover
