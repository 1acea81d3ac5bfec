"""The way from an answer to a value that fits the schema, over the wire."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated

import pytest
from llm_raw_server import ASK, RawServer, chat, fault, http, payload
from pydantic import BaseModel, ConfigDict, Field

from trace_core.integrations.llm import OpenAILLM, errors

Make = Callable[..., tuple[OpenAILLM, RawServer]]


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    word: str
    count: Annotated[int, Field(ge=1, le=5)] = 1


GOOD = '{"word": "hi", "count": 2}'
VALUE = Answer(word="hi", count=2)


def test_the_server_is_asked_to_enforce_the_schema(ask_openai: Make) -> None:
    llm, server = ask_openai(chat(GOOD))
    answer = llm.complete(ASK, schema=Answer)
    assert (answer.parsed, answer.parsed_all, answer.attempts) == (VALUE, (VALUE,), 1)
    sent = server.requests[0].body
    assert sent["messages"] == ASK
    assert sent["response_format"]["type"] == "json_schema"
    contract = sent["response_format"]["json_schema"]
    assert (contract["name"], contract["strict"]) == ("Answer", True)
    assert contract["schema"]["additionalProperties"] is False
    assert contract["schema"]["required"] == ["word", "count"]


@pytest.mark.parametrize("text", [f"```json\n{GOOD}\n```", f"I think {GOOD}."])
def test_wrapped_json_needs_no_repair(text: str, ask_openai: Make) -> None:
    llm, server = ask_openai(chat(text))
    assert llm.complete(ASK, schema=Answer).parsed == VALUE
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ('{"word": "hi", "count": 9}', "count: Input should be less than or equal to 5"),
        ("no idea", "contains no JSON object"),
        ('{"word": "hi", "extra": 1}', "extra: Extra inputs are not permitted"),
        ('{"word": "hi", "count": NaN}', "NaN is not a JSON number"),
        ('{"word": "h', "stops inside the text of key 'word'"),
    ],
)
def test_one_repair_with_the_error(bad: str, words: str, ask_openai: Make) -> None:
    llm, server = ask_openai(chat(bad), chat(GOOD))
    answer = llm.complete(ASK, schema=Answer)
    assert (answer.parsed, answer.attempts) == (VALUE, 2)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (22, 6)
    repair = server.requests[1].body["messages"]
    assert repair[:1] == ASK
    assert repair[1] == {"role": "assistant", "content": bad}
    assert repair[2]["role"] == "user"
    assert words in repair[2]["content"]


def test_a_failed_repair_is_malformed(ask_openai: Make) -> None:
    llm, server = ask_openai(chat('{"word": 1}'))
    with pytest.raises(errors.Malformed, match=r"Answer.*word") as caught:
        llm.complete(ASK, schema=Answer)
    assert (caught.value.attempts, len(server.requests)) == (2, 2)
    assert (caught.value.provider, caught.value.model) == ("openai", "some-model")


def test_an_answer_that_stays_cut_is_truncated(ask_openai: Make) -> None:
    llm, server = ask_openai(chat('{"word": "hi', finish="length"))
    with pytest.raises(errors.Truncated, match="inside the text of key 'word'"):
        llm.complete(ASK, schema=Answer)
    assert "more briefly" in server.requests[1].body["messages"][-1]["content"]


def test_a_cut_answer_gets_twice_the_room_once(ask_openai: Make) -> None:
    llm, server = ask_openai(chat('{"word": "hi', finish="length"), chat(GOOD))
    assert llm.complete(ASK, schema=Answer, max_tokens=10).parsed == VALUE
    assert [request.body["max_tokens"] for request in server.requests] == [10, 20]
    assert server.requests[1].body["messages"] == ASK
    llm, server = ask_openai(chat('{"word": "hi', finish="length"))
    with pytest.raises(errors.Truncated):
        llm.complete(ASK, schema=Answer, max_tokens=10)
    assert len(server.requests) == 2


def test_a_complete_answer_at_the_limit_counts(ask_openai: Make) -> None:
    llm, server = ask_openai(chat(GOOD, finish="length"))
    assert llm.complete(ASK, schema=Answer, max_tokens=10).parsed == VALUE
    assert len(server.requests) == 1


def test_a_server_without_schemas_is_asked_in_words(ask_openai: Make) -> None:
    llm, server = ask_openai(fault(400, "response_format is not supported"), chat(GOOD))
    assert llm.complete(ASK, schema=Answer).parsed == VALUE
    first, second = (request.body for request in server.requests)
    assert "response_format" in first
    assert "response_format" not in second
    words = second["messages"][-1]["content"]
    assert words.startswith("say hi\n\n")
    assert json.dumps(Answer.model_json_schema(), separators=(",", ":")) in words


def test_the_refusal_of_a_schema_is_remembered(ask_openai: Make) -> None:
    llm, server = ask_openai(fault(400), chat(GOOD), chat(GOOD))
    llm.complete(ASK, schema=Answer)
    assert llm.complete(ASK, schema=Answer).attempts == 1
    assert "response_format" not in server.requests[2].body


def test_a_request_that_is_bad_in_any_form_is_refused_after_two(ask_openai: Make) -> None:
    llm, server = ask_openai(fault(400, "no such thing"))
    with pytest.raises(errors.BadRequest, match="no such thing"):
        llm.complete(ASK, schema=Answer)
    assert len(server.requests) == 2


def test_a_system_prompt_stays_first_and_unchanged(ask_openai: Make) -> None:
    llm, server = ask_openai(fault(400), chat(GOOD))
    llm.complete([{"role": "system", "content": "static"}, *ASK], schema=Answer)
    assert server.requests[1].body["messages"][0] == {"role": "system", "content": "static"}


def test_of_several_samples_the_fitting_ones_are_kept(ask_openai: Make) -> None:
    llm, server = ask_openai(chat("nonsense", GOOD, '{"word": "ho", "count": 3}'))
    answer = llm.complete(ASK, schema=Answer, n=3)
    assert answer.parsed_all == (None, VALUE, Answer(word="ho", count=3))
    assert answer.parsed == VALUE
    assert (answer.text, len(answer.texts)) == ("nonsense", 3)
    assert len(server.requests) == 1


def test_if_no_sample_fits_one_is_repaired(ask_openai: Make) -> None:
    llm, server = ask_openai(chat("bad", "worse"), chat(GOOD))
    answer = llm.complete(ASK, schema=Answer, n=2)
    assert answer.parsed == VALUE
    assert "n" not in server.requests[1].body


def test_a_very_long_bad_answer_is_shown_shortened(ask_openai: Make) -> None:
    llm, server = ask_openai(chat("x" * 500_000), chat(GOOD))
    llm.complete(ASK, schema=Answer)
    assert len(server.requests[1].raw) < 20_000


def test_strings_in_the_value_can_be_stored(ask_openai: Make) -> None:
    text = json.dumps({"word": "a\ud800b\0", "count": 1})
    llm, _ = ask_openai(http(json.dumps(payload(text))))
    parsed = llm.complete(ASK, schema=Answer).parsed
    assert isinstance(parsed, Answer)
    assert parsed.word == "a\ufffdb\ufffd"


def test_unknown_usage_in_one_answer_makes_the_sum_unknown(ask_openai: Make) -> None:
    silent = payload("bad")
    del silent["usage"]
    llm, _ = ask_openai(http(silent), chat(GOOD))
    assert llm.complete(ASK, schema=Answer).usage.prompt_tokens is None
