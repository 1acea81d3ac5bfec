"""A study in a process that kills itself at a write of the ledger, counted: KILL_AT="12 before" or "12 after"."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from kills import kill_at_a_write
from study_problems import Numbers, nearness

from trace_core.integrations.budget import Budget
from trace_core.integrations.llm import resolve_llm
from trace_core.integrations.store import Ledger
from trace_core.optimizers import OptoPrime, Search, Study


def study(place: str) -> Study:
    workflow = Numbers()
    kept = Path(place).exists()
    if kept:
        with Ledger.open(place) as ledger:
            kept = bool(ledger.query("SELECT id FROM runs"))
    return Study(
        workflow,
        nearness,
        range(9),
        range(100, 105),
        optimizer=OptoPrime(workflow, resolve_llm("openai/test-model")),
        search=Search(in_flight=3, perfect=None),
        budget=Budget(metric_calls=400, calls=60),
        steps=8,
        store=place,
        resume="latest" if kept else None,
    )


if __name__ == "__main__":
    kill_at_a_write()
    study(sys.argv[1]).run()
