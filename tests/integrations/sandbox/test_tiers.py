"""Tiers by name: what is taken where, what is said about it, and what happens where a kernel lacks a layer."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import trace_core as tc
from trace_core.errors import CandidateError, RunnerError
from trace_core.integrations.sandbox import (
    CandidateException,
    CandidateSyntaxError,
    CannotCross,
    InlineRunner,
    JailRunner,
    Memory,
    MontyRunner,
    PolicyViolation,
    ProcessRunner,
    ResultRejected,
    Sandbox,
    SandboxUnavailable,
    Timeout,
    open_sandbox,
)

on_jail_platforms = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="the jail is for Linux"
)

# Runs the text with a filter in force under which some system calls do not exist, as on an older kernel.
_OLDER = """
import ctypes, struct, sys, warnings
sys.path[:0] = {path!r}
from trace_core.integrations.sandbox import make_filters as m
program = m.Program()
program.load(0)
for number in {numbers!r}:
    program.if_equal(number, lambda: program.leave(m.UNKNOWN))
program.leave(m.ALLOW)
code = ctypes.create_string_buffer(program.bytes())
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, struct.pack("@HxxxxxxQ", len(code) // 8, ctypes.addressof(code)), 0, 0) == 0
import trace_core as tc
from trace_core.integrations.sandbox import SandboxUnavailable, open_sandbox
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
"""


def on_a_kernel_without(numbers: list[int], text: str) -> str:
    program = textwrap.dedent(_OLDER).format(path=sys.path, numbers=numbers) + textwrap.indent(
        textwrap.dedent(text), "    "
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


_LOOK = """
@tc.bundle(trainable=True)
def f(path):
    return 0
try:
    open_sandbox("auto", require="jail")
except SandboxUnavailable as error:
    print("refused:", error)
try:
    open_sandbox("jail")
except SandboxUnavailable:
    print("refused")
f.code.update("import os\\ndef f(path):\\n    return os.getpid()")
f(""), f("")
print([str(w.message) for w in said if "tier" in str(w.message)])
f.code.update("def f(path):\\n    return open(path).readline()")
print(f("/etc/passwd").value[:4] if {readable} else "")
from trace_core.code import default_runner
seen = default_runner().describe()
print(seen["tier"], seen["security_boundary"], "+", *seen["layers"], "-", *seen["absent"])
"""


@on_jail_platforms
@pytest.mark.slow
def test_kernel_without_landlock() -> None:
    """Never silently: one warning, and the description names what is there."""
    refused, again, warned, read, seen = on_a_kernel_without([444, 445, 446], _LOOK.format(readable=True)).splitlines()
    assert refused.startswith("refused: no jail can be had here: missing filesystem.")
    assert again == "refused"
    assert warned.count("missing here: filesystem") == 1
    assert read == "root"
    assert seen.startswith("process False +")
    layers, absent = seen.split("+")[1].split(" - ")
    assert "network" in layers
    assert "system calls" in layers
    assert absent.split() == ["filesystem"]


@on_jail_platforms
@pytest.mark.slow
def test_kernel_without_filters() -> None:
    seccomp = 317 if platform.machine() == "x86_64" else 277
    out = on_a_kernel_without([seccomp], _LOOK.format(readable=False)).splitlines()
    assert "network" in out[0]
    assert "system calls" in out[0]
    assert out[2].count("missing here") == 1
    layers, absent = out[-1].split("+")[1].split(" - ")
    assert "filesystem" in layers
    assert {"network", "calls"} <= set(absent.split())


@on_jail_platforms
def test_automatic_is_the_jail(recwarn: pytest.WarningsRecorder) -> None:
    with open_sandbox() as made:
        assert isinstance(made, JailRunner)
        if made.tier != "jail":
            pytest.skip("this kernel lacks a layer")
        assert not recwarn.list
    with open_sandbox("auto", require="jail") as made:
        assert made.describe()["tier"] == "jail"


@on_jail_platforms
@pytest.mark.parametrize("timeout", [0.001, 0.05])
def test_a_hasty_runner_is_a_jail_too(timeout: float) -> None:
    """How long the self-test takes says nothing about what holds."""
    with open_sandbox() as made, JailRunner(timeout=timeout, partial=True) as hasty:
        assert hasty.describe()["layers"] == made.describe()["layers"]
        assert hasty.describe()["timeout_seconds"] == timeout


def test_tiers_by_name(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kind in (("process", ProcessRunner), ("inline", InlineRunner)):
        made = open_sandbox(name)
        assert type(made) is kind
        assert isinstance(made, Sandbox)
        assert made.describe()["tier"] == name
        assert made.describe()["security_boundary"] is False
        assert run("def f(x):\n    return x + 1", 1, on=made) == 2
        made.close()
    monkeypatch.setenv("TRACE_CORE_ISOLATION", "process")
    with open_sandbox() as made:
        assert type(made) is ProcessRunner
    for wrong in ({"tier": "box"}, {"require": "monty"}, {"tier": "process", "require": "jail"}):
        with pytest.raises(ValueError, match="jail"):
            open_sandbox(**wrong)


def test_process_tier_imports_anything_by_default(run: Any) -> None:
    with open_sandbox("process") as made:
        assert run("import socket\ndef f():\n    return socket.__name__", on=made) == "socket"


def test_where_there_is_no_fork_the_process_tier_is_used(
    run: Any, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """The shape of other systems: no fork, no Landlock, no filters."""
    monkeypatch.setattr("trace_core.integrations.sandbox.runner._can_fork", lambda: False)
    with pytest.raises(SandboxUnavailable, match="missing"):
        open_sandbox("jail")
    with open_sandbox() as made:
        assert made.describe()["tier"] == "process"
        assert run("import os\ndef f():\n    return os.getpid()", on=made) != os.getpid()
    assert sum("security boundary" in str(w.message) for w in recwarn.list) == 1


def test_no_call_runs_before_the_self_test_has_passed(monkeypatch: pytest.MonkeyPatch, candidate: Any) -> None:
    """Whoever comes first, and however many at once."""
    monkeypatch.setattr("trace_core.integrations.sandbox.runner._can_fork", lambda: False)
    runner = JailRunner()
    code = candidate("def f():\n    return 1")

    def call(_: int) -> Any:
        return runner.call(code, (), {}, context={})

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(call, i) for i in range(4)]:
            with pytest.raises(RunnerError):
                future.result()


def test_self_test_that_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SandboxUnavailable, match="self-test failed"):
        open_sandbox("jail")
    with pytest.warns(RuntimeWarning, match="self-test failed"):
        open_sandbox().close()


class Elsewhere:
    """A sandbox of the user's own, as one for containers would be."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def call(self, code: Any, args: Any, kwargs: Any, *, context: Any) -> Any:
        self.seen.append((code.name, args, dict(kwargs)))
        return 42

    def call_many(self, code: Any, calls: Any, *, context: Any) -> Any:
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        return {"tier": "container", "layers": ()}

    def close(self) -> None:
        pass


def test_a_sandbox_of_the_users_own() -> None:
    elsewhere = Elsewhere()
    assert isinstance(elsewhere, Sandbox)

    @tc.bundle(trainable=True, isolation=elsewhere)
    def f(x: int) -> int:
        return x

    assert f(1).value == 1
    f.code.update("def f(x):\n    return x + 1")
    assert f(1).value == 42
    assert elsewhere.seen == [("f", (1,), {})]


def test_errors_of_the_place_are_no_feedback(monkeypatch: pytest.MonkeyPatch) -> None:
    """They end the run; the model never sees them."""
    from trace_core.integrations.llm import ScriptedLLM
    from trace_core.optimizers import OptoPrime, optimize

    class Broken(Elsewhere):
        def call(self, code: Any, args: Any, kwargs: Any, *, context: Any) -> Any:
            raise SandboxUnavailable("no jail can be had here")

    @tc.bundle(trainable=True, isolation=Broken())
    def f(x: int) -> int:
        return x

    llm = ScriptedLLM('{"reasoning": "so", "f": "def f(x):\\n    return 1 + x"}')
    result = optimize(lambda x: f(x), lambda value, x: 0.0, [1], optimizer=OptoPrime([f.code], llm), steps=5)
    assert isinstance(result.error, RunnerError)
    assert result.stopped == "error"
    assert not any("no jail" in call.prompt for call in llm.calls)


# --- Monty -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def monty() -> Any:
    pytest.importorskip("pydantic_monty")
    with open_sandbox("monty", timeout=0.5, memory_mb=64) as made:
        yield made


def test_monty(monty: MontyRunner, run: Any) -> None:
    seen = monty.describe()
    assert seen["tier"] == "monty"
    assert {"filesystem", "network", "starting programs"} <= set(seen["layers"])
    source = """
        import json, re

        def double(x):
            return 2 * x

        def f(x, y=1):
            return double(x) + y + base, re.sub("a", "b", "aa")
    """
    assert run(source, 3, on=monty, context={"base": 10, "other": object()}) == (17, "bb")
    assert run("async def f(x):\n    return x * 2", 4, on=monty, is_async=True) == 8


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f():\n    return 1 / 0", CandidateException),
        ("def f(:", CandidateSyntaxError),
        ("def f():\n    while True:\n        pass", Timeout),
        ("def f():\n    x = 'a'\n    while True:\n        x += x", Memory),
        ("def f():\n    return open('/etc/passwd').read()", PolicyViolation),
        ("import socket\ndef f():\n    return 1", PolicyViolation),
        ("def f():\n    return f", ResultRejected),
        ("def f():\n    return float('nan')", ResultRejected),
    ],
)
def test_monty_outcomes(monty: MontyRunner, run: Any, source: str, expected: type[CandidateError]) -> None:
    with pytest.raises(expected) as caught:
        run(source, on=monty)
    assert type(caught.value) is expected
    assert str(caught.value).startswith("(in f) ")
    assert run("def f():\n    return 3", on=monty) == 3


