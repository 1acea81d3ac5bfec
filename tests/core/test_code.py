"""Trainable source (behaviours 8 to 10). Mostly, what is proposed runs in this process here (isolation="inline")."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

import trace_core as tc
from trace_core import bundle as renamed

if TYPE_CHECKING:
    pass  # for annotations only: not there when the code runs

FACTOR = 10
calls: list[str] = []


@tc.bundle(trainable=True, isolation="inline")
def plain(x: int) -> int:
    """Add one."""
    return x + 1


@pytest.fixture(autouse=True)
def original() -> Any:
    yield
    if plain.code.version:
        plain.code.update(FIRST)


FIRST = plain.code.value


def test_the_source_is_the_definition_without_the_decorator() -> None:
    assert FIRST == 'def plain(x: int) -> int:\n    """Add one."""\n    return x + 1\n'
    assert plain.code.kind == "code"
    assert plain.code.function_name == "plain"
    assert plain.code.signature == "plain(x)"
    assert plain.code.name == "plain"
    with pytest.raises(tc.SourceError, match="no code parameter"):
        tc.bundle(len).code  # noqa: B018


def test_a_new_version_runs_and_old_traces_keep_theirs() -> None:
    before = tc.Trace.of(plain(1), "")
    plain.code.update("def plain(x):\n    return x + 100\n")
    assert plain(1).value == 101
    assert before.values[plain.code] == FIRST
    with tc.using({plain.code: "def plain(x):\n    return -x\n"}):
        assert plain(1).value == -1
    assert plain(1).value == 101


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import math\n\ndef plain(x):\n    return math.floor(x) + FACTOR\n", 11),
        (
            "from math import floor as f\nK = 5\ndef helper(x):\n    return f(x) + K\ndef plain(x): return helper(x)\n",
            6,
        ),
        ("def plain(x):\n    def inner(y):\n        return y * x\n    return inner(4)\n", 4),
        ("class Box:\n    size = 3\n\ndef plain(x):\n    return Box.size + x\n", 4),
        ("async def plain(x):\n    return x + 7\n", 8),
        ("def plain(x: Mapping[str, int]) -> Undefined:\n    return x\n", 1),
        ("from __future__ import annotations\n\ndef plain(x: Nothing):\n    return x\n", 1),
        ("def plain(x):\n    return plain(x - 1) + 1 if x > 0 else 0\n", 1),
        ('"""Module text."""\n\ndef plain(x):\n    return x\n', 1),
        ("@functools.lru_cache\ndef plain(x):\n    return x + 2\n", 3),
        ("@tc.bundle(trainable=True)\ndef plain(x):\n    return x + 3\n", 4),
        ("@renamed\ndef plain(x):\n    return x + 4\n", 5),
    ],
)
@pytest.mark.parametrize("function", [plain, tc.bundle(trainable=True)(plain.fn)], ids=["inline", "isolated"])
def test_proposals_may_bring_what_they_need(function: Any, text: str, expected: int) -> None:
    assert functools
    assert renamed
    function.code.update(text)
    result = function(tc.node(1))
    assert result.value == expected
    assert tc.Trace.of(result, "").parameters == [function.code]


elsewhere = tc.node("not used", trainable=True, name="elsewhere")
used = tc.node(5, trainable=True, name="used")


@pytest.mark.parametrize(
    "text",
    [
        "def plain(x):\n    elsewhere = x + used\n    return elsewhere\n",
        "def plain(x):\n    def inner(elsewhere):\n        return elsewhere + used\n    return inner(x)\n",
        "def plain(x):\n    return [elsewhere + used for elsewhere in [x]][0]\n",
        "class Box:\n    elsewhere = used\ndef plain(x):\n    return Box.elsewhere + x\n",
        "PLUS = used\ndef plain(x):\n    return PLUS + x\n",
    ],
)
def test_local_names_of_a_proposal_are_no_reads(text: str) -> None:
    isolated = tc.bundle(trainable=True)(plain.fn)
    isolated.code.update(text)
    result = isolated(1)
    assert result.value == 6
    assert set(tc.Trace.of(result).parameters) == {isolated.code, used}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def other(x):\n    return x\n", "must still be called 'plain'; functions defined in the text: other"),
        ("def plain(y):\n    return y\n", r"signature must stay plain\(x\), got plain\(y\)"),
        ("def plain(x, y):\n    return x\n", "signature"),
        ("def plain(x=1):\n    return x\n", "signature"),
        ("def plain(*x):\n    return x\n", "signature"),
        ("def plain(x:\n", "syntax error in line 1"),
        ("def plain(x):\n    return x\nprint('hi')\n", "line 3: beside 'plain'"),
        ("def plain(x):\n    yield = 5\n", "syntax error"),
        ("def plain(x):\n    nonlocal q\n", "syntax error"),
        ("\x00", "not a source text|syntax error"),
        ("", "functions defined in the text: none"),
        (5, "expected the source text"),
        (None, "expected the source text"),
    ],
)
def test_bad_proposals_are_refused_with_a_reason(text: Any, reason: str) -> None:
    with pytest.raises(tc.ParameterError, match=reason):
        plain.code.update(text)
    assert plain(1).value == 2


def test_code_is_compiled_once_per_version(monkeypatch: pytest.MonkeyPatch) -> None:
    import trace_core.code as code

    compiled: list[str] = []
    original = code.compile_inline
    monkeypatch.setattr(code, "compile_inline", lambda *a: compiled.append(a[0]) or original(*a))
    plain.code.update("def plain(x):\n    return x + 5\n")
    for i in range(50):
        assert plain(i).value == i + 5
    plain.code.update("def plain(x):\n    return x + 6\n")
    plain(1)
    assert len(compiled) == 2


def test_proposals_see_the_closure() -> None:
    counter = 0
    step = tc.node(2, trainable=True)

    @tc.bundle(trainable=True, isolation="inline")
    def count(x: int) -> int:
        nonlocal counter
        counter += 1
        return x + counter + step.value

    count.code.update("def count(x):\n    nonlocal counter\n    counter += 10\n    return x * counter * step.value\n")
    result = count(1)
    assert (result.value, counter) == (20, 10)
    counter = 40
    assert count(1).value == 100
    assert set(tc.Trace.of(result, "").parameters) == {count.code, step}


def test_methods_with_super_defaults_and_multi_line_signatures() -> None:
    class Base:
        def greet(self) -> str:
            return "base"

    class Agent(Base):
        def __init__(self) -> None:
            self.prompt = tc.node("p", trainable=True)

        @tc.bundle(
            trainable=True,
            isolation="inline",
        )
        def act(
            self,
            text: str,
            *,
            loud: bool = False,
        ) -> str:
            if loud:
                return """
