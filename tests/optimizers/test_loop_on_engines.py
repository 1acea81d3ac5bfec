"""The same loop gives the same candidates and scores wherever its examples run; what hangs is a failure."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import engine_work
import pytest

import trace_core as tc
from trace_core.integrations.budget import Budget
from trace_core.integrations.engines import AbandonedWarning, AsyncEngine, ProcessEngine, ThreadEngine
from trace_core.integrations.llm import ScriptedLLM
from trace_core.integrations.store import Ledger
from trace_core.nodes import LLMCall
from trace_core.optimizers import OptimizerError, OptoPrime, Result, optimize
from trace_core.optimizers.remote import Importable

WORK = str(Path(engine_work.__file__))
EXAMPLES = list(range(8))


@pytest.fixture(autouse=True)
def workers_find_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(WORK).parent))


def offsets(*values: int) -> ScriptedLLM:
    return ScriptedLLM([json.dumps({"reasoning": "r", "offset": value}) for value in values])


def run(engine: Executor | None, workflow: str = "Shift", **options: Any) -> tuple[Result, ScriptedLLM]:
    task = Importable(f"{WORK}:{workflow}", f"{WORK}:closeness", EXAMPLES)
    llm = offsets(1, -4, 2, 5, 3)
    result = optimize(
        task.workflow,
        task.metric,
        EXAMPLES,
        optimizer=OptoPrime(task.parameters, llm, seed=1),
        steps=5,
        batch_size=3,
        engine=engine,
        **options,
    )
    return result, llm


def seen(result: Result, llm: ScriptedLLM) -> Any:
    """Everything that was decided, and every prompt that was made of the traces."""
    events = [
        (e.kind, e.step, e.score, e.best, e.note, e.proposal and list(e.proposal.values.values()))
        for e in result.history
    ]
    return events, result.score, list(result.best.values()), [call.prompt for call in llm.calls]


@contextmanager
def on_dask() -> Iterator[Executor]:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client,
        client.get_executor() as executor,
    ):
        yield executor


@contextmanager
def on_ray() -> Iterator[Executor]:
    ray = pytest.importorskip("ray")
    from trace_core.integrations.engines import RayEngine

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80_000_000)
    try:
        with RayEngine(2) as engine:
            yield engine
    finally:
        ray.shutdown()


ENGINES = [
    pytest.param(lambda: ThreadEngine(4), id="threads"),
    pytest.param(lambda: ThreadPoolExecutor(4), id="plain-pool"),
    pytest.param(lambda: AsyncEngine(4), id="async"),
    pytest.param(lambda: ProcessEngine(2), id="processes"),
    pytest.param(on_dask, id="dask", marks=pytest.mark.slow),
    pytest.param(on_ray, id="ray", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("make", ENGINES)
def test_every_engine_gives_the_same_run(make: Any, tmp_path: Path) -> None:
    """Candidates, scores, prompts, and the calls that the workflow makes, with their keys in the ledger."""

    def on(engine: Executor | None, name: str) -> Any:
        budget = Budget(calls=1000, tokens=1_000_000)
        with Ledger.open(tmp_path / name) as ledger:
            record = ledger.new_run("shift", fingerprint={}, config={})
            result, llm = run(engine, "Told", run=record, budget=budget)
            calls = ledger.query("SELECT key, role, model, state, tokens, tries, result FROM calls ORDER BY key")
            return seen(result, llm), sorted(map(repr, record.evaluations())), calls, budget.by_role, result.score

    expected = on(None, "alone.sqlite")
    with make() as engine:
        assert on(engine, "engine.sqlite") == expected
    assert expected[-1] == 1.0
    assert len([call for call in expected[2] if call[1] == "workflow"]) > 40


def test_a_coroutine_workflow_runs_on_tasks_and_gives_the_same_run() -> None:
    class Awaited(engine_work.Shift):
        async def forward(self, x: Any) -> tc.Node:  # type: ignore[override]
            for _ in range(7 - x):  # the last asked is done first
                await asyncio.sleep(0)
            return self.offset + x

    workflow = Awaited()
    llm = offsets(1, -4, 2, 5, 3)
    options: dict[str, Any] = {"steps": 5, "batch_size": 3}
    optimizer = OptoPrime(workflow, llm, seed=1)
    with AsyncEngine(8) as engine:
        result = optimize(workflow, engine_work.closeness, EXAMPLES, optimizer=optimizer, engine=engine, **options)
    assert seen(result, llm) == seen(*run(None))
    with pytest.raises(tc.TraceCoreError, match="AsyncEngine"):
        optimize(Awaited(), engine_work.closeness, EXAMPLES, optimizer=optimizer)


@pytest.mark.parametrize("make", [lambda: ThreadEngine(4, timeout=1), lambda: ProcessEngine(2, timeout=1)])
@pytest.mark.filterwarnings("ignore::trace_core.integrations.engines.errors.AbandonedWarning")
def test_a_rollout_that_hangs_is_a_failure_that_the_optimizer_sees(make: Any) -> None:
    with make() as engine:
        result, _ = run(engine, "Stuck")
    assert result.stopped == "steps"
    assert any("RolloutTimeout" in text for text in result.failures)
    assert result.best[next(iter(result.best))] in (1, 2, 3)


def test_threads_that_hang_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadEngine(4, timeout=0.5) as engine, pytest.warns(AbandonedWarning):
        run(engine, "Stuck")


def test_a_workflow_without_a_name_is_refused_by_engines_of_other_processes() -> None:
    workflow = engine_work.Shift()
    with ProcessEngine(1) as engine, pytest.raises(OptimizerError, match="Importable"):
        optimize(workflow, engine_work.closeness, EXAMPLES, optimizer=OptoPrime(workflow, offsets(1)), engine=engine)


def test_without_unix_sockets_a_model_is_refused_and_other_workflows_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trace_core.integrations.relay.available", lambda: False)
    with ProcessEngine(1) as engine:
        assert seen(*run(engine)) == seen(*run(None))
        with pytest.raises(tc.TraceCoreError, match="no unix sockets"):
            run(engine, "Told")


def test_64_at_once_never_pass_a_budget(tmp_path: Path) -> None:
    class Asking(tc.Module):
        def __init__(self) -> None:
            self.prompt = tc.node("a", trainable=True)
            self.llm = LLMCall(ScriptedLLM(lambda messages: messages[0]["content"]))

        def forward(self, x: Any) -> tc.Node:
            return self.llm(self.prompt, str(x))

    workflow = Asking()
    optimizer = OptoPrime(workflow, ScriptedLLM(json.dumps({"reasoning": "r", "prompt": "aaaa"})))
    for limits in ({"calls": 100}, {"metric_calls": 150}):
        budget = Budget(**limits)  # type: ignore[arg-type]
        before = len(workflow.llm.llm.calls)  # type: ignore[attr-defined]
        with Ledger.open(tmp_path / "l.sqlite") as ledger, ThreadEngine(64) as engine:
            record = ledger.new_run("asking", fingerprint={}, config={})
            result = optimize(
                workflow,
                lambda output, x: len(output) / 10,
                list(range(64)),
                optimizer=optimizer,
                steps=9,
                batch_size=64,
                engine=engine,
                budget=budget,
                run=record,
            )
            spent = sum((cost for cost in record.spent().values()), start=type(budget.spent)())
        assert result.stopped == "budget"
        assert next(iter(limits)) in result.why
        assert result.score == pytest.approx(0.1) or result.score > 0.1  # the best so far
        assert not budget.excess()
        assert spent == budget.spent
        made = len(workflow.llm.llm.calls) - before  # type: ignore[attr-defined]
        assert made <= budget.spent.calls


def test_an_interrupt_does_not_wait_for_what_runs() -> None:
    release = threading.Event()

    class Slow(engine_work.Shift):
        @tc.bundle
        def add(self, x: int, offset: int) -> int:
            if x:
                release.wait()
            return x + offset

        def forward(self, x: Any) -> tc.Node:
            return self.add(x, self.offset)

    def stop(event: Any) -> None:
        raise KeyboardInterrupt

    workflow = Slow()
    with ThreadEngine(4) as engine:
        result = optimize(
            workflow,
            engine_work.closeness,
            EXAMPLES,
            optimizer=OptoPrime(workflow, offsets(1)),
            engine=engine,
            on_event=lambda event: stop(event) if event.kind == "evaluated" else None,
        )
        assert result.stopped == "interrupted"
        release.set()