@pytest.mark.parametrize(
    ("expression", "what"),
    [
        ("[f]", "a function (at result[0])"),
        ("{'a': (1, f)}", "a function (at result['a'][1])"),
        ("{f: 1}", "a function (at result (a key))"),
        ("[1, len]", "a builtin_function_or_method (at result[1])"),
        ("[int]", "a type"),
        ("[range(3)]", "a range"),
        ("[re.compile('a')]", "a Pattern"),
        ("[re]", "a module"),
        ("[ValueError('x')]", "a ValueError"),
        ("{}.keys()", "a dict_keys"),
        ("[Own()]", "a Own"),
        ("circle", "a container that holds itself"),
        ("[...]", "a ellipsis"),
    ],
)
def test_what_monty_has_no_form_for_is_an_error_wherever_it_is(
    monty: MontyRunner, run: Any, expression: str, what: str
) -> None:
    """It would arrive as its text."""
    source = f"import re\ncircle = []\ncircle.append(circle)\nclass Own:\n    x = 1\ndef f():\n    return {expression}"
    with pytest.raises(ResultRejected) as caught:
        run(source, on=monty)
    assert caught.value.reason == "type"
    assert what in str(caught.value)


def test_results_of_monty_keep_their_types(monty: MontyRunner, run: Any) -> None:
    source = """
        import datetime
        def f():
            day = datetime.date(2024, 1, 2)
            text = "<function 'f' at 0xc>"
            return [None, True, 1, 2 ** 80, 1.5, complex(1, 2), text, b"x", (1,), {1}, frozenset({2}), {"k": [day]}]
    """
    import datetime

    seen = run(source, on=monty)
    wanted = [None, True, 1, 2**80, 1.5, 1 + 2j, "<function 'f' at 0xc>", b"x", (1,), {1}, frozenset({2})]
    assert seen == [*wanted, {"k": [datetime.date(2024, 1, 2)]}]
    assert [type(x) for x in seen[:-1]] == [type(x) for x in wanted]


def test_monty_tools_and_arguments(run: Any) -> None:
    pytest.importorskip("pydantic_monty")
    with open_sandbox("monty", tools={"search": lambda q: [q, os.getpid()]}) as made:
        assert run("def f(q):\n    return search(q)", "a", on=made) == ["a", os.getpid()]
        with pytest.raises(CannotCross):
            run("def f(q):\n    return q", object(), on=made)
    with pytest.raises(RunnerError, match="closed"):
        run("def f(): pass", on=made)
