"""The tables of a ledger, and how an older file becomes a present one."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from trace_core.integrations.store.errors import LedgerDamaged, SchemaTooNew

if TYPE_CHECKING:
    from collections.abc import Callable

#: Of a file that is a ledger: SQLite's application_id, "TrcL".
APPLICATION = 0x5472634C

_FIRST = """
CREATE TABLE runs (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, status TEXT NOT NULL, started REAL NOT NULL, updated REAL NOT NULL,
    seconds REAL NOT NULL DEFAULT 0, fingerprint TEXT NOT NULL, config TEXT NOT NULL, parent TEXT,
    stopped TEXT, error TEXT, best TEXT, score REAL
) STRICT;
CREATE TABLE steps (
    run TEXT NOT NULL, step INTEGER NOT NULL, score REAL, "values" TEXT NOT NULL, value_arrays BLOB,
    state TEXT, arrays BLOB, made REAL NOT NULL, PRIMARY KEY (run, step)
) STRICT;
CREATE TABLE candidates (
    run TEXT NOT NULL, id TEXT NOT NULL, step INTEGER NOT NULL, parents TEXT NOT NULL, status TEXT NOT NULL,
    score REAL, reason TEXT NOT NULL, detail TEXT NOT NULL, "values" TEXT NOT NULL, arrays BLOB,
    PRIMARY KEY (run, id)
) STRICT;
CREATE TABLE evaluations (
    run TEXT NOT NULL, candidate TEXT NOT NULL, example TEXT NOT NULL, sample INTEGER NOT NULL, score REAL NOT NULL,
    scores TEXT, feedback TEXT NOT NULL, error TEXT, PRIMARY KEY (run, candidate, example, sample)
) STRICT, WITHOUT ROWID;
CREATE TABLE events (
    run TEXT NOT NULL, step INTEGER NOT NULL, number INTEGER NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL,
    PRIMARY KEY (run, step, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE calls (
    key TEXT PRIMARY KEY, run TEXT NOT NULL, role TEXT NOT NULL, model TEXT NOT NULL, request_hash TEXT NOT NULL,
    state TEXT NOT NULL, estimate_usd REAL, estimate_tokens INTEGER NOT NULL, usd REAL, tokens INTEGER,
    result TEXT, error TEXT, began REAL NOT NULL, ended REAL
) STRICT;
CREATE INDEX calls_of_run ON calls (run, role);
CREATE TABLE responses (key TEXT PRIMARY KEY, value TEXT NOT NULL, made REAL NOT NULL) STRICT, WITHOUT ROWID;
"""


def _first(connection: sqlite3.Connection) -> None:
    _script(connection, _FIRST)


def _second(connection: sqlite3.Connection) -> None:
    """How often a call was begun, and how often nobody saw its end: what it took then is part of the bill."""
    connection.execute("ALTER TABLE calls ADD COLUMN tries INTEGER NOT NULL DEFAULT 1")
    connection.execute("ALTER TABLE calls ADD COLUMN lost INTEGER NOT NULL DEFAULT 0")


#: What makes version n + 1 of version n, in order. Append, never change: files of every earlier version are out there.
MIGRATIONS: list[Callable[[sqlite3.Connection], None]] = [_first, _second]
VERSION = len(MIGRATIONS)


def _script(connection: sqlite3.Connection, text: str) -> None:
    for statement in text.split(";"):  # executescript would commit the transaction that makes a migration atomic
        if statement.strip():
            connection.execute(statement)


def version_of(connection: sqlite3.Connection, path: str) -> int:
    """Version of the open file; 0 for an empty one. Raises LedgerDamaged if it is something else than a ledger."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    application = int(connection.execute("PRAGMA application_id").fetchone()[0])
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if (version or tables) and application != APPLICATION:
        raise LedgerDamaged(
            f"{path} is an SQLite file of another program, not a ledger of trace_core; give another path"
        )
    if version > VERSION:
        raise SchemaTooNew(
            f"the ledger {path} has schema {version} and this version of trace_core knows {VERSION}: "
            "update trace_core, or use another ledger"
        )
    return version


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Bring the file to the present version, all in one transaction."""
    version = version_of(connection, path)
    if version == VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for change in MIGRATIONS[version:]:
            change(connection)
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
