"""The local model: a real runtime with a small real model, its start, sharing, death, and end with its parent."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from trace_core.errors import MissingExtra
from trace_core.integrations.llm import LocalLLM, Message, errors, fetch_model
from trace_core.integrations.llm.local_server import stop_servers

SMALL = "smollm2-135m"
needs_runtime = pytest.mark.skipif(find_spec("xllamacpp") is None, reason="needs xllamacpp")
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


def say(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


# --- without a model -------------------------------------------------------------------------------------------------


def test_nothing_happens_before_the_first_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACE_CORE_MODEL_DIR", str(tmp_path))
    llm = LocalLLM()
    assert (llm.model, llm.is_local) == ("qwen2.5-coder-1.5b", True)
    assert repr(llm).startswith("<LocalLLM local Qwen2.5-Coder-1.5B-Instruct Q4 (1.1 GB) on ")
    assert list(tmp_path.iterdir()) == []


@needs_runtime
def test_a_model_that_is_not_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACE_CORE_MODEL_DIR", str(tmp_path))
    with pytest.raises(errors.LocalServerError, match=r"trace-core model fetch qwen2\.5-coder-1\.5b") as caught:
        LocalLLM().complete(say("hi"))
    assert isinstance(caught.value, errors.Fatal)
    assert caught.value.provider == "local"


@needs_runtime
def test_files_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(errors.LocalServerError, match="cannot be read"):
        LocalLLM(tmp_path / "none.gguf").complete(say("hi"))
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(errors.LocalServerError, match="not a GGUF file"):
        LocalLLM(tmp_path / "text.gguf").complete(say("hi"))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(500))
    with pytest.raises(errors.LocalServerError, match=r"could not be served.*End of the log"):
        LocalLLM(tmp_path / "broken.gguf").complete(say("hi"))


def test_the_missing_runtime_is_named_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(MissingExtra, match=r"pip install 'trace_core\[local\]'"):
        LocalLLM(tmp_path / "none.gguf").complete(say("hi"))


@pytest.mark.parametrize("options", [{"slots": 0}, {"context": 0}, {"threads": 0}])
def test_settings_are_checked(options: dict[str, int]) -> None:
    with pytest.raises(errors.BadRequest, match=next(iter(options))):
        LocalLLM(**options)  # type: ignore[arg-type]


# --- with a small model ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def path() -> Path:
    return fetch_model(SMALL)


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[LocalLLM]:
    yield LocalLLM(SMALL, context=1024)
    stop_servers()


@pytest.mark.slow
@needs_runtime
class TestSmallModel:
    def test_an_answer(self, llm: LocalLLM) -> None:
        answer = llm.complete(say("Name a colour."), temperature=0.0, max_tokens=8)
        assert answer.text
        assert (answer.cost, answer.model, answer.attempts) == (0.0, SMALL, 1)
        assert answer.usage.prompt_tokens is not None
        assert answer.usage.prompt_tokens > 5
        assert answer.usage.completion_tokens == 8
        assert answer.finish_reason == "length"

    def test_temperature_zero_and_seeds_repeat(self, llm: LocalLLM) -> None:
        texts = {llm.complete(say("Tell a story."), temperature=0.0, max_tokens=16).text for _ in range(3)}
        assert len(texts) == 1
        seeded = [llm.complete(say("Tell a story."), temperature=1.0, seed=7, max_tokens=16).text for _ in range(2)]
        assert seeded[0] == seeded[1]

    def test_samples_differ_and_repeat_with_their_seed(self, llm: LocalLLM) -> None:
        first = llm.complete(say("Tell a story."), n=3, temperature=1.5, seed=3, max_tokens=16)
        assert len(first.texts) == 3
        assert len(set(first.texts)) > 1
        assert first.attempts == 3  # one slot: one sample a request

    def test_a_shared_prefix_is_read_once(self, llm: LocalLLM) -> None:
        rules: Message = {"role": "system", "content": "Sort letters into classes. " * 12}
        llm.complete([rules, *say("first letter")], max_tokens=1)
        usage = llm.complete([rules, *say("another one")], max_tokens=1).usage
        assert usage.cached_tokens is not None
        assert usage.prompt_tokens is not None
        assert usage.cached_tokens > 0.8 * usage.prompt_tokens - 10

    def test_a_schema_is_enforced(self, llm: LocalLLM) -> None:
        class Letter(BaseModel):
            kind: Literal["praise", "complaint"]
            stars: Annotated[int, Field(ge=1, le=5)]
            words: Annotated[list[str], Field(max_length=2)]

        answer = llm.complete(say("The soup was cold."), schema=Letter, temperature=0.0, max_tokens=80)
        assert isinstance(answer.parsed, Letter)
        assert answer.attempts == 1

    def test_tokens_are_counted_by_the_models_own_tokenizer(self, llm: LocalLLM) -> None:
        assert llm.count_tokens("hello world") == 2
        assert llm.count_tokens("") == 0

    def test_a_prompt_that_is_too_long(self, llm: LocalLLM) -> None:
        with pytest.raises(errors.ContextTooLong):
            llm.complete(say("word " * 3000), max_tokens=1)

    async def test_async(self, llm: LocalLLM) -> None:
        assert (await llm.acomplete(say("hi"), max_tokens=2)).text

    def test_equal_settings_share_one_server(self, llm: LocalLLM, path: Path) -> None:
        llm.complete(say("hi"), max_tokens=1)
        twin = LocalLLM(path, context=1024)
        twin.complete(say("hi"), max_tokens=1)
        assert twin.pid == llm.pid

    def test_threads_that_come_first_at_once_start_one_server(self, path: Path) -> None:
        together = threading.Barrier(6)

        def call(number: int) -> int | None:
            own = LocalLLM(path, context=640)
            together.wait(30)
            own.complete(say(f"number {number}"), max_tokens=1)
            return own.pid

        with ThreadPoolExecutor(6) as pool:
            assert len(set(pool.map(call, range(6)))) == 1

    def test_a_server_that_died_is_started_again(self, llm: LocalLLM) -> None:
        llm.complete(say("hi"), max_tokens=1)
        first = llm.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        assert llm.complete(say("hi"), max_tokens=1).text is not None
        assert llm.pid != first

    def test_several_slots_give_several_samples_in_one_request(self, path: Path) -> None:
        wide = LocalLLM(path, context=1024, slots=3)
        answer = wide.complete(say("Tell a story."), n=4, temperature=1.2, seed=1, max_tokens=6)
        assert (len(answer.texts), answer.attempts) == (4, 2)

    @linux_only
    def test_the_child_has_no_keys_and_waits_passively(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOME_API_KEY", "sk-canary-in-the-environment")
        own = LocalLLM(path, context=512)
        own.start()
        environment = Path(f"/proc/{own.pid}/environ").read_bytes()
        command = Path(f"/proc/{own.pid}/cmdline").read_bytes()
        server = own._local._server
        assert server is not None
        assert b"canary" not in environment
        assert b"OMP_WAIT_POLICY=passive" in environment.split(b"\0")
        assert server.token.reveal().encode() not in environment + command

    def test_strangers_are_refused(self, llm: LocalLLM) -> None:
        llm.start()
        server = llm._local._server
        assert server is not None
        request = urllib.request.Request(
            f"{server.ensure()}/v1/chat/completions",
            json.dumps({"messages": say("hi"), "max_tokens": 1}).encode(),
            {"Content-Type": "application/json", "Authorization": "Bearer wrong"},
        )
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=30)
        assert caught.value.code == 401
        caught.value.close()

    def test_proxies_of_the_environment_are_not_used(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        own = LocalLLM(path, context=1024)
        assert own.complete(say("hi"), max_tokens=1).attempts == 1
        assert own.count_tokens("not counted before") is not None

    @linux_only
    @pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "sys.exit(0)", "os._exit(0)"])
    def test_the_server_ends_with_its_parent(self, end: str, path: Path) -> None:
        code = f"""
import os, sys
from trace_core.integrations.llm import LocalLLM
llm = LocalLLM({str(path)!r}, context=512)
llm.start()
print(llm.pid, flush=True)
sys.stdin.readline()
{end}
"""
        parent = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert parent.stdin is not None
        assert parent.stdout is not None
        handle = os.pidfd_open(int(parent.stdout.readline()))
        try:
            assert select.select([handle], [], [], 0)[0] == []  # it lives
            _, complaints = parent.communicate("go\n", timeout=60)
            assert select.select([handle], [], [], 30)[0] == [handle]
            assert complaints == ""
        finally:
            os.close(handle)
