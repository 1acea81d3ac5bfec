"""Any server that speaks the OpenAI chat completions protocol: OpenAI itself, vLLM, Ollama, gateways, ours.

Written against the openai client 2.x and 3.x, which use different HTTP libraries: no type of either is named here.
The body is read in chunks up to a limit and decoded by us, so that an odd or endless answer is an error of ours.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from trace_core.integrations.llm import errors
from trace_core.integrations.llm.faults import from_client_error, is_connection_fault
from trace_core.integrations.llm.gateway import GatewayLLM
from trace_core.integrations.llm.prices import Prices, cost_of
from trace_core.integrations.llm.protocol import Answer, Contract, Layer, Request
from trace_core.integrations.llm.secrets import Secret, scrub, scrub_bytes
from trace_core.integrations.llm.strict_schema import Dialect, contract_of
from trace_core.integrations.llm.wire import MAX_BODY, read_answer, read_body

if TYPE_CHECKING:
    import openai
    from pydantic import BaseModel

    from trace_core.integrations.llm.retry import RetryPolicy

OPENAI_HOST = "api.openai.com"

_log = logging.getLogger(__name__)
_ADAPTABLE = {"temperature", "seed", "max_tokens"}


class OpenAIBackend:
    """One model behind one base URL.

    Args:
        model: model name as the server knows it.
        base_url: address up to and including the version ("http://127.0.0.1:8000/v1").
        key: API key; None sends a placeholder, for servers that want none.
        provider: name used in errors.
        dialect: which JSON schema keywords the server's constrained decoding knows.
        extra: further fields of the request body.
        prices: what models cost; None = litellm's table for OpenAI itself, unknown for others.
        trust_env: whether proxy settings of the environment apply (never for a loopback server of ours).
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        key: Secret | None,
        provider: str = "openai",
        dialect: Dialect = "openai",
        extra: dict[str, object] | None = None,
        prices: Prices | None = None,
        trust_env: bool = True,
    ) -> None:
        self.provider = provider
        self.model = model
        self._base_url = base_url
        self._key = key
        parts = urlsplit(base_url)
        self._host = parts.hostname or base_url
        self._secrets = [key, Secret(parts.password) if parts.password else None]
        self._dialect: Dialect = dialect
        self._extra = extra or {}
        self._prices = {} if prices is None and self._host == OPENAI_HOST else prices
        self._trust_env = trust_env
        self._limit_name = "max_completion_tokens" if self._host == OPENAI_HOST else "max_tokens"
        self._dropped: set[str] = set()
        self._client: tuple[asyncio.AbstractEventLoop, openai.AsyncOpenAI] | None = None

    async def prepare(self) -> None:
        """Nothing to do: connections are opened by the first request."""

    def describe(self) -> str:
        """One line for people."""
        return f"{self.model} at {self._host}"

    def count_tokens(self, text: str) -> int | None:
        """None: no tokenizer is known to be there without a download."""
        return None

    def max_samples(self) -> int | None:
        """No limit known; servers that take only one are found out."""
        return None

    def contract(self, schema: type[BaseModel]) -> Contract | None:
        """The schema in this server's dialect."""
        return contract_of(schema, self._dialect)

    async def send(self, request: Request) -> Answer:
        """Send once; see Backend.send. A parameter that the model does not know is left out from then on."""
        body = self._body(request)
        try:
            return await self._post(body, request)
        except _ParameterRefused as refusal:
            self._adapt(refusal.parameter)
            fault = refusal.fault
        body = self._body(request)
        try:
            return await self._post(body, request)
        except _ParameterRefused as refusal:
            fault = refusal.fault
        raise fault

    def _body(self, request: Request) -> dict[str, object]:
        body: dict[str, object] = dict(self._extra)
        body.update(model=self.model, messages=list(request.messages))
        if request.n > 1:
            body["n"] = request.n
        for name, value in (("temperature", request.temperature), ("seed", request.seed)):
            if value is not None and name not in self._dropped:
                body[name] = value
        if request.max_tokens is not None:
            body[self._limit_name] = request.max_tokens
        if (contract := request.contract) is not None:
            shape = {"name": contract.name, "strict": contract.strict, "schema": dict(contract.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": shape}
        return body

    def _adapt(self, parameter: str) -> None:
        if parameter == "max_tokens":
            self._limit_name = "max_completion_tokens"
            return
        _log.warning("%s does not take the parameter %s: it is left out from now on", self.model, parameter)
        self._dropped.add(parameter)

    async def _post(self, body: dict[str, object], request: Request) -> Answer:
        import openai

        arguments: Any = {"extra_body": body, **{name: body[name] for name in ("model", "messages")}}
        fault: errors.LLMError
        try:
            # Everything goes through extra_body: the client's own parameters would be checked against its types.
            async with self._open().chat.completions.with_streaming_response.create(**arguments) as response:
                raw = await _read(response.iter_bytes(), MAX_BODY * request.n)
        except openai.APIError as error:
            parameter, fault = getattr(error, "param", None), from_client_error(error, self._clean)
            refused = getattr(error, "code", None) in ("unsupported_value", "unsupported_parameter")
            if refused and parameter in _ADAPTABLE & body.keys():
                fault = _ParameterRefused(str(parameter), fault)
        except openai.OpenAIError as error:
            fault = errors.BadRequest(self._clean(f"the openai client refused the request: {error}"))
        except Exception as error:
            if not is_connection_fault(error):
                raise
            fault = errors.Transient(self._clean(f"the connection was lost: {type(error).__name__}: {error}"))
        else:
            answer = read_answer(read_body(scrub_bytes(raw, self._secrets)), request)
            return answer if self._prices is None else replace(answer, cost=self._cost(answer))
        raise fault

    def _cost(self, answer: Answer) -> float | None:
        """Dollars, by the name the server gives the model, else by the caller's."""
        served = cost_of(answer.model, answer.usage, self._prices) if answer.model else None
        return cost_of(self.model, answer.usage, self._prices) if served is None else served

    def _clean(self, text: str) -> str:
        return scrub(text, self._secrets)

    def _open(self) -> openai.AsyncOpenAI:
        """The client of the running loop: its connections cannot be used from another one (after a fork)."""
        import openai

        loop = asyncio.get_running_loop()
        if self._client is None or self._client[0] is not loop:
            http = openai.DefaultAsyncHttpxClient(follow_redirects=False, trust_env=self._trust_env)
            client = openai.AsyncOpenAI(
                api_key=self._key.reveal() if self._key is not None else "none",
                base_url=self._base_url,
                max_retries=0,
                timeout=None,  # the gateway's attempt time-out covers connecting, waiting and slow bodies alike
                http_client=http,
            )
            self._client = (loop, client)
        return self._client[1]


class _ParameterRefused(errors.LLMError):
    """Internal: the model does not know a parameter that can be left out or renamed."""

    def __init__(self, parameter: str, fault: errors.LLMError) -> None:
        super().__init__(str(fault))
        self.parameter = parameter
        self.fault = fault


async def _read(chunks: Any, limit: int) -> bytes:
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > limit:
            raise errors.Malformed(f"the answer is longer than {limit} bytes: the rest was not read")
    return bytes(body)


class OpenAILLM(GatewayLLM):
    """A model of OpenAI, or of any server with the same protocol.

    Args:
        model: model name ("gpt-4.1-mini").
        api_key: key; None = environment variable OPENAI_API_KEY.
        base_url: address of another server; None = environment variable OPENAI_BASE_URL, else OpenAI's.
        retry, deadline, attempt_timeout, around_call, around_attempt: see GatewayLLM.
        prices: what models cost, by name; None = litellm's table for OpenAI itself, unknown for other servers.

    Raises:
        MissingKey: no key, and the server is OpenAI's. Other servers may want none.
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
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or f"https://{OPENAI_HOST}/v1"
        api_key = api_key or os.environ.get("OPENAI_API_KEY")
        if not api_key and urlsplit(base_url).hostname == OPENAI_HOST:
            raise errors.MissingKey(
                f"no key for {model}: set the environment variable OPENAI_API_KEY, or pass api_key=...; "
                'a model without a key is "local"',
                variable="OPENAI_API_KEY",
                provider="openai",
            )
        backend = OpenAIBackend(model, base_url=base_url, key=Secret(api_key) if api_key else None, prices=prices)
        super().__init__(
            backend,
            retry=retry,
            deadline=deadline,
            attempt_timeout=attempt_timeout,
            around_call=around_call,
            around_attempt=around_attempt,
        )
