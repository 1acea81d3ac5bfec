"""What the code sees of ``self`` and of other objects: their attributes and the methods it uses."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import pytest

import trace_core as tc
from trace_core.integrations.sandbox import CandidateException, CannotCross

LIMIT = 10
CLIENT = threading.Lock()


def scale(x: float) -> float:
    return (x + 1) * LIMIT


@dataclass
class Point:
    x: int
    tags: list[str] = field(default_factory=list)

    def moved(self, by: int) -> Point:
        return Point(self.x + by * LIMIT, self.tags)


class Client:
    """Something that is no data."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


class Inner:
    def __init__(self, level: int) -> None:
        self.level = level
        self.client = Client()

    def up(self) -> int:
        return self.level + 1


class Agent:
    STYLE = "short"
    unused_class_attribute = CLIENT

    def __init__(self) -> None:
        self.prompt = tc.node("be brief", trainable=True)
        self.words = ["a", tc.node("b")]
        self.history = [1, 2]
        self.client = Client()
        self.lock = threading.Lock()
        self.inner = Inner(3)
        self.point = Point(1, ["t"])
        self.me = self
        self._hidden = 1

    def plan(self, x: int) -> int:
        return x

    def twice(self, x: int) -> int:
        return 2 * self.once(x)

    def once(self, x: int) -> int:
        return x + len(self.history)

    @property
    def size(self) -> int:
        return len(self.history) + self._hidden

    @staticmethod
    def fixed(x: int) -> int:
        return scale(x)

    @classmethod
    def named(cls) -> str:
        return cls.__name__

    @tc.bundle()
    def traced(self, x: int) -> int:
        return x + self._hidden


def test_attributes_of_self(run: Any) -> None:
    source = """
        def f(self, x):
            self.history.append(x)
            self.extra = 5
            return (
                self.history, self.prompt, self.words, self.STYLE, self._hidden, self.inner.level, self.inner.up(),
                self.point.x, self.me is self, self.extra, type(self).__name__,
            )
    """
    agent = Agent()
    expected = ([1, 2, 7], "be brief", ["a", "b"], "short", 1, 3, 4, 1, True, 5, "Agent")
    assert run(source, agent, 7) == expected
    assert agent.history == [1, 2]
    assert not hasattr(agent, "extra")


def test_methods_of_self(run: Any) -> None:
    source = "def f(self, x):\n    return self.twice(x), self.size, self.fixed(x), self.named(), self.traced(x)"
    assert run(source, Agent(), 4) == (12, 3, 50, "Agent", 5)


def test_a_method_may_call_its_object_something_else(run: Any) -> None:
    assert run("def plan(me, x):\n    return me.twice(x)", Agent(), 4, name="plan") == 12


@pytest.mark.parametrize(
    ("touch", "message"),
    [
        ("self.lock.acquire()", r"attribute 'lock' of Agent is a _thread\.lock"),
        ("self.client.lock", r"attribute 'lock' of Client is a _thread\.lock"),
        ("self.inner.client.lock.acquire()", "attribute 'lock' of Client"),
        ("self.unused_class_attribute", "attribute 'unused_class_attribute' of Agent is"),
        ("getattr(self, 'lock')()", "attribute 'lock' of Agent"),
        ("self.nothing", "AttributeError: 'Agent' object has no attribute 'nothing'"),
    ],
)
def test_attributes_that_stay_behind(run: Any, touch: str, message: str) -> None:
    agent = Agent()
    assert run("def f(self):\n    return self._hidden", agent) == 1
    with pytest.raises(CandidateException, match=message):
        run(f"def f(self):\n    x = {touch}\n    return x.strip()", agent)


def test_an_attribute_bag_does_not_come_back(run: Any) -> None:
    from trace_core.integrations.sandbox import ResultRejected

    with pytest.raises(ResultRejected, match=r"candidate_code\.Agent"):
        run("def f(self):\n    return self", Agent())


def test_slots_and_frozen_dataclasses(run: Any) -> None:
    @dataclass(frozen=True, slots=True)
    class Frozen:
        a: int
        b: str = "x"

    class Slotted:
        __slots__ = ("left", "unset")

        def __init__(self) -> None:
            self.left = 1

    source = "def f(self, p, q):\n    return self.left, hasattr(self, 'unset'), p == q, len({p, q}), p.a, repr(p)"
    result = run(source, Slotted(), Frozen(1), Frozen(1))
    assert result == (1, False, True, 1, 1, "Frozen(a=1, b='x')")


def test_objects_inside_arguments(run: Any) -> None:
    points = {"all": [Point(1), Point(2, ["x"])], "one": (Point(3),)}
    source = "def f(points):\n    return [p.x for p in points['all']], points['one'][0].moved(1).x"
    assert run(source, points) == ([1, 2], 13)


def test_objects_that_are_not_self_must_be_records(run: Any) -> None:
    with pytest.raises(CannotCross, match=r"argument 1 of f\(\) is a .*Inner"):
        run("def f(agent):\n    return agent.level", Inner(1))
    with pytest.raises(CannotCross, match="argument 2"):
        run("def f(self, other):\n    return other.level", Inner(1), Inner(2))


def test_functions_and_classes_as_arguments(run: Any) -> None:
    assert run("def f(g, kind):\n    return g(2), kind(1).x, kind.__name__", scale, Point) == (30, 1, "Point")
    assert run("def f(cls):\n    return cls.named()", Agent) == "Agent"


def test_each_example_has_arguments_of_its_own(runner: Any, candidate: Any) -> None:
    agent, point = Agent(), Point(1)
    code = candidate("def f(self, point, items):\n    items.append(1)\n    point.x += 1\n    self._hidden += 1\n"
                     "    return items, point.x, self._hidden")  # fmt: skip
    items: list[int] = []
    outcomes = runner.call_many(code, [((agent, point, items), {})] * 3, context={})
    assert [o.unwrap() for o in outcomes] == [([1], 2, 2)] * 3
