"""The ledger: one SQLite file with everything a run has done and paid for."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trace_core.integrations.budget import Cost
from trace_core.integrations.store.errors import LedgerReadOnly, RunNotFound, StoreError, translated
from trace_core.integrations.store.lock import WriterLock
from trace_core.integrations.store.schema import VERSION, migrate, version_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from os import PathLike
    from typing import Self

    from trace_core.integrations.store.run import Run


class CallRow(NamedTuple):
    """A finished paid call.

    Attributes:
        key: of the call.
        usage: what it took; ``usd`` None where unknown.
        result: what it gave, as its caller wrote it; None if it failed.
        error: how it failed, as its caller wrote it.
    """

    key: str
    usage: Cost
    result: str | None
    error: str | None


class Ledger:
    """One SQLite file in WAL mode. Every method that writes has committed when it returns.

    One process writes, any number read (``read_only=True``). One object serves all threads of its process; a forked
    child opens its own. A kill at any moment leaves the last committed state; a power cut may lose the last commits but
    leaves the file whole (``synchronous=NORMAL``).
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: WriterLock | None) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = connection
        self._writer = lock
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._depth = 0
        #: Raised by the next commit, if set: an interrupt that came while a transaction was open.
        self.pending: BaseException | None = None

    @classmethod
    def open(cls, path: str | PathLike[str], *, read_only: bool = False) -> Ledger:
        """Open the file, making it if it is not there; an older one is brought to the present schema.

        Raises LedgerBusy if another writer has it, LedgerReadOnly if it cannot be written to, SchemaTooNew,
        LedgerDamaged, StoreError if it cannot be opened at all.
        """
        place = Path(path)
        if read_only:
            return cls(place, _open_to_read(place), None)
        if not place.parent.is_dir():
            raise StoreError(f"the ledger {place} cannot be made: there is no folder {place.parent}")
        lock = WriterLock(place)
        try:
            connection = sqlite3.connect(place, isolation_level=None, check_same_thread=False, timeout=10)
            try:
                if not os.access(place, os.W_OK):
                    raise LedgerReadOnly(f"the ledger {place} is read-only; make it writable, or use another")
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                migrate(connection, str(place))
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            lock.release()
            raise translated(error, str(place)) from error
        except BaseException:
            lock.release()
            raise
        return cls(place, connection, lock)

    def close(self) -> None:
        """Close the file and let others write."""
        with self._lock:
            if self._connection is not None:
                if self._process == os.getpid():
                    self._connection.close()
                self._connection = None
            if self._writer is not None:
                self._writer.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- reading and writing

    def _usable(self) -> sqlite3.Connection:
        if self._process != os.getpid():
            raise StoreError(
                f"the ledger {self.path} was opened by process {self._process} and is used in its child {os.getpid()}: "
                "the child sends its results to the process that writes"
            )
        if self._connection is None:
            raise StoreError(f"the ledger {self.path} is closed; open it again with Ledger.open")
        return self._connection

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a SELECT."""
        with self._lock:
            try:
                return self._usable().execute(sql, parameters).fetchall()
            except sqlite3.Error as error:
                raise translated(error, str(self.path)) from error

    def write(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """One statement, committed at once or with the transaction around it."""
        with self._lock:
            connection = self._usable()
            if self._writer is None:
                raise LedgerReadOnly(f"the ledger {self.path} was opened with read_only=True")
            self._depth += 1
            try:
                connection.execute(sql, parameters)
            except sqlite3.Error as error:
                raise translated(error, str(self.path)) from error
            finally:
                self._depth -= 1
            self._raise_pending()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes inside are committed together or not at all. Nests: the outermost counts."""
        with self._lock:
            if self._depth:
                yield
                return
            connection = self._usable()
            self._depth += 1
            try:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise translated(error, str(self.path)) from error
            finally:
                self._depth -= 1
            self._raise_pending()

    @property
    def in_transaction(self) -> bool:
        """Whether this thread is writing at this moment. For signal handlers: never blocks."""
        if not self._lock.acquire(blocking=False):
            return False  # another thread writes, which an interrupt of this one does not disturb
        try:
            return self._depth > 0
        finally:
            self._lock.release()

    def _raise_pending(self) -> None:
        if self._depth == 0 and self.pending is not None:
            error, self.pending = self.pending, None
            raise error

    def check(self) -> list[str]:
        """What SQLite's ``integrity_check`` finds; ``["ok"]`` for a whole file."""
        return [str(row[0]) for row in self.query("PRAGMA integrity_check")]

    # ---- runs

    def new_run(self, name: str, *, fingerprint: dict[str, str], config: dict[str, Any], parent: str = "") -> Run:
        """Begin a run; its id is the name with a number that is free."""
        from trace_core.integrations.store.run import Run

        return Run.create(self, name, fingerprint, config, parent)

    def resume(self, run: str, *, fingerprint: dict[str, str], on_drift: str = "refuse") -> Run:
        """Go on with a run: see ``Run.resume``."""
        from trace_core.integrations.store.run import Run

        return Run.resume(self, run, fingerprint, on_drift)

    def find_run(self, name: str) -> str:
        """The id of the run that ``name`` (an id, the beginning of just one, or ``latest``) means."""
        ids = [row[0] for row in self.query("SELECT id FROM runs ORDER BY started, rowid")]
        if name == "latest" and ids:
            return str(ids[-1])
        found = [name] if name in ids else [known for known in ids if known.startswith(name)]
        if len(found) == 1:
            return str(found[0])
        which = f"is the beginning of {', '.join(found)}" if found else "is not there"
        raise RunNotFound(f"{self.path}: the run {name!r} {which}; it has: {', '.join(ids[-20:]) or 'no runs'}")

    # ---- paid calls

    def begin_call(
        self, key: str, role: str, request_hash: str, estimate: Cost, *, run: str = "", model: str = ""
    ) -> CallRow | None:
        """Commit the intent to make a call, before it is made.

        Returns the finished row where there is one: then the call is not to be made again. A call that was begun and
        never finished may have been paid for; it is begun again.
        """
        known = self.known_call(key)
        if known is not None:
            return known
        self.write(
            "INSERT INTO calls (key, run, role, model, request_hash, state, estimate_usd, estimate_tokens, began) "
            "VALUES (?, ?, ?, ?, ?, 'begun', ?, ?, ?) "
            "ON CONFLICT (key) DO UPDATE SET state = 'begun', began = excluded.began, tries = tries + 1, "
            "lost = lost + (state = 'begun'), usd = NULL, tokens = NULL, error = NULL",
            (key, run, role, model, request_hash, estimate.usd, estimate.tokens, time.time()),
        )
        return None

    def known_call(self, key: str) -> CallRow | None:
        """The call, if it was finished."""
        rows = self.query("SELECT usd, tokens, result, error FROM calls WHERE key = ? AND state = 'done'", (key,))
        if not rows:
            return None
        usd, tokens, result, error = rows[0]
        return CallRow(key, Cost(usd, tokens, 1), result, error)

    def drop_call(self, key: str, error: str) -> None:
        """Commit that a call gave nothing and took nothing; it may be begun again."""
        self.write(
            "UPDATE calls SET state = 'failed', usd = 0, tokens = 0, error = ?, ended = ? WHERE key = ?",
            (error, time.time(), key),
        )

    def finish_call(self, key: str, usage: Cost, *, result: str | None = None, error: str | None = None) -> None:
        """Commit what a call gave and took. Raises StoreError for one that was not begun."""
        self.write(
            "UPDATE calls SET state = 'done', usd = ?, tokens = ?, result = ?, error = ?, ended = ? WHERE key = ?",
            (usage.usd, usage.tokens, result, error, time.time(), key),
        )

    def spent(self, run: str) -> dict[str, Cost]:
        """What the calls of a run took, by role. Where nobody saw the end of a call, it counts with its estimate.

        Evaluated examples are under the role ``workflow``.
        """
        usd, tokens = (
            f"coalesce({what}, estimate_{what}) + CASE WHEN lost THEN lost * estimate_{what} ELSE 0 END"
            for what in ("usd", "tokens")
        )
        rows = self.query(
            f"SELECT role, CASE WHEN count(*) = count({usd}) THEN sum({usd}) END, sum({tokens}), sum(tries) "
            "FROM calls WHERE run = ? GROUP BY role",
            (run,),
        )
        found = {str(role): Cost(usd, int(tokens), int(calls)) for role, usd, tokens, calls in rows}
        metric = self.query("SELECT count(*) FROM evaluations WHERE run = ?", (run,))[0][0]
        if metric:
            found["workflow"] = found.get("workflow", Cost()) + Cost(metric_calls=int(metric))
        return found

    # ---- response cache

    def get_response(self, key: str) -> str | None:
        """A cached answer."""
        rows = self.query("SELECT value FROM responses WHERE key = ?", (key,))
        return str(rows[0][0]) if rows else None

    def put_response(self, key: str, value: str) -> None:
        """Cache an answer, in place of an earlier one."""
        self.write("INSERT OR REPLACE INTO responses (key, value, made) VALUES (?, ?, ?)", (key, value, time.time()))


def _open_to_read(place: Path) -> sqlite3.Connection:
    if not place.is_file():
        raise StoreError(f"there is no ledger {place}; `trace-core optimize` makes one")
    uri = place.absolute().as_uri()
    # A folder that cannot be written to has no room for WAL's helper files: then nobody writes, and none is needed.
    wal = place.with_name(place.name + "-wal")
    left = wal.is_file() and wal.stat().st_size > 0
    extra = "" if left or os.access(place.parent, os.W_OK) else "&immutable=1"
    try:
        connection = sqlite3.connect(f"{uri}?mode=ro{extra}", uri=True, isolation_level=None, check_same_thread=False)
        try:
            version = version_of(connection, str(place))
            if version != VERSION:
                raise StoreError(
                    f"the ledger {place} has schema {version}, older than {VERSION}: open it once with "
                    "Ledger.open(path), which brings it up to date"
                )
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise translated(error, str(place)) from error
    return connection
