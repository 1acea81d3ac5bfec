"""Every other provider, through litellm and its model strings. litellm is imported by the first call, not before."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trace_core._lazy import require
from trace_core.integrations.llm import errors
from trace_core.integrations.llm.faults import is_connection_fault
from trace_core.integrations.llm.gateway import GatewayLLM
from trace_core.integrations.llm.litellm_faults import from_litellm_error
from trace_core.integrations.llm.litellm_wire import receive, watched_client
from trace_core.integrations.llm.loop import in_daemon_thread
from trace_core.integrations.llm.prices import Prices, cost_of, find_price
from trace_core.integrations.llm.protocol import Answer, Contract, Layer, Request, Usage
from trace_core.integrations.llm.secrets import Secret, scrub, scrub_bytes
from trace_core.integrations.llm.strict_schema import contract_of
from trace_core.integrations.llm.wire import MAX_BODY, read_answer, read_body

if TYPE_CHECKING:
    from pydantic import BaseModel

    from trace_core.integrations.llm.retry import RetryPolicy

_log = logging.getLogger(__name__)

KEY_VARIABLES = {
    "anthropic": "ANTHROPIC_API_KEY",
    "gemini": "GEMINI_API_KEY",
    "mistral": "MISTRAL_API_KEY",
    "groq": "GROQ_API_KEY",
    "deepseek": "DEEPSEEK_API_KEY",
    "openrouter": "OPENROUTER_API_KEY",
    "xai": "XAI_API_KEY",
    "together_ai": "TOGETHERAI_API_KEY",
    "fireworks_ai": "FIREWORKS_AI_API_KEY",
    "cohere": "COHERE_API_KEY",
    "openai": "OPENAI_API_KEY",
}


def load_litellm() -> Any:
    """Import litellm so that the import stays off the network and errors are not also printed.

    Raises:
        MissingExtra: litellm is not installed.
    """
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else the import fetches a price table
    litellm: Any = require("litellm", extra="litellm")
    litellm.suppress_debug_info = True
    litellm.disable_hf_tokenizer_download = True
    return litellm


class LiteLLMBackend:
    """One litellm model string ("anthropic/claude-sonnet-4-5")."""

    provider = "litellm"

    def __init__(
        self, model: str, *, key: Secret | None, base_url: str | None = None, prices: Prices | None = None
    ) -> None:
        self.model = model
        self._prices = prices
        self._key = key
        self._base_url = base_url
        self._openai_protocol = model.startswith("openai/")
        self._watched: tuple[asyncio.AbstractEventLoop, Any] | None = None
        names = KEY_VARIABLES.values()
        self._secrets = [key, *(Secret(os.environ[name]) for name in names if os.environ.get(name))]

    async def prepare(self) -> None:
        """Import litellm off the loop: it takes seconds, and other calls go on meanwhile."""
        import sys

        if "litellm" not in sys.modules:
            await in_daemon_thread(load_litellm)

    def describe(self) -> str:
        """One line for people."""
        return f"{self.model} through litellm"

    def count_tokens(self, text: str) -> int | None:
        """litellm's count, with the tokenizers that it ships."""
        return int(load_litellm().token_counter(model=self.model, text=text))

    def max_samples(self) -> int | None:
        """No limit known: for providers without ``n`` litellm drops it, and the rest is asked for one by one."""
        return None

    def contract(self, schema: type[BaseModel]) -> Contract | None:
        """The schema, if litellm knows that the provider enforces one."""
        return contract_of(schema) if load_litellm().supports_response_schema(model=self.model) else None

    async def send(self, request: Request) -> Answer:
        """Send once; see Backend.send."""
        litellm = load_litellm()
        import openai

        received = receive(MAX_BODY * request.n)
        fault: errors.LLMError
        try:
            response = await litellm.acompletion(**self._arguments(request), **self._client(litellm))
        except openai.APIError as error:  # litellm's errors derive from these
            fault = from_litellm_error(error, self._clean)
        except openai.OpenAIError as error:
            fault = errors.BadRequest(self._clean(f"litellm refused the request: {error}"))
        except Exception as error:  # noqa: BLE001 - whatever litellm stumbles over is a failed call, and no more
            lost = is_connection_fault(error)
            words = self._clean(f"{type(error).__name__}: {error}")
            kind, what = (errors.Transient, "the connection was lost") if lost else (errors.LLMError, "litellm failed")
            fault = kind(f"{what}: {words}")
        else:
            if received.raw is None:
                answer = read_answer(response.model_dump(warnings=False), request)
                if not answer.usage.prompt_tokens:  # zeros stand for "not reported": no prompt has no tokens
                    return replace(answer, usage=Usage())
                price = find_price(self.model, self._prices) if self._prices else None
                cost = _price(litellm, response, self.model) if price is None else price.of(answer.usage)
                return replace(answer, cost=cost)
            fault = errors.Malformed("the answer is no chat completion")
        if received.overlong:
            raise errors.Malformed(f"the answer is longer than {received.limit} bytes: the rest was not read")
        if received.raw is not None:
            answer = read_answer(read_body(scrub_bytes(received.raw, self._secrets)), request)
            return replace(answer, cost=cost_of(self.model, answer.usage, self._prices))
        raise fault

    def _client(self, litellm: Any) -> dict[str, Any]:
        """For a server with the OpenAI protocol: the client of this loop whose answers are kept as they come."""
        if not self._openai_protocol:
            return {}
        loop = asyncio.get_running_loop()
        if self._watched is None or self._watched[0] is not loop:
            _, _, key, base = litellm.get_llm_provider(model=self.model, api_base=self._base_url, api_key=None)
            key = self._key.reveal() if self._key is not None else key or os.environ.get("OPENAI_API_KEY") or "none"
            base = base or os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_BASE")
            self._watched = (loop, watched_client(key=key, base_url=base))
        return {"client": self._watched[1]}

    def _arguments(self, request: Request) -> dict[str, object]:
        arguments: dict[str, object] = {
            "model": self.model,
            "messages": [dict(message) for message in request.messages],
            "num_retries": 0,
            "max_retries": 0,
            "drop_params": True,
            "timeout": 3600,  # the gateway's time-outs are shorter and cover slow bodies too
            "api_key": self._key.reveal() if self._key is not None else None,
            "api_base": self._base_url,
            "temperature": request.temperature,
            "seed": request.seed,
            "max_tokens": request.max_tokens,
            "n": request.n if request.n > 1 else None,
        }
        if (contract := request.contract) is not None:
            shape = {"name": contract.name, "strict": contract.strict, "schema": dict(contract.schema)}
            arguments["response_format"] = {"type": "json_schema", "json_schema": shape}
        return {name: value for name, value in arguments.items() if value is not None}

    def _clean(self, text: str) -> str:
        return scrub(text, self._secrets)


