"""What a bad candidate can do to the run: nothing. Each abuse must end as an error of its own call."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trace_core.errors import CandidateError
from trace_core.integrations.sandbox import (
    CandidateException,
    Crash,
    Memory,
    OutputLimit,
    ProcessRunner,
    ResultRejected,
    Timeout,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc to see that no process is left")


@pytest.fixture(scope="module")
def hasty() -> Iterator[ProcessRunner]:
    """Gives up soon: for candidates that never end."""
    with ProcessRunner(timeout=0.7, memory_mb=256) as made:
        yield made


@pytest.fixture
def survives(runner: ProcessRunner, hasty: ProcessRunner, run: Any, whereabouts: Any) -> Callable[..., CandidateError]:
    """Runs an abuse, and checks what must hold afterwards: the next call works, nothing is left behind."""

    def attack(source: str, expected: type[CandidateError], *args: Any, on: ProcessRunner | None = None) -> Any:
        before = whereabouts(on)
        with pytest.raises(expected) as caught:
            run(source, *args, on=on)
        assert type(caught.value) is expected
        assert str(caught.value).startswith("(in f) ")
        assert run("def f(x):\n    return len([x, x]) + 1", 7, on=on) == 3
        for place in (before, whereabouts(on)):
            assert place.processes() == set()
        return caught.value

    return attack


def test_endless_loop(survives: Any, hasty: ProcessRunner) -> None:
    error = survives("def f():\n    while True:\n        pass", Timeout, on=hasty)
    assert (error.kind, error.limit, error.seconds) == ("timeout", "wall", 0.7)
    assert "0.7 s" in str(error)


def test_cpu_time_of_a_program_that_may_run_long(survives: Any) -> None:
    with ProcessRunner(timeout=60.0, cpu_seconds=0.5) as patient:
        error = survives("def f():\n    while True:\n        pass", Timeout, on=patient)
    assert error.limit == "cpu"


def test_loop_that_ignores_signals(survives: Any, hasty: ProcessRunner) -> None:
    source = """
        import signal
        def f():
            for number in range(1, 65):
                try:
                    signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError):
                    pass
            while True:
                try:
                    while True:
                        pass
                except BaseException:
                    pass
    """
    assert survives(source, Timeout, on=hasty).limit == "wall"


def test_regular_expression_that_holds_the_interpreter(survives: Any, hasty: ProcessRunner) -> None:
    source = "import re\ndef f():\n    return re.match(r'(a+)+$', 'a' * 40 + 'b')"
    assert survives(source, Timeout, on=hasty).limit == "wall"


def test_endless_generator(survives: Any, hasty: ProcessRunner) -> None:
    survives("import itertools\ndef f():\n    return sum(1 for _ in itertools.count())", Timeout, on=hasty)


def test_result_that_is_a_generator(survives: Any) -> None:
    error = survives("def f():\n    while True:\n        yield 1", ResultRejected)
    assert error.reason == "type"
    assert "a generator" in str(error)


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    return len(bytearray(2 ** 33))",
        "def f():\n    hoard = []\n    while True:\n        hoard.append(bytearray(1 << 20))",
        "def f():\n    text = 'x'\n    while True:\n        text += text",
        "import numpy\ndef f():\n    return numpy.ones(2 ** 31).sum()",
    ],
)
def test_memory_bomb(survives: Any, runner: ProcessRunner, source: str) -> None:
    if "memory limit" not in runner.describe()["layers"]:
        pytest.skip("this system does not limit memory")
    if "numpy" in source:
        pytest.importorskip("numpy")
    error = survives(source, Memory)
    assert error.kind == "memory"
    assert "512 MiB" in str(error)
    assert "-->" in str(error)


@pytest.mark.parametrize(("argument", "code"), [("3", 3), ("", 0), ("'enough'", 1)])
def test_sys_exit(survives: Any, argument: str, code: int) -> None:
    error = survives(f"import sys\ndef f():\n    sys.exit({argument})", Crash)
    assert (error.kind, error.exit_code, error.signal) == ("crash", code, None)
    assert "-->   3 |     sys.exit(" in str(error)
    assert ("enough" in str(error)) is (code == 1)


@pytest.mark.parametrize("code", [0, 1, 70])
def test_os_exit(survives: Any, code: int) -> None:
    error = survives(f"import os\ndef f():\n    print('so far', flush=True)\n    os._exit({code})", Crash)
    assert error.exit_code == code
    assert "so far" in str(error)


def test_os_exit_while_the_code_is_loaded(survives: Any, runner: ProcessRunner, candidate: Any) -> None:
    survives("import os\nos._exit(5)\ndef f():\n    return 1", Crash)
    outcomes = runner.call_many(candidate("import os\nos._exit(5)\ndef f(): pass"), [((), {})] * 3, context={})
    assert [type(o.error) for o in outcomes] == [Crash] * 3


def test_segmentation_fault(survives: Any) -> None:
    error = survives("import ctypes\ndef f():\n    return ctypes.string_at(0)", Crash)
    assert (error.signal, error.exit_code) == ("SIGSEGV", None)


def test_killing_itself_is_not_taken_for_a_time_limit(survives: Any) -> None:
    assert survives("import os\ndef f():\n    os.kill(os.getpid(), 9)", Crash).signal == "SIGKILL"


def test_deep_recursion(survives: Any) -> None:
    error = survives("def f(n=0):\n    return f(n + 1)", CandidateException)
    assert error.exception_type == "RecursionError"
    assert len(str(error)) < 4_000
    assert "frames in between are left out" in str(error)


def test_recursion_without_a_limit(run: Any, whereabouts: Any) -> None:
    source = """
        import sys
        def f():
            sys.setrecursionlimit(10 ** 9)
            class Deep:
                def __repr__(self):
                    return repr([self])
            return repr(Deep())
    """
    with pytest.raises(CandidateError):  # a crash or a lack of memory, by the size of the stack
        run(source)
    assert run("def f():\n    return 1") == 1
    assert whereabouts().processes() == set()


def test_output_without_end(survives: Any) -> None:
    error = survives("def f():\n    for i in range(2_000_000):\n        print('x' * 99)", OutputLimit)
    assert error.kind == "output"
    assert len(str(error)) < 5_000


def test_output_in_one_piece(survives: Any) -> None:
    survives("def f():\n    print('x' * 200_000_000)", OutputLimit)
    survives("import sys\ndef f():\n    sys.stdout.write('x' * 200_000_000)\n    return 1", OutputLimit)


def test_output_limit_that_is_ignored(survives: Any) -> None:
    source = """
        import os, signal
        def f():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            while True:
                os.write(1, b"x" * 1_000_000)
    """
    survives(source, OutputLimit)


def test_file_without_end(survives: Any) -> None:
    survives(
        "def f():\n    with open('big', 'wb') as big:\n        while True:\n            big.write(bytes(1 << 20))",
        OutputLimit,
    )


def test_too_big_a_result(survives: Any) -> None:
    error = survives("def f():\n    return 'x' * 300_000_000", ResultRejected)
    assert (error.kind, error.reason) == ("result", "size")
    error = survives("def f():\n    return 'x' * 40_000_000", ResultRejected)
    assert error.reason == "size"
    assert "33554432" in str(error)


@pytest.mark.parametrize("fork", [None, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("also", ["", "if len(seen) % 5 == 0: os._exit(1)"])
def test_results_that_are_too_big_together(candidate: Any, fork: bool | None, also: str) -> None:
    """Each is small enough, but all of them would be kept here; another process does not get a fresh start."""
    if fork is False and also:
        pytest.skip("an interpreter for each crash takes long")
    source = f"import os\nseen = []\ndef f(x):\n    seen.append(x)\n    {also or 'pass'}\n    return 'x' * 90_000"
    with ProcessRunner(timeout=20.0, max_result_bytes=100_000, fork=fork) as own:
        outcomes = own.call_many(candidate(source), [((x,), {}) for x in range(80)], context={})
    kept = [o for o in outcomes if o.error is None]
    assert 16 <= len(kept) <= 40
    last = outcomes[-1].error
    assert isinstance(last, ResultRejected)
    assert last.reason == "size"
    assert "all examples together" in str(last)


@pytest.mark.parametrize("fork", [None, False])
def test_tools_that_are_asked_without_end_and_never_listened_to(run: Any, fork: bool | None) -> None:
    source = """
        import sys, struct, os
        def f():
            frame = sys._getframe()
            while "call_id" not in frame.f_locals:
                frame = frame.f_back
            ident, out = frame.f_locals["call_id"], frame.f_locals["outgoing"]
            codec = sys.modules["_sandbox_codec"]
            head, value = codec.pack({"tool": "same"}), codec.encode((("x" * 1000,), {}))
            body = len(head).to_bytes(4, "big") + head + value
            while True:
                os.write(out, struct.pack(">QQ", ident, len(body)) + body)
    """
    with ProcessRunner(timeout=1.0, fork=fork, tools={"same": lambda x: x}) as own:
        with pytest.raises(CandidateError) as caught:
            run(source, on=own)
        assert type(caught.value) in (ResultRejected, Timeout)
        assert run("def f():\n    return same('y')", on=own) == "y"


def test_folders_deeper_than_a_program_can_recurse(tmp_path: Path) -> None:
    from trace_core.integrations.sandbox.removal import remove_tree

    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    top = tmp_path / "top"
    top.mkdir()
    before = os.getcwd()
    os.chdir(top)
    try:
        for _ in range(1500):
            os.mkdir("d")
            os.symlink(outside, "link")
            os.chdir("d")
    finally:
        os.chdir(before)
    os.chmod(top / "d" / "d", 0)
    remove_tree(str(top))
    assert not top.exists()
    assert (outside / "kept").read_text() == "x"
    link = tmp_path / "link"
    link.symlink_to(outside)
    remove_tree(str(link))
    assert not link.is_symlink()
    assert (outside / "kept").exists()


@pytest.mark.slow
def test_small_bytes_that_become_many_objects(survives: Any) -> None:
    error = survives("def f():\n    return [{}] * 2_000_001", ResultRejected)
    assert "containers" in str(error)


@pytest.mark.parametrize(
    "expression",
    [
        "Trap()",
        "[1, {'deep': Trap()}]",
        "{Trap(): 1}",
        "lambda: 1",
        "f",
        "open('/dev/null')",
        "type",
        "iter([])",
        "Text('x')",
    ],
)
def test_result_that_is_no_data(survives: Any, expression: str, tmp_path: Any) -> None:
    mark = tmp_path / "mark"
    source = f"""
        class Trap:
            def __reduce__(self):
                return (open, ({str(mark)!r}, "w"))
            __getstate__ = __getnewargs__ = __reduce__
        class Text(str):
            pass
        def f():
            return {expression}
    """
    error = survives(source, ResultRejected)
    assert error.reason == "type"
    assert "numpy.ndarray" in str(error)
    assert not mark.exists()


def test_path_to_what_cannot_come_back(survives: Any) -> None:
    error = survives("def f():\n    return {'plan': [1, object()]}", ResultRejected)
    assert "result['plan'][1]" in str(error)
    assert "a object" in str(error)


@pytest.mark.parametrize(
    "data", ["b'garbage' * 100", "bytes(16)", "bytes([255]) * 16", "b'\\0' * 15 + b'\\1' + b'\\xc1'", "bytes(100_000)"]
)
def test_forged_messages(survives: Any, data: str) -> None:
    error = survives(f"import os\ndef f():\n    os.write(3, {data})\n    return 1", ResultRejected)
    assert error.reason == "protocol"


def test_reading_standard_input(survives: Any) -> None:
    assert survives("def f():\n    return input()", CandidateException).exception_type == "EOFError"


def test_thread_left_behind(run: Any, whereabouts: Any) -> None:
    source = """
        import threading
        def f():
            for daemon in (True, False):
                threading.Thread(target=threading.Event().wait, daemon=daemon).start()
            return threading.active_count()
    """
    assert run(source) == 3
    assert whereabouts().processes() == set()


_LEAVING = {
    "child": "if os.fork() == 0: signal.pause()",
    "child of a child": "if os.fork() == 0:\n        if os.fork() == 0: signal.pause()\n        os._exit(0)",
    "daemon": "if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0: signal.pause()\n        os._exit(0)",
    "new session": "if os.fork() == 0:\n        os.setsid()\n        signal.pause()",
    "program": "subprocess.Popen(['sleep', '1000'], start_new_session=True)",
    "shell": "subprocess.Popen('sleep 1000 & sleep 1001 &', shell=True)",
}


@pytest.mark.parametrize("how", _LEAVING)
@pytest.mark.parametrize("end", ["return 5", "os._exit(1)"])
def test_processes_left_behind(run: Any, whereabouts: Any, how: str, end: str) -> None:
    source = f"import os, signal, subprocess\ndef f():\n    {_LEAVING[how]}\n    {end}\n"
    place = whereabouts()
    if end.startswith("return"):
        assert run(source) == 5
    else:
        with pytest.raises(Crash):
            run(source)
    assert place.processes() == set()
    assert run("def f():\n    return 1") == 1


def test_processes_of_a_candidate_that_runs_too_long(survives: Any, hasty: ProcessRunner) -> None:
    source = """
        import os, signal
        def f():
            for _ in range(5):
                if os.fork() == 0:
                    os.setsid()
                    signal.pause()
            while True:
                pass
    """
    survives(source, Timeout, on=hasty)


def test_both_halves_of_a_fork_answer(run: Any, whereabouts: Any) -> None:
    """The first answer counts; the copy that goes on is ended."""
    with contextlib.suppress(ResultRejected):  # both answered in time: too much of it
        assert run("import os\ndef f():\n    return os.fork() == 0") in (True, False)
    assert whereabouts().processes() == set()


def test_changed_builtins_do_not_outlive_the_call(run: Any) -> None:
    source = """
        import builtins, os, sys, json
        def f():
            for name in ("len", "isinstance", "print", "open", "type", "list", "dict", "range", "getattr"):
                setattr(builtins, name, None)
            json.dumps = os.getcwd = None
            sys.path.clear()
            sys.modules.clear()
            return 1
    """
    with contextlib.suppress(Crash):  # it may break its own answer with that
        assert run(source) == 1
    assert run("import json, os\ndef f(x):\n    return len(x), json.dumps(x), bool(os.getcwd())", [1]) == (
        1,
        "[1]",
        True,
    )


def test_killing_the_worker_is_the_candidates_own_failure(run: Any, whereabouts: Any) -> None:
    first = whereabouts().worker
    with pytest.raises(Crash, match="supervises"):
        run("import os, signal\ndef f():\n    os.kill(os.getppid(), 9)\n    signal.pause()")
    assert whereabouts().worker != first


def test_stopping_the_worker(run: Any, whereabouts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from trace_core.integrations.sandbox import conversation

    monkeypatch.setattr(conversation, "GRACE_SECONDS", 0.3)
    with ProcessRunner(timeout=0.5) as own:
        folder = whereabouts(own).folder
        with pytest.raises(CandidateError):
            run("import os, signal\ndef f():\n    os.kill(os.getppid(), signal.SIGSTOP)\n    signal.pause()", on=own)
        assert run("def f():\n    return 2", on=own) == 2
        assert not folder.exists()
