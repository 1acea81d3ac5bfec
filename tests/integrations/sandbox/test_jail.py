"""What honest candidates can do in the jail, what they are told when they may not, and tools."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import trace_core as tc
from trace_core.errors import CandidateError
from trace_core.integrations.sandbox import (
    CandidateException,
    CannotCross,
    JailRunner,
    PolicyViolation,
    ProcessRunner,
    SandboxUnavailable,
    Timeout,
)

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="the jail is for Linux"
)


@pytest.fixture(scope="module")
def jail() -> Iterator[JailRunner]:
    with JailRunner(timeout=20.0, memory_mb=512) as made:
        try:
            made.check()
        except SandboxUnavailable as error:
            pytest.skip(str(error))
        yield made


@pytest.fixture(scope="module")
def runner(jail: JailRunner) -> JailRunner:
    """``run`` of conftest.py uses this one here."""
    return jail


def test_description_is_of_what_the_self_test_saw(jail: JailRunner) -> None:
    seen = jail.describe()
    assert (seen["tier"], seen["security_boundary"], jail.tier) == ("jail", True, "jail")
    wanted = {"filesystem", "network", "system calls", "starting programs", "signals to others", "clean environment"}
    assert wanted <= set(seen["layers"])
    assert seen["absent"] == ()


# --- honest candidates -----------------------------------------------------------------------------------------------

_STANDARD = """
    import collections, concurrent.futures, csv, dataclasses, datetime, decimal, gzip, hashlib, io, itertools, json
    import locale, logging, math, os, pathlib, platform, random, re, statistics, tempfile, threading, time, uuid
    import zoneinfo
    def f():
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            squares = list(pool.map(lambda x: x * x, range(5)))
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "a").write_text("x")
            os.replace(folder + "/a", folder + "/b")
            text = pathlib.Path(folder, "b").read_text()
        time.sleep(0.001)
        zone = datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Paris")).utcoffset().seconds
        logging.getLogger("x").warning("seen")
        return squares, text, zone, json.loads("[1]"), re.sub("a", "b", "aa"), len(uuid.uuid4().hex), os.listdir(".")
