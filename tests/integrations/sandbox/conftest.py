"""A runner shared by the tests of one file, and a short way to call it."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from trace_core.integrations.sandbox import ProcessRunner


@dataclass(frozen=True)
class Candidate:
    """Proposed code, as the core hands it over."""

    source: str
    name: str = "f"
    filename: str = "<code f v3>"
    is_async: bool = False


@pytest.fixture(scope="module")
def runner() -> Iterator[ProcessRunner]:
    with ProcessRunner(timeout=20.0, memory_mb=512) as made:
        yield made


@pytest.fixture(params=["forking", pytest.param("fresh", marks=pytest.mark.slow)], scope="module")
def either(request: pytest.FixtureRequest) -> Iterator[ProcessRunner]:
    """Both ways of getting a process."""
    if request.param == "forking" and not hasattr(os, "fork"):
        pytest.skip("needs fork")
    with ProcessRunner(timeout=5.0, memory_mb=512, fork=None if request.param == "forking" else False) as made:
        yield made


@pytest.fixture
def candidate() -> Callable[..., Candidate]:
    """Makes a candidate from indented text."""

    def make(source: str, **fields: Any) -> Candidate:
        return Candidate(textwrap.dedent(source).strip() + "\n", **fields)

    return make


@pytest.fixture
def run(runner: ProcessRunner, candidate: Callable[..., Candidate]) -> Callable[..., Any]:
    """``run(source, *args, context={...}, on=runner)``: the result of ``f(*args)``."""

    def call(source: str, *args: Any, context: Any = None, on: ProcessRunner | None = None, **fields: Any) -> Any:
        return (on or runner).call(candidate(source, **fields), args, {}, context=context or {})

    return call


class Whereabouts:
    """Where a runner's worker lives, as its candidates see it."""

    def __init__(self, runner: ProcessRunner, worker: int, folder: Path) -> None:
        self._runner, self.worker, self.folder = runner, worker, folder

    def processes(self) -> set[int]:
        """All processes that work in the runner's folder, without the worker and those that wait for calls to come."""
        waiting = [child.directory for worker in self._runner._workers.values() for child in worker._waiting]
        waiting += [str(self.folder)] * len(waiting)  # not there yet
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    folder = os.readlink(entry / "cwd")
                except OSError:  # gone, or somebody else's
                    continue
                if folder in waiting:
                    waiting.remove(folder)  # one process in each, no more
                elif Path(folder).is_relative_to(self.folder) and int(entry.name) != self.worker:
                    found.add(int(entry.name))
        return found


@pytest.fixture
def whereabouts(runner: ProcessRunner, run: Callable[..., Any]) -> Callable[..., Whereabouts]:
    def find(on: ProcessRunner | None = None) -> Whereabouts:
        worker, directory = run("import os\ndef f():\n    return os.getppid(), os.getcwd()", on=on)
        return Whereabouts(on or runner, worker, Path(directory).parent)

    return find
