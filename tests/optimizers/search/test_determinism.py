"""What is found depends on the seed and on in_flight, never on workers or on what ends first."""

from __future__ import annotations

import json
import random
import re
import threading
import zlib
from collections import Counter
from typing import Any

import pytest
from study_problems import Numbers, nearness

from trace_core.integrations.budget import Budget
from trace_core.integrations.engines import ThreadEngine
from trace_core.integrations.llm import ScriptedLLM
from trace_core.optimizers import OPRO, OptoPrime, Search, Study, TextGrad
from trace_core.optimizers.search import Event

STEPS = 14


class Conductor:
    """Holds every request until all tickets in flight that have not been through have one waiting, and every ticket let
    go before has done its gate; then lets a random one go. Each ticket makes one request and runs a minibatch."""

    def __init__(self, in_flight: int, seed: int, gate: int) -> None:
        self.random = random.Random(seed)
        self.in_flight, self.gate = in_flight, gate
        self.chosen = self.decided = 0
        self.waiting: list[threading.Event] = []
        self.let_go = 0
        self.gated: Counter[str] = Counter()
        self.done = 0
        self.lock = threading.Lock()
        self.order: list[int] = []

    def on_event(self, event: Event) -> None:
        with self.lock:
            if event.kind == "chosen":
                self.chosen += 1
            elif event.kind in ("accepted", "rejected"):
                self.decided += 1
            elif event.kind == "evaluated" and event.example.startswith("train") and event.candidate.endswith(".0"):
                self.gated[event.candidate] += 1
                # a candidate that became a parent is run again, on minibatches of other tickets
                self.done += self.gated[event.candidate] == self.gate
        self.go_on()

    def hold(self) -> None:
        mine = threading.Event()
        with self.lock:
            self.waiting.append(mine)
        self.go_on()
        assert mine.wait(10)

    def go_on(self) -> None:
        with self.lock:
            full = self.chosen - self.decided == self.in_flight or self.chosen == STEPS
            if not full or self.done < self.let_go or len(self.waiting) < self.chosen - self.let_go or not self.waiting:
                return
            number = self.random.randrange(len(self.waiting))
            self.order.append(number)
            self.let_go += 1
            self.waiting.pop(number).set()


def proposing(conductor: Conductor) -> ScriptedLLM:
    """Answers by a hash of the prompt: whatever else a prompt says than it should shows in what comes of it."""

    def reply(messages: Any) -> str:
        prompt = "\n".join(message["content"] for message in messages)
        conductor.hold()
        number = zlib.crc32(prompt.encode()) % 1_000_000
        name = "odd" if number % 3 == 0 else "even"
        return json.dumps({"reasoning": f"tried {number}", "odd": None, "even": None} | {name: number})

    return ScriptedLLM(reply)


def outcome(in_flight: int, workers: int | None, seed: int, kind: Any = OptoPrime) -> tuple[list[Any], Conductor]:
    conductor = Conductor(in_flight, seed, gate=3)
    workflow = Numbers()
    engine = None if workers is None else ThreadEngine(workers)
    study = Study(
        workflow,
        nearness,
        range(12),
        optimizer=kind(workflow, proposing(conductor)),
        search=Search(in_flight=in_flight, perfect=None),
        steps=STEPS,
        budget=Budget(metric_calls=10_000),
        engine=engine,
        seed=3,
        callbacks=[conductor.on_event],
    )
    result = study.run()
    if engine is not None:
        engine.shutdown()
    candidates = [(c.id, c.parents, c.values, c.status, c.note, c.reason, c.score, c.scores) for c in result.candidates]
    memory = study.optimizer.state_dict()
    return [candidates, result.history, result.evaluations, result.best.id if result.best else "", memory], conductor


@pytest.mark.parametrize("in_flight", [1, 4])
@pytest.mark.parametrize("kind", [OptoPrime, OPRO])
def test_workers_and_order_of_completion_decide_nothing(in_flight: int, kind: Any) -> None:
    first, conductor = outcome(in_flight, None, 0, kind)
    orders = {tuple(conductor.order)}
    for workers, seed in ((None, 1), (1, 2), (8, 3), (8, 4)):
        again, conductor = outcome(in_flight, workers, seed, kind)
        assert again == first
        orders.add(tuple(conductor.order))
    candidates, history, *_ = first
    assert len(orders) == (1 if in_flight == 1 else 5)
    assert len({event.kind for event in history}) >= 6
    assert len(candidates) == STEPS + 1
    assert len({c[1] for c in candidates}) > 2  # several parents


def test_what_is_in_flight_at_once_does_decide() -> None:
    assert outcome(1, None, 0)[0] != outcome(4, None, 0)[0]


def test_requests_of_different_tickets_have_different_seeds() -> None:
    workflow = Numbers()
    llm = ScriptedLLM(
        lambda messages: json.dumps({"reasoning": "r", "odd": zlib.crc32(repr(messages).encode()) % 1000})
    )
    optimizer = OptoPrime(workflow, llm, seed=7)
    Study(workflow, nearness, range(6), optimizer=optimizer, search=Search(in_flight=3), steps=9).run()
    seeds = [call.seed for call in llm.calls]
    assert len(seeds) == len(set(seeds)) >= 9


def test_textgrad_asks_twice_in_one_ticket_and_works_beside_others() -> None:
    def reply(messages: Any) -> str:
        prompt = messages[-1]["content"]
        variable = re.search(r"^(even|odd) = ", prompt, re.MULTILINE)
        if "JSON" not in prompt or variable is None:
            return "too far off"
        return json.dumps({"reasoning": "r", variable[1]: {"even": 876_543, "odd": 123_456}[variable[1]]})

    workflow = Numbers()
    optimizer = TextGrad(workflow, ScriptedLLM(reply))
    result = Study(workflow, nearness, range(6), optimizer=optimizer, search=Search(in_flight=2), steps=12).run()
    assert result.score is not None
    assert result.start_score is not None
    assert result.score > result.start_score
