"""What can go wrong with a ledger."""

from __future__ import annotations

import sqlite3

from trace_core.errors import TraceCoreError


class StoreError(TraceCoreError):
    """Root of the ledger's errors."""


class LedgerBusy(StoreError):
    """Another process, or another part of this one, writes to the ledger."""


class LedgerReadOnly(StoreError):
    """The ledger is to be written to and its file, or the folder, does not allow it."""


class LedgerFull(StoreError):
    """There is no room to write. What was committed before is whole."""


class LedgerDamaged(StoreError):
    """The file is no ledger, or is damaged."""


class SchemaTooNew(StoreError):
    """A newer version of this library wrote the ledger."""


class RunNotFound(StoreError):
    """The ledger has no such run."""


class Drift(StoreError):
    """A run is to be resumed and what it runs has changed.

    Attributes:
        changes: part of the fingerprint -> (then, now).
    """

    def __init__(self, message: str, changes: dict[str, tuple[str, str]]) -> None:
        super().__init__(message)
        self.changes = changes


def translated(error: sqlite3.Error, path: str) -> StoreError:
    """The error of ours for one of SQLite's."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    if primary == sqlite3.SQLITE_READONLY:
        return LedgerReadOnly(
            f"the ledger {path} cannot be written to: {error}; make the file and its folder writable, or use another"
        )
    if primary in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return LedgerFull(
            f"the ledger {path} could not be written: {error}; what was committed before is whole: make room on the "
            "disk, then resume the run"
        )
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return LedgerDamaged(f"{path} is no ledger or is damaged: {error}")
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LedgerBusy(f"the ledger {path} is locked by another program: {error}; close it and try again")
    if primary == sqlite3.SQLITE_CANTOPEN:
        return StoreError(f"the ledger {path} cannot be opened: {error}; expected a file in a folder that exists")
    return StoreError(f"the ledger {path}: {type(error).__name__}: {error}")