unindented text
  kept as it is"""
            return super().greet() + self.prompt.value + text

    agent = Agent()
    assert agent.act.code.signature == "act(self, text, *, loud=...)"
    assert "\nunindented text\n  kept as it is" in agent.act.code.value
    assert agent.act("x", loud=True).value == "\nunindented text\n  kept as it is"
    agent.act.code.update(agent.act.code.value.replace("+ text", "+ text.upper()"))
    result = agent.act("x")
    assert result.value == "basepX"
    assert set(tc.Trace.of(result, "").parameters) == {agent.act.code, agent.prompt}
    assert agent.act("x", loud=True).value == "\nunindented text\n  kept as it is"


def twice(fn: Any) -> Any:
    @functools.wraps(fn)
    def wrapper(*args: Any) -> Any:
        return fn(*args) * 2

    return wrapper


def test_decorators_below_are_part_of_the_function() -> None:
    @renamed(trainable=True, isolation="inline")
    @twice
    def below(x: int) -> int:
        return x + 1

    assert below.code.value.startswith("@twice\ndef below")
    assert below(1).value == 4
    below.code.update(below.code.value.replace("x + 1", "x + 2"))
    assert below(1).value == 6

    @twice
    @tc.bundle(trainable=True, isolation="inline")
    def above(x: int) -> int:
        return x + 1

    assert above(1).value == 4

    @twice
    def finished(x: int) -> int:
        return x + 1

    later = (
        tc.bundle(finished, trainable=True, isolation="inline")
        if False
        else tc.bundle(trainable=True, isolation="inline")(finished)
    )
    assert later.code.value.startswith("@twice\ndef finished")
    later.code.update(later.code.value.replace("x + 1", "x + 2"))
    assert later(1).value == 6


async def test_async_code() -> None:
    @tc.bundle(trainable=True, isolation="inline")
    async def fetch(x: int) -> int:
        await asyncio.sleep(0)
        return x

    assert (await fetch(1)).value == 1
    fetch.code.update("import asyncio\nasync def fetch(x):\n    await asyncio.sleep(0)\n    return x + 5\n")
    assert (await fetch(1)).value == 6
    fetch.code.update("def fetch(x):\n    return x + 9\n")
    assert (await fetch(1)).value == 10


async def test_async_code_for_an_ordinary_function_within_a_loop() -> None:
    p = tc.node(5, trainable=True)
    assert p
    plain.code.update("async def plain(x):\n    return x + 7\n")
    assert plain(p).value == 12


def test_generators() -> None:
    @tc.bundle(trainable=True, isolation="inline")
    def items(n: int) -> Any:
        yield from range(n)

    items.code.update("def items(n):\n    for i in range(n):\n        yield i * 2\n")
    nodes = list(items(3))
    assert [n.value for n in nodes] == [0, 2, 4]
    assert tc.Trace.of(nodes[0], "").parameters == [items.code]


def test_failing_proposals_show_their_own_lines() -> None:
    first = "def helper(v):\n    return v / 0\n\ndef plain(x):\n    return helper(x)  # first\n"
    second = first.replace("first", "second")
    texts = []
    for text in (first, second):
        with tc.using({plain.code: text}), pytest.raises(ZeroDivisionError) as caught:
            plain(1)
        texts.append(str(caught.value))
    assert "return helper(x)  # first" in texts[0]
    assert "return helper(x)  # second" in texts[1]
    assert "-->   2 |     return v / 0" in texts[0]
    assert "__make__" not in texts[0]


def test_source_that_cannot_be_found() -> None:
    scope: dict[str, Any] = {"tc": tc}
    code = "def f(x):\n    return x + 1\n"
    with pytest.raises(tc.SourceError, match="pass it: bundle"):
        exec(f"@tc.bundle(trainable=True)\n{code}", scope)
    exec(code, scope)
    for text in (code, textwrap.indent(code, "    ")):
        f = tc.bundle(trainable=True, source=text, isolation="inline")(scope["f"])
        assert f(1).value == 2
        f.code.update(code.replace("+ 1", "+ 2"))
        assert f(1).value == 3
    with pytest.raises(tc.SourceError, match="lambda"):
        tc.bundle(trainable=True)(lambda x: x)
    with pytest.raises(tc.SourceError):
        tc.bundle(trainable=True)(len)
    with pytest.raises(tc.SourceError, match="isolation"):
        tc.bundle(trainable=True, isolation="nowhere")(twice)


COMMANDS = """
import trace_core as tc
@tc.bundle(trainable=True, isolation='inline')
def f(x):
    return x + 1

