"""Rollouts in other processes: workflow and metric by name, values and examples as data there, a trace as data back."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from trace_core._codec import Lossy, decode, encode
from trace_core._target import CliError, Workflow, find_parameters, has_named_parameters, load_object
from trace_core.context import using
from trace_core.errors import TraceCoreError
from trace_core.integrations.accounting import no_calls
from trace_core.integrations.llm.errors import LLMError
from trace_core.integrations.relay.held import held_models
from trace_core.integrations.relay.wire import error_as_data, error_of
from trace_core.integrations.relay.worker import loading, relayed
from trace_core.optimizers.base import Optimizer, OptimizerError
from trace_core.optimizers.evaluation import MetricError, WorkflowError, evaluate
from trace_core.optimizers.mixed.storing import load_traces, store_traces

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trace_core.integrations.relay.worker import Relay
    from trace_core.parameter import Parameter
    from trace_core.trace import Trace


class Importable:
    """A workflow and a metric by their names, so that other processes can load them.

    Give ``.workflow`` and ``.metric`` to ``optimize`` and it can run on any engine; ``.parameters`` to an optimizer.

    Args:
        workflow: ``module:name`` or ``file.py:name`` of a Module (class or object), a bundle or a function.
        metric: of ``metric(output, example)``.
        examples: what it will run on; decides whether fields are passed by name, and finds a function's parameters.

    Raises CliError naming what cannot be loaded.
    """

    def __init__(self, workflow: str, metric: str, examples: Sequence[Any]) -> None:
        self.workflow = ImportedWorkflow(workflow, examples)
        self.metric = ImportedMetric(metric)

    @property
    def parameters(self) -> Sequence[Any]:
        """Of the workflow as it is loaded here."""
        return find_parameters(self.workflow, self.workflow.first)


class ImportedWorkflow(Workflow):
    """A workflow that knows its name."""

    def __init__(self, spec: str, examples: Sequence[Any]) -> None:
        super().__init__(load_object(spec, "workflow"), examples)
        self.spec, self.first = spec, examples[0]


class ImportedMetric:
    """A metric that knows its name."""

    def __init__(self, spec: str) -> None:
        self.target: Any = load_object(spec, "metric")
        if not callable(self.target):
            raise CliError(
                f"metric {spec!r} must be a function metric(output, example), got {type(self.target).__name__}"
            )
        self.spec = spec

    def __call__(self, output: Any, example: Any) -> Any:
        return self.target(output, example)


_NO_WAY = (
    "this system has no unix sockets, by which a process could ask the one that keeps the accounts to call a language "
    "model: use a ThreadEngine or an AsyncEngine"
)
_OURS: dict[str, type[TraceCoreError]] = {kind.__name__: kind for kind in (MetricError, WorkflowError)}


def check_named(workflow: Any, metric: Any) -> None:
    """Raise OptimizerError for a workflow or a metric that another process could not find."""
    if not hasattr(workflow, "spec") or not hasattr(metric, "spec"):
        raise OptimizerError(
            "an engine of other processes needs a workflow and a metric that can be imported there: make them with "
            "Importable('module:workflow', 'module:metric', examples)"
        )


def order(
    workflow: Any,
    metric: Any,
    values: Mapping[str, Any],
    example: Any,
    index: Any,
    failure_score: float,
    channel: Mapping[str, Any] | None,
) -> tuple[Any, ...]:
    """The arguments of ``rollout``: ``channel`` is where its calls of language models go; None refuses them.

    Raises OptimizerError for values that are no data.
    """
    first = None if has_named_parameters(workflow) else workflow.first  # else run to find the parameters
    try:
        data = json.dumps(encode([dict(values), example, index, first], exact=True))
    except Lossy as lossy:
        raise OptimizerError(
            f"only data crosses to another process, got a {lossy} among the parameters' values or in an example: run "
            "this workflow on a ThreadEngine"
        ) from lossy
    return workflow.spec, workflow._by_name, metric.spec, data, failure_score, channel


_tasks: dict[tuple[str, bool, str], tuple[Workflow, Any, dict[str, Parameter], list[Any]]] = {}


def rollout(
    workflow: str, by_name: bool, metric: str, data: str, failure_score: float, channel: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Evaluate one example in this process: what ``order`` says, for ``read``. Loads the task once."""
    values, example, index, first = decode(json.loads(data))
    key = (workflow, by_name, metric)
    try:
        with no_calls(_NO_WAY) if channel is None else relayed(channel) as way:
            if key not in _tasks:
                with nullcontext() if way is None else loading(way):
                    _tasks[key] = _loaded(workflow, by_name, metric, example if first is None else first, way)
            call, score, parameters, held = _tasks[key]
            if way is not None:
                way.held = held
            with using({parameters[name]: value for name, value in values.items()}):
                trace, result = evaluate(call, score, example, index, failure_score)
    except TraceCoreError as error:
        return {"failed": _failure(error)}
    names = {parameter: name for name, parameter in parameters.items()}
    answer = {"trace": json.dumps(store_traces([trace], names)[0]), "score": result}
    failure = trace.output.value
    if trace.error is not None and isinstance(failure, LLMError):
        answer["failure"] = error_as_data(failure)
    return answer


def _loaded(
    workflow: str, by_name: bool, metric: str, first: Any, way: Relay | None
) -> tuple[Workflow, Any, dict[str, Parameter], list[Any]]:
    call = Workflow(load_object(workflow, "workflow"), [first])
    call._by_name = by_name
    score = load_object(metric, "metric")
    held = held_models(call.target, score)
    if way is not None:
        way.held = held
    names = Optimizer(find_parameters(call, first)).names
    return call, score, {name: parameter for parameter, name in names.items()}, held


def _failure(error: TraceCoreError) -> dict[str, Any]:
    kind = next((name for name, known in _OURS.items() if isinstance(error, known)), None)
    if kind is None and (data := error_as_data(error)) is not None:
        return data
    return {"ours": kind or "OptimizerError", "message": str(error)}


def read(answer: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> tuple[Trace, float, Exception | None]:
    """What ``rollout`` gave, linked to the parameters here, with the failure of a language model that the output is.

    Raises what was raised there.
    """
    if "failed" in answer:
        told = answer["failed"]
        raise _OURS.get(told["ours"], OptimizerError)(told["message"]) if "ours" in told else error_of(told)
    failure = error_of(answer["failure"]) if answer.get("failure") else None
    return load_traces([json.loads(answer["trace"])], parameters)[0], float(answer["score"]), failure
