"""Calling proposed code: values, many examples, and errors as an optimizer reads them."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from trace_core.errors import CandidateError
from trace_core.integrations.sandbox import (
    CandidateException,
    CandidateSyntaxError,
    Crash,
    Memory,
    OutputLimit,
    ProcessRunner,
    ResultRejected,
    Timeout,
)

posix_only = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_result(either: ProcessRunner, candidate: Any) -> None:
    code = candidate("""
        import math

        def double(x):
            return 2 * x

        def f(a, b=1, *rest, c, **more):
            return [double(a), b, rest, c, more, math.floor(2.5)]
    """)
    assert either.call(code, (1, 2, 3), {"c": {4}, "d": None}, context={}) == [2, 2, (3,), {4}, {"d": None}, 2]


def test_async_function(either: ProcessRunner, run: Any) -> None:
    source = """
        import asyncio
        async def f(n):
            async def one(i):
                await asyncio.sleep(0)
                return i * i
            return await asyncio.gather(*(one(i) for i in range(n)))
    """
    assert run(source, 4, on=either, is_async=True) == [0, 1, 4, 9]
    with pytest.raises(CandidateException, match="ValueError: too late"):
        run("async def f():\n    raise ValueError('too late')", on=either, is_async=True)


def test_exception_shows_the_candidates_own_frames(either: ProcessRunner, run: Any) -> None:
    source = """
        import json

        def helper(text):
            # parse it
            return json.loads(text)

        def f(text):
            return helper(text)["plan"]
    """
    with pytest.raises(CandidateException) as caught:
        run(source, "{nonsense", on=either)
    assert str(caught.value) == textwrap.dedent("""
        (in f) JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)
          f, line 8 of <code f v3>:
              6 |
              7 | def f(text):
        -->   8 |     return helper(text)["plan"]
          helper, line 5 of <code f v3>:
              3 | def helper(text):
              4 |     # parse it
        -->   5 |     return json.loads(text)
              6 |
              7 | def f(text):
    """).strip().replace(" |\n", " | \n")
    assert caught.value.kind == "exception"
    assert caught.value.exception_type == "JSONDecodeError"
    assert caught.value.exception_message.startswith("Expecting")


def test_syntax_error(either: ProcessRunner, run: Any) -> None:
    with pytest.raises(CandidateSyntaxError) as caught:
        run("def f(x):\n    if x\n        return 1", 1, on=either)
    assert caught.value.kind == "syntax"
    assert "SyntaxError: expected ':'" in str(caught.value)
    assert "-->   2 |     if x" in str(caught.value)


def test_time_limit(either: ProcessRunner, run: Any) -> None:
    with ProcessRunner(timeout=0.5, fork=either.describe()["fork_per_call"] and None) as hasty:
        with pytest.raises(Timeout) as caught:
            run("def f():\n    print('on my way')\n    while True: pass", on=hasty)
        assert "on my way" in str(caught.value)
        assert run("def f():\n    return 1", on=hasty) == 1


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("bytearray(1 << 33)", Memory),
        ("__import__('os')._exit(4)", Crash),
        ("__import__('sys').exit(4)", Crash),
        ("__import__('ctypes').string_at(0)", Crash),
        ("print('x' * 50_000_000)", OutputLimit),
        ("object()", ResultRejected),
        ("'x' * 50_000_000", ResultRejected),
        ("__import__('os').write(3, b'x' * 99) and 1", ResultRejected),
        ("input()", CandidateException),
    ],
)
def test_every_end_is_a_typed_error(either: ProcessRunner, run: Any, body: str, expected: type) -> None:
    if expected is Memory and "memory limit" not in either.describe()["layers"]:
        pytest.skip("this system does not limit memory")
    with pytest.raises(expected) as caught:
        run(f"def f():\n    return {body}", on=either)
    assert type(caught.value) is expected
    assert run("def f():\n    return 1", on=either) == 1


def test_printed_output_is_in_the_error_and_nowhere_else(
    either: ProcessRunner, run: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    source = """
        import os, sys
        def f(fail):
            for i in range(3000):
                print("line", i)
            print("to stderr", file=sys.stderr)
            os.system("echo from a program")
            print("\\ud800", end=" the end")
            if fail:
                raise RuntimeError("after all that")
            return 1
    """
    assert run(source, False, on=either) == 1
    with pytest.raises(CandidateException) as caught:
        run(source, True, on=either)
    text = str(caught.value)
    assert "line 2999" in text
    assert "to stderr" in text
    assert "from a program" in text
    assert "\\ud800 the end" in text
    assert "line 0\n" not in text
    assert len(text) < 4_000
    assert capfd.readouterr() == ("", "")


def test_examples_in_one_process(either: ProcessRunner, candidate: Any) -> None:
    code = candidate("""
        import os
        seen = []
        def f(x, crash=None):
            seen.append(x)
            print("example", x)
            if crash:
                exec(crash)
            return x, len(seen), os.getpid()
    """)
    calls: list[Any] = [
        ((0,), {}),
        ((1,), {"crash": "1 / 0"}),
        ((2,), {"crash": "os._exit(3)"}),
        ((3,), {}),
        ((4,), {"crash": "bytearray(1 << 40)"}),
        ((5,), {}),
    ]
    outcomes = either.call_many(code, calls, context={})
    kinds = [type(o.error) for o in outcomes]
    assert kinds == [type(None), CandidateException, Crash, type(None), Memory, type(None)]
    assert [o.value and o.value[:2] for o in outcomes] == [(0, 1), None, None, (3, 1), None, (5, 3)]
    assert outcomes[3].value[2] == outcomes[5].value[2] != outcomes[0].value[2]
    assert [line for line in str(outcomes[1].error).splitlines() if "| example" in line] == ["    | example 1"]
    assert outcomes[0].seconds > 0
    assert outcomes[0].unwrap() == outcomes[0].value
    with pytest.raises(Crash):
        outcomes[2].unwrap()
    assert either.call_many(code, [], context={}) == []


# --- errors ----------------------------------------------------------------------------------------------------------


def test_exceptions_that_are_hard_to_show(run: Any) -> None:
    nasty = {
        "raise Nasty()": "Nasty: (its message cannot be read: ZeroDivisionError)",
        "assert False": "AssertionError: the assertion failed",
        "raise ValueError('x' * 100_000)": "characters]…",
        "raise KeyboardInterrupt": "KeyboardInterrupt",
        "raise GeneratorExit('x')": "GeneratorExit: x",
        "raise StopIteration": "StopIteration",
        "raise ValueError('\\ud800\\0')": "ValueError: ?\ufffd",
        "raise SyntaxError('mine')": "SyntaxError: mine",
        "eval('1 +')": "SyntaxError: invalid syntax",
        "raise ExceptionGroup('all', [KeyError('one'), ValueError('two')])": "among them ValueError: two",
        "raise OSError(27, 'no')": "printed, or wrote to a file",
    }
    for statement, expected in nasty.items():
        source = f"class Nasty(Exception):\n    def __str__(self):\n        1 / 0\ndef f():\n    {statement}\n"
        with pytest.raises((CandidateException, OutputLimit)) as caught:
            run(source)
        assert expected in str(caught.value)
        assert f"-->   5 |     {statement[:30]}" in str(caught.value)
        assert len(str(caught.value)) < 5_000


def test_causes_are_shown(run: Any) -> None:
    source = """
        def f():
            try:
                {}["plan"]
            except KeyError as error:
                raise ValueError("no plan") from error
    """
    with pytest.raises(CandidateException) as caught:
        run(source)
    assert "ValueError: no plan" in str(caught.value)
    assert "caused by KeyError: 'plan'" in str(caught.value)
    assert '-->   3 |         {}["plan"]' in str(caught.value)


def test_wrong_arguments_and_missing_function(run: Any) -> None:
    with pytest.raises(CandidateException, match=r"TypeError: f\(\) missing 1 required positional argument: 'x'"):
        run("def f(x): pass")
    with pytest.raises(CandidateException, match="NameError: the source defines no function 'f'"):
        run("def g(x): pass", 1)
    with pytest.raises(CandidateException, match="NameError: name 'missing' is not defined"):
        run("def f():\n    return missing")


def test_globals_look_like_those_of_a_module(run: Any) -> None:
    source = """
        import dataclasses, inspect, sys, traceback, typing

        @dataclasses.dataclass
        class Point:
            x: "int"
            y: typing.List[int] = dataclasses.field(default_factory=list)

        def f():
            try:
                raise ValueError
            except ValueError:
                lines = traceback.format_exc()
            module = sys.modules[__name__]
            return (
                module.f is f, __name__ == "__main__", __builtins__["len"] is len, "raise ValueError" in lines,
                inspect.getsource(f).startswith("def f"), dataclasses.asdict(Point(1)), sys.getrecursionlimit(),
                sys.argv,
            )
    """
    assert run(source) == (True, False, True, True, True, {"x": 1, "y": []}, 1000, [""])


def test_errors_can_be_sent_to_another_process(run: Any) -> None:
    import copy

    for body in ("1 / 0", "__import__('os')._exit(3)", "object()", "(", "__import__('sys').exit(2)"):
        with pytest.raises(CandidateError) as caught:
            run(f"def f():\n    return {body}")
        twin = copy.copy(caught.value)
        assert (type(twin), str(twin), vars(twin)) == (type(caught.value), str(caught.value), vars(caught.value))


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_linear_algebra_has_one_thread(run: Any) -> None:
    """A fork has none of the threads that a library had; several calls at once would fight for the processors."""
    pytest.importorskip("numpy")
    source = """
        import os, numpy
        def f():
            numpy.ones((400, 400)) @ numpy.ones((400, 400))
            return len(os.listdir("/proc/self/task")), os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]
    """
    assert run(source) == (1, "1", "1")


def test_random_numbers_differ_from_call_to_call(run: Any) -> None:
    assert len({run("import random\ndef f():\n    return random.random()") for _ in range(3)}) == 3
    pytest.importorskip("numpy")
    assert len({run("import numpy\ndef f():\n    return float(numpy.random.random())") for _ in range(3)}) == 3


def test_imports_are_those_of_this_interpreter(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here_83.py").write_text("answer = 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with ProcessRunner() as own:
        sys.path.remove(str(tmp_path))
        with pytest.raises(CandidateException, match="No module named 'only_here_83'"):
            run("import only_here_83\ndef f():\n    return 1", on=own)
        monkeypatch.syspath_prepend(str(tmp_path))  # the worker runs already
        assert run("import only_here_83\ndef f():\n    return only_here_83.answer", on=own) == 42
        with pytest.raises(CandidateException, match="ModuleNotFoundError: No module named 'nowhere_83'"):
            run("import nowhere_83\ndef f():\n    return 1", on=own)


def test_large_arguments_and_results(run: Any) -> None:
    big = [os.urandom(1 << 20) for _ in range(20)]
    assert run("def f(x):\n    return x", big) == big
