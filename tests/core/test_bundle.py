"""bundle makes any function one operator (behaviours 6 to 9)."""

from __future__ import annotations

import asyncio
import functools
import inspect
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import BaseModel

import trace_core as tc

P = tc.node(10, trainable=True, name="module_level")


def reached(output: tc.Node) -> list[tc.Parameter]:
    return tc.Trace.of(output, "x").parameters


# ---- 6: arguments


def everything(a: int, b: int = 2, *args: int, c: int, d: int = 4, **kwargs: int) -> tuple[Any, ...]:
    return a, b, args, c, d, kwargs


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((1,), {"c": 3}), ((1, 5), {"c": 3, "d": 0}), ((1, 2, 3, 4), {"c": 3, "e": 9}), ((), {"a": 1, "c": 2})],
)
def test_same_value_as_the_plain_function(args: tuple[int, ...], kwargs: dict[str, int]) -> None:
    bundled = tc.bundle(everything)
    expected = everything(*args, **kwargs)
    assert bundled(*args, **kwargs).value == expected
    wrapped = bundled(*map(tc.node, args), **{k: tc.node(v) for k, v in kwargs.items()})
    assert wrapped.value == expected


def test_inputs_are_named_by_parameter() -> None:
    result = tc.bundle(everything)(tc.node(1), tc.node(2), tc.node(3), c=tc.node(4), e=tc.node(5))
    assert {name: node.value for name, node in result.inputs.items()} == {"a": 1, "b": 2, "args[0]": 3, "c": 4, "e": 5}


def test_positional_only_and_wrong_calls() -> None:
    @tc.bundle
    def f(a: int, /, b: int) -> int:
        return a + b

    assert f(1, b=tc.node(2)).value == 3
    with pytest.raises(TypeError) as caught:
        f(a=1, b=2)
    assert isinstance(caught.value, tc.ExecutionError)
    with pytest.raises(TypeError):
        f(1)


def test_the_bundle_looks_like_its_function() -> None:
    bundled = tc.bundle(everything)
    assert bundled.__name__ == "everything"
    assert inspect.signature(bundled) == inspect.signature(everything)


# ---- 7: dependencies


@dataclass
class Data:
    item: Any
    rest: list[Any] = field(default_factory=list)


class Model(BaseModel):
    model_config = {"arbitrary_types_allowed": True}
    item: Any


@pytest.mark.parametrize(
    "wrap",
    [
        lambda p: [p],
        lambda p: (1, (p,)),
        lambda p: {"k": [p]},
        lambda p: {"a": {"b": {"c": p}}},
        lambda p: Data(p),
        lambda p: Data(1, [{"x": p}]),
        lambda p: Model(item=p),
        lambda p: [Model.model_construct(item=[p])],
    ],
)
def test_parameters_at_any_depth_are_dependencies(wrap: Any) -> None:
    seen = []

    @tc.bundle
    def f(x: Any) -> int:
        seen.append(x)
        return 1

    for make in (lambda: tc.node(7, trainable=True), lambda: tc.node(7, trainable=True) + 0):
        p = make()
        assert len(reached(f(wrap(p)))) == 1
        assert "7" in repr(seen[-1])
        assert "Node" not in repr(seen[-1])
        assert "Parameter" not in repr(seen[-1])


def test_the_callers_containers_are_left_alone() -> None:
    p = tc.node(1, trainable=True)
    data = Data(p, [p])

    @tc.bundle
    def f(x: Data) -> int:
        x.rest.append(5)
        return x.item

    assert f(data).value == 1
    assert data.item is p
    assert data.rest == [p]


def test_reads_in_the_body_are_dependencies() -> None:
    closure = tc.node(1, trainable=True)
    helper_reads = tc.node(2, trainable=True)

    class Holder:
        def __init__(self) -> None:
            self.p = tc.node(3, trainable=True)

        @tc.bundle
        def method(self) -> int:
            return self.p.value

    holder = Holder()

    def helper() -> int:
        return helper_reads.value

    @tc.bundle
    def f(x: int) -> int:
        assert P > 3
        return x + closure.value + helper() + holder.p.data + int(P)

    assert set(reached(f(1))) == {closure, helper_reads, holder.p, P}
    assert reached(holder.method()) == [holder.p]


@pytest.mark.parametrize(
    "read",
    [
        lambda p: p.value,
        lambda p: p.data,
        lambda p: str(p),
        lambda p: f"{p}",
        lambda p: float(p),
        lambda p: len([1] * int(p)),
        lambda p: p + 1,
        lambda p: p == 10,
        lambda p: [1, 2] * p,
        lambda p: 3 if p else 4,
        lambda p: 5 in [p],
    ],
)
def test_every_way_to_read_counts(read: Any) -> None:
    p = tc.node(10, trainable=True)

    @tc.bundle
    def f() -> Any:
        return read(p)

    assert reached(f()) == [p]