print('first', f(1).value)
f.code.update(f.code.value.replace('+ 1', '+ 5'))
print('second', f(1).value)
"""


def test_python_c() -> None:
    done = subprocess.run([sys.executable, "-c", COMMANDS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["first", "2", "second", "6"]


def test_repl_says_what_to_do_where_no_source_is_kept() -> None:
    done = subprocess.run([sys.executable, "-i", "-q"], input=COMMANDS, capture_output=True, text=True, check=True)
    assert "second 6" in done.stdout or "pass it: bundle(trainable=True, source=" in done.stderr


def test_indented_classes_and_other_names_for_bundle() -> None:
    if True:

        class Deep:
            if True:

                @renamed(trainable=True, isolation="inline")
                def act(self, x: int) -> int:
                    return x + FACTOR

    deep = Deep()
    assert deep.act.code.value == "def act(self, x: int) -> int:\n    return x + FACTOR\n"
    deep.act.code.update("def act(self, x):\n    return x - FACTOR\n")
    assert deep.act(1).value == -9


def test_concurrent_candidates() -> None:
    def evaluate(k: int) -> int:
        with tc.using({plain.code: f"def plain(x):\n    return x * {k}\n"}):
            return plain(2).value

    with tc.ContextThreadPool(4) as pool:
        assert list(pool.map(evaluate, range(20))) == [2 * k for k in range(20)]
