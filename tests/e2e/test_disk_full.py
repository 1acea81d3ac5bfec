"""A disk that is really full: a tmpfs of one megabyte, for which one needs the right to mount."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
from paid_run import OPTIMIZE, Forked, Provider, ledger, make_project

from trace_core.integrations.store import EvaluationRow, Ledger, LedgerFull, Run

Command = Callable[..., tuple[int, str]]


def mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    may = sys.platform == "linux" and os.geteuid() == 0 and shutil.which("mount") is not None
    if not may or not mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)):
        pytest.skip("needs the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill_file(file: IO[bytes]) -> None:
    while True:
        file.write(b"x" * 4096)


def make_room(place: Path) -> None:
    assert mount("-o", "remount,size=16m", str(place))


def test_what_was_committed_is_whole_and_writing_goes_on(small_disk: Path) -> None:
    path = small_disk / "ledger.sqlite"
    written = 0

    def fill(made: Run) -> None:
        nonlocal written
        while True:
            made.put_evaluation(EvaluationRow("0", f"train {written}", 0, 0.5, feedback="x" * 2000))
            written += 1

    with Ledger.open(path) as opened:
        made = opened.new_run("full", fingerprint={}, config={})
        with pytest.raises(LedgerFull, match="make room on the disk, then resume the run"):
            fill(made)
        assert opened.check() == ["ok"]
        assert len(made.evaluations()) == written > 50
        make_room(small_disk)
        made.put_evaluation(EvaluationRow("0", "more", 0, 0.5))  # by the same object
    with Ledger.open(path) as opened:
        assert opened.check() == ["ok"]
        assert len(Run(opened, made.id).evaluations()) == written + 1


@pytest.mark.slow
def test_a_run_stops_with_one_message_and_goes_on_when_there_is_room(
    small_disk: Path, provider: Provider, forked: Forked, tmp_path: Path
) -> None:
    """Ledger and results lie on the full disk."""
    whole = make_project(tmp_path / "whole")
    assert forked.run(whole, provider, *OPTIMIZE)[0] == 0
    paid = len(provider.bodies)
    provider.bodies.clear()
    make_project(small_disk)
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file:
        file.write(b"x" * 600_000)
    code, out, err = forked.run(small_disk, provider, *OPTIMIZE)
    assert code == 2, out
    assert "could not be written" in err
    assert "Traceback" not in out + err
    at = len(provider.bodies)
    assert 0 < at < paid
    with ledger(small_disk) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    ballast.unlink()
    make_room(small_disk)
    code, _, err = forked.run(small_disk, provider, "resume", "latest")
    assert code == 0, err
    assert len(provider.bodies) <= paid + 1
    best = [json.loads((folder / "result" / "best.json").read_text()) for folder in (whole, small_disk)]
    assert best[0] == best[1]


def test_results_that_cannot_be_kept_are_one_message(small_disk: Path, provider: Provider, command: Command) -> None:
    """The ledger lies elsewhere and has them."""
    with (small_disk / "ballast").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        fill_file(file)
    code, out = command(*OPTIMIZE[:-1], str(small_disk / "."))
    assert code == 2, out
    assert f"the results cannot be kept in {small_disk}" in out
    assert "trace-core best Writer-1" in out
    assert "Traceback" not in out
    code, out = command("best", "latest")
    assert code == 0
    assert json.loads(out) != {"greeting": "Hi"}
