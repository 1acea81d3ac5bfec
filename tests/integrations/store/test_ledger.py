"""The ledger as a file: what is written is there, for one writer at a time, or is refused with a clear message."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trace_core.errors import StateError
from trace_core.integrations.budget import Cost
from trace_core.integrations.store import (
    CandidateRow,
    Drift,
    EvaluationRow,
    EventRow,
    Ledger,
    LedgerBusy,
    LedgerDamaged,
    LedgerFull,
    LedgerReadOnly,
    Run,
    RunNotFound,
    SchemaTooNew,
    StoreError,
    all_runs,
)
from trace_core.integrations.store.packing import pack, unpack


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def begun(ledger: Ledger, name: str = "greeter") -> Run:
    return ledger.new_run(name, fingerprint={"seed": "0"}, config={"steps": 3})


# ---- rows


def test_everything_written_is_there_after_opening_again(path: Path) -> None:
    candidate = CandidateRow("1.0", 1, ("0",), "accepted", 0.5, "shorter", {"tokens": 12}, {"prompt": "Hi"})
    evaluation = EvaluationRow("1.0", "validation 3", 0, 0.5, {"a": 1.0}, "too long", None)
    with Ledger.open(path) as ledger:
        run = begun(ledger)
        run.put_candidate(candidate)
        run.put_evaluation(evaluation)
        run.put_event(EventRow(1, 0, "accepted", {"note": "better"}))
        run.save_step(0, None, {"prompt": "Hello"}, {"queue": [1, 2]}, seconds=1.5)
        run.save_step(1, 0.5, {"prompt": "Hi"}, {"queue": [2]}, seconds=2.5)
        run.best("1.0", 0.5)
        run.end("done", stopped="steps")
    with Ledger.open(path, read_only=True) as ledger:
        run = Run(ledger, ledger.find_run("latest"))
        assert run.id == "greeter-1"
        assert run.candidates() == [candidate]
        assert run.evaluation("1.0", "validation 3") == evaluation
        assert run.evaluations("1.0") == run.evaluations() == [evaluation]
        assert run.evaluation("1.0", "validation 4") is None
        assert run.events() == [EventRow(1, 0, "accepted", {"note": "better"})]
        assert [(s.step, s.score, s.values, s.state) for s in run.steps()] == [
            (0, None, {"prompt": "Hello"}, None),
            (1, 0.5, {"prompt": "Hi"}, None),
        ]
        last = run.last_step()
        assert last is not None
        assert last.state == {"queue": [2]}
        row = run.row()
        assert (row.status, row.stopped, row.best, row.score, row.seconds) == ("done", "steps", "1.0", 0.5, 2.5)
        assert [r.id for r in all_runs(ledger)] == ["greeter-1"]


def test_runs_are_found_by_the_beginning_of_their_id(path: Path) -> None:
    with Ledger.open(path) as ledger:
        begun(ledger, "my greeter")
        begun(ledger, "other")
        begun(ledger, "other")
        assert ledger.find_run("my") == "my-greeter-1"
        assert ledger.find_run("latest") == "other-2"
        with pytest.raises(RunNotFound, match="beginning of other-1, other-2"):
            ledger.find_run("oth")
        with pytest.raises(RunNotFound, match="it has: my-greeter-1"):
            ledger.find_run("nothing")


def test_a_call_is_journaled_before_and_after(path: Path) -> None:
    with Ledger.open(path) as ledger:
        run = begun(ledger)
        assert ledger.begin_call("k", "optimizer", "hash", Cost(0.5, 100, 1), run=run.id) is None
        assert run.spent() == {"optimizer": Cost(0.5, 100, 1)}  # under way: it may be paid for
        assert ledger.known_call("k") is None
        ledger.finish_call("k", Cost(0.25, 40, 1), result="{}")
        assert run.spent() == {"optimizer": Cost(0.25, 40, 1)}
        found = ledger.begin_call("k", "optimizer", "hash", Cost(0.5, 100, 1), run=run.id)
        assert found is not None
        assert (found.result, found.usage) == ("{}", Cost(0.25, 40, 1))


def test_responses_are_kept_for_all_runs(path: Path) -> None:
    with Ledger.open(path) as ledger:
        assert ledger.get_response("k") is None
        ledger.put_response("k", "v")
        ledger.put_response("k", "w")
        assert ledger.get_response("k") == "w"


def test_many_threads_write_at_once(path: Path) -> None:
    with Ledger.open(path) as ledger:
        run = begun(ledger)

        def write(number: int) -> None:
            with ledger.transaction():
                run.put_evaluation(EvaluationRow("0", str(number), 0, 0.5))
                run.put_evaluation(EvaluationRow("0", str(number), 1, 0.5))

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(write, range(200)))
        assert len(run.evaluations()) == 400
        assert ledger.check() == ["ok"]


def test_a_failed_transaction_leaves_nothing(path: Path) -> None:
    with Ledger.open(path) as ledger:
        run = begun(ledger)

        def fail() -> None:
            with ledger.transaction():
                run.put_evaluation(EvaluationRow("0", "a", 0, 0.5))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert run.evaluations() == []


# ---- values

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4)
    ),
    max_leaves=15,
)


@given(plain)
def test_plain_values_come_back_as_they_were(value: Any) -> None:
    assert unpack(*pack(value)) == value


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool", "float16"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 1), (2, 700)])
def test_arrays_come_back_bit_for_bit(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(dtype)
    tensor = torch.from_numpy(np.asarray(array))
    found = unpack(*pack({"a": [array], "t": (tensor, "text"), "half": torch.ones(3, dtype=torch.bfloat16)}))
    assert found["a"][0].dtype == array.dtype
    assert found["a"][0].shape == array.shape
    assert found["a"][0].tobytes() == array.tobytes()
    assert found["t"][0].dtype == tensor.dtype
    assert torch.equal(found["t"][0], tensor)
    assert found["half"].dtype == torch.bfloat16


def test_what_is_no_data_is_named(path: Path) -> None:
    with Ledger.open(path) as ledger:
        run = begun(ledger)
        with pytest.raises(StateError, match=r"state of a step.*Lock|state of a step.*lock"):
            run.save_step(0, None, {}, {"lock": threading.Lock()})
        with pytest.raises(StateError, match="complex128"):
            run.save_step(0, None, {"x": np.zeros(3, complex)}, {})
        assert run.last_step() is None


# ---- drift


def test_a_run_goes_on_only_with_what_it_ran(path: Path) -> None:
    with Ledger.open(path) as ledger:
        run = begun(ledger)
        run.put_candidate(CandidateRow("0", 0, (), "start", None, "", {}, {"prompt": "Hi"}))
        run.put_event(EventRow(0, 0, "start", {}))
        run.put_event(EventRow(1, 0, "batch", {}))  # of a step that was not finished
        run.save_step(0, 0.5, {"prompt": "Hi"}, {"queue": [1]})
        run.best("0", 0.5)
        run.end("interrupted", stopped="interrupted")
        assert ledger.resume(run.id, fingerprint={"seed": "0"}).id == run.id
        assert run.row().status == "running"
        with pytest.raises(Drift, match="seed: 0 then, 1 now") as caught:
            ledger.resume(run.id, fingerprint={"seed": "1"})
        assert caught.value.changes == {"seed": ("0", "1")}
        fork = ledger.resume(run.id, fingerprint={"seed": "1"}, on_drift="fork")
        assert fork.id == "greeter-2"
        assert fork.row().parent == run.id
        assert fork.row().best == "0"
        assert fork.last_step() == run.last_step()
        assert fork.candidates() == run.candidates()
        assert [event.step for event in fork.events()] == [0]
        assert fork.spent() == {}
        with pytest.raises(StoreError, match="refuse"):
            ledger.resume(run.id, fingerprint={}, on_drift="ignore")


# ---- the file

FIRST = """
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
INSERT INTO runs VALUES
    ('old-1', 'old', 'interrupted', 1, 2, 3, '{"seed":"0"}', '{}', NULL, 'interrupted', NULL, NULL, 0.25);
