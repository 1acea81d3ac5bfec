"""Lives and deaths of runners, workers and hosts; many threads; what a runner says about itself."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from trace_core.errors import RunnerError
from trace_core.integrations.sandbox import (
    CandidateException,
    CannotCross,
    Crash,
    ProcessRunner,
)

posix_only = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_description_is_of_what_was_seen(either: ProcessRunner) -> None:
    seen = either.describe()
    assert seen["tier"] == "process"
    assert seen["security_boundary"] is False
    assert {"own process", "clean environment", "wall-clock limit", "data-only results"} <= set(seen["layers"])
    assert {"filesystem", "network", "system calls"} <= set(seen["absent"])
    assert not set(seen["layers"]) & set(seen["absent"])
    if sys.platform == "linux":
        wanted = {"memory limit", "CPU limit", "file size limit", "own session", "no inherited descriptors"}
        assert wanted <= set(seen["layers"])
        assert ("orphans are ended" in seen["layers"]) is seen["fork_per_call"]


@pytest.mark.parametrize(
    "setting", [{"timeout": 0}, {"memory_mb": -1}, {"timeout": float("nan")}, {"max_output_bytes": 0}]
)
def test_settings_are_checked(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        ProcessRunner(**setting)


def test_closed_runner(run: Any, whereabouts: Any) -> None:
    own = ProcessRunner()
    with own:
        place = whereabouts(own)
    assert not place.folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(place.worker, 0)
    with pytest.raises(RunnerError, match="closed"):
        run("def f(): pass", on=own)
    own.close()


def test_close_ends_calls_that_are_under_way(run: Any, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    own = ProcessRunner(timeout=60)
    source = "import signal\ndef f(path):\n    open(path, 'w').close()\n    signal.pause()"
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(run, source, str(fifo), on=own)
        fifo.read_bytes()  # the candidate is at work
        own.close()
        with pytest.raises(RunnerError, match="closed"):
            call.result()


def test_a_runner_is_not_pickled() -> None:
    import copy

    with ProcessRunner() as own, pytest.raises(TypeError, match="belongs to its process"):
        copy.copy(own)


def test_interpreter_that_cannot_be_started(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for executable in ("", str(tmp_path / "nothing"), "/bin/false"):
        monkeypatch.setattr(sys, "executable", executable)
        for fork in (None, False):
            with ProcessRunner(fork=fork) as own, pytest.raises(RunnerError):
                run("def f(): pass", on=own)
    assert list(tmp_path.iterdir()) == []


@posix_only
def test_worker_killed_between_calls(run: Any, whereabouts: Any) -> None:
    with ProcessRunner() as own:
        first = whereabouts(own).worker
        os.kill(first, signal.SIGKILL)
        assert run("def f():\n    return 3", on=own) == 3
        assert whereabouts(own).worker != first


@posix_only
def test_worker_killed_during_calls(run: Any, whereabouts: Any, tmp_path: Path) -> None:
    """The calls are run again, each by itself: whoever killed the worker, these did not."""
    fifos = [tmp_path / f"fifo{i}" for i in range(3)]
    for fifo in fifos:
        os.mkfifo(fifo)
    source = """
        import os, signal
        def f(path):
            if os.path.exists(path + ".done"):
                return "second time"
            open(path + ".done", "w").close()
            open(path, "w").close()
            signal.pause()
    """
    with ProcessRunner(timeout=60) as own, ThreadPoolExecutor(3) as pool:
        place = whereabouts(own)
        calls = [pool.submit(run, source, str(fifo), on=own) for fifo in fifos]
        for fifo in fifos:
            fifo.read_bytes()  # this candidate is at work
        os.kill(place.worker, signal.SIGKILL)
        assert [call.result() for call in calls] == ["second time"] * 3
        assert place.processes() == set()


@posix_only
def test_module_whose_import_ends_the_worker(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the worker imports for its children is a courtesy; a call does not depend on it."""
    import types

    package = tmp_path / "site-packages"
    package.mkdir()
    (package / "deadly_83.py").write_text("import os\nif os.getsid(0) == os.getpid() != os.getppid(): os._exit(1)\n")
    monkeypatch.syspath_prepend(str(package))
    stub = types.ModuleType("deadly_83")
    stub.__file__ = str(package / "deadly_83.py")
    monkeypatch.setitem(sys.modules, "deadly_83", stub)
    with ProcessRunner() as own:
        with pytest.raises(Crash):
            run("import deadly_83\ndef f():\n    return 1", on=own)
        assert run("def f():\n    return 1", on=own) == 1


def test_many_threads(runner: ProcessRunner, candidate: Any) -> None:
    code = candidate("def f(x):\n    if x % 5 == 0:\n        raise ValueError(x)\n    return x * x")

    def call(x: int) -> Any:
        try:
            return runner.call(code, (x,), {}, context={})
        except CandidateException as error:
            return error.exception_message

    with ThreadPoolExecutor(12) as pool:
        results = list(pool.map(call, range(120)))
    assert results == [str(x) if x % 5 == 0 else x * x for x in range(120)]


def test_first_calls_of_many_threads_share_one_worker(run: Any) -> None:
    barrier = threading.Barrier(8)
    with ProcessRunner() as own, ThreadPoolExecutor(8) as pool:

        def call(_: int) -> Any:
            barrier.wait()
            return run("import os\ndef f():\n    return os.getppid()", on=own)

        assert len(set(pool.map(call, range(8)))) == 1