def test_nested_bundles_pass_their_reads_up() -> None:
    p = tc.node(1, trainable=True)

    @tc.bundle
    def inner() -> int:
        return p.value

    @tc.bundle
    def outer() -> int:
        return inner().value + 1

    result = outer()
    assert result.value == 2
    assert reached(result) == [p]


def test_nodes_made_in_the_body_are_no_inputs() -> None:
    @tc.bundle
    def f(x: int) -> int:
        local = tc.node(5)
        return (local + x).value

    assert list(f(tc.node(1)).inputs) == ["x"]


def test_a_node_kept_across_calls_stays_linked() -> None:
    p = tc.node(1, trainable=True)
    cache: dict[str, tc.Node] = {}

    @tc.bundle
    def make() -> int:
        cache["made"] = p + 1
        return 0

    @tc.bundle
    def use() -> int:
        return cache["made"].value

    make()
    assert reached(use()) == [p]


def test_threads_within_a_body() -> None:
    p = tc.node(3, trainable=True)

    @tc.bundle
    def f() -> int:
        with tc.ContextThreadPool(2) as pool:
            return sum(pool.map(lambda i: i * p.value, range(4)))

    assert f().value == 18
    assert reached(f()) == [p]
    with tc.using({p: 1}):
        assert f().value == 6


# ---- 8: kinds of callables


class Callable_:  # noqa: N801
    def __call__(self, x: int) -> int:
        return x + P.value


def plus(x: int, y: int = 0) -> int:
    return x + y


class Base:
    k = tc.node(2, trainable=True, name="k")

    def plain(self, x: int) -> int:
        return x

    @tc.bundle
    def method(self, x: int) -> int:
        return x * self.k.value

    @tc.bundle
    @staticmethod
    def static_inside(x: int) -> int:
        return x + 1

    @staticmethod
    @tc.bundle
    def static_outside(x: int) -> int:
        return x + 1

    @tc.bundle
    @classmethod
    def class_inside(cls, x: int) -> str:
        return cls.__name__ * x

    @classmethod
    @tc.bundle
    def class_outside(cls, x: int) -> str:
        return cls.__name__ * x


class Child(Base):
    @tc.bundle
    def method(self, x: int) -> int:
        return super().method(x).value + 100


@pytest.mark.parametrize(
    ("function", "args", "expected"),
    [
        (lambda x: x + 1, (1,), 2),
        (functools.partial(plus, y=5), (1,), 6),
        (functools.partial(plus, tc.node(1)), (2,), 3),
        (Callable_(), (1,), 11),
        (len, ([1, 2],), 2),
        (str.upper, ("a",), "A"),
        (max, (1, 2), 2),
        (dict, ([("a", 1)],), {"a": 1}),
        ("x".join, (["a", "b"],), "axb"),
        (Base().plain, (4,), 4),
    ],
)
def test_any_callable(function: Any, args: tuple[Any, ...], expected: Any) -> None:
    bundled = tc.bundle(function)
    node = bundled(*map(tc.node, args))
    assert node.value == expected
    assert len(node.inputs) >= 1
    assert node.op is not None
    assert tc.Trace.of(node, "").render()


def test_methods_of_every_kind() -> None:
    base, child = Base(), Child()
    assert base.method(3).value == 6
    assert child.method(3).value == 106
    assert reached(child.method(3)) == [Base.k]
    assert Base.method(base, 3).value == 6
    for owner in (Base, base, child):
        assert owner.static_inside(1).value == 2
        assert owner.static_outside(1).value == 2
    assert Base.class_inside(1).value == Base.class_outside(1).value == "Base"
    assert child.class_inside(1).value == child.class_outside(1).value == Child.class_inside(1).value == "Child"
    assert inspect.signature(base.method) == inspect.signature(base.plain)
    assert base.method == base.method
    assert base.method.__self__ is base


def test_self_is_the_very_object_whatever_its_class() -> None:
    @dataclass
    class Counter:
        p: Any
        count: int = 0

        @tc.bundle
        def step(self, x: int) -> int:
            self.count += 1
            return self.p.value + x

    @dataclass(frozen=True)
    class Frozen:
        p: Any

        @tc.bundle
        def step(self, x: int) -> int:
            return self.p.value + x

    class Slotted:
        __slots__ = ("p",)

        def __init__(self, p: Any) -> None:
            self.p = p

        @tc.bundle
        def step(self, x: int) -> int:
            return self.p.value + x

    class Pydantic(BaseModel):
        model_config = {"arbitrary_types_allowed": True, "ignored_types": (tc.Bundle,)}
        p: Any
        step = Slotted.__dict__["step"]

    for kind in (Counter, Frozen, Slotted, Pydantic):
        p = tc.node(1, trainable=True)
        instance = kind(p=p)
        result = instance.step(2)
        assert result.value == 3
        assert reached(result) == [p]
        assert tc.Trace.of(result, "").replay({p: 5}).value == 7
        assert instance.p is p
    counter = Counter(tc.node(1))
    counter.step(1)
    counter.step(1)
    assert counter.count == 2


