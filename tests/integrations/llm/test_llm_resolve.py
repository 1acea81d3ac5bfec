"""Naming an LLM by a string, an object, or the environment; and what importing the package costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trace_core.errors import MissingExtra
from trace_core.integrations import llm as package
from trace_core.integrations.llm import LLM, LiteLLM, LocalLLM, OpenAILLM, ScriptedLLM, errors, resolve_llm


def hide(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)


def test_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1234567")
    llm = resolve_llm("openai/gpt-4.1-mini")
    assert isinstance(llm, OpenAILLM)
    assert (llm.model, llm.describe()) == ("gpt-4.1-mini", "gpt-4.1-mini at api.openai.com")


def test_another_server_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:11434/v1")
    llm = resolve_llm("openai/org/model:tag")
    assert isinstance(llm, OpenAILLM)
    assert llm.model == "org/model:tag"


def test_litellm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trace_core.integrations.llm.resolve.installed", lambda module: True)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-1234567")
    llm = resolve_llm("litellm/anthropic/claude-x")
    assert isinstance(llm, LiteLLM)
    assert llm.model == "anthropic/claude-x"


def test_local(tmp_path: Path) -> None:
    llm = resolve_llm("local")
    assert isinstance(llm, LocalLLM)
    assert llm.is_local
    assert llm.describe().startswith("local Qwen2.5-Coder-1.5B-Instruct Q4 (1.1 GB) on ")
    assert resolve_llm("local:smollm2-135m").model == "smollm2-135m"
    assert resolve_llm(f"local:{tmp_path / 'own.gguf'}").model == "own"


def test_an_object_is_returned_as_it_is() -> None:
    class Own:
        model = "own"

        def complete(self, messages: Any, **options: Any) -> Any: ...
        async def acomplete(self, messages: Any, **options: Any) -> Any: ...
        def count_tokens(self, text: str) -> int | None: ...

    for llm in (ScriptedLLM("x"), Own()):
        assert resolve_llm(llm) is llm
        assert isinstance(llm, LLM)


UNKNOWN: list[Any] = [
    *(
        "gpt-4",
        "",
        "openai",
        "openai/",
        "litellm/",
        "litellm/gpt-4",
        "local:",
        "locally",
        "local:nonsense",
        "http://x/v1",
    ),
    *(7, object(), ScriptedLLM),
]


@pytest.mark.parametrize("name", UNKNOWN)
def test_anything_else_gets_the_list_of_forms(name: Any) -> None:
    with pytest.raises(errors.UnknownModel) as caught:
        resolve_llm(name)
    assert isinstance(caught.value, ValueError)
    for form in ("openai/MODEL", "litellm/PROVIDER/MODEL", "local:/path/to/model.gguf", "None"):
        assert form in str(caught.value)


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("openai/gpt-4.1-mini", "OPENAI_API_KEY"),
        ("litellm/anthropic/x", "ANTHROPIC_API_KEY"),
        ("litellm/gemini/x", "GEMINI_API_KEY"),
    ],
)
def test_a_missing_key_is_named(name: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trace_core.integrations.llm.resolve.installed", lambda module: True)
    with pytest.raises(errors.MissingKey, match=variable) as caught:
        resolve_llm(name)
    assert caught.value.variable == variable


def test_missing_litellm_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "litellm")
    with pytest.raises(MissingExtra, match=r"litellm/anthropic/x.*pip install 'trace_core\[litellm\]'"):
        resolve_llm("litellm/anthropic/x")


@pytest.mark.parametrize(
    ("variables", "kind", "model"),
    [
        ([], LocalLLM, "qwen2.5-coder-1.5b"),
        (["OPENAI_API_KEY"], OpenAILLM, "gpt-4.1-mini"),
        (["OPENAI_API_KEY", "ANTHROPIC_API_KEY"], OpenAILLM, "gpt-4.1-mini"),
        (["ANTHROPIC_API_KEY"], LiteLLM, "anthropic/claude-haiku-4-5"),
        (["GEMINI_API_KEY"], LiteLLM, "gemini/gemini-2.5-flash"),
    ],
)
def test_without_a_name_the_environment_decides(
    variables: list[str], kind: type[LLM], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trace_core.integrations.llm.resolve.installed", lambda module: True)
    for variable in variables:
        monkeypatch.setenv(variable, "sk-1234567")
    llm = resolve_llm()
    assert isinstance(llm, kind)
    assert llm.model == model


def test_a_key_that_needs_litellm_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "litellm")
    monkeypatch.setenv("GEMINI_API_KEY", "x1234567")
    with pytest.raises(MissingExtra, match="because GEMINI_API_KEY is set") as caught:
        resolve_llm()
    assert "x1234567" not in str(caught.value)


def test_an_empty_key_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "")
    assert isinstance(resolve_llm(), LocalLLM)


# --- the package -----------------------------------------------------------------------------------------------------


def test_importing_the_package_loads_nothing_heavy(tmp_path: Path) -> None:
    code = """
import sys
before = set(sys.modules)
import trace_core.integrations.llm as package
from trace_core.integrations.llm.errors import LLMError
heavy = {"pydantic", "openai", "litellm", "tenacity", "httpx", "asyncio", "json", "dataclasses", "platformdirs"}
sys.exit(repr(sorted(heavy & (set(sys.modules) - before))) if heavy & (set(sys.modules) - before) else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_naming_an_llm_loads_no_client(tmp_path: Path) -> None:
    code = """
import sys
from trace_core.integrations.llm import resolve_llm, ScriptedLLM
resolve_llm("local"), resolve_llm(ScriptedLLM("x")).complete([{"role": "user", "content": "x"}])
loaded = {"openai", "litellm", "httpx", "httpx2", "pydantic", "xllamacpp", "tenacity"} & set(sys.modules)
sys.exit(repr(loaded) if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there() -> None:
    assert package.__all__ == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name).__doc__ or name in ("Layer", "Send")
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="nonsense"):
        package.nonsense  # noqa: B018 - the access is the test


def test_a_metered_model_is_a_model_for_every_python() -> None:
    """Since Python 3.12, isinstance() with a protocol does not see what ``__getattr__`` offers."""
    import inspect

    from trace_core.integrations.llm import LLM
    from trace_core.integrations.llm.meter import Metered

    metered = Metered(ScriptedLLM("hello"))
    for name in ("model", "complete", "acomplete", "count_tokens"):
        inspect.getattr_static(metered, name)
    assert isinstance(metered, LLM)
    assert resolve_llm(metered) is metered