@posix_only
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_runner_in_a_forked_process(run: Any, whereabouts: Any) -> None:
    with ProcessRunner() as own:
        place = whereabouts(own)
        held = threading.Event()
        release = threading.Event()

        def hold() -> None:
            with own._lock:  # a thread is in the middle of something when the process forks
                held.set()
                release.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            answer = "failed"
            try:
                theirs = run("import os\ndef f():\n    return os.getppid()", on=own)
                answer = str(theirs != place.worker and run("def f():\n    return 7", on=own))
                own.close()
            except BaseException:  # noqa: BLE001 - this process ends here and must say why
                answer = traceback.format_exc()
            finally:
                os.write(writing, answer.encode())
                os._exit(0)
        release.set()
        thread.join()
        os.close(writing)
        with open(reading) as result:
            assert result.read() == "7"
        os.waitpid(child, 0)
        assert whereabouts(own).worker == place.worker
        assert place.folder.exists()


@posix_only
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for a process that is not its child")
def test_interrupted_wait_ends_the_candidate(run: Any, tmp_path: Path) -> None:
    class Interrupted(BaseException):
        pass

    def interrupt(*_: Any) -> None:
        raise Interrupted

    note = tmp_path / "pid"
    source = """
        import os, signal
        def f(host, note):
            with open(note, "w") as file:
                file.write(str(os.getpid()))
            os.kill(host, signal.SIGUSR1)
            signal.pause()
    """
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with ProcessRunner(timeout=60) as own:
            with pytest.raises(Interrupted):
                run(source, os.getpid(), str(note), on=own)
            with contextlib.suppress(ProcessLookupError):  # gone already
                waiting = os.pidfd_open(int(note.read_text()))
                assert select.select([waiting], [], [], 60)[0]
                os.close(waiting)
            assert run("def f():\n    return 1", on=own) == 1
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_system_without_fork_and_limits(tmp_path: Path) -> None:
    """Such as Windows: an interpreter per call, everything else the same."""
    program = """
        import os, sys
        for name in ("fork", "forkpty", "register_at_fork", "memfd_create", "pidfd_open", "waitid"):
            delattr(os, name) if hasattr(os, name) else None
        sys.modules["resource"] = None
        from trace_core.errors import CandidateError
        from trace_core.integrations.sandbox import ProcessRunner, confine, worker, zygote
        class Code:
            source, name, filename, is_async = "def f(x):\\n    return 6 // x", "f", "<f>", False
        confine.Prepared({"memory_mb": 1}).measure()
        confine.cap_cpu(1)
        confine.allow_cpu(1)
        confine.release_reserve()
        with ProcessRunner() as runner:
            print(runner.call(Code, (2,), {}, context={}), runner.describe()["fork_per_call"])
            try:
                runner.call(Code, (0,), {}, context={})
            except CandidateError as error:
                print(error.kind)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, text=True, check=True)
    assert done.stdout.split() == ["3", "False", "exception"]


_HOST = """
import sys
from trace_core.integrations.sandbox import ProcessRunner
class Code:
    source = "import os\\ndef f():\\n    return os.getppid(), os.getcwd()"
    name, filename, is_async = "f", "<f>", False
runner = ProcessRunner(timeout=60)
worker, directory = runner.call(Code, (), {}, context={})
print(worker, directory, flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for a process that is not its child")
@pytest.mark.parametrize("end", ["", "1 / 0", "import os; os._exit(0)", "sys.stdin.read()", "busy"])
def test_worker_leaves_with_its_host(end: str, tmp_path: Path) -> None:
    """However the host ends, also killed, also with a call under way."""
    if end == "busy":
        end = textwrap.dedent("""
            Code.source = "import signal\\ndef f():\\n    print('x')\\n    signal.pause()"
            runner.call(Code, (), {}, context={})
        """)
    with subprocess.Popen(
        [sys.executable, "-c", _HOST + end],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        text=True,
    ) as host:
        assert host.stdout is not None
        worker, directory = host.stdout.readline().split()
        waiting = os.pidfd_open(int(worker))
        try:
            if "stdin" in end or "pause" in end:
                host.kill()
            ready, _, _ = select.select([waiting], [], [], 60)
            assert ready
        finally:
            os.close(waiting)
    assert not Path(directory).parent.exists()


def test_import_is_cheap(tmp_path: Path) -> None:
    heavy = "msgpack", "numpy", "pydantic", "ast", "inspect", "subprocess", "socket", "asyncio", "json", "dataclasses"
    program = f"""
        import sys
        import trace_core
        before = set(sys.modules)
        import trace_core.integrations.sandbox as sandbox
        print(sorted((set(sys.modules) - before) & set({heavy!r})), "ProcessRunner" in dir(sandbox))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, text=True, check=True)
    assert done.stdout.strip() == "[] True"


def test_arguments_that_cannot_be_sent_do_not_start_anything(candidate: Any) -> None:
    with ProcessRunner() as own, pytest.raises(CannotCross):
        own.call_many(candidate("def f(x): pass"), [((1,), {}), ((object(),), {})], context={})
