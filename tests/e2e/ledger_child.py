"""`trace-core` in a process that kills itself at a write of the ledger, counted: KILL_AT="12 before" or "12 after"."""

from __future__ import annotations

import os
import signal
from typing import Any

from trace_core.cli import main
from trace_core.integrations.store.ledger import Ledger

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

main()