INSERT INTO steps VALUES ('old-1', 0, 0.25, '{"p":"x"}', NULL, '{"queue":[4]}', NULL, 2);
INSERT INTO calls VALUES ('old-1/k', 'old-1', 'judge', 'm', 'h', 'done', 0.5, 90, 0.25, 30, '{}', NULL, 1, 2);
PRAGMA application_id = 1416782668;
PRAGMA user_version = 1;
"""


def test_a_file_of_an_older_schema_goes_on(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(FIRST)
    connection.close()
    with Ledger.open(path) as ledger:
        run = ledger.resume("old", fingerprint={"seed": "0"})
        step = run.last_step()
        assert step is not None
        assert (step.values, step.state) == ({"p": "x"}, {"queue": [4]})
        assert run.spent() == {"judge": Cost(0.25, 30, 1)}
        run.save_step(1, 0.5, {"p": "y"}, {"queue": []})
        ledger.begin_call("new", "judge", "h", Cost(), run=run.id)
        fresh = Ledger.open(path.with_name("fresh.sqlite"))
        shape = "SELECT type, name, tbl_name FROM sqlite_master ORDER BY 1, 2"
        assert ledger.query(shape) == fresh.query(shape)
        for (name,) in fresh.query("SELECT name FROM sqlite_master WHERE type = 'table'"):
            columns = f"SELECT name, type, \"notnull\" FROM pragma_table_info('{name}')"
            assert ledger.query(columns) == fresh.query(columns)
        fresh.close()
        assert ledger.check() == ["ok"]


def test_a_file_of_a_newer_schema_is_refused(path: Path) -> None:
    Ledger.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    for read_only in (False, True):
        with pytest.raises(SchemaTooNew, match=r"schema 99.*update trace_core"):
            Ledger.open(path, read_only=read_only)


def test_a_file_of_something_else_is_refused_and_kept(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(LedgerDamaged, match="another program"):
        Ledger.open(path)
    noise = path.with_name("noise")
    noise.write_bytes(b"no database at all" * 100)
    with pytest.raises(LedgerDamaged):
        Ledger.open(noise)
    assert noise.read_bytes() == b"no database at all" * 100


def test_a_second_writer_is_told_who_the_first_is(path: Path) -> None:
    with Ledger.open(path) as ledger:
        run = begun(ledger)
        with pytest.raises(LedgerBusy, match=f"process {os.getpid()} .* one writer at a time"):
            Ledger.open(path)
        code = "import sys; from trace_core.integrations.store import Ledger; Ledger.open(sys.argv[1])"
        other = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
        assert other.returncode == 1
        assert f"LedgerBusy: the ledger {path} is being written to by process {os.getpid()}" in other.stderr
        with Ledger.open(path, read_only=True) as reader:  # reading is free
            assert Run(reader, run.id).row().status == "running"
            with pytest.raises(LedgerReadOnly):
                Run(reader, run.id).best("0", 1.0)
    Ledger.open(path).close()


def test_a_forked_child_is_refused_and_does_not_keep_the_lock(path: Path) -> None:
    ledger = Ledger.open(path)
    begun(ledger)
    read, write = os.pipe()
    release, held = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            ledger.query("SELECT 1")
        except StoreError as error:
            os.write(write, str(error).encode())
        os.close(held)
        os.read(release, 1)  # lives on until the parent has looked
        os._exit(0)
    os.close(write)
    os.close(release)
    try:
        assert f"opened by process {os.getpid()}" in os.read(read, 1000).decode()
        ledger.close()
        Ledger.open(path).close()
    finally:
        os.close(held)
        os.close(read)
        os.waitpid(child, 0)


def test_a_missing_folder_and_a_missing_ledger_are_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no folder"):
        Ledger.open(tmp_path / "nowhere" / "l.sqlite")
    with pytest.raises(StoreError, match="no ledger"):
        Ledger.open(tmp_path / "l.sqlite", read_only=True)


def test_a_read_only_file_is_refused_and_can_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger.open(path) as ledger:
        run = begun(ledger)
    path.chmod(0o444)
    real = os.access
    if real(path, os.W_OK):  # root may write everything: what an ordinary user meets
        monkeypatch.setattr(os, "access", lambda p, mode: real(p, mode) and not (Path(p) == path and mode == os.W_OK))
    with pytest.raises(LedgerReadOnly, match="make it writable"):
        Ledger.open(path)
    with Ledger.open(path, read_only=True) as ledger:
        assert Run(ledger, run.id).row().status == "running"
        assert ledger.check() == ["ok"]


def test_a_file_that_becomes_read_only_while_written(path: Path) -> None:
    with Ledger.open(path) as ledger:
        run = begun(ledger)
        ledger.query("PRAGMA query_only = 1")  # SQLite's own answer to a write
        with pytest.raises(LedgerReadOnly, match="cannot be written to"):
            run.put_evaluation(EvaluationRow("0", "a", 0, 0.5))
        ledger.query("PRAGMA query_only = 0")
        run.put_evaluation(EvaluationRow("0", "a", 0, 0.5))
        assert ledger.check() == ["ok"]


FULL = """
import resource, signal, sys
from trace_core.integrations.store import EvaluationRow, Ledger, LedgerFull
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ledger = Ledger.open(sys.argv[1])
run = ledger.new_run("full", fingerprint={}, config={})
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))  # no file grows beyond: writes fail as on a full disk
written = 0
try:
    while True:
        run.put_evaluation(EvaluationRow("0", str(written), 0, 0.5, None, "x" * 500))
        written += 1
