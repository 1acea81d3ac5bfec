"""A study that is stopped anywhere and taken up again is the study that was never stopped."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from study_problems import Numbers, by_hash, nearness

from trace_core.integrations.budget import Budget
from trace_core.integrations.llm import ScriptedLLM
from trace_core.integrations.store import Drift, Ledger
from trace_core.optimizers import OPRO, OptoPrime, Search, Study
from trace_core.optimizers.search import (
    Always,
    BetterTrace,
    EpsilonGreedy,
    Event,
    MergeBranches,
    Portfolio,
    Racing,
    Repeats,
    TraceCredit,
)

#: Everything but clocks.
STATE = {
    "runs": "name, status, fingerprint, stopped, error, best, score",
    "steps": 'step, score, "values", state',
    "candidates": 'id, step, parents, status, score, reason, detail, "values"',
    "evaluations": "candidate, example, sample, score, feedback, error",
    "events": "step, number, kind, data",
    "calls": "substr(key, instr(key, '/')), role, model, request_hash, state, usd, tokens, result, error",
}


def end_state(place: Path) -> dict[str, list[str]]:
    with sqlite3.connect(place) as connection:
        return {t: sorted(map(str, connection.execute(f"SELECT {c} FROM {t}"))) for t, c in STATE.items()}


def study(place: Path, resume: str | None = None, steps: int = 8, llm: ScriptedLLM | None = None, **more: Any) -> Study:
    workflow, llm = Numbers(), llm or by_hash()
    search = more.pop("search", None) or Search(in_flight=more.pop("in_flight", 1), perfect=None)
    return Study(
        workflow,
        nearness,
        range(9),
        range(100, 105),
        test=[7, 8],
        optimizer=Portfolio([kind(workflow, llm, seed=1) for kind in (OptoPrime, OPRO)], plateau=2),
        search=search,
        steps=steps,
        store=place,
        resume=resume,
        name="numbers",
        **more,
    )


def summary(of: Study) -> list[Any]:
    result = of.result
    candidates = [
        (c.id, c.parents, c.ticket, c.values, c.changed, c.status, c.note, c.reason, c.score, c.scores, c.detail)
        for c in result.candidates
    ]
    ends = [result.steps, result.evaluations, result.stopped, result.failures, result.test_score, result.test_start]
    return [candidates, result.history, ends, result.best.id if result.best else None, of.optimizer.state_dict()]


class Stop:
    """Interrupts at the given event."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, event: Event) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


SEARCHES = {
    "one": Search(perfect=None),
    "four": Search(perfect=None, in_flight=4),
    "merge": Search(perfect=None, in_flight=3, batch_size=6, parents=EpsilonGreedy(1.0), merge=MergeBranches()),
    "contrast": Search(
        perfect=None,
        in_flight=3,
        batch_size=4,
        parents=EpsilonGreedy(1.0),
        acceptance=Always(),
        contrast=BetterTrace(),
        credit=TraceCredit(k=1),
    ),
    "repeats": Search(perfect=None, in_flight=2, acceptance=Repeats(2), validation=Racing()),
}


@pytest.mark.parametrize("kind", SEARCHES)
def test_interrupted_at_any_event_and_resumed_it_ends_the_same(tmp_path: Path, kind: str) -> None:
    search = SEARCHES[kind]
    whole = study(tmp_path / "whole", search=search, budget=Budget(metric_calls=400))
    count = 0

    def counting(event: Event) -> None:
        nonlocal count
        count += 1

    whole.callbacks.append(counting)
    whole.run()
    assert whole.result.stopped == "steps"
    assert kind != "merge" or "merged" in [c.status for c in whole.candidates]
    assert kind != "contrast" or any("for comparison" in c.detail.get("prompt", "") for c in whole.candidates)
    wanted, rows = summary(whole), end_state(tmp_path / "whole")
    requests = len(rows["calls"])
    for at in range(1, count, 13):
        place = tmp_path / f"at-{at}"
        first = study(place, search=search, budget=Budget(metric_calls=400), callbacks=[Stop(at)])
        llm = by_hash()
        if first.run().stopped != "interrupted":  # other tickets' examples were told of in another order
            continue
        budget = Budget(metric_calls=400)
        again = study(place, "latest", search=search, budget=budget, llm=llm)
        again.run()
        assert summary(again) == wanted, at
        assert end_state(place) == rows, at
        assert len(llm.calls) <= requests
        assert budget.spent.metric_calls == whole.result.evaluations + len(set(again._tested)) * 2


def test_every_number_of_tickets_can_be_gone_on_from(tmp_path: Path) -> None:
    whole = study(tmp_path / "whole", in_flight=3)
    whole.run()
    for steps in range(1, 8):
        place = tmp_path / f"{steps}"
        study(place, in_flight=3, steps=steps).run()
        again = study(place, "latest", in_flight=3)
        again.run()
        assert again.result.steps == 8
        assert [c.values for c in again.candidates] == [c.values for c in whole.candidates]


def test_a_used_up_budget_is_gone_on_from_with_a_larger_one(tmp_path: Path) -> None:
    whole = study(tmp_path / "whole", budget=Budget(metric_calls=400))
    whole.run()
    assert whole.result.evaluations > 44
    first = study(tmp_path / "part", budget=Budget(metric_calls=40))
    assert first.run().stopped == "budget"
    again = study(tmp_path / "part", "latest", budget=Budget(metric_calls=400))
    again.run()
    assert [c.values for c in again.candidates] == [c.values for c in whole.candidates]
    assert again.result.history[:-1] == whole.result.history[:-1]


def test_a_second_run_of_the_same_object_goes_on(tmp_path: Path) -> None:
    whole = study(tmp_path / "whole", in_flight=2)
    whole.run()
    parts = study(tmp_path / "parts", in_flight=2)
    stop = Stop(40)
    parts.callbacks.append(stop)
    assert parts.run().stopped == "interrupted"
    assert parts.run().stopped == "steps"
    assert [c.values for c in parts.candidates] == [c.values for c in whole.candidates]


def test_what_ran_must_be_what_runs(tmp_path: Path) -> None:
    study(tmp_path / "l", steps=2).run()
    with pytest.raises(Drift, match="search"):
        study(tmp_path / "l", "latest", search=Search(batch_size=2)).run()


def test_the_ledger_has_the_run_as_a_report_wants_it(tmp_path: Path) -> None:
    made = study(tmp_path / "l", in_flight=2)
    result = made.run()
    with Ledger.open(tmp_path / "l", read_only=True) as ledger:
        from trace_core.integrations.store import Run

        assert made.run_id == "numbers-1"
        run = Run(ledger, made.run_id)
        row = run.row()
        assert (row.status, row.stopped, row.best) == ("done", "steps", result.best.id if result.best else "")
        candidates = run.candidates()
        assert {c.status for c in candidates} == {"start", "accepted", "rejected"}
        rejected = next(c for c in candidates if c.status == "rejected")
        assert rejected.detail["stage"] == "gate"
        assert set(rejected.detail) >= {
            "note",
            "changed",
            "parent",
            "minibatch",
            "before",
            "after",
            "prompt",
            "dropped",
        }
        assert set(rejected.values) == {"even", "odd"}
        kinds = [event.kind for event in run.events()]
        assert kinds[:2] == ["started", "trace"]
        assert kinds[-1] == "ended"
        trace = next(event for event in reversed(run.events()) if event.kind == "trace")
        assert trace.data["candidate"] == row.best
        assert trace.data["example"] == "val 0"
