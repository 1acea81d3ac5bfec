"""Recording conversations, and playing them without model, key or network."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from llm_raw_server import ASK, CANARY, RawServer, chat, fault
from pydantic import BaseModel

from trace_core.integrations.llm import Cassette, Message, OpenAILLM, Recorded, ScriptedLLM, errors

Make = Callable[..., tuple[OpenAILLM, RawServer]]


class Word(BaseModel):
    word: str


def say(text: str) -> list[Message]:
    return [{"role": "system", "content": "You help.\nBriefly."}, {"role": "user", "content": text}]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "cassette.json"


def test_what_was_recorded_is_played(path: Path, ask_openai: Make) -> None:
    llm, server = ask_openai(chat("first"), chat('{"word": "hi"}'), chat("third"))
    recorder = Recorded(llm, Cassette(path, "record"))
    sent = [recorder.complete(ASK), recorder.complete(ASK, schema=Word), recorder.complete(ASK)]
    player = Recorded("openai/some-model", path)  # neither key nor server
    played = [player.complete(ASK), player.complete(ASK, schema=Word), player.complete(ASK)]
    assert [answer.text for answer in played] == ["first", '{"word": "hi"}', "third"]
    assert played[1].parsed == Word(word="hi")
    assert [(a.usage, a.cost, a.attempts, a.model) for a in played] == [
        (a.usage, a.cost, a.attempts, a.model) for a in sent
    ]
    assert len(server.requests) == 3
    assert Recorded(None, path).complete(ASK).text == "first"


def test_the_file_can_be_read_compared_and_shown(path: Path, ask_openai: Make) -> None:
    for _ in range(2):
        llm, server = ask_openai(chat("line 1\nline 2"), chat("b"))
        recorder = Recorded(llm, Cassette(path, "record"))
        recorder.complete(say("x"))
        recorder.complete(say("a"))
        written = path.read_text(encoding="utf-8")
        first = path.read_bytes()
    assert path.read_bytes() == first
    assert '"line 1",\n' in written
    assert '"Briefly."' in written
    assert CANARY not in written
    assert str(server.port) not in written
    assert [entry.name for entry in path.parent.iterdir()] == ["cassette.json"]


def test_the_order_of_recording_does_not_change_the_file(tmp_path: Path) -> None:
    files = []
    for name, order in (("a", range(20)), ("b", reversed(range(20)))):
        recorder = Recorded(ScriptedLLM(lambda messages: messages[-1]["content"]), Cassette(tmp_path / name, "record"))
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(recorder.complete, [say(str(i)) for i in order]))
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]


def test_an_unseen_request_is_named_with_what_differs(path: Path) -> None:
    recorder = Recorded(ScriptedLLM("ok"), Cassette(path, "record"))
    recorder.complete(say("What is the capital\nof France?"), temperature=0.2)
    recorder.complete(say("Sing."))
    with pytest.raises(errors.UnseenRequest) as caught:
        Recorded(None, path).complete(say("What is the capital\nof Spain?"), temperature=0.7)
    text = str(caught.value)
    assert str(path) in text
    assert "What is the capital of Spain?" in text
    assert '-    "of France?"\n' in text
    assert '+    "of Spain?"\n' in text
    assert '- "temperature": 0.2\n+ "temperature": 0.7\n' in text
    assert "Sing" not in text
    assert isinstance(caught.value, errors.Fatal)  # so that a run stops


def test_one_more_of_the_same_is_unseen(path: Path) -> None:
    Recorded(ScriptedLLM("ok"), Cassette(path, "record")).complete(ASK)
    player = Recorded(None, path)
    player.complete(ASK)
    with pytest.raises(errors.UnseenRequest, match="1 answers to this request, and it is asked once more"):
        player.complete(ASK)


async def test_extend_sends_only_what_is_new(path: Path) -> None:
    await Recorded(ScriptedLLM("old"), Cassette(path, "extend")).acomplete(say("a"))
    script = ScriptedLLM("new")
    extending = Recorded(script, Cassette(path, "extend"))
    assert (await extending.acomplete(say("a"))).text == "old"
    assert (await extending.acomplete(say("b"))).text == "new"
    assert len(script.calls) == 1
    assert Recorded(None, path).complete(say("b")).text == "new"


def test_outcomes_are_recorded_outages_are_not(path: Path, ask_openai: Make) -> None:
    llm, _ = ask_openai(chat("half", finish="content_filter"), fault(401), chat('{"wrong": 1}'), chat('{"wrong": 1}'))
    recorder = Recorded(llm, Cassette(path, "record"))
    for kind, question in ((errors.Refused, "a"), (errors.AuthenticationFailed, "b")):
        with pytest.raises(kind):
            recorder.complete(say(question))
    with pytest.raises(errors.Malformed):
        recorder.complete(say("c"), schema=Word)
    player = Recorded(None, path)
    with pytest.raises(errors.Refused, match="content filter"):
        player.complete(say("a"))
    with pytest.raises(errors.UnseenRequest):
        player.complete(say("b"))
    with pytest.raises(errors.Malformed) as caught:
        player.complete(say("c"), schema=Word)
    assert caught.value.completion is not None
    assert caught.value.completion.text == '{"wrong": 1}'


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "nonsense", '{"cassette": 99, "entries": []}', '{"cassette": 1, "entries": [{}]}']
)
def test_a_file_that_is_no_cassette_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(errors.CassetteError, match=r"x\.json"):
        Cassette(path)


def test_a_missing_cassette_and_a_wrong_mode(path: Path) -> None:
    with pytest.raises(errors.CassetteError, match="record it with"):
        Cassette(path)
    with pytest.raises(errors.CassetteError, match="'replay', 'record' or 'extend'"):
        Cassette(path, "play")  # type: ignore[arg-type]
    with pytest.raises(errors.CassetteError, match="needs a model"):
        Recorded(None, Cassette(path, "record"))


def test_two_models_on_one_cassette(path: Path) -> None:
    cassette = Cassette(path, "record")
    for model in ("small", "large"):
        Recorded(ScriptedLLM(model, model=model), cassette).complete(ASK)
    assert json.loads(path.read_text())["entries"][0]["request"]["model"] == "large"
    assert Recorded("openai/small", path).complete(ASK).text == "small"
    with pytest.raises(errors.CassetteError, match="name one of"):
        Recorded(None, path)
