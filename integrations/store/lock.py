"""One writer at a time: a lock of the operating system on a file beside the ledger. It ends with its process."""

from __future__ import annotations

import json
import os
import socket
import time
import weakref
from pathlib import Path

from trace_core.integrations.store.errors import LedgerBusy, LedgerReadOnly

_open: weakref.WeakSet[WriterLock] = weakref.WeakSet()


class WriterLock:
    """Held from its making to ``release`` or the end of the process, however that comes.

    Raises LedgerBusy if another holds it; the message says which process and since when.
    """

    def __init__(self, ledger: Path) -> None:
        self.path = ledger.with_name(ledger.name + ".lock")
        try:
            self._file: int | None = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise LedgerReadOnly(
                f"the ledger {ledger} cannot be written to: its lock {self.path.name} cannot be made "
                f"({error.strerror}); make the folder writable, or use another"
            ) from error
        try:
            _take(self._file)
        except OSError as error:
            holder = self._holder()
            os.close(self._file)
            self._file = None
            raise LedgerBusy(
                f"the ledger {ledger} is being written to by {holder}: a ledger has one writer at a time. Wait for "
                "it to end, or give this run a ledger of its own"
            ) from error
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(note).encode(), 0)
        _open.add(self)

    def _holder(self) -> str:
        try:
            note = json.loads(self.path.read_text(encoding="utf-8"))
            return f"process {note['pid']} on {note['host']} since {note['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def release(self) -> None:
        """Let others write. The file stays: removing it would race with whoever opens it now."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def forget(self) -> None:
        """In a forked child: the lock is the parent's. Closing the copy leaves it locked there."""
        self.release()


def _forget_all() -> None:
    for lock in list(_open):
        lock.forget()


if os.name == "nt":  # pragma: no cover - Windows
    import msvcrt

    def _take(file: int) -> None:
        os.lseek(file, 4096, os.SEEK_SET)  # beyond the note, which others are to read
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]

else:
    import fcntl

    def _take(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
