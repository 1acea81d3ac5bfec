"""How calls are made: blocking and async, from many threads, with context, samples, layers, copies and forks."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import replace

import pytest
from llm_raw_server import ASK, RawServer, Received, chat, fault, http, payload

from trace_core.integrations.llm import LLM, Answer, Message, OpenAILLM, Request, Sample, Send, Usage, errors

Make = Callable[..., tuple[OpenAILLM, RawServer]]
VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="unset")


def echo(connection: socket.socket, received: Received) -> None:
    connection.sendall(chat(received.body["messages"][-1]["content"]))


def say(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def test_it_is_an_llm(ask_openai: Make) -> None:
    llm, _ = ask_openai(chat("hi"))
    assert isinstance(llm, LLM)
    assert llm.model == "some-model"
    assert llm.count_tokens("some text") is None
    assert not llm.is_local
    assert llm.describe() == "some-model at 127.0.0.1"


async def test_async(ask_openai: Make) -> None:
    llm, _ = ask_openai(echo)
    answers = await asyncio.gather(*(llm.acomplete(say(f"number {i}")) for i in range(20)))
    assert [answer.text for answer in answers] == [f"number {i}" for i in range(20)]


async def test_blocking_call_inside_a_running_loop(ask_openai: Make) -> None:
    llm, _ = ask_openai(echo)
    assert asyncio.get_running_loop().is_running()
    assert llm.complete(say("here")).text == "here"
    assert (await llm.acomplete(say("there"))).text == "there"


def test_one_object_serves_several_event_loops(ask_openai: Make) -> None:
    llm, _ = ask_openai(echo)
    for text in ("first", "second"):
        assert asyncio.run(llm.acomplete(say(text))).text == text


def test_sixty_four_threads_at_once(serve: Callable[..., RawServer]) -> None:
    everyone_is_here = threading.Barrier(64)

    def answer_together(connection: socket.socket, received: Received) -> None:
        everyone_is_here.wait(60)  # only passes if 64 requests are open at the same time
        echo(connection, received)

    server = serve(answer_together)
    llm = OpenAILLM("m", base_url=server.url)
    with ThreadPoolExecutor(64) as pool:
        texts = list(pool.map(lambda i: llm.complete(say(f"thread {i}")).text, range(64)))
    assert texts == [f"thread {i}" for i in range(64)]
    assert len(server.requests) == 64


def test_context_variables_are_seen_by_layers(ask_openai: Make) -> None:
    seen = []

    def spy(send: Send) -> Send:
        async def noted(request: Request) -> Answer:
            seen.append(VARIABLE.get())
            return await send(request)

        return noted

    llm, _ = ask_openai(echo, around_call=[spy])

    def call(value: str) -> None:
        VARIABLE.set(value)
        llm.complete(ASK)

    for value in ("one", "two"):
        thread = threading.Thread(target=call, args=(value,))
        thread.start()
        thread.join()

    async def acall() -> None:
        VARIABLE.set("three")
        await llm.acomplete(ASK)

    asyncio.run(acall())
    llm.complete(ASK)
    assert seen == ["one", "two", "three", "unset"]


async def test_cancelling_a_call_closes_its_connection(ask_openai: Make) -> None:
    arrived, hung_up = threading.Event(), threading.Event()

    def wait(connection: socket.socket, received: Received) -> None:
        arrived.set()
        if connection.recv(1) == b"":
            hung_up.set()

    llm, _ = ask_openai(wait)
    task = asyncio.create_task(llm.acomplete(ASK))
    assert await asyncio.to_thread(arrived.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(hung_up.wait, 20)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_an_interrupt_ends_a_blocking_call(ask_openai: Make) -> None:
    hung_up = threading.Event()
    main = threading.main_thread().ident

    def wait(connection: socket.socket, received: Received) -> None:
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)
        if connection.recv(1) == b"":
            hung_up.set()

    llm, _ = ask_openai(wait)
    with pytest.raises(KeyboardInterrupt):
        llm.complete(ASK)
    assert hung_up.wait(20)


def test_a_blocking_call_from_within_a_layer_is_an_error_not_a_deadlock(ask_openai: Make) -> None:
    inner, _ = ask_openai(echo)

    def bad(send: Send) -> Send:
        async def wrapped(request: Request) -> Answer:
            inner.complete(ASK)
            return await send(request)

        return wrapped

    llm, _ = ask_openai(echo, around_call=[bad])
    with pytest.raises(errors.LLMError, match="acomplete"):
        llm.complete(ASK)


# --- layers ----------------------------------------------------------------------------------------------------------


def test_layers_around_the_call_and_around_the_attempt(ask_openai: Make) -> None:
    log: list[str] = []

    def named(name: str) -> Callable[[Send], Send]:
        def layer(send: Send) -> Send:
            async def wrapped(request: Request) -> Answer:
                log.append(name)
                return await send(request)

            return wrapped

        return layer

    llm, _ = ask_openai(
        fault(500), chat("ok"), around_call=[named("outer"), named("inner")], around_attempt=[named("attempt")]
    )
    assert llm.complete(ASK).text == "ok"
    assert log == ["outer", "inner", "attempt", "attempt"]


def test_a_layer_may_answer_by_itself(ask_openai: Make) -> None:
    stored = Answer((Sample("from the cache"),), Usage(0, 0, 0), 0.0, "m")

    def cache(send: Send) -> Send:
        async def wrapped(request: Request) -> Answer:
            return replace(stored)

        return wrapped

    llm, server = ask_openai(chat("never"), around_call=[cache])
    answer = llm.complete(ASK)
    assert (answer.text, answer.cost, answer.attempts) == ("from the cache", 0.0, 0)
    assert server.requests == []


# --- samples ---------------------------------------------------------------------------------------------------------


def test_samples_in_one_request(ask_openai: Make) -> None:
    llm, server = ask_openai(chat("a", "b", "c"))
    answer = llm.complete(ASK, n=3)
    assert answer.texts == ("a", "b", "c")
    assert [request.body["n"] for request in server.requests] == [3]


def test_missing_samples_are_asked_for_one_by_one_with_their_own_seeds(ask_openai: Make) -> None:
    llm, server = ask_openai(chat("a"), chat("b"))
    answer = llm.complete(ASK, n=3, seed=10)
    assert sorted(answer.texts) == ["a", "b", "b"]
    assert (answer.attempts, answer.usage.prompt_tokens) == (3, 33)
    assert sorted(request.body["seed"] for request in server.requests) == [10, 11, 12]
    assert [request.body.get("n") for request in server.requests] == [3, None, None]


def test_a_server_that_knows_one_sample_only_is_remembered(ask_openai: Make) -> None:
    llm, server = ask_openai(fault(400, "n must be 1"), chat("x"))
    assert llm.complete(ASK, n=2, seed=5).texts == ("x", "x")
    assert sorted(request.body["seed"] for request in server.requests[1:]) == [5, 6]
    assert llm.complete(ASK, n=2).attempts == 2
    assert all("n" not in request.body for request in server.requests[1:])


def test_unusable_samples_are_replaced(ask_openai: Make) -> None:
    body = payload("good", None)
    llm, _ = ask_openai(http(body), chat("other"))
    assert llm.complete(ASK, n=2).texts == ("good", "other")


# --- bad arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "options", "words"),
    [
        ("hi", {}, "messages: expected a list"),
        ([], {}, "messages: expected a list"),
        ([{"role": "robot", "content": "x"}], {}, r"messages\[0\].*'robot'"),
        ([*ASK, {"role": "user", "content": None}], {}, r"messages\[1\].*NoneType"),
        (["hi"], {}, r"messages\[0\]"),
        (ASK, {"n": 0}, "n: expected at least 1"),
        (ASK, {"max_tokens": 0}, "max_tokens: expected at least 1"),
    ],
)
def test_bad_arguments_are_refused_before_sending(
    messages: list[Message], options: dict[str, int], words: str, ask_openai: Make
) -> None:
    llm, server = ask_openai(chat("x"))
    with pytest.raises(errors.BadRequest, match=words):
        llm.complete(messages, **options)  # type: ignore[arg-type]
    assert server.requests == []


def test_the_callers_messages_are_not_kept(ask_openai: Make) -> None:
    llm, server = ask_openai(echo)
    messages = say("before")
    llm.complete(messages)
    messages[0]["content"] = "after"
    assert server.requests[0].body["messages"][0]["content"] == "before"


# --- copies, pickles, forks ------------------------------------------------------------------------------------------


def test_a_copy_is_the_same_llm(ask_openai: Make) -> None:
    llm, _ = ask_openai(echo)
    assert copy.copy(llm) is llm
    assert copy.deepcopy({"llm": llm})["llm"] is llm


def test_pickling_is_refused_with_advice(ask_openai: Make) -> None:
    llm, _ = ask_openai(echo)
    with pytest.raises(TypeError, match="resolve_llm"):
        pickle.dumps(llm)


def test_errors_can_be_pickled() -> None:
    error = errors.RateLimited("slow down", provider="p", model="m", status=429, retry_after=3.0, attempts=2)
    twin = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(twin) is errors.RateLimited
    assert (str(twin), twin.retry_after, twin.attempts) == (str(error), 3.0, 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_makes_its_own_connections(ask_openai: Make) -> None:
    llm, server = ask_openai(echo)
    assert llm.complete(say("parent")).text == "parent"
    child = os.fork()
    if child == 0:
        # Only what proves the point, and out: no test runner clean-up in the child.
        os._exit(0 if llm.complete(say("child")).text == "child" else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert llm.complete(say("again")).text == "again"
    assert len(server.requests) == 3
