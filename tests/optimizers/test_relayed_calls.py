"""Workflows in other processes call language models through the process that keeps the accounts: a real HTTP server."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import engine_work
import pytest
from chat_answers import completion, send

from trace_core.integrations.accounting import AccountingError, account
from trace_core.integrations.budget import Budget, BudgetExhausted, Cost
from trace_core.integrations.engines import ProcessEngine, ThreadEngine
from trace_core.integrations.llm.errors import Fatal
from trace_core.integrations.relay.held import held_models
from trace_core.integrations.relay.server import CallServer
from trace_core.integrations.relay.worker import Relay
from trace_core.integrations.store import Ledger, Run
from trace_core.optimizers.base import Optimizer
from trace_core.optimizers.remote import Importable
from trace_core.optimizers.rollouts import Example, Outcome, Rollouts, examples

KEY = "sk-canary-51be07"
# loaded when there is a server: it holds models
WORK = str(Path(engine_work.__file__).with_name("relay_work.py"))


class Provider:
    """Counts requests; answers in words, or in JSON where a schema is asked for; ``stall`` holds some answers back."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.stall: Callable[[str], bool] = lambda text: False
        self.status: Callable[[str], int] = lambda text: 200
        self.stalled, self.go_on = threading.Event(), threading.Event()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                provider.requests.append((self.headers["Authorization"], body))
                text = " ".join(message["content"] for message in body["messages"])
                if provider.stall(text):
                    provider.stalled.set()
                    provider.go_on.wait(60)
                data = provider.answer(body, text) if provider.status(text) == 200 else b"{}"
                send(self, data, provider.status(text))

            def handle(self) -> None:
                try:
                    super().handle()
                except ConnectionError:
                    return  # the client hung up, which some of this is about

            def log_message(self, *args: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @staticmethod
    def answer(body: dict[str, Any], text: str) -> bytes:
        content = json.dumps({"score": 0.5}) if "judge" in text else f"you said {text}"
        return completion(body["model"], content)


@pytest.fixture(scope="module")
def served() -> Iterator[Provider]:
    made = Provider()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def provider(served: Provider, monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", served.url)
    served.requests.clear()
    served.stalled.clear()
    served.go_on.clear()
    yield served
    served.stall, served.status = (lambda text: False), (lambda text: 200)
    served.go_on.set()


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessEngine]:
    """Eight workers for all tests here, which keep what they have loaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(WORK).parent))
        patch.setenv("OPENAI_API_KEY", KEY)
        with ProcessEngine(8) as engine:
            yield engine


def rollouts(name: str, engine: Executor | None, metric: str = "length", **options: Any) -> Rollouts:
    task = Importable(f"{WORK}:{name}", f"{WORK}:{metric}", ["a"])
    names = Optimizer(task.parameters).names
    return Rollouts(task.workflow, task.metric, names, engine=engine, **options)


@contextmanager
def recorded(path: Path) -> Iterator[Run]:
    with Ledger.open(path) as ledger:
        yield ledger.new_run("asking", fingerprint={}, config={})


def evaluated(engine: Executor | None, path: Path, values: list[Any], name: str = "Asking") -> tuple[Any, ...]:
    """Scores, traces, feedback, and all that the ledger and the budget have of the run."""
    budget = Budget(calls=1000, tokens=10_000_000)
    with recorded(path) as run:
        with account(run=run, budget=budget):
            made = rollouts(name, engine, "judge", run=run, budget=budget)
            asked = examples("train", values)
            found = made.run(asked[:1], "0") + made.run(asked[1:], "0")  # the first keeps the answer that is for all
        calls = run.ledger.query(
            "SELECT key, role, model, request_hash, state, estimate_tokens, tokens, tries, lost, result FROM calls "
            "ORDER BY key"
        )
        kept = run.ledger.query("SELECT key, value FROM responses ORDER BY key")
        written = {role: replace(cost, usd=0.0) for role, cost in run.spent().items()}
        assert written == budget.by_role  # the price is not known, which the two say differently
    assert budget.reserved == Cost()
    return [(o.score, o.error, o.trace and o.trace.render(budget=4000)) for o in found], calls, kept, budget.by_role


def test_keys_scores_traces_and_costs_are_those_of_threads(
    provider: Provider, processes: ProcessEngine, tmp_path: Path
) -> None:
    values = [f"{number} x" for number in range(6)]
    with ThreadEngine(1) as engine:  # one after the other: which of equal requests is asked first is then certain
        expected = evaluated(engine, tmp_path / "threads.sqlite", values)
    on_threads = len(provider.requests)
    provider.requests.clear()
    found = evaluated(processes, tmp_path / "processes.sqlite", values)
    assert found == expected
    _, calls, kept, by_role = found
    assert {role for _, role, *_ in calls} == {"workflow", "judge"}
    assert sum("again" in str(body["messages"]) for _, body in provider.requests) == 3 * len(values)
    assert len(provider.requests) == on_threads == by_role["workflow"].calls + by_role["judge"].calls == len(calls)
    assert kept
    assert {authorization for authorization, _ in provider.requests} == {f"Bearer {KEY}"}


def test_a_budget_holds_exactly_across_8_processes(
    provider: Provider, processes: ProcessEngine, tmp_path: Path
) -> None:
    budget = Budget(calls=30)
    with recorded(tmp_path / "l.sqlite") as run:
        with account(run=run, budget=budget), pytest.raises(BudgetExhausted, match="of 30 calls") as caught:
            rollouts("Asking1", processes, run=run, budget=budget).run(examples("train", range(64)), "0")
        assert run.spent()["workflow"].calls == len(run.evaluations()) == 30
    assert caught.value.limit == "calls"
    assert len(provider.requests) == budget.spent.calls == 30
    assert budget.reserved == Cost()
    assert not budget.excess()


def test_what_a_kill_by_timeout_leaves(provider: Provider, processes: ProcessEngine, tmp_path: Path) -> None:
    """The call under way is taken back and counts with its estimate; the rest of the run is as ever."""
    budget = Budget(calls=100, tokens=1_000_000)
    provider.stall = lambda text: text == "say slow"
    seen: list[Outcome] = []

    def note(example: Example, outcome: Outcome) -> None:
        seen.append(outcome)
        if len(seen) == 8:  # every worker has loaded the workflow: now the time is only for its calls
            processes.timeout = 1.5

    with recorded(tmp_path / "l.sqlite") as run:
        with account(run=run, budget=budget):
            made = rollouts("Asking1", processes, run=run, budget=budget)
            made.run(examples("first", range(8)), "0", done=note)
            try:
                (slow,) = made.run(examples("slow", ["slow"]), "0")
            finally:
                processes.timeout = None
            assert provider.stalled.is_set()
            assert slow.error is not None
            assert "RolloutTimeout" in slow.error
            open_ = run.ledger.query("SELECT estimate_tokens FROM calls WHERE state = 'begun'")
            assert budget.reserved == Cost()
            assert len(open_) == 1
            assert replace(run.spent()["workflow"], usd=0.0) == budget.spent
            assert budget.spent == Cost(0.0, 8 * 15 + open_[0][0], 9, 9)
            provider.go_on.set()
            provider.stall = lambda text: False
            after = made.run(examples("after", range(8)), "0")
        assert [outcome.error for outcome in after] == [None] * 8
        assert budget.spent == Cost(0.0, 16 * 15 + open_[0][0], 17, 17)
        assert run.ledger.check() == ["ok"]
    assert len(provider.requests) == 17


def test_the_key_is_not_in_the_worker(
    provider: Provider, processes: ProcessEngine, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (seen,) = rollouts("Peeking", processes).run(examples("train", ["a"]), "0")
    assert seen.trace is not None
    text = seen.trace.output.value
    assert "you said say a" in text
    assert str(os.getpid()) != text.split("\n")[1]
    assert "PYTHONPATH" in text  # it has the rest of the environment
    shown = [text, json.dumps(seen.trace.to_dict()), caplog.text, *capfd.readouterr()]
    assert not [part for part in shown if KEY in part]
    assert [authorization for authorization, _ in provider.requests] == [f"Bearer {KEY}"]


def test_errors_of_a_model_stop_the_run_as_on_threads(provider: Provider, processes: ProcessEngine) -> None:
    provider.status = lambda text: 401 if "2" in text else 200
    with pytest.raises(Fatal) as caught:
        rollouts("Asking1", processes).run(examples("train", range(4)), "0")
    assert (type(caught.value).__name__, caught.value.status) == ("AuthenticationFailed", 401)
    assert KEY not in str(caught.value)


def test_parameters_are_found_by_one_call_whatever_the_number_of_workers(
    provider: Provider, processes: ProcessEngine
) -> None:
    made = rollouts("function", processes)
    found = made.run(examples("train", range(20)), "0")
    assert all(outcome.error is None for outcome in found)
    finding = [body for _, body in provider.requests if body["messages"][-1]["content"] == "a"]
    assert len(finding) == 2  # once here, once for all workers
    assert len(provider.requests) == 22


def test_who_has_no_ticket_is_not_answered() -> None:
    server = CallServer([])
    try:
        ticket, channel = server.open(None)
        assert os.stat(os.path.dirname(channel["path"])).st_mode & 0o077 == 0
        with pytest.raises(AccountingError, match="given this rollout up"):
            Relay(channel["path"], "0" * 32).recall("x")
        assert Relay(channel["path"], ticket.name).recall("x") is None
        server.end(ticket)
        with pytest.raises(AccountingError, match="given this rollout up"):
            Relay(channel["path"], ticket.name).recall("x")
    finally:
        server.close()
    assert not os.path.exists(channel["path"])
    with pytest.raises(AccountingError, match="another machine"):
        Relay(channel["path"], ticket.name).recall("x")


def test_models_are_found_in_the_same_order_wherever_they_are_held(provider: Provider) -> None:
    task = Importable(f"{WORK}:Asking", f"{WORK}:judge", ["a"])
    held = held_models(task.workflow.target, task.metric.target)
    assert [model.model for model in held] == ["own-model", "judge-model", "test-model", "test-model"]
