"""The optimization loop: gates, errors, interruption, what it returns."""

from __future__ import annotations

import json
from typing import Any

import pytest

import trace_core as tc
from trace_core.integrations.llm import ScriptedLLM
from trace_core.integrations.llm.errors import AuthenticationFailed
from trace_core.optimizers import OptimizerError, OptoPrime, optimize
from trace_core.optimizers.loop import Event, MetricError, WorkflowError


class Shift(tc.Module):
    """x -> x + offset; the right offset is 3."""

    def __init__(self) -> None:
        self.offset = tc.node(0, trainable=True)

    def forward(self, x: Any) -> tc.Node:
        return self.offset + x


EXAMPLES = list(range(8))


def closeness(output: Any, x: int) -> tuple[float, str]:
    error = output - (x + 3)
    return 1 - abs(error) / 10, f"off by {error}"


def offsets(*values: int) -> ScriptedLLM:
    return ScriptedLLM([json.dumps({"reasoning": "r", "offset": value}) for value in values])


def test_improvements_are_kept_and_worse_proposals_are_not() -> None:
    workflow = Shift()
    result = optimize(
        workflow, closeness, EXAMPLES, optimizer=OptoPrime(workflow, offsets(1, -4, 3)), steps=5, batch_size=2
    )
    assert workflow.offset.value == 3
    assert result.score == 1.0
    assert result.start_score == pytest.approx(0.7)
    assert result.stopped == "perfect"
    assert result.changed == {workflow.offset: (0, 3)}
    kinds = [event.kind for event in result.history if event.kind in ("accepted", "rejected")]
    assert kinds == ["accepted", "rejected", "accepted"]


def test_a_gain_on_the_minibatch_that_fails_on_validation_is_refused() -> None:
    workflow = Shift()

    def opposite(output: Any, x: int) -> tuple[float, str]:
        return (output / 10, "more") if x < 100 else (-output / 1000, "less")

    result = optimize(
        workflow, opposite, [1, 2], [100, 101], optimizer=OptoPrime(workflow, offsets(3)), steps=1, batch_size=2
    )
    assert workflow.offset.value == 0
    assert result.changed == {}
    assert "validation" in result.history[-2].note


def test_parameters_do_not_change_while_candidates_are_tried() -> None:
    workflow = Shift()
    seen: list[int] = []

    def watch(event: Event) -> None:
        if event.kind in ("gated", "rejected"):
            seen.append(workflow.offset._current.value)

    optimize(
        workflow,
        closeness,
        EXAMPLES,
        optimizer=OptoPrime(workflow, offsets(-9, -8)),
        steps=2,
        on_event=watch,
    )
    assert seen == [0, 0, 0, 0]


def test_an_example_that_raises_is_a_failure_score_with_the_error_as_feedback() -> None:
    class Divide(tc.Module):
        def __init__(self) -> None:
            self.by = tc.node(1, trainable=True, name="by")

        @tc.bundle
        def ratio(self, x: int) -> float:
            return 10 / (x - self.by.value)

        def forward(self, x: int) -> Any:
            return self.ratio(x)

    workflow = Divide()
    llm = ScriptedLLM(json.dumps({"reasoning": "r", "by": -1}))
    result = optimize(
        workflow, lambda output, x: 1.0, [1, 2, 3], optimizer=OptoPrime(workflow, llm), steps=3, batch_size=3
    )
    assert result.start_score == pytest.approx(2 / 3)
    assert result.score == 1.0
    assert "ZeroDivisionError" in llm.calls[0].prompt
    assert sum(result.failures.values()) >= 2


@pytest.mark.parametrize(
    ("returned", "message"),
    [(None, "finite score"), (float("nan"), "finite"), ("only words", "no score"), ((1.0, 2.0), "finite score")],
)
def test_a_metric_that_gives_no_score_is_an_error_that_names_the_example(returned: Any, message: str) -> None:
    workflow = Shift()
    with pytest.raises(MetricError, match=message) as caught:
        optimize(workflow, lambda output, x: returned, EXAMPLES, optimizer=OptoPrime(workflow, offsets(1)))
    assert "example validation 0" in str(caught.value)


def test_a_metric_that_raises_is_named() -> None:
    workflow = Shift()
    with pytest.raises(MetricError, match="ZeroDivisionError"):
        optimize(workflow, lambda output, x: 1 / 0, EXAMPLES, optimizer=OptoPrime(workflow, offsets(1)))


def test_a_workflow_must_return_a_node() -> None:
    workflow = Shift()
    with pytest.raises(WorkflowError, match="must return a node"):
        optimize(lambda x: x, closeness, EXAMPLES, optimizer=OptoPrime(workflow, offsets(1)))


def test_no_training_examples() -> None:
    workflow = Shift()
    with pytest.raises(OptimizerError, match="at least one training example"):
        optimize(workflow, closeness, [], optimizer=OptoPrime(workflow, offsets(1)))


def test_interruption_keeps_the_best_so_far() -> None:
    workflow = Shift()

    def stop(event: Event) -> None:
        if event.kind == "accepted":
            raise KeyboardInterrupt

    result = optimize(
        workflow, closeness, EXAMPLES, optimizer=OptoPrime(workflow, offsets(2, 3)), steps=5, on_event=stop
    )
    assert result.stopped == "interrupted"
    assert workflow.offset.value == 2
    assert result.score == pytest.approx(0.9)


def test_a_fatal_error_ends_the_run_with_the_best_so_far() -> None:
    workflow = Shift()
    llm = ScriptedLLM([json.dumps({"reasoning": "r", "offset": 2}), AuthenticationFailed("key was revoked")])
    result = optimize(workflow, closeness, EXAMPLES, optimizer=OptoPrime(workflow, llm), steps=5)
    assert result.stopped == "error"
    assert isinstance(result.error, AuthenticationFailed)
    assert workflow.offset.value == 2


def test_a_metric_that_fails_later_ends_the_run_with_the_best_so_far() -> None:
    workflow = Shift()

    def metric(output: Any, x: int) -> Any:
        return None if output - x == 1 else closeness(output, x)

    result = optimize(workflow, metric, EXAMPLES, optimizer=OptoPrime(workflow, offsets(2, 1, 3)), steps=5)
    assert (result.stopped, workflow.offset.value) == ("error", 2)
    assert isinstance(result.error, MetricError)


def test_an_error_outside_of_bundles_shows_its_line() -> None:
    workflow = Shift()

    def broken(x: Any) -> Any:
        return workflow(x["key"])

    with pytest.raises(WorkflowError, match=r"on example validation 0: .*TypeError(.|\n)*-->   2 \|.*workflow\(x\["):
        optimize(broken, closeness, EXAMPLES, optimizer=OptoPrime(workflow, offsets(1)))


def test_the_same_seed_gives_the_same_run() -> None:
    def history(seed: int) -> list[tuple[str, float | None]]:
        workflow = Shift()
        optimizer = OptoPrime(workflow, offsets(1, 2, -5, 3))
        result = optimize(workflow, closeness, EXAMPLES, optimizer=optimizer, steps=4, batch_size=2, seed=seed)
        return [(event.kind, event.score) for event in result.history]

    assert history(1) == history(1)
