"""A run that is killed goes on as if it had not been: real processes, a real HTTP server in place of the provider."""

from __future__ import annotations

import json
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from paid_run import KEY, OPTIMIZE, WORKFLOW, Forked, Provider, ledger, make_project, run, start

Command = Callable[..., tuple[int, str]]


#: Everything but clocks, and how often a call was tried.
STATE = {
    "runs": "id, name, status, fingerprint, config, parent, stopped, error, best, score",
    "steps": 'step, score, "values", state',
    "candidates": 'id, step, parents, status, score, reason, detail, "values"',
    "evaluations": "candidate, example, sample, score, feedback, error",
    "events": "step, number, kind, data",
    "calls": "key, role, model, request_hash, state, usd, tokens, result, error",
    "responses": "key, value",
}


def end_state(folder: Path) -> dict[str, list[str]]:
    with ledger(folder) as connection:
        found = {t: sorted(map(str, connection.execute(f"SELECT {c} FROM {t}"))) for t, c in STATE.items()}
    files = {name: [(folder / "result" / name).read_text()] for name in ("best.json", "history.json")}
    return {k: [text.replace(str(folder), "FOLDER") for text in rows] for k, rows in (found | files).items()}


class Whole(NamedTuple):
    """What a run is that nobody kills."""

    state: dict[str, list[str]]
    paid: int


def whole_run(forked: Forked, provider: Provider, folder: Path, *options: str) -> Whole:
    code, _, err = forked.run(make_project(folder), provider, *OPTIMIZE, *options)
    assert code == 0, err
    paid = len(provider.bodies)
    provider.bodies.clear()
    return Whole(end_state(folder), paid)


def is_whole(folder: Path) -> None:
    with ledger(folder) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def tries(folder: Path) -> tuple[int, int]:
    """How often the end of a call was not seen, and how often calls were begun."""
    with ledger(folder) as connection:
        found: tuple[int, int] = connection.execute("SELECT sum(lost), sum(tries) FROM calls").fetchone()
    return found


@pytest.mark.slow
def test_ten_kills_of_one_run_change_nothing_and_repeat_at_most_one_call_each(
    forked: Forked, provider: Provider, tmp_path: Path
) -> None:
    """Before, within and after an answer, and at writes of the ledger."""
    whole = whole_run(forked, provider, tmp_path / "whole")
    assert whole.paid > 40
    killed = make_project(tmp_path / "killed")
    dice = random.Random(20)
    kinds = [*("before", "middle", "after", "before", "middle"), *("write",) * 5]
    dice.shuffle(kinds)
    for number, kind in enumerate(kinds):
        more = {}
        if kind == "write":
            more["KILL_AT"] = f"{dice.randint(5, 16)} {dice.choice(['before', 'after'])}"
        else:
            provider.kill_at = (dice.randint(1, 4), kind)
        code, out, err = forked.run(killed, provider, *(OPTIMIZE if number == 0 else ["resume", "latest"]), **more)
        assert code == -signal.SIGKILL, (number, kind, out, err)
        is_whole(killed)
    code, out, err = forked.run(killed, provider, "resume", "latest")
    assert code == 0, err
    is_whole(killed)
    lost, begun = tries(killed)
    assert end_state(killed) == whole.state
    assert whole.paid <= len(provider.bodies) <= whole.paid + 10
    assert begun == whole.paid + lost
    assert len(provider.bodies) <= begun  # a kill between intent and request paid nothing
    assert KEY.encode() not in (killed / "runs" / "ledger.sqlite").read_bytes()


