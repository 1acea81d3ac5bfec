"""Ctrl-C and a polite kill while a ledger is open: the transaction under way is finished first."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trace_core.integrations.store.ledger import Ledger


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM came; ``signal`` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = signal.Signals(number)


@contextlib.contextmanager
def interruptible(ledger: Ledger) -> Iterator[None]:
    """SIGINT and SIGTERM raise Interrupted here, but not before a transaction of this thread is committed.

    Only the main thread gets signals; in another one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: object) -> None:
        error = Interrupted(number)
        if ledger.in_transaction:
            ledger.pending = error
        else:
            raise error

    before: dict[int, Any] = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
