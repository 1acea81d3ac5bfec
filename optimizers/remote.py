"""Rollouts in other processes: workflow and metric by name, values and examples as data there, a trace as data back."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from trace_core._codec import Lossy, decode, encode
from trace_core._target import CliError, Workflow, find_parameters, load_object
from trace_core.context import using
from trace_core.errors import RunnerError, TraceCoreError
from trace_core.integrations.accounting import no_calls
from trace_core.integrations.llm.errors import Fatal, Transient
from trace_core.optimizers.base import Optimizer, OptimizerError
from trace_core.optimizers.evaluation import MetricError, WorkflowError, evaluate
from trace_core.optimizers.mixed.storing import load_traces, store_traces

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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


_PASSED: dict[str, type[TraceCoreError]] = {
    "MetricError": MetricError,
    "WorkflowError": WorkflowError,
    "RunnerError": RunnerError,
    "Transient": Transient,
    "Fatal": Fatal,
}
_NO_CALLS = (
    "a workflow that calls a language model under a ledger or a budget runs in threads or tasks of the process that "
    "keeps them: use a ThreadEngine or an AsyncEngine"
)


def order(
    workflow: Any, metric: Any, values: Mapping[str, Any], example: Any, index: Any, failure_score: float, closed: bool
) -> tuple[Any, ...]:
    """The arguments of ``rollout``. Raises OptimizerError for a workflow without a name, or values that are no data."""
    if not hasattr(workflow, "spec") or not hasattr(metric, "spec"):
        raise OptimizerError(
            "an engine of other processes needs a workflow and a metric that can be imported there: make them with "
            "Importable('module:workflow', 'module:metric', examples)"
        )
    try:
        data = json.dumps(encode([dict(values), example, index], exact=True))
    except Lossy as lossy:
        raise OptimizerError(
            f"only data crosses to another process, got a {lossy} among the parameters' values or in an example: run "
            "this workflow on a ThreadEngine"
        ) from lossy
    return workflow.spec, workflow._by_name, metric.spec, data, failure_score, closed


def _loaded(workflow: str, by_name: bool, metric: str, first: Any) -> tuple[Workflow, Any, dict[str, Parameter]]:
    call = Workflow(load_object(workflow, "workflow"), [first])
    call._by_name = by_name
    names = Optimizer(find_parameters(call, first)).names
    return call, load_object(metric, "metric"), {name: parameter for parameter, name in names.items()}


_tasks: dict[tuple[str, bool, str], tuple[Workflow, Any, dict[str, Parameter]]] = {}


def rollout(workflow: str, by_name: bool, metric: str, data: str, failure_score: float, closed: bool) -> dict[str, Any]:
    """Evaluate one example in this process: what ``order`` says, for ``read``. Loads the task once."""
    values, example, index = decode(json.loads(data))
    key = (workflow, by_name, metric)
    try:
        with no_calls(_NO_CALLS) if closed else nullcontext():
            if key not in _tasks:
                _tasks[key] = _loaded(workflow, by_name, metric, example)
            call, score, parameters = _tasks[key]
            with using({parameters[name]: value for name, value in values.items()}):
                trace, result = evaluate(call, score, example, index, failure_score)
    except TraceCoreError as error:
        kind = next((name for name, known in _PASSED.items() if isinstance(error, known)), "OptimizerError")
        return {"failed": kind, "message": str(error)}
    names = {parameter: name for name, parameter in parameters.items()}
    return {"trace": json.dumps(store_traces([trace], names)[0]), "score": result}


def read(answer: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> tuple[Trace, float]:
    """What ``rollout`` gave, linked to the parameters here. Raises what was raised there."""
    if "failed" in answer:
        raise _PASSED.get(answer["failed"], OptimizerError)(answer["message"])
    return load_traces([json.loads(answer["trace"])], parameters)[0], float(answer["score"])
