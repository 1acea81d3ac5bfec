"""From the one string (or object, or nothing) with which a user names an LLM to the LLM."""

from __future__ import annotations

import contextlib
import os
from contextvars import ContextVar
from typing import TYPE_CHECKING

from trace_core.errors import MissingExtra
from trace_core.integrations.accounting import is_worker
from trace_core.integrations.llm.errors import UnknownModel
from trace_core.integrations.llm.extras import installed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trace_core.integrations.llm.prices import Prices
    from trace_core.integrations.llm.protocol import LLM

VALID_FORMS = """valid forms:
  "openai/MODEL"                 OpenAI, or the server at OPENAI_BASE_URL ("openai/gpt-4.1-mini")
  "litellm/PROVIDER/MODEL"       any provider litellm knows ("litellm/anthropic/claude-sonnet-4-5")
  "local"                        the default model on this machine, without network or key
  "local:/path/to/model.gguf"    your own GGUF file, or "local:NAME" for a model fetch_model() knows
  an object with model, complete(), acomplete() and count_tokens()
  None                           a provider whose key is in the environment, else "local\""""

# Which key of the environment means which model, first match first. The models are each provider's small general one.
DEFAULTS = (
    ("OPENAI_API_KEY", "openai/gpt-4.1-mini"),
    ("ANTHROPIC_API_KEY", "litellm/anthropic/claude-haiku-4-5"),
    ("GEMINI_API_KEY", "litellm/gemini/gemini-2.5-flash"),
    ("MISTRAL_API_KEY", "litellm/mistral/mistral-small-latest"),
    ("GROQ_API_KEY", "litellm/groq/llama-3.3-70b-versatile"),
    ("DEEPSEEK_API_KEY", "litellm/deepseek/deepseek-chat"),
    ("OPENROUTER_API_KEY", "litellm/openrouter/openai/gpt-4.1-mini"),
    ("XAI_API_KEY", "litellm/xai/grok-3-mini"),
)


_by_name: ContextVar[Callable[[str | None], LLM] | None] = ContextVar("trace_core_llm_by_name", default=None)


@contextlib.contextmanager
def resolving(by_name: Callable[[str | None], LLM] | None) -> Iterator[None]:
    """Inside, names of models mean what ``by_name`` gives; None for what they mean by themselves."""
    token = _by_name.set(by_name)
    try:
        yield
    finally:
        _by_name.reset(token)


def resolve_llm(llm: str | LLM | None = None, *, prices: Prices | None = None) -> LLM:
    """The LLM meant by ``llm``. Nothing is sent, started or downloaded.

    Args:
        llm: see VALID_FORMS; an object that satisfies the LLM protocol is returned as it is.
        prices: what models cost, by name, for a model given by name; see OpenAILLM.

    Raises:
        UnknownModel: no valid form; the message lists them.
        MissingKey: the provider's key is not in the environment.
        MissingExtra: the provider needs litellm, which is not installed.
    """
    if is_worker() and (llm is None or isinstance(llm, str)):
        from trace_core.integrations.relay.worker import Relayed

        return Relayed(llm)
    if llm is not None and not isinstance(llm, str):
        return _checked(llm)
    if (by_name := _by_name.get()) is not None:
        return by_name(llm)
    if llm is None:
        return resolve_llm(_from_environment(), prices=prices)
    kind, _, rest = llm.partition("/")
    if kind == "openai" and rest:
        from trace_core.integrations.llm.openai_llm import OpenAILLM

        return OpenAILLM(rest, prices=prices)
    if kind == "litellm" and "/" in rest.strip("/"):
        from trace_core.integrations.llm.litellm_llm import LiteLLM

        _need_litellm(repr(llm))
        return LiteLLM(rest, prices=prices)
    if llm == "local" or (llm.startswith("local:") and llm != "local:"):
        return _local(llm.partition(":")[2])
    raise UnknownModel(f"{llm!r} names no LLM; {VALID_FORMS}")


def _from_environment() -> str:
    for variable, name in DEFAULTS:
        if os.environ.get(variable):
            if name.startswith("litellm/"):
                _need_litellm(f"the model {name!r}, chosen because {variable} is set,")
            return name
    return "local"


def _need_litellm(what: str) -> None:
    if not installed("litellm"):
        raise MissingExtra(
            f"{what} is reached through 'litellm', which is not installed; run: pip install 'trace_core[litellm]', "
            'or use "local"'
        )


def _local(name: str) -> LLM:
    from trace_core.integrations.llm.local_llm import LocalLLM
    from trace_core.integrations.llm.models import MODELS

    if not name:
        return LocalLLM()
    if name not in MODELS and "/" not in name and "\\" not in name and not name.endswith(".gguf"):
        raise UnknownModel(f"'local:{name}' is neither a file nor one of {', '.join(MODELS)}; {VALID_FORMS}")
    return LocalLLM(name)


def _checked(llm: LLM) -> LLM:
    from trace_core.integrations.llm.protocol import LLM

    if isinstance(llm, type) or not isinstance(llm, LLM):
        raise UnknownModel(f"an object of type {type(llm).__name__} is no LLM; {VALID_FORMS}")
    return llm
