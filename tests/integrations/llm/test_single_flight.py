"""Equal requests at the same time are one request on the wire."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from llm_raw_server import ASK, RawServer, Received, chat, fault

from trace_core.integrations.llm import Cached, OpenAILLM, errors

CALLERS = 64
Make = Callable[..., tuple[OpenAILLM, RawServer]]


class Counting:
    """A store that knows how many have looked and found nothing."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self._missed = 0
        self._changed = threading.Condition()

    def get_response(self, key: str) -> str | None:
        with self._changed:
            self._missed += key not in self.kept
            self._changed.notify_all()
            return self.kept.get(key)

    def put_response(self, key: str, value: str) -> None:
        self.kept[key] = value

    def hold(self, answer: bytes) -> Callable[[socket.socket, Received], None]:
        """An answer that is sent when every caller has found nothing; the one that asks has looked twice."""

        def act(connection: socket.socket, received: Received) -> None:
            with self._changed:
                assert self._changed.wait_for(lambda: self._missed > CALLERS, 60)
            connection.sendall(answer)

        return act


def asked(store: Counting, make: Make, answer: bytes, way: str) -> tuple[list[Any], Cached, RawServer]:
    llm, server = make(store.hold(answer))
    cached = Cached(llm, store)

    def one(number: int) -> Any:
        try:
            return cached.complete(ASK).text
        except errors.LLMError as error:
            return error

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(cached.acomplete(ASK) for _ in range(CALLERS)), return_exceptions=True)

    if way == "tasks":
        return [getattr(found, "text", found) for found in asyncio.run(all_at_once())], cached, server
    with ThreadPoolExecutor(CALLERS) as pool:
        return list(pool.map(one, range(CALLERS))), cached, server


@pytest.mark.parametrize("way", ["threads", "tasks"])
def test_64_equal_requests_at_once_are_sent_once(way: str, ask_openai: Make) -> None:
    found, cached, server = asked(Counting(), ask_openai, chat("one for all"), way)
    assert found == ["one for all"] * CALLERS
    assert len(server.requests) == 1
    assert (cached.misses, cached.hits) == (1, CALLERS - 1)


@pytest.mark.parametrize("way", ["threads", "tasks"])
def test_who_waits_gets_the_error_and_nothing_is_kept(way: str, ask_openai: Make) -> None:
    store = Counting()
    found, _, server = asked(store, ask_openai, fault(401, "no"), way)
    assert {(type(error), error.status) for error in found} == {(errors.AuthenticationFailed, 401)}
    assert len({id(error) for error in found}) == CALLERS  # each its own, with its own traceback
    assert len(server.requests) == 1
    assert not store.kept


async def test_one_who_is_cancelled_takes_nobody_along(ask_openai: Make) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def slow(connection: socket.socket, received: Received) -> None:
        arrived.set()
        assert go_on.wait(60)
        connection.sendall(chat("late"))

    llm, server = ask_openai(slow)
    cached = Cached(llm, Counting())
    first, second, third = (asyncio.create_task(cached.acomplete(ASK)) for _ in range(3))
    await asyncio.to_thread(arrived.wait, 60)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    first.cancel()  # the one that asks: another asks in its place
    with pytest.raises(asyncio.CancelledError):
        await first
    go_on.set()
    assert (await third).text == "late"
    assert len(server.requests) == 2


async def test_a_blocking_call_does_not_wait_for_a_task_of_its_own_thread(ask_openai: Make) -> None:
    arrived, both = threading.Event(), threading.Barrier(2)

    def together(connection: socket.socket, received: Received) -> None:
        arrived.set()
        both.wait(60)
        connection.sendall(chat("x"))

    llm, server = ask_openai(together)
    cached = Cached(llm, Counting())
    task = asyncio.create_task(cached.acomplete(ASK))
    await asyncio.to_thread(arrived.wait, 60)
    assert cached.complete(ASK).text == "x"  # blocks the loop that the task needs
    assert (await task).text == "x"
    assert len(server.requests) == 2