"""


def test_standard_library(run: Any) -> None:
    assert run(_STANDARD) == ([0, 1, 4, 9, 16], "x", 7200, [1], "bb", 32, [])


def test_numpy(run: Any) -> None:
    pytest.importorskip("numpy")
    source = """
        import numpy as np
        def f():
            product = np.random.default_rng(0).random((300, 300)) @ np.ones((300, 300))
            np.save("kept.npy", np.arange(3.0))
            mapped = float(np.load("kept.npy", mmap_mode="r").sum())
            return list(product.shape), mapped, len(np.linalg.svd(product)[1]), np.random.random() < 1
    """
    assert run(source) == ([300, 300], 3.0, 300, True)


def test_torch(run: Any) -> None:
    pytest.importorskip("torch")
    source = """
        import torch
        def f():
            torch.set_num_threads(2)
            model = torch.nn.Linear(64, 8)
            optimizer = torch.optim.Adam(model.parameters())
            for _ in range(3):
                loss = model(torch.randn(256, 64)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            return torch.randn(300, 300).matmul(torch.ones(300, 2)).argmax(0), loss.item() > 0
    """
    index, positive = run(source)
    assert tuple(index.shape) == (2,)
    assert positive


def test_async_function(run: Any) -> None:
    source = """
        import asyncio
        async def f(n):
            async def one(i):
                await asyncio.sleep(0.001)
                return i * i
            return await asyncio.gather(*(one(i) for i in range(n)))
    """
    assert run(source, 4, is_async=True) == [0, 1, 4, 9]


def test_helpers_closures_and_attributes_of_self(run: Any) -> None:
    limit, words = 3, ["a", "b"]

    def shorten(text: str) -> str:
        return text[:limit]

    class Agent:
        def __init__(self) -> None:
            self.name = "abcdef"
            self.log = open(os.devnull)  # noqa: SIM115 - cannot cross, and says so

        def upper(self, text: str) -> str:
            return text.upper()

    source = "def f(self):\n    return shorten(self.upper(self.name)), words, limit"
    assert run(source, Agent(), context={"shorten": shorten, "words": words, "limit": limit}) == ("ABC", words, 3)
    with pytest.raises(CandidateException, match=r"'log'.*TextIOWrapper"):
        run("def f(self):\n    return self.log.read()", Agent())


def test_modules_of_the_users_own(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are loaded can be imported; what lies beside them cannot be read."""
    package = tmp_path / "own_jail_72"
    package.mkdir()
    (package / "__init__.py").write_text("from own_jail_72.part import double\n")
    (package / "part.py").write_text("def double(x):\n    return 2 * x\n")
    (tmp_path / ".env").write_text("KEY=sk-canary")
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_jail_72  # type: ignore[import-not-found]

    assert run("def f(x):\n    return own.double(x)", 4, context={"own": own_jail_72}) == 8
    assert run("import own_jail_72.part\ndef f(x):\n    return own_jail_72.part.double(x)", 4) == 8
    for path in (tmp_path / ".env", tmp_path):
        with pytest.raises(PolicyViolation):
            run("import os\ndef f(p):\n    return os.listdir(p) if os.path.isdir(p) else open(p).read()", str(path))


def test_more_files_can_be_made_readable(run: Any, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("1,2")
    source = "def f(path):\n    return open(path).read()"
    with pytest.raises(PolicyViolation) as caught:
        run(source, str(tmp_path / "table.csv"))
    assert "table.csv" in caught.value.what
    with JailRunner(readable=[tmp_path]) as own:
        assert run(source, str(tmp_path / "table.csv"), on=own) == "1,2"
        with pytest.raises(PolicyViolation):
            run("def f(path):\n    open(path, 'w')", str(tmp_path / "table.csv"), on=own)
    assert (tmp_path / "table.csv").read_text() == "1,2"


# --- what is said ----------------------------------------------------------------------------------------------------


def test_imports_are_held_to_a_list(run: Any) -> None:
    with pytest.raises(PolicyViolation) as caught:
        run("import math\nimport socket\n\ndef f():\n    return 1")
    assert caught.value.what == "import socket"
    assert str(caught.value).startswith("(in f) the code may not import socket. It may import modules of the standard")
    assert "-->   2 | import socket" in str(caught.value)
    assert (
        run("try:\n    import subprocess\nexcept ImportError:\n    subprocess = None\ndef f():\n    return subprocess")
        is None
    )
    with JailRunner(imports=["math"]) as own:
        assert run("import math\ndef f():\n    return math.floor(2.5)", on=own) == 2
        with pytest.raises(PolicyViolation, match="import json"):
            run("def f():\n    import json", on=own)


def test_what_the_program_itself_uses_may_be_imported(run: Any) -> None:
    import subprocess

    assert run("import subprocess\ndef f():\n    return sp.__name__", context={"sp": subprocess}) == "subprocess"


def test_refusal_marks_the_line(run: Any) -> None:
    with pytest.raises(PolicyViolation) as caught:
        run("import os\n\ndef helper(pid):\n    os.kill(pid, 15)\n\ndef f():\n    helper(1)")
    error = caught.value
    assert (error.kind, error.what) == ("policy", "send a signal to another process (kill)")
    assert "-->   7 |     helper(1)" in str(error)
    assert "-->   4 |     os.kill(pid, 15)" in str(error)


def test_a_refusal_costs_its_own_example_alone(jail: JailRunner, candidate: Any) -> None:
    code = candidate("import os\ndef f(x):\n    return os.kill(1, 9) if x in (1, 3) else x")
    outcomes = jail.call_many(code, [((x,), {}) for x in range(5)], context={})
    assert [o.value for o in outcomes] == [0, None, 2, None, 4]
    assert [type(o.error) for o in outcomes] == [type(None), PolicyViolation] * 2 + [type(None)]


def test_a_refusal_while_the_code_is_loaded(jail: JailRunner, candidate: Any) -> None:
    code = candidate("import os\nos.kill(1, 9)\ndef f(x):\n    return x")
    outcomes = jail.call_many(code, [((x,), {}) for x in range(3)], context={})
    assert [type(o.error) for o in outcomes] == [PolicyViolation] * 3


# --- tools -----------------------------------------------------------------------------------------------------------


def test_tools_run_in_this_process(jail: JailRunner, candidate: Any) -> None:
    asked: list[Any] = []

    def search(query: str, *, limit: int = 2) -> list[str]:
        asked.append((os.getpid(), query, limit))
        return [query] * limit

    with JailRunner(tools={"search": search}) as own:
        code = candidate("def f(x):\n    return search(x) + search(x, limit=1)")
        outcomes = own.call_many(code, [(("a",), {}), (("b",), {})], context={})
    assert [o.value for o in outcomes] == [["a"] * 3, ["b"] * 3]
    assert asked == [(os.getpid(), q, n) for q in "ab" for n in (2, 1)]


@pytest.mark.parametrize("fork", [None, False])
def test_tools_that_fail(fork: bool | None, run: Any) -> None:
    def broken(x: int) -> int:
        raise LookupError("no such thing")

    with ProcessRunner(tools={"broken": broken, "same": lambda x: x}, fork=fork) as own:
        with pytest.raises(CandidateException, match=r"ToolError: broken\(\) failed: LookupError: no such thing"):
            run("def f():\n    return broken(1)", on=own)
        with pytest.raises(CandidateException, match=r"ToolError: same.*an argument is a object"):
            run("def f():\n    return same(object())", on=own)
        source = "def f():\n    try:\n        broken(1)\n    except RuntimeError:\n        return same([1, {2}])"
        assert run(source, on=own) == [1, {2}]


def test_a_tools_result_must_be_data(run: Any) -> None:
    with JailRunner(tools={"odd": object}) as own:
        with pytest.raises(CannotCross, match=r"the tool 'odd' returned a object"):
            run("def f():\n    return odd()", on=own)
        assert run("def f():\n    return 1", on=own) == 1


def test_a_tools_time_is_not_the_candidates(run: Any) -> None:
    import threading

    with JailRunner(timeout=1.0, tools={"wait": lambda: threading.Event().wait(1.3)}) as own:
        assert run("def f():\n    return wait()", on=own) is False
        with pytest.raises(Timeout):
            run("def f():\n    wait()\n    while True:\n        pass", on=own)


def test_nothing_is_granted_by_default(run: Any) -> None:
    with pytest.raises(CandidateException, match="NameError"):
        run("def f():\n    return search('x')")
    with pytest.raises(CandidateError):
        run("def f():\n    import sys\n    sys.modules['_sandbox_tool_calls']\n    return open('/etc/passwd')")


def test_tools_of_a_bundle(jail: JailRunner) -> None:
    rate = tc.node(2.0, trainable=True, name="rate")

    def price(name: str) -> float:
        """Looks it up."""
        return len(name) * rate.value

    @tc.bundle(trainable=True, tools=[price], isolation=jail)
    def total(names: list[str]) -> float:
        return 0.0

    assert "it may call price(name) (Looks it up.)" in str(total.code.constraint.describe())
    total.code.update("def total(names):\n    return sum(price(n) for n in names)")
    assert total(["ab", "c"]).value == 6.0

    @tc.bundle(trainable=True, tools={"price": price}, isolation="inline")
    def here(names: list[str]) -> float:
        return 0.0

    here.code.update("def here(names):\n    return sum(price(n) for n in names)")
    assert here(["ab", "c"]).value == 6.0


# --- arrays ----------------------------------------------------------------------------------------------------------


def test_big_arrays_cross_by_mapped_memory(jail: JailRunner, candidate: Any, run: Any) -> None:
    numpy = pytest.importorskip("numpy")
    big = numpy.arange(400_000, dtype=numpy.float64).reshape(400, 1000)
    source = "def f(x):\n    x[0, 0] += 1\n    return float(x[0, 0]), x.shape, str(x.dtype), x.flags.writeable"
    outcomes = jail.call_many(candidate(source), [((big,), {})] * 3, context={})
    assert [o.unwrap() for o in outcomes] == [(1.0, (400, 1000), "float64", True)] * 3  # each has a copy of its own
    assert big[0, 0] == 0
    for array in (big.T, big[::2], numpy.asfortranarray(big), big.astype("M8[s]")):
        assert numpy.array_equal(run("def f(x):\n    return x[3:5]", array), array[3:5])
    assert run("def f():\n    return float(big[1].sum())", context={"big": big}) == big[1].sum()


def test_arrays_do_not_count_against_the_memory_of_the_code(run: Any) -> None:
    numpy = pytest.importorskip("numpy")
    with JailRunner(memory_mb=64) as own:
        assert run("def f(x):\n    return x.nbytes", numpy.zeros(20_000_000), on=own) == 160_000_000


def test_tensors(run: Any) -> None:
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64):
        for shape in ((), (0, 3), (3, 2), (700, 500)):
            count = torch.Size(shape).numel()
            tensor = torch.arange(count).to(dtype).reshape(shape)
            back = run("def f(x):\n    return x.clone()", tensor)
            assert back.dtype == dtype
            assert torch.equal(back, tensor)
    with pytest.raises(CannotCross, match=r"requires grad.*detach"):
        run("def f(x):\n    return x", torch.ones(2, requires_grad=True))
    with pytest.raises(CannotCross, match="layout"):
        run("def f(x):\n    return x", torch.eye(3).to_sparse())
