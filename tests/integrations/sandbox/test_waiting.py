"""Processes that are forked ahead of the calls they are for: as safe as others, never seen twice, never left behind."""

from __future__ import annotations

import os
import platform
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trace_core.integrations.sandbox import JailRunner, ProcessRunner, Timeout

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(os, "pidfd_open"), reason="looks into /proc and waits for processes"
)
WHO = "import os\ndef f():\n    return os.getpid()"


def waiting(runner: ProcessRunner) -> list[int]:
    """Processes that have come to their directories and wait for a request there."""
    places = {child.directory for worker in runner._workers.values() for child in worker._waiting}
    found: list[int] = []
    while len(found) < len(places):  # they are on their way
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if os.readlink(entry / "cwd") in places and "pipe_read" not in (entry / "wchan").read_text():
                        found.append(int(entry.name))
                except OSError:
                    continue
    return found


@pytest.fixture
def jail() -> Iterator[JailRunner]:
    with JailRunner(partial=True, timeout=20.0, imports=None) as made:
        yield made


def test_each_call_has_a_process_that_waited_for_it(run: Any, jail: JailRunner) -> None:
    run(WHO, on=jail)
    seen = set()
    for _ in range(6):
        ready = waiting(jail)
        assert ready
        pid = run(WHO, on=jail)
        assert pid in ready
        assert pid not in seen
        seen.add(pid)


def test_a_process_that_waits_is_held_already(run: Any, jail: JailRunner) -> None:
    """What can be seen of it from outside is what a candidate sees of itself."""
    if jail.missing():
        pytest.skip("this kernel lacks a layer")
    source = """
        import resource
        def f():
            names = ("RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_CORE")
            return [resource.getrlimit(getattr(resource, name)) for name in names]
    """
    limits = run(source, on=jail)
    run(source, on=jail)
    for pid in waiting(jail):
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        while status["Seccomp"] != "2":  # the last layer is on its way
            status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert (status["NoNewPrivs"], status["NSpid"].split()[-1]) == ("1", str(pid))
        assert int(status["CapEff"], 16) & ~4 == 0
        import resource

        names = (resource.RLIMIT_DATA, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)
        assert [resource.prlimit(pid, name) for name in names] == limits
        assert os.getsid(pid) == pid
        opened = sorted(map(int, os.listdir(f"/proc/{pid}/fd")))
        assert opened == [0, 1, 2, 3]
        assert not Path(f"/proc/{pid}/environ").read_bytes().count(b"KEY")


def test_the_clocks_start_with_the_request(run: Any) -> None:
    with ProcessRunner(timeout=0.4, cpu_seconds=1) as hasty, ProcessRunner(timeout=0.5) as other:
        source = """
            import os, resource, time
            def f():
                return os.getpid(), resource.getrlimit(resource.RLIMIT_CPU)[0], time.process_time()
        """
        first = run(source, on=hasty)[0]
        run(source, on=hasty)
        ready = waiting(hasty)
        with pytest.raises(Timeout):  # the time that it waits is longer than it may run
            run("def f():\n    while True: pass", on=other)
        pid, limit, used = run(source, on=hasty)
        assert pid in ready
        assert pid != first
        assert limit >= 1 + int(used)
        with pytest.raises(Timeout) as caught:
            run("def f():\n    while True: pass", on=hasty)
        assert caught.value.limit == "wall"


def test_one_that_was_killed_is_replaced(run: Any, jail: JailRunner) -> None:
    run(WHO, on=jail)
    for _ in range(2):
        killed = waiting(jail)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        assert run(WHO, on=jail) not in killed
        assert run(WHO, on=jail) not in killed


def test_calls_that_need_more_than_it_has(run: Any, jail: JailRunner) -> None:
    """Modules that the worker has to load first, files that may be read, arrays that count as memory."""
    numpy = pytest.importorskip("numpy")
    run(WHO, on=jail)
    waiting(jail)
    assert run("import statistics, numpy\ndef f(x):\n    return numpy.sum(x)", numpy.ones(3), on=jail) == 3.0
    assert run("import numpy\ndef f(x):\n    return x.nbytes", numpy.zeros(1 << 20), on=jail) == 8 << 20
    loaded = "import sys, os\ndef f():\n    return os.getpid(), 'numpy' in sys.modules"
    seen = [run(loaded, on=jail) for _ in range(4)]
    assert seen[-1][0] != seen[0][0]
    assert seen[-1][1]


def test_what_one_does_the_next_does_not_see(run: Any, jail: JailRunner) -> None:
    spoil = """
        import builtins, os, random, sys
        sys.modules["json"] = None
        def f():
            builtins.divmod = None
            sys.path.append("/mark")
            os.environ["MARK"] = "1"
            open("mark", "w").close()
            return random.random(), os.getcwd()
    """
    look = """
        import json, os, random, sys
        def f():
            seen = [divmod(7, 2), "/mark" in sys.path, "MARK" in os.environ, os.listdir("."), sorted(
                name for name in sys.modules if "candidate" in name or "nothing" in name)]
            return seen, random.random()
    """
    numbers = set()
    for _ in range(3):
        number, _directory = run(spoil, on=jail)
        seen, other = run(look, on=jail)
        assert seen == [(3, 1), False, False, [], ["_sandbox_candidate", "candidate_code"]]
        numbers |= {number, other}
    assert len(numbers) == 6


def test_they_end_with_their_runner(run: Any) -> None:
    runner = JailRunner(partial=True)
    run(WHO, on=runner)
    ends = [os.pidfd_open(pid) for pid in waiting(runner)]
    assert ends
    runner.close()
    for end in ends:
        assert select.select([end], [], [], 60)[0]
        os.close(end)


_HOST = """
import sys
sys.path[:0] = {path!r}
from trace_core.integrations.sandbox import JailRunner
from test_waiting import WHO, waiting
class Code:
    source, name, filename, is_async = WHO, "f", "<f>", False
runner = JailRunner(partial=True)
runner.call(Code, (), {{}}, context={{}})
print(*waiting(runner), flush=True)
sys.stdin.read()
"""


def test_they_end_with_a_host_that_is_killed() -> None:
    program = textwrap.dedent(_HOST).format(path=[str(Path(__file__).parent), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as host:
        assert host.stdout is not None
        ends = [os.pidfd_open(int(pid)) for pid in host.stdout.readline().split()]
        assert ends
        host.kill()
        for end in ends:
            assert select.select([end], [], [], 60)[0]
            os.close(end)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the jail is for these processors")
def test_an_abuse_meets_one_that_waited(run: Any, jail: JailRunner) -> None:
    from trace_core.integrations.sandbox import PolicyViolation

    if jail.missing():
        pytest.skip("this kernel lacks a layer")
    run(WHO, on=jail)
    for _ in range(3):
        ready = waiting(jail)
        for body in ("import os\n    os.kill(other, 9)", "return open(f'/proc/{other}/environ').read()"):
            with pytest.raises(PolicyViolation):
                run(f"def f(other):\n    {body}", ready[-1], on=jail)
        assert run("def f():\n    return 1", on=jail) == 1
