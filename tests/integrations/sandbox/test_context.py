"""What the code finds in its surroundings: data, modules, functions and classes."""

from __future__ import annotations

import collections
import enum
import functools
import json
import math
import operator
import os.path
import random
import threading
import typing
from dataclasses import dataclass, field
from statistics import mean
from typing import Any, NamedTuple

import pytest

import trace_core as tc
from trace_core.integrations.sandbox import CandidateException, Crash

LIMIT = 10
SHARED = {"words": ["a"]}


def scale(x: float, by: float = LIMIT) -> float:
    """Uses a global as a default value and calls others."""
    return offset(x) * by


def offset(x: float) -> float:
    return x + math.floor(BASE)


BASE = 1.5


def even(n: int) -> bool:
    return True if n == 0 else odd(n - 1)


def odd(n: int) -> bool:
    return False if n == 0 else even(n - 1)


def remember(word: str) -> int:
    global _count
    _count += 1
    SHARED["words"].append(word)
    return _count


_count = 5


def twice(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args) * 2

    return wrapper


@twice
def decorated(x: int) -> int:
    return x + LIMIT


@functools.cache
def fibonacci(n: int) -> int:
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


@tc.bundle(description="with a decorator of this library")
def bundled(x: int) -> int:
    return x + LIMIT


def fails(x: int) -> int:
    # the next line fails
    return x // 0


def text_that_reaches_left() -> str:
    return """one
two
"""


class Mode(enum.Enum):
    FAST = "fast"

    @property
    def shout(self) -> str:
        return self.value.upper()


class Pair(NamedTuple):
    left: int
    right: int


@dataclass
class Point:
    x: int
    tags: list[str] = field(default_factory=list)

    def moved(self, by: int) -> Point:
        return Point(self.x + by * scale(1), self.tags)


class Deeper(Point):
    def moved(self, by: int) -> Point:
        return super().moved(by * 2)


CLIENT = threading.Lock()


def uses_client(x: int) -> int:
    return x if x else CLIENT.acquire()


# --- names -----------------------------------------------------------------------------------------------------------


def test_plain_data(run: Any) -> None:
    context = {"a": 1, "b": [1, {2: (3,)}], "c": None, "unused": {}}
    assert run("def f():\n    return a, b, c", context=context) == (1, [1, {2: (3,)}], None)


def test_what_the_source_binds_itself_is_its_own(run: Any) -> None:
    source = "import json\nLIMIT = 3\ndef helper():\n    return LIMIT\ndef f():\n    return helper(), json.dumps(1)"
    context = {"LIMIT": 99, "helper": scale, "json": "not the module", "f": bundled}
    assert run(source, context=context) == (3, "1")


def test_modules_and_things_of_installed_packages(run: Any) -> None:
    context = {
        "js": json,
        "path": os.path,
        "mean": mean,
        "Counter": collections.Counter,
        "randint": random.randint,
        "rnd": random.random,
        "add": operator.add,
        "List": typing.List,  # noqa: UP006
        "Any": typing.Any,
        "tc": tc,
    }
    source = """
        def f():
            x: List[Any] = [js.dumps([1]), path.basename("/a/b"), mean([1, 2]), Counter("aab"), add(1, 2)]
            return x, 0 <= rnd() < 1, randint(3, 3), List[int] is not None, tc.Feedback is not None
    """
    expected = ["[1]", "b", 1.5, collections.Counter("aab"), 3]
    assert run(source, context=context) == (expected, True, 3, True, True)


def test_numpy(run: Any) -> None:
    numpy = pytest.importorskip("numpy")
    context = {"np": numpy, "add": numpy.add, "linalg": numpy.linalg, "table": numpy.eye(2), "float32": numpy.float32}
    source = "def f(x):\n    return add(table @ x, float32(1)), np.sum(x), linalg.norm(x), type(table).__name__"
    result = run(source, numpy.array([3.0, 4.0]), context=context)
    assert result[0].tolist() == [4, 5]
    assert (result[1], result[2], result[3]) == (7, 5, "ndarray")


def test_functions_come_with_what_they_use(run: Any) -> None:
    assert run("def f(x):\n    return scale(x), scale(x, by=2)", 2, context={"scale": scale}) == (30, 6)
    assert run("def f(n):\n    return even(n), odd(n)", 7, context={"even": even, "odd": odd}) == (False, True)
    assert run("def f(n):\n    return even(n)", 6, context={"even": even}) is True
    assert run("def f():\n    return g()", context={"g": text_that_reaches_left}) == "one\ntwo\n"

    def indented() -> str:
        return """one
        two
    """

    assert run("def f():\n    return g()", context={"g": indented}) == indented()


def test_functions_of_one_module_share_their_globals(run: Any) -> None:
    source = "def f():\n    return remember('b'), remember('c'), SHARED, words"
    context = {"remember": remember, "SHARED": SHARED, "words": SHARED["words"]}
    result = run(source, context=context)
    assert result[:3] == (6, 7, {"words": ["a", "b", "c"]})
    assert (SHARED, _count) == ({"words": ["a"]}, 5)


