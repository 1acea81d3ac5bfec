"""How a study is run and how it ends: loops, errors, limits, ask and tell, tables."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from study_problems import Numbers, Shift, by_hash, closeness, nearness, offsets

import trace_core as tc
from trace_core.integrations.budget import Budget
from trace_core.integrations.engines import ThreadEngine
from trace_core.integrations.llm import ScriptedLLM
from trace_core.integrations.llm.errors import AuthenticationFailed, Transient
from trace_core.optimizers import OptimizerError, OptoPrime, Search, Study
from trace_core.optimizers.evaluation import MetricError, WorkflowError
from trace_core.optimizers.search import Event, MergeBranches

EXAMPLES = list(range(8))


def shift(llm: ScriptedLLM, metric: Any = closeness, **more: Any) -> Study:
    workflow = Shift()
    return Study(workflow, metric, EXAMPLES, optimizer=OptoPrime(workflow, llm), **({"steps": 4} | more))


# ---- loops


def test_a_study_runs_inside_a_running_loop_and_beside_one() -> None:
    async def inside() -> tuple[Any, int]:
        ticks = 0

        async def other() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        beside = asyncio.create_task(other())
        found = await shift(offsets(1, 2, 3)).arun()
        beside.cancel()
        blocking = shift(offsets(1, 2, 3)).run()  # as in a notebook's cell
        assert blocking.score == found.score
        return found, ticks

    found, ticks = asyncio.run(inside())
    assert (found.score, found.stopped) == (1.0, "perfect")
    assert ticks > 1


def test_a_cancelled_study_stops_and_keeps_what_it_has() -> None:
    async def cancelled() -> Study:
        loop, begun = asyncio.get_running_loop(), asyncio.Event()

        def on_event(event: Event) -> None:
            if event.kind == "rejected":
                loop.call_soon_threadsafe(begun.set)

        llm = ScriptedLLM(lambda m: json.dumps({"offset": -1, "reasoning": "r"}))
        endless = Search(perfect=None, stalled=10**9)
        study = shift(llm, steps=10**9, search=endless, callbacks=[on_event])
        task = asyncio.create_task(study.arun())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return study

    study = asyncio.run(cancelled())
    assert study.result.stopped == "stopped"
    assert study.best is not None


def test_a_coroutine_is_a_workflow_and_gives_the_same() -> None:
    class Later(Shift):
        async def forward(self, x: Any) -> tc.Node:  # type: ignore[override]
            await asyncio.sleep(0)
            return self.offset + x

    workflow = Later()
    study = Study(workflow, closeness, EXAMPLES, optimizer=OptoPrime(workflow, offsets(1, -4, 3)), steps=5)
    now = shift(offsets(1, -4, 3), steps=5)
    assert study.run().history == now.run().history
    assert study._driver.rollouts.engine is None


def test_callbacks_hear_of_everything_in_the_thread_that_runs_the_study() -> None:
    import threading

    threads, examples = set(), []

    def on_event(event: Event) -> None:
        threads.add(threading.get_ident())
        if event.kind == "evaluated":
            examples.append((event.candidate, event.example))

    workflow = Numbers()
    with ThreadEngine(4) as engine:
        study = Study(
            workflow,
            nearness,
            range(6),
            optimizer=OptoPrime(workflow, by_hash()),
            search=Search(in_flight=3, perfect=None),
            steps=6,
            engine=engine,
            callbacks=[on_event],
        )
        result = study.run()
    assert threads == {threading.get_ident()}
    assert len(examples) == result.evaluations


# ---- how it ends


def test_it_ends_when_told_to_or_when_it_gets_nowhere() -> None:
    study = shift(ScriptedLLM(lambda m: json.dumps({"offset": -1, "reasoning": "r"})), steps=1000)
    study.callbacks.append(lambda event: study.stop() if event.kind == "rejected" else None)
    assert (study.run().stopped, study.result.steps) == ("stopped", 1)
    stuck = shift(ScriptedLLM(lambda m: json.dumps({"offset": 0, "reasoning": "r"})), steps=1000)
    assert stuck.run().stopped == "stalled"
    assert 30 <= stuck.result.steps < 40  # until every example was seen, each ticket ran some

    patient = shift(ScriptedLLM(lambda m: json.dumps({"offset": -1, "reasoning": "r"})), search=Search(patience=3))
    assert (patient.run().stopped, patient.result.steps) == ("patience", 3)
    late = shift(offsets(1), seconds=0)
    assert (late.run().stopped, late.result.steps) == ("seconds", 0)


def test_limits_of_calls_and_dollars_hold_and_the_best_comes_back() -> None:
    for limit in range(1, 5):
        budget = Budget(calls=limit)
        llm = offsets(1, 2, -1, 2)
        result = shift(llm, budget=budget, search=Search(perfect=None), steps=20).run()
        assert result.stopped == "budget"
        assert len(llm.calls) == budget.spent.calls == limit
        assert result.score == pytest.approx(0.8 if limit == 1 else 0.9)
        assert "calls" in result.why


def test_a_wrong_key_ends_the_run_with_the_best_so_far() -> None:
    llm = ScriptedLLM([json.dumps({"reasoning": "r", "offset": 2}), AuthenticationFailed("no")])
    result = shift(llm).run()
    assert result.stopped == "error"
    assert isinstance(result.error, AuthenticationFailed)
    assert result.score == pytest.approx(0.9)


def test_an_outage_ends_the_run_after_a_few_tickets_in_a_row() -> None:
    answers = [Transient("away"), json.dumps({"reasoning": "r", "offset": 2}), *[Transient("away")] * 9]
    llm = ScriptedLLM(answers)  # type: ignore[arg-type]
    result = shift(llm, steps=20).run()
    assert (result.stopped, result.steps) == ("error", 4)
    assert result.score == pytest.approx(0.9)


def test_a_workflow_or_metric_that_never_worked_is_raised_and_one_that_fails_later_is_a_failure() -> None:
    def broken(output: Any, x: int) -> float:
        raise KeyError(x)

    with pytest.raises(MetricError, match="metric raised"):
        shift(offsets(1), broken).run()

    def fragile(output: Any, x: int) -> tuple[float, str]:
        if output - x == 7:
            raise ValueError("seven")
        return closeness(output, x)

    result = shift(offsets(7, 3), fragile).run()
    assert (result.score, result.stopped) == (1.0, "perfect")
    dropped = result.candidates[1]
    assert dropped.status == "rejected"
    assert dropped.note.startswith("dropped: it fails on every example, first with (in workflow) MetricError")
    assert sum(result.failures.values()) == 3

    def nothing(x: int) -> Any:
        return x

    workflow = Shift()
    with pytest.raises(WorkflowError, match="must return a node"):
        Study(nothing, closeness, EXAMPLES, optimizer=OptoPrime(workflow, offsets(1)), steps=1).run()


def test_an_example_that_fails_is_feedback_and_counted() -> None:
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
    result = Study(workflow, lambda output, x: 1.0, [1, 2, 3], optimizer=OptoPrime(workflow, llm), steps=3).run()
    assert "ZeroDivisionError" in llm.calls[0].prompt
    assert result.score == 1.0
    assert [(("ZeroDivisionError" in text), count) for text, count in result.failures.items()] == [(True, 2)]


def test_an_interrupt_in_one_of_many_leaves_the_best_and_calls_nothing_more() -> None:
    workflow, llm = Numbers(), by_hash()

    def on_event(event: Event) -> None:
        if event.kind == "accepted":
            raise KeyboardInterrupt

    study = Study(
        workflow,
        nearness,
        range(6),
        optimizer=OptoPrime(workflow, llm),
        search=Search(in_flight=3),
        budget=Budget(calls=100),
        steps=50,
        callbacks=[on_event],
    )
    result = study.run()
    assert result.stopped == "interrupted"
    assert result.best is not None
    assert result.best.id != "0"
    assert workflow.even.value == workflow.odd.value == 500_000


# ---- evaluated elsewhere, tables


def test_candidates_are_asked_for_and_told_of_in_any_order() -> None:
    workflow = Numbers()
    study = Study(
        workflow,
        nearness,
        range(6),
        optimizer=OptoPrime(workflow, by_hash()),
        search=Search(perfect=None, merge=MergeBranches()),
        steps=1,
    )
    first, second = study.ask(), study.ask()
    assert {first.id, second.id} == {"1.0", "2.0"}
    assert study.tell(second, [0.9] * 6)
    assert not study.tell(first, 0.1)
    assert (study.best, second.parents, second.score) == (second, ("0",), pytest.approx(0.9))
    third = study.ask()
    assert third.ticket == 3
    with pytest.raises(OptimizerError, match=r"tell\(\) the scores of 3.0 before run"):
        study.run()
    study.tell(third, {0: 1.0, 5: 1.0})
    assert study.best is third
    with pytest.raises(OptimizerError, match="told already"):
        study.tell(third, 1.0)
    fourth = study.ask()
    with pytest.raises(OptimizerError, match="validation examples 0 to 5"):
        study.tell(fourth, {7: 1.0})
    assert workflow.even.value == 500_000


def test_records_and_a_data_frame() -> None:
    study = shift(offsets(1, -4, 3), steps=3)
    study.run()
    rows = study.records()
    assert [(row["id"], row["status"], row["value.offset"]) for row in rows] == [
        ("0", "start", 0),
        ("1.0", "accepted", 1),
        ("2.0", "rejected", -4),
        ("3.0", "accepted", 3),
    ]
    pytest.importorskip("pandas")
    frame = study.to_dataframe()
    assert frame.loc["2.0", "stage"] == "gate"
    assert frame["score"].max() == 1.0


def test_several_objectives_are_kept_apart() -> None:
    def two(output: Any, x: int) -> dict[str, float]:
        return {"near": closeness(output, x)[0], "small": 1 - abs(output - x) / 10}

    result = shift(offsets(1, 2), two, search="multi", steps=2).run()
    assert result.candidates[0].objectives == {"near": pytest.approx(0.7), "small": pytest.approx(1.0)}
    assert result.start_score == pytest.approx(0.85)


# ---- numeric


def test_a_torch_optimizer_takes_its_steps_in_a_study_and_leaves_the_tensors_alone() -> None:
    torch = pytest.importorskip("torch")
    from trace_core.nodes.tensor import TensorParameter
    from trace_core.optimizers import TorchOptimizer

    class Line(tc.Module):
        def __init__(self) -> None:
            self.slope = TensorParameter(torch.tensor([0.0]))

        def forward(self, x: float) -> Any:
            return ((self.slope * x - 3 * x) ** 2).sum()

    def loss(output: Any, x: float) -> float:
        return -float(output.detach())

    def plain(steps: int) -> float:
        """Adam itself, on the same minibatches."""
        from trace_core.optimizers.search.minibatches import minibatch

        slope = torch.tensor([0.0], requires_grad=True)
        adam = torch.optim.Adam([slope], lr=0.3)
        for ticket in range(1, steps + 1):
            adam.zero_grad()
            for index in minibatch(0, ticket, 3, 4):
                (((slope * data[index]) - 3 * data[index]) ** 2).sum().backward()
            adam.step()
        return float(slope.detach())

    data = [1.0, 2.0, 3.0, 4.0]
    workflow = Line()
    study = Study(workflow, loss, data, optimizer=TorchOptimizer(workflow, torch.optim.Adam, lr=0.3), steps=20)
    result = study.run()
    assert result.steps == 20
    assert float(result.candidates[-1].values["slope"]) == pytest.approx(plain(20), rel=1e-5)
    assert float(workflow.slope.tensor) == 0.0
    study.apply_best()
    assert abs(float(workflow.slope.tensor) - 3) < 0.3
    with pytest.raises(OptimizerError, match="goes on from the one before"):
        Study(workflow, loss, data, optimizer=study.optimizer, search=Search(), steps=1)
