"""A key goes to its server and nowhere else."""

from __future__ import annotations

import logging
import pickle
import traceback
from collections.abc import Callable
from importlib.util import find_spec

import pytest
from llm_raw_server import ASK, CANARY, RawServer, chat, fault, http

from trace_core.integrations.llm import LiteLLM, OpenAILLM, RetryPolicy, errors
from trace_core.integrations.llm.secrets import Secret

Make = Callable[..., tuple[OpenAILLM, RawServer]]

ECHOES = {
    "401": fault(401, f"Incorrect API key provided: {CANARY}"),
    "400": fault(400, f"bad request with header Bearer {CANARY}", code=CANARY),
    "429": fault(429, CANARY, headers="Retry-After: 600\r\n"),
    "500": fault(500, f"crash while using {CANARY}"),
    "HTML": http(f"<html>{CANARY}</html>", 502, kind="text/html"),
    "HTML with 200": http("<html>login</html>", kind="text/html"),
    "closed": b"",
}


def everything_about(error: BaseException) -> str:
    """What a log, a debugger's summary or a crash reporter would show, the whole chain included."""
    shown = [str(error), repr(error), repr(vars(error)), *traceback.format_exception(error)]
    link: BaseException | None = error
    while link is not None:
        shown += [str(link), repr(link), repr(link.args)]
        link = link.__cause__ or link.__context__
    return "\n".join(shown)


@pytest.mark.parametrize("response", ECHOES.values(), ids=ECHOES)
def test_errors_and_logs_of_openai(response: bytes, ask_openai: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    llm, server = ask_openai(response)
    with pytest.raises(errors.LLMError) as caught:
        llm.complete(ASK)
    assert server.requests[0].headers["authorization"] == f"Bearer {CANARY}"
    assert CANARY not in everything_about(caught.value)
    assert CANARY not in caplog.text


@pytest.mark.skipif(find_spec("litellm") is None, reason="needs litellm")
@pytest.mark.parametrize("response", ECHOES.values(), ids=ECHOES)
def test_errors_and_logs_of_litellm(
    response: bytes,
    serve: Callable[..., RawServer],
    no_waiting: RetryPolicy,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    server = serve(response)
    llm = LiteLLM("openai/some-model", api_key=CANARY, base_url=server.url, retry=no_waiting)
    with pytest.raises(errors.LLMError) as caught:
        llm.complete(ASK)
    assert server.requests[0].headers["authorization"] == f"Bearer {CANARY}"
    assert CANARY not in everything_about(caught.value)
    assert CANARY not in caplog.text
    assert CANARY not in "".join(capsys.readouterr())


def test_reprs(ask_openai: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", CANARY)
    llm, _ = ask_openai(chat("hi"))
    llm.complete(ASK)
    for thing in (llm, LiteLLM("anthropic/x"), llm._backend, Secret(CANARY)):
        assert CANARY not in repr(thing)
        assert CANARY not in str(thing)
    assert CANARY not in repr({key: str(value) for key, value in vars(llm._backend).items()})
    assert CANARY not in llm.describe()


def test_a_password_in_the_address(no_waiting: RetryPolicy) -> None:
    llm = OpenAILLM("m", base_url=f"http://user:{CANARY}@127.0.0.1:9/v1", api_key="x", retry=no_waiting)
    assert CANARY not in repr(llm)
    with pytest.raises(errors.LLMError) as caught:
        llm.complete(ASK)
    assert CANARY not in everything_about(caught.value)


def test_a_secret_is_not_pickled() -> None:
    with pytest.raises(TypeError, match="environment"):
        pickle.dumps(Secret(CANARY))


def test_no_key_is_sent_where_none_is_given(serve: Callable[..., RawServer]) -> None:
    server = serve(chat("hi"))
    assert OpenAILLM("m", base_url=server.url).complete(ASK).text == "hi"
    assert server.requests[0].headers["authorization"] == "Bearer none"