def test_closures(run: Any) -> None:
    def make(start: int) -> tuple[Any, Any]:
        count = start

        def step() -> int:
            nonlocal count
            count += LIMIT
            return count

        def countdown(n: int) -> list[int]:
            return [] if n == 0 else [n + start, *countdown(n - 1)]

        return step, countdown

    step, countdown = make(1)
    other, _ = make(100)
    source = "def f():\n    return step(), step(), other(), countdown(2)"
    assert run(source, context={"step": step, "other": other, "countdown": countdown}) == (11, 21, 110, [3, 2])
    assert step() == 11


def test_lambdas(run: Any) -> None:
    base = 5
    first, second = lambda x: x + base, lambda x, y=2: [i * y for i in range(x)]
    table = {
        "up": lambda x: x + 1,
        "down": lambda x: x - 1,
    }
    source = "def f(x):\n    return first(x), second(x), table['up'](x), table['down'](x)"
    assert run(source, 3, context={"first": first, "second": second, "table": table}) == (8, [0, 2, 4], 4, 2)


def test_decorated_functions(run: Any) -> None:
    source = "def f(x):\n    return decorated(x), fibonacci(60), bundled(x)"
    context = {"decorated": decorated, "fibonacci": fibonacci, "bundled": bundled}
    assert run(source, 1, context=context) == (22, 1548008755920, 11)


def test_frames_of_helpers_are_shown(run: Any) -> None:
    with pytest.raises(CandidateException) as caught:
        run("def f(x):\n    return fails(x)", 1, context={"fails": fails})
    assert "-->   2 |     return fails(x)" in str(caught.value)
    assert "fails, line 3 of <helper fails>:" in str(caught.value)
    assert "-->   3 |     return x // 0" in str(caught.value)
    assert "# the next line fails" in str(caught.value)


def test_classes(run: Any) -> None:
    source = """
        def f():
            point = Deeper(1, ["t"]).moved(1)
            same = Mode("fast") is Mode.FAST is mode
            pair = Pair(1, 2)
            return point.x, isinstance(point, Point), same, Mode.FAST.shout, pair.left, isinstance(pair, tuple)
    """
    context = {"Deeper": Deeper, "Point": Point, "Mode": Mode, "Pair": Pair, "mode": Mode.FAST}
    assert run(source, context=context) == (41, True, True, "FAST", 1, True)


def test_local_classes(run: Any) -> None:
    factor = 3

    class Base:
        def value(self) -> int:
            return factor

    class Local(Base):
        def value(self) -> int:
            return super().value() + 1

    assert run("def f():\n    return Local().value()", context={"Local": Local}) == 4


def test_pydantic_classes(run: Any) -> None:
    pydantic = pytest.importorskip("pydantic")

    class Order(pydantic.BaseModel):
        count: int = 1
        names: list[str] = []  # noqa: RUF012

    source = "def f(o):\n    return Order(count='3').model_dump(), o.count, o.names, repr(o), o == o"
    result = run(source, Order(names=["x"]), context={"Order": Order})
    assert result == ({"count": 3, "names": []}, 1, ["x"], "Order(count=1, names=['x'])", True)


def test_what_stays_behind_says_so_when_it_is_touched(run: Any) -> None:
    context = {"client": CLIENT, "table": [1, CLIENT], "helper": uses_client, "call": CLIENT.acquire}
    assert run("def f():\n    return helper(3)", context=context) == 3
    touches = "client.acquire()", "client()", "client[0]", "len(client)", "helper(0)", "for _ in table: pass", "call()"
    for touch in touches:
        with pytest.raises(CandidateException) as caught:
            run(f"def f():\n    {touch}", context=context)
        assert caught.value.exception_type == "Unavailable"
        assert "stays in the main process" in str(caught.value)
    with pytest.raises(CandidateException, match=r"'client' is a _thread\.lock"):
        run("def f():\n    with client: pass", context=context)


def test_functions_without_source_stay_behind(run: Any) -> None:
    made: dict[str, Any] = {}
    exec("def lost(x):\n    return x", made)
    with pytest.raises(CandidateException, match="'lost' is"):
        run("def f():\n    return lost(1)", context={"lost": made["lost"]})


def test_unimportable_module_matters_only_when_it_is_used(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    ghost = types.ModuleType("ghost_83")
    monkeypatch.setitem(sys.modules, "ghost_83", ghost)
    assert run("def f():\n    return 1 if True else ghost.x", context={"ghost": ghost}) == 1
    with pytest.raises(CandidateException, match="ghost_83 cannot be imported"):
        run("def f():\n    return ghost.x", context={"ghost": ghost})


def test_a_helper_that_ends_the_process(run: Any) -> None:
    def leave() -> None:
        os._exit(9)

    with pytest.raises(Crash):
        run("def f():\n    leave()", context={"leave": leave})


def test_the_core_runs_its_proposed_code_here(runner: Any) -> None:
    @tc.bundle(trainable=True, isolation=runner)
    def choose(x: int) -> int:
        return x + LIMIT

    parameter = choose(1).parameters[0] if hasattr(choose(1), "parameters") else choose._code
    parameter.update("def choose(x):\n    import os\n    return x + 2 * LIMIT, os.getpid()")
    value = choose(1).value
    assert value[0] == 21
    assert value[1] != os.getpid()
