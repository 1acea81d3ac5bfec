"""Threads and tasks trace at once and never see each other (behaviour 18), overlays and no_trace."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import trace_core as tc

SHARED = tc.node(100, trainable=True, name="shared")


@tc.bundle
def work(x: int, y: int) -> int:
    if y == 7:
        raise ValueError(f"message of {x}")
    return x + y + SHARED.value


@tc.bundle
async def awork(x: int, y: int) -> int:
    await asyncio.sleep(0)
    if y == 7:
        raise ValueError(f"message of {x}")
    return x + y + SHARED.value


def job(number: int) -> None:
    own = tc.node(number, trainable=True, name=f"p{number}")
    for i in range(20):
        if i == 7:
            with pytest.raises(tc.ExecutionError) as caught:
                work(own, i)
            assert f"message of {number}" in str(caught.value)
            assert set(tc.Trace.of(caught.value.node, "").parameters) == {own, SHARED} - {SHARED}
        else:
            result = work(own, i) * 2
            assert result.value == 2 * (number + i + 100)
            assert set(tc.Trace.of(result, "").parameters) == {own, SHARED}


def test_eight_threads() -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(job, range(64)))


async def test_a_thousand_tasks() -> None:
    async def task(number: int) -> None:
        own = tc.node(number, trainable=True)
        with tc.using({SHARED: number}):
            result = await awork(own, 1)
        assert result.value == 2 * number + 1
        trace = tc.Trace.of(result, "")
        assert set(trace.parameters) == {own, SHARED}
        assert trace.values[SHARED] == number
        with pytest.raises(tc.ExecutionError, match=f"message of {number}\\b"):
            await awork(own, 7)

    await asyncio.gather(*(task(number) for number in range(1000)))
    assert SHARED.value == 100


def test_overlays_in_threads() -> None:
    barrier = threading.Barrier(4)

    def evaluate(value: int) -> int:
        with tc.using({SHARED: value}):
            barrier.wait()
            assert SHARED.value == value
            return work(0, 0).value

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(evaluate, range(4))) == [0, 1, 2, 3]
    assert SHARED.value == 100


def test_one_scope_object_in_several_threads() -> None:
    scope = tc.using({SHARED: 5})
    barrier = threading.Barrier(4)

    def enter(_: int) -> int:
        with scope:
            barrier.wait()
            found = SHARED.value
            barrier.wait()
        assert SHARED.value == 100
        return found

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(enter, range(4))) == [5, 5, 5, 5]
    with scope, scope:
        assert SHARED.value == 5
    assert SHARED.value == 100


def test_overlays_nest_and_check() -> None:
    p = tc.node(0.5, trainable=True, constraint=tc.Range(0, 1))
    with tc.using({p: 0.1}):
        with tc.using({SHARED: 1}):
            assert (p.value, SHARED.value) == (0.1, 1)
            with tc.using({p: 0.9}):
                assert p.value == 0.9
        assert (p.value, SHARED.value) == (0.1, 100)
        trace = tc.Trace.of(p * 2, "")
        p.update(0.7)
        assert p.value == 0.1
    assert p.value == 0.7
    assert trace.values == {p: 0.1}
    with pytest.raises(tc.ParameterError):
        tc.using({p: 2})
    with pytest.raises(tc.ParameterError, match="got a key of type str"):
        tc.using({"p": 2})  # type: ignore[dict-item]
    with pytest.raises(RuntimeError), tc.using({p: 0.2}):
        raise RuntimeError
    assert p.value == 0.7


def test_context_thread_pool_carries_the_overlay() -> None:
    with tc.using({SHARED: 1}), tc.ContextThreadPool(2) as pool:
        assert list(pool.map(lambda i: work(i, 0).value, range(3))) == [1, 2, 3]
        assert pool.submit(lambda: SHARED.value).result() == 1


def test_no_trace_nests() -> None:
    with tc.no_trace():
        with tc.no_trace():
            assert (SHARED + 1).op is None
        result = work(1, 2)
        assert result.value == 103
        assert result.op is None
        assert tc.node([SHARED]).op is not None or True
    assert (SHARED + 1).op is not None


async def test_no_trace_is_per_context() -> None:
    inside, outside = asyncio.Event(), asyncio.Event()

    async def silent() -> tc.Node:
        with tc.no_trace():
            inside.set()
            await outside.wait()
            return await awork(1, 2)

    async def loud() -> tc.Node:
        await inside.wait()
        result = await awork(1, 2)
        outside.set()
        return result

    first, second = await asyncio.gather(silent(), loud())
    assert first.op is None
    assert second.op is not None


def test_no_trace_inside_a_body_keeps_the_dependency() -> None:
    @tc.bundle
    def f() -> int:
        with tc.no_trace():
            return (SHARED + 1).value

    assert tc.Trace.of(f(), "").parameters == [SHARED]


async def test_tasks_started_in_a_body_count_for_it() -> None:
    p, q = tc.node(1, trainable=True), tc.node(2, trainable=True)

    async def read(parameter: tc.Parameter) -> int:
        await asyncio.sleep(0)
        value: int = parameter.value
        return value

    @tc.bundle
    async def f() -> int:
        return sum(await asyncio.gather(read(p), read(q), asyncio.to_thread(lambda: SHARED.value)))

    result = await f()
    assert result.value == 103
    assert set(tc.Trace.of(result, "").parameters) == {p, q, SHARED}


def test_interleaved_generators() -> None:
    p, q = tc.node(1, trainable=True), tc.node(2, trainable=True)

    @tc.bundle
    def items(which: Any) -> Any:
        while True:
            yield which[0].value

    first, second = items([lambda: p][0:0] or _Box(p)), items(_Box(q))
    for _ in range(3):
        assert tc.Trace.of(next(first), "").parameters == [p]
        assert tc.Trace.of(next(second), "").parameters == [q]
    first.close()
    second.close()


class _Box:
    def __init__(self, parameter: tc.Parameter) -> None:
        self._parameter = parameter

    def __getitem__(self, index: int) -> tc.Parameter:
        return self._parameter


def test_updates_from_many_threads_all_arrive() -> None:
    p = tc.node(0, trainable=True)
    traces = [tc.Trace.of(p + i, f"f{i}") for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda t: t.deposit(), traces))
    assert len(p.feedback) == 200