except LedgerFull as error:
    print(written, error)
"""


def test_no_room_on_the_disk_is_an_error_of_ours_and_nothing_is_lost(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written, _, message = done.stdout.partition(" ")
    assert int(written) > 50
    assert "make room on the disk, then resume" in message
    with Ledger.open(path) as ledger:
        assert ledger.check() == ["ok"]
        assert len(Run(ledger, "full-1").evaluations()) == int(written)
        Run(ledger, "full-1").put_evaluation(EvaluationRow("0", "more", 0, 0.5))


def test_a_full_database_is_an_error_of_ours(path: Path) -> None:
    with Ledger.open(path) as ledger:
        run = begun(ledger)
        ledger.query("PRAGMA max_page_count = 40")

        def fill() -> None:
            for number in range(1000):
                run.put_evaluation(EvaluationRow("0", str(number), 0, 0.5, None, "x" * 500))

        with pytest.raises(LedgerFull, match="full"):
            fill()
        kept = len(run.evaluations())
        assert kept > 20
        ledger.query("PRAGMA max_page_count = 4000")
        run.put_evaluation(EvaluationRow("0", "more", 0, 0.5))
        assert ledger.check() == ["ok"]
        assert len(run.evaluations()) == kept + 1


def test_a_closed_ledger_says_so(path: Path) -> None:
    ledger = Ledger.open(path)
    ledger.close()
    ledger.close()
    with pytest.raises(StoreError, match="closed"):
        ledger.get_response("k")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.floats(0, 1)), max_size=20))
def test_writing_a_key_again_replaces_its_row(tmp_path: Path, rows: list[tuple[str, int, float]]) -> None:
    path = tmp_path / "again.sqlite"
    path.unlink(missing_ok=True)
    with Ledger.open(path) as ledger:
        run = begun(ledger)
        for _ in range(2):
            for example, sample, score in rows:
                run.put_evaluation(EvaluationRow("0", example, sample, score))
        expected = {(example, sample): score for example, sample, score in rows}
        assert {(r.example, r.sample): r.score for r in run.evaluations()} == expected