def _price(litellm: Any, response: Any, model: str) -> float | None:
    """US dollars by litellm's table; None for a model that is not in it."""
    try:
        price = float(litellm.completion_cost(completion_response=response, model=model))
    except Exception as error:  # noqa: BLE001 - the answer is paid for and good; the price is unknown, whatever failed
        _log.debug("no price for %s: %s", model, type(error).__name__)
        return None
    return price if math.isfinite(price) else None


class LiteLLM(GatewayLLM):
    """A model of any provider that litellm knows.

    Args:
        model: litellm's model string, provider first ("anthropic/claude-sonnet-4-5").
        api_key: key; None = the provider's environment variable.
        base_url: address of another server with the provider's protocol.
        retry, deadline, attempt_timeout, around_call, around_attempt: see GatewayLLM.
        prices: what models cost that litellm's table lacks, or at what price you get them.

    Raises:
        MissingKey: the provider's key is not in the environment (for the providers in KEY_VARIABLES).
        MissingExtra: at the first call, if litellm is not installed.
    """

    def __init__(
        self,
        model: str,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        retry: RetryPolicy | None = None,
        deadline: float = 300.0,
        attempt_timeout: float = 120.0,
        around_call: Sequence[Layer] = (),
        around_attempt: Sequence[Layer] = (),
        prices: Prices | None = None,
    ) -> None:
        variable = KEY_VARIABLES.get(model.partition("/")[0])
        if variable is not None and not api_key and not base_url and not os.environ.get(variable):
            raise errors.MissingKey(
                f"no key for {model}: set the environment variable {variable}, or pass api_key=...; "
                'a model without a key is "local"',
                variable=variable,
                provider="litellm",
            )
        backend = LiteLLMBackend(model, key=Secret(api_key) if api_key else None, base_url=base_url, prices=prices)
        super().__init__(
            backend,
            retry=retry,
            deadline=deadline,
            attempt_timeout=attempt_timeout,
            around_call=around_call,
            around_attempt=around_attempt,
        )
