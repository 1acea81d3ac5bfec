"""Executors: results, contexts, limits of time that end the work or give it up."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import engine_work
import pytest

import trace_core as tc
from trace_core.integrations.engines import (
    AbandonedWarning,
    AsyncEngine,
    EngineError,
    ProcessEngine,
    RolloutCrash,
    RolloutTimeout,
    ThreadEngine,
)

here: ContextVar[str] = ContextVar("here", default="nowhere")


@pytest.fixture(autouse=True)
def workers_find_this_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What stuck threads wait for; set at the end, so that none is left behind."""
    event = threading.Event()
    yield event
    event.set()


# ---- threads


def test_threads_give_results_in_order_and_carry_errors() -> None:
    with ThreadEngine(4) as engine:
        assert list(engine.map(engine_work.double, range(50))) == [2 * x for x in range(50)]
        with pytest.raises(ZeroDivisionError):
            engine.submit(engine_work.fail, 0).result()
    with pytest.raises(RuntimeError, match="after shutdown"):
        engine.submit(engine_work.double, 1)


def test_threads_carry_the_context_and_the_candidate() -> None:
    parameter = tc.node(1, trainable=True)
    with ThreadEngine(4) as engine:
        here.set("outside")
        with tc.using({parameter: 5}):
            inside = engine.submit(lambda: ((parameter + 0).value, here.get()))
        outside = engine.submit(lambda: (parameter + 0).value)
        assert inside.result() == (5, "outside")
        assert outside.result() == 1


def test_no_more_threads_run_than_asked_for() -> None:
    together = threading.Barrier(3)
    with ThreadEngine(3) as engine:
        running = [engine.submit(together.wait, 30) for _ in range(3)]  # all three are needed to get past it
        assert sorted(future.result() for future in running) == [0, 1, 2]
        assert len({engine.submit(threading.get_ident).result() for _ in range(30)}) <= 3


def test_a_stuck_thread_is_abandoned_with_a_warning_and_blocks_nobody(release: threading.Event) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ThreadEngine(1, timeout=0.05) as engine:
            stuck = engine.submit(release.wait)
            later = engine.submit(engine_work.double, 4)  # on the same single place
            with pytest.raises(RolloutTimeout, match=r"0.05 s"):
                stuck.result(30)
            assert later.result(30) == 8
        # the engine has shut down with the thread still stuck
        assert not release.is_set()
    assert any(issubclass(w.category, AbandonedWarning) and "ProcessEngine" in str(w.message) for w in caught)


def test_the_time_in_the_queue_does_not_count(release: threading.Event) -> None:
    with ThreadEngine(1, timeout=30) as engine:
        first = engine.submit(release.wait)
        waiting = [engine.submit(engine_work.double, x) for x in range(3)]
        release.set()
        assert first.result(30)
        assert [future.result(30) for future in waiting] == [0, 2, 4]


def test_what_waits_can_be_cancelled(release: threading.Event) -> None:
    engine = ThreadEngine(1)
    first, second = engine.submit(release.wait), engine.submit(engine_work.double, 1)
    engine.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(CancelledError):
        second.result(30)
    release.set()
    assert first.result(30)


# ---- coroutines


def test_coroutines_run_at_once_up_to_the_limit() -> None:
    running, most = 0, 0

    async def work(x: int) -> tuple[int, str]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(5):
            await asyncio.sleep(0)
        running -= 1
        return 2 * x, here.get()

    with AsyncEngine(5) as engine:
        here.set("asked")
        futures = [engine.submit(work, x) for x in range(40)]
        assert [future.result(30) for future in futures] == [(2 * x, "asked") for x in range(40)]
        assert 1 < most <= 5
        assert engine.submit(engine_work.double, 3).result(30) == 6  # a plain function, beside the loop


def test_a_coroutine_over_its_time_is_cancelled() -> None:
    ended = threading.Event()

    async def stuck() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with AsyncEngine(2, timeout=0.05) as engine:
        with pytest.raises(RolloutTimeout):
            engine.submit(stuck).result(30)
        assert ended.wait(30)


# ---- processes


def test_processes_give_results_and_keep_their_workers() -> None:
    with ProcessEngine(1) as engine:
        assert list(engine.map(engine_work.double, range(5))) == [0, 2, 4, 6, 8]
        ids = {engine.submit(engine_work.process_id).result() for _ in range(3)}
        assert len(ids) == 1
        assert os.getpid() not in ids
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            engine.submit(engine_work.fail, 0).result()
        with pytest.raises(RolloutCrash, match="signal 11"):
            engine.submit(engine_work.die, int(signal.SIGSEGV)).result()
        assert engine.submit(engine_work.double, 4).result() == 8  # by a new worker


def test_a_process_over_its_time_is_killed_with_everything_it_started(tmp_path: Path) -> None:
    note = tmp_path / "ids"
    with ProcessEngine(1, timeout=3) as engine:
        with pytest.raises(RolloutTimeout, match="killed"):
            engine.submit(engine_work.hang_with_a_child, str(note)).result(60)
        ids = [int(word) for word in note.read_text().split()]
        assert len(ids) == 2
        for process in ids:
            assert _ends(process)
        assert engine.submit(engine_work.double, 4).result(60) == 8


def _ends(process: int) -> bool:
    """Whether a process ends; one that was sent SIGKILL may take a moment, and a zombie has ended."""
    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 20)[0])
    finally:
        os.close(handle)


def test_only_importable_functions_and_data_cross() -> None:
    with ProcessEngine(1) as engine:
        with pytest.raises(EngineError, match="importable"):
            engine.submit(lambda: 1)
        with pytest.raises(EngineError, match="only data crosses"):
            engine.submit(engine_work.double, threading.Lock())  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [ThreadEngine, ProcessEngine, AsyncEngine])
def test_limits_are_checked(make: Any) -> None:
    with pytest.raises(EngineError, match="at least 1"):
        make(0)
    with pytest.raises(EngineError, match="more than 0"):
        make(1, timeout=0)
