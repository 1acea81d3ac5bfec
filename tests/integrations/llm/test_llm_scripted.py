"""The scripted LLM that users put into their own tests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from llm_raw_server import ASK
from pydantic import BaseModel

from trace_core.integrations.llm import LLM, Message, Sample, ScriptedLLM, Usage, errors


class Answer(BaseModel):
    word: str


def say(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def test_a_function_sees_the_messages() -> None:
    llm = ScriptedLLM(lambda messages: messages[-1]["content"].upper())
    answer = llm.complete(say("hi"))
    assert isinstance(llm, LLM)
    assert (answer.text, answer.model, answer.cost, answer.attempts) == ("HI", "scripted", 0.0, 1)


def test_a_list_is_used_in_order_and_runs_out() -> None:
    llm = ScriptedLLM(["one", "two"])
    assert [llm.complete(ASK).text, llm.complete(ASK).text] == ["one", "two"]
    with pytest.raises(errors.ScriptError, match="2 replies and all are used up"):
        llm.complete(ASK)


def test_a_dict_is_looked_up_by_a_piece_of_the_prompt() -> None:
    llm = ScriptedLLM({"sum": "4", "twice": ["a", "b"], "": "anything else"})
    assert llm.complete(say("the sum of 2 and 2")).text == "4"
    assert [llm.complete(say("twice")).text for _ in range(2)] == ["a", "b"]
    assert llm.complete(say("?")).text == "anything else"
    with pytest.raises(errors.ScriptError, match="'only'"):
        ScriptedLLM({"only": "x"}).complete(say("other"))


def test_one_text_answers_everything() -> None:
    llm = ScriptedLLM("same")
    assert [llm.complete(ASK).text for _ in range(3)] == ["same"] * 3


@pytest.mark.parametrize(
    "reply", [{"word": "hi"}, Answer(word="hi"), '```json\n{"word": "hi"}\n```', Sample('{"word": "hi"}')]
)
def test_replies_for_a_schema(reply: Any) -> None:
    assert ScriptedLLM([reply]).complete(ASK, schema=Answer).parsed == Answer(word="hi")


def test_a_bad_reply_is_repaired_as_with_a_real_model() -> None:
    llm = ScriptedLLM(["nonsense", {"word": "hi"}])
    answer = llm.complete(ASK, schema=Answer)
    assert (answer.parsed, answer.attempts, len(llm.calls)) == (Answer(word="hi"), 2, 2)
    assert llm.calls[0].messages == ASK
    assert "could not be used" in llm.calls[1].prompt
    with pytest.raises(errors.Malformed) as caught:
        ScriptedLLM("nonsense").complete(ASK, schema=Answer)
    assert (caught.value.provider, caught.value.attempts) == ("scripted", 2)


def test_a_cut_reply() -> None:
    with pytest.raises(errors.Truncated):
        ScriptedLLM(lambda messages: Sample('{"wor', "length")).complete(ASK, schema=Answer, max_tokens=3)


@pytest.mark.parametrize("reply", [errors.RateLimited("slow"), errors.RateLimited])
def test_errors_are_raised_and_not_retried(reply: Any) -> None:
    llm = ScriptedLLM([reply, "fine"])
    with pytest.raises(errors.RateLimited) as caught:
        llm.complete(ASK)
    assert (caught.value.provider, caught.value.model) == ("scripted", "scripted")
    assert llm.complete(ASK).text == "fine"
    with pytest.raises(ConnectionError):
        ScriptedLLM([ConnectionError("x")]).complete(ASK)


def test_every_request_is_recorded() -> None:
    llm = ScriptedLLM("x")
    llm.complete(ASK, schema=None, n=2, temperature=0.1, seed=4, max_tokens=5)
    (call,) = llm.calls
    assert (call.messages, call.n, call.temperature, call.seed, call.max_tokens) == (ASK, 2, 0.1, 4, 5)
    assert call.prompt == "say hi"


def test_samples_are_replies_of_their_own() -> None:
    answer = ScriptedLLM(["a", "b", "c"]).complete(ASK, n=3)
    assert answer.texts == ("a", "b", "c")


def test_usage() -> None:
    estimated = ScriptedLLM("12345678").complete(say("1234")).usage
    assert (estimated.prompt_tokens, estimated.completion_tokens, estimated.cached_tokens) == (1, 2, 0)
    given = ScriptedLLM("x", usage=Usage(5, 6, None), cost=0.25).complete(ASK)
    assert (given.usage, given.cost) == (Usage(5, 6, None), 0.25)
    assert ScriptedLLM("x", cost=None).complete(ASK).cost is None


async def test_async_and_latency() -> None:
    llm = ScriptedLLM(lambda messages: messages[0]["content"], latency=0.01)
    answers = await asyncio.gather(*(llm.acomplete(say(str(i))) for i in range(10)))
    assert [answer.text for answer in answers] == [str(i) for i in range(10)]
    assert all(answer.seconds >= 0.01 for answer in answers)


def test_blocking_latency_and_threads() -> None:
    together = threading.Barrier(16)

    def script(messages: list[Message]) -> str:
        together.wait(30)
        return messages[0]["content"]

    llm = ScriptedLLM(script)
    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(lambda i: llm.complete(say(str(i))).text, range(16)))
    assert texts == [str(i) for i in range(16)]
    assert len(llm.calls) == 16


def test_threads_share_a_list_without_loss() -> None:
    llm = ScriptedLLM([str(i) for i in range(200)])
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda _: llm.complete(ASK).text, range(200)))
    assert sorted(texts, key=int) == [str(i) for i in range(200)]


@pytest.mark.parametrize("script", [7, None])
def test_a_script_of_the_wrong_kind(script: Any) -> None:
    with pytest.raises(errors.ScriptError, match="a function, a list, a dict"):
        ScriptedLLM(script)


def test_a_reply_of_the_wrong_kind() -> None:
    replies: Callable[[list[Message]], Any] = lambda messages: 7  # noqa: E731 - as a user would write it
    with pytest.raises(errors.ScriptError, match="gave int"):
        ScriptedLLM(replies).complete(ASK)