def test_decorators_above_and_below() -> None:
    def double(fn: Any) -> Any:
        @functools.wraps(fn)
        def wrapper(*args: Any) -> Any:
            return fn(*args) * 2

        return wrapper

    @tc.bundle
    @double
    def below(x: int) -> int:
        return x + 1

    @double
    @tc.bundle
    def above(x: int) -> int:
        return x + 1

    assert below(1).value == above(1).value == 4
    assert below(tc.node(1)).op.name == "below"


def test_functions_without_source() -> None:
    scope: dict[str, Any] = {"tc": tc}
    exec(
        textwrap.dedent("""
            @tc.bundle
            def f(
                a,
                b = 2,
            ):
                return a + b
        """),
        scope,
    )
    assert scope["f"](tc.node(1)).value == 3


@pytest.mark.parametrize("flag", ["-c", "-i"])
def test_functions_of_a_command_line_and_of_a_repl(flag: str) -> None:
    code = "import trace_core as tc\n@tc.bundle\ndef f(x):\n    return x + 1\n\nprint('value', f(tc.node(1)).value)\n"
    if flag == "-c":
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    else:
        done = subprocess.run([sys.executable, "-i", "-q"], input=code, capture_output=True, text=True, check=True)
    assert "value 2" in done.stdout


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(tc.SourceError, match="expects a function"):
        tc.bundle(5)  # type: ignore[call-overload]


# ---- 9: async, generators, recursion


async def test_async_functions() -> None:
    p = tc.node(2, trainable=True)

    @tc.bundle
    async def f(x: int) -> int:
        await asyncio.sleep(0)
        return x * p.value

    assert asyncio.iscoroutinefunction(f)
    result = await f(tc.node(3))
    assert result.value == 6
    assert reached(result) == [p]
    assert (await tc.Trace.of(result, "").areplay({p: 5})).value == 15
    with pytest.raises(tc.ReplayError, match="areplay"):
        tc.Trace.of(result, "").replay({p: 5})


async def test_async_by_other_ways() -> None:
    p = tc.node(2, trainable=True)

    async def body(x: int) -> int:
        await asyncio.sleep(0)
        return x * p.value

    class Async:
        async def __call__(self, x: int) -> int:
            return await body(x)

    def wrapped(*args: int) -> Any:
        return body(*args)

    for function in (Async(), functools.partial(body), lambda x: body(x), wrapped):
        result = await tc.bundle(function)(tc.node(3))
        assert result.value == 6
        assert reached(result) == [p]


def test_async_replay_outside_of_a_loop() -> None:
    p = tc.node(2, trainable=True)

    @tc.bundle
    async def f(x: int) -> int:
        return x * p.value

    trace = tc.Trace.of(asyncio.run(f(3)) + 1, "")
    assert trace.replay({p: 10}).value == 31


async def test_cancellation_leaves_no_scope_behind() -> None:
    started = asyncio.Event()
    p = tc.node(1, trainable=True)

    @tc.bundle
    async def forever() -> None:
        p.value  # noqa: B018
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(forever())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert reached(p + 1) == [p]
    coroutine = forever()
    del task
    coroutine.close()


def test_generators_give_nodes() -> None:
    p = tc.node(2, trainable=True)

    @tc.bundle
    def items(n: int) -> Any:
        for i in range(n):
            yield i * p.value
        return "done"

    nodes = list(items(tc.node(3)))
    assert [n.value for n in nodes] == [0, 2, 4]
    assert all(reached(n) == [p] for n in nodes)
    assert tc.Trace.of(nodes[2], "").replay({p: 10}).value == 20
    generator = items(1)
    next(generator)
    with pytest.raises(StopIteration) as end:
        next(generator)
    assert end.value.value == "done"


def test_generator_protocol() -> None:
    events: list[Any] = []

    @tc.bundle
    def echo() -> Any:
        try:
            received = yield 0
            while True:
                try:
                    received = yield received
                except ValueError:
                    received = "caught"
        finally:
            events.append("closed")

    generator = echo()
    next(generator)
    p = tc.node(5, trainable=True)
    answer = generator.send(p)
    assert answer.value == 5
    assert reached(answer) == [p]
    with pytest.raises(tc.ReplayError, match="sent"):
        tc.Trace.of(answer, "").replay({p: 6})
    assert generator.throw(ValueError()).value == "caught"
    generator.close()
    assert events == ["closed"]