@pytest.mark.slow
def test_ten_runs_each_killed_at_a_random_request(forked: Forked, provider: Provider, tmp_path: Path) -> None:
    """One kill, anywhere between the first request and the last: the run that goes on repeats at most that request."""
    short = ("--steps", "2")
    whole = whole_run(forked, provider, tmp_path / "whole", *short)
    assert whole.paid > 20
    dice = random.Random(21)
    for number, at in enumerate(sorted(dice.sample(range(1, whole.paid + 1), 10))):
        folder = make_project(tmp_path / str(number))
        provider.bodies.clear()
        moment = dice.choice(["before", "middle", "after"])
        provider.kill_at = (at, moment)
        code, out, err = forked.run(folder, provider, *OPTIMIZE, *short)
        assert code == -signal.SIGKILL, (at, moment, out, err)
        assert len(provider.bodies) == at
        is_whole(folder)
        code, _, err = forked.run(folder, provider, "resume", "latest")
        assert code == 0, (at, moment, err)
        is_whole(folder)
        lost, begun = tries(folder)
        assert end_state(folder) == whole.state, (at, moment)
        assert whole.paid <= len(provider.bodies) == begun == whole.paid + lost <= whole.paid + 1


def test_a_polite_kill_marks_the_run_and_a_second_writer_is_refused(project: Path, provider: Provider) -> None:
    waiting, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        if len(provider.bodies) == 8:
            waiting.set()
            go_on.wait(60)

    provider.hold = hold
    process = start(project, provider, *OPTIMIZE)
    try:
        assert waiting.wait(60)
        code, _, err = run_beside(project, provider, *OPTIMIZE)
        assert code == 2
        assert f"being written to by process {process.pid}" in err
        assert "Traceback" not in err
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        go_on.set()
    assert process.returncode == 0, err
    assert "trace-core resume Writer-1" in out
    with ledger(project) as connection:
        assert connection.execute("SELECT status, stopped FROM runs").fetchall() == [("interrupted", "interrupted")]
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def run_beside(folder: Path, provider: Provider, *arguments: str) -> tuple[int, str, str]:
    first = provider.process
    try:
        return run(folder, provider, *arguments)
    finally:
        provider.process = first


def test_a_budget_drift_forks_and_the_commands_that_look(project: Path, provider: Provider, command: Command) -> None:
    """In this process, through the command's own entry point."""
    code, out = command(*OPTIMIZE, "--dry-run")
    assert code == 0
    assert "at most" in out
    assert not provider.bodies
    assert not (project / "runs").exists()

    code, out = command(*OPTIMIZE, "--calls", "15")
    assert code == 0, out
    assert "budget" in out
    assert "15 of 15 calls spent" in out
    assert len(provider.bodies) == 15
    assert "trace-core resume Writer-1" in out

    (project / "mine.py").write_text(WORKFLOW + "\nMORE = 1\n")
    code, out = command("resume", "Writer", "--calls", "100")
    assert code == 2
    assert "code of the workflow" in out
    assert "fork" in out
    assert len(provider.bodies) == 15
    code, out = command("resume", "latest", "--calls", "100", "--steps", "3", "--on-drift", "fork")
    assert code == 0, out
    (project / "mine.py").write_text(WORKFLOW)

    code, out = command("runs")
    assert "Writer-1" in out
    assert "done (budget)" in out
    assert "Writer-2" in out
    code, out = command("runs", "--json")
    assert [json.loads(line)["parent"] for line in out.splitlines()] == [None, "Writer-1"]
    code, out = command("show", "Writer-2")
    assert "forked from Writer-1" in out
    assert "optimizer:" in out
    assert "* " in out
    code, out = command("best", "Writer-2")
    assert json.loads(out) == json.loads((project / "result" / "best.json").read_text())["values"]
    code, out = command("best", "Writer-2", "--diff")
    assert "-Hi" in out.replace("- Hi", "-Hi")
    code, out = command("export", "Writer-1", "--out", "all.jsonl")
    kinds = [json.loads(line)["kind"] for line in (project / "all.jsonl").read_text().splitlines()]
    assert {"run", "step", "candidate", "evaluation", "event", "call"} == set(kinds)
    assert kinds.count("call") == 15
    assert KEY not in (project / "all.jsonl").read_text()
    code, out = command("show", "nothing")
    assert code == 2
    assert "it has: Writer-1, Writer-2" in out
    code, out = command("runs", "--store", "nowhere.sqlite")
    assert code == 2
    assert "no ledger nowhere.sqlite" in out
