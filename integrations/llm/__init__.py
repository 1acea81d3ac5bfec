"""Language models behind one protocol: any provider, a model on this machine, or a script.

``resolve_llm("openai/gpt-4.1-mini")``, ``resolve_llm("local")`` or ``resolve_llm()`` gives an ``LLM``; its
``complete(messages, schema=...)`` retries, parses, repairs, and fails with a typed error.
Names are loaded when they are first used, so that importing this package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trace_core.integrations.llm.breaker import CircuitBreaker as CircuitBreaker
    from trace_core.integrations.llm.budgeted import Budgeted as Budgeted
    from trace_core.integrations.llm.cache import Cached as Cached
    from trace_core.integrations.llm.cache import rollout as rollout
    from trace_core.integrations.llm.cassette import Cassette as Cassette
    from trace_core.integrations.llm.cassette import Recorded as Recorded
    from trace_core.integrations.llm.errors import LLMError as LLMError
    from trace_core.integrations.llm.gateway import GatewayLLM as GatewayLLM
    from trace_core.integrations.llm.limits import Limited as Limited
    from trace_core.integrations.llm.limits import RateLimiter as RateLimiter
    from trace_core.integrations.llm.litellm_llm import LiteLLM as LiteLLM
    from trace_core.integrations.llm.local_llm import LocalLLM as LocalLLM
    from trace_core.integrations.llm.meter import Metered as Metered
    from trace_core.integrations.llm.models import FetchProgress as FetchProgress
    from trace_core.integrations.llm.models import fetch_model as fetch_model
    from trace_core.integrations.llm.models import model_path as model_path
    from trace_core.integrations.llm.openai_llm import OpenAILLM as OpenAILLM
    from trace_core.integrations.llm.parsing import extract_fenced as extract_fenced
    from trace_core.integrations.llm.parsing import fenced_blocks as fenced_blocks
    from trace_core.integrations.llm.prices import Price as Price
    from trace_core.integrations.llm.protocol import LLM as LLM
    from trace_core.integrations.llm.protocol import Answer as Answer
    from trace_core.integrations.llm.protocol import Backend as Backend
    from trace_core.integrations.llm.protocol import Completion as Completion
    from trace_core.integrations.llm.protocol import Layer as Layer
    from trace_core.integrations.llm.protocol import Message as Message
    from trace_core.integrations.llm.protocol import Request as Request
    from trace_core.integrations.llm.protocol import Sample as Sample
    from trace_core.integrations.llm.protocol import Send as Send
    from trace_core.integrations.llm.protocol import Usage as Usage
    from trace_core.integrations.llm.resolve import resolve_llm as resolve_llm
    from trace_core.integrations.llm.retry import RetryPolicy as RetryPolicy
    from trace_core.integrations.llm.scripted import ScriptedCall as ScriptedCall
    from trace_core.integrations.llm.scripted import ScriptedLLM as ScriptedLLM

_HOME = {
    "prices": ("Price",),
    "meter": ("Metered",),
    "limits": ("Limited", "RateLimiter"),
    "cassette": ("Cassette", "Recorded"),
    "cache": ("Cached", "rollout"),
    "budgeted": ("Budgeted",),
    "breaker": ("CircuitBreaker",),
    "errors": ("LLMError",),
    "gateway": ("GatewayLLM",),
    "litellm_llm": ("LiteLLM",),
    "local_llm": ("LocalLLM",),
    "models": ("FetchProgress", "fetch_model", "model_path"),
    "openai_llm": ("OpenAILLM",),
    "parsing": ("extract_fenced", "fenced_blocks"),
    "protocol": ("LLM", "Answer", "Backend", "Completion", "Layer", "Message", "Request", "Sample", "Send", "Usage"),
    "resolve": ("resolve_llm",),
    "retry": ("RetryPolicy",),
    "scripted": ("ScriptedCall", "ScriptedLLM"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