def test_the_consumer_is_not_taken_for_the_body() -> None:
    mine = tc.node(1, trainable=True)
    other = tc.node(2, trainable=True)

    @tc.bundle
    def items() -> Any:
        yield mine.value
        yield mine.value

    generator = items()
    next(generator)
    assert other.value == 2
    assert reached(next(generator)) == [mine]


def test_a_function_that_returns_a_generator() -> None:
    p = tc.node(2, trainable=True)
    nodes = list(tc.bundle(lambda n: (i * p.value for i in range(n)))(3))
    assert [n.value for n in nodes] == [0, 2, 4]
    assert reached(nodes[1]) == [p]


async def test_async_generators() -> None:
    p = tc.node(2, trainable=True)
    events = []

    @tc.bundle
    async def items(n: int) -> Any:
        try:
            for i in range(n):
                await asyncio.sleep(0)
                sent = yield i * p.value
                if sent is not None:
                    yield f"got {sent}"
        finally:
            events.append("closed")

    nodes = [n async for n in items(tc.node(3))]
    assert [n.value for n in nodes] == [0, 2, 4]
    assert all(reached(n) == [p] for n in nodes)
    generator = items(3)
    await anext(generator)
    assert (await generator.asend(tc.node("x"))).value == "got x"
    await generator.aclose()
    assert events == ["closed", "closed"]
    assert reached(p + 1) == [p]


def test_recursion_folded_and_traced() -> None:
    def factorial(call: Any) -> Any:
        def body(n: Any) -> Any:
            return 1 if n <= 1 else n * call(n - 1)

        return body

    @tc.bundle
    def folded(n: int) -> Any:
        return factorial(folded)(n)

    @tc.bundle(transparent=True)
    def traced(n: Any) -> Any:
        return factorial(traced)(n)

    p = tc.node(5, trainable=True)
    assert folded(p).value == 120
    assert len(tc.Trace.of(folded(p), "").nodes) == 2
    result = traced(p)
    assert result.value == 120
    assert len(tc.Trace.of(result, "").nodes) == 2
    assert len(tc.Trace.of(result, "", unfold=True).nodes) > 8
    assert tc.Trace.of(result, "", unfold=True).replay({p: 3}).value == 6


def test_transparent_methods_and_containers() -> None:
    class Agent:
        def __init__(self) -> None:
            self.calls = 0
            self.p = tc.node(2, trainable=True)

        @tc.bundle(transparent=True)
        def act(self, xs: Any) -> Any:
            self.calls += 1
            return [x * self.p for x in xs]

    agent = Agent()
    q = tc.node(3, trainable=True)
    result = agent.act([q, 1])
    assert result.value == [6, 2]
    assert agent.calls == 1
    assert set(reached(result)) == {agent.p, q}
    assert len(tc.Trace.of(result, "", unfold=True).nodes) > len(tc.Trace.of(result, "").nodes)


def test_no_arguments_and_nondeterminism() -> None:
    import random

    generator = random.Random(0)

    @tc.bundle
    def draw() -> float:
        return generator.random()

    first, second = draw(), draw()
    assert first.value != second.value
    assert first.recorded == first.value
    assert first.inputs == {}


def test_unpack() -> None:
    p = tc.node(4, trainable=True)

    @tc.bundle(unpack=2)
    def halves(x: int) -> tuple[int, int]:
        return x // 2, x - x // 2

    first, second = halves(p)
    assert (first.value, second.value) == (2, 2)
    assert (first + second).backward("x").replay({p: 10}).value == 10

    @tc.bundle(unpack=3)
    def wrong(x: int) -> tuple[int, int]:
        return x, x

    with pytest.raises(ValueError, match="expected 3 values") as caught:
        wrong(p)
    assert reached(caught.value.node) == [p]


def test_bundling_a_bundle() -> None:
    once = tc.bundle(plus)
    assert tc.bundle(once)(1, 2).value == 3
    assert tc.bundle(once).fn is plus


def test_keyword_arguments_may_have_any_name() -> None:
    """Names that the library itself gives its arguments are the caller's to use."""

    @tc.bundle
    def record(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    class Holder(tc.Module):
        def forward(self, /, **kwargs: Any) -> Any:
            return record(**kwargs)

        @tc.bundle
        def method(self, /, **kwargs: Any) -> Any:
            return kwargs

    names = ("self", "args", "kwargs", "fn", "function", "item", "name", "op", "bundle", "code", "owner", "value")
    given = dict.fromkeys(names, 1)
    assert record(**given).value == ((), given)
    assert Holder()(**given).value == ((), given)
    assert Holder().method(**given).value == given
    assert tc.node(record.fn)(**given).value == ((), given)
    template = tc.node(" ".join("{" + name + "}" for name in names))
    assert template.format(**given).value == " ".join(["1"] * len(names))
