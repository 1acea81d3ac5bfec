"""A study in a process that kills itself at a write of the ledger, counted: KILL_AT="12 before" or "12 after"."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from study_problems import Numbers, nearness

from trace_core.integrations.budget import Budget
from trace_core.integrations.llm import resolve_llm
from trace_core.integrations.store import Ledger
from trace_core.optimizers import OptoPrime, Search, Study

if "KILL_AT" in os.environ:
    number, moment = os.environ["KILL_AT"].split()
    left = int(number)
    write = Ledger.write

    def counted(self: Ledger, *arguments: Any) -> None:
        global left
        left -= 1
        if left == 0 and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, *arguments)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    Ledger.write = counted  # type: ignore[method-assign]


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
    study(sys.argv[1]).run()
