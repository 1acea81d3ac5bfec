"""A GGUF model on this machine, without network: llama.cpp's server in a child process, asked over loopback."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from trace_core.integrations.llm import errors
from trace_core.integrations.llm.gateway import GatewayLLM
from trace_core.integrations.llm.local_server import (
    LocalServer,
    ServerSettings,
    check_runtime,
    cores,
    shared_server,
)
from trace_core.integrations.llm.loop import in_daemon_thread
from trace_core.integrations.llm.models import DEFAULT_MODEL, MODELS, fetch_model, model_path
from trace_core.integrations.llm.openai_llm import OpenAIBackend
from trace_core.integrations.llm.protocol import Answer, Contract, Layer, Request
from trace_core.integrations.llm.strict_schema import contract_of

if TYPE_CHECKING:
    from pydantic import BaseModel

    from trace_core.integrations.llm.models import FetchProgress
    from trace_core.integrations.llm.retry import RetryPolicy


class LocalBackend:
    """A model file behind a server of this process, which is started by the first call and shared."""

    provider = "local"

    def __init__(
        self,
        model: str | Path,
        *,
        context: int,
        threads: int,
        slots: int,
        cache_mib: int,
        fetch: bool,
        progress: Callable[[FetchProgress], None] | None,
        startup_timeout: float,
    ) -> None:
        self._known = MODELS.get(str(model))
        self._path = None if self._known else Path(model).expanduser().absolute()
        self.model = self._known.name if self._known else Path(model).stem
        self._context, self._threads, self._slots, self._cache_mib = context, threads, slots, cache_mib
        self._fetch, self._progress = fetch, progress
        self._startup_timeout = startup_timeout
        self._server: LocalServer | None = None
        self._wire: tuple[str, OpenAIBackend] | None = None
        self._counted = lru_cache(maxsize=1024)(self._tokenize)

    # --- the Backend protocol ---------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Start the server if it is not running: seconds for the first call, not counted by its deadline."""
        if self._server is None or not self._server.running:
            await in_daemon_thread(self._ensure)

    async def send(self, request: Request) -> Answer:
        """Send once; see Backend.send. A server that died meanwhile is started again."""
        if self._server is None or not self._server.running:
            await in_daemon_thread(self._ensure)
        answer = await self._open(self._ensure()).send(request)
        return Answer(answer.samples, answer.usage, 0.0, self.model)

    def contract(self, schema: type[BaseModel]) -> Contract | None:
        """The schema with the keywords that llama.cpp's grammars know."""
        return contract_of(schema, "llama")

    def max_samples(self) -> int | None:
        """As many as there are slots; the server refuses more."""
        return self._slots

    def count_tokens(self, text: str) -> int | None:
        """By the model's own tokenizer. Starts the server."""
        return self._counted(text)

    def describe(self) -> str:
        """ "local Qwen2.5-Coder-1.5B-Instruct Q4 (1.1 GB) on 2 cores"."""
        if self._known is not None:
            title, size = self._known.title, self._known.size
        else:
            path = self._path or Path()
            title, size = path.stem, path.stat().st_size if path.is_file() else 0
        room = f" ({size / 1e9:.1f} GB)" if size >= 5e7 else ""
        return f"local {title}{room} on {self._threads} core{'s' if self._threads != 1 else ''}"

    def start(self) -> None:
        """Start the server if it is not running."""
        self._ensure()

    @property
    def pid(self) -> int | None:
        """Process id of the server; None while there is none."""
        return self._server.pid if self._server is not None else None

    # --- the server -------------------------------------------------------------------------------------------------

    def _ensure(self) -> str:
        if self._server is None:
            check_runtime()
            settings = ServerSettings(self._file(), self._context, self._threads, self._slots, self._cache_mib)
            self._server = shared_server(settings, self._startup_timeout)
        return self._server.ensure()

    def _file(self) -> Path:
        if self._known is None:
            return self._path or Path()
        if self._fetch:
            return fetch_model(self._known.name, progress=self._progress)
        path = model_path(self._known.name)
        if path is None:
            raise errors.LocalServerError(
                f"the model {self._known.name} ({self._known.size / 1e9:.1f} GB) is not on this machine yet. Fetch it "
                f"once with `trace-core model fetch {self._known.name}` or LocalLLM(fetch=True), or name a file of "
                'your own: "local:/path/to/model.gguf"',
                provider="local",
            )
        return path

    def _open(self, address: str) -> OpenAIBackend:
        if self._wire is None or self._wire[0] != address:
            token = self._server.token if self._server is not None else None
            wire = OpenAIBackend(
                self.model,
                base_url=f"{address}/v1",
                key=token,
                provider="local",
                dialect="llama",
                extra={"cache_prompt": True},
                trust_env=False,
            )
            self._wire = (address, wire)
        return self._wire[1]

    def _tokenize(self, text: str) -> int:
        from urllib.error import URLError
        from urllib.request import ProxyHandler, Request, build_opener

        address = self._ensure()
        headers = {"Content-Type": "application/json"}
        if self._server is not None:
            headers["Authorization"] = f"Bearer {self._server.token.reveal()}"
        body = json.dumps({"content": text, "add_special": False}).encode()
        fault: errors.LLMError
        try:
            with build_opener(ProxyHandler({})).open(
                Request(f"{address}/tokenize", body, headers), timeout=60
            ) as reply:
                return len(json.load(reply)["tokens"])
        except (URLError, OSError, ValueError, KeyError) as error:
            fault = errors.Transient(f"the local server did not count tokens: {error}", provider="local")
        raise fault


class LocalLLM(GatewayLLM):
    """A model that runs on this machine and costs nothing. Objects with equal settings share one server process.

    Args:
        model: a name known to ``fetch_model``, or the path of a GGUF file.
        context: tokens of prompt and answer together.
        threads: CPU threads; None = all cores.
        slots: requests generated at the same time; further ones wait their turn. One is best where prompts change: each
            slot reads a shared prefix anew. More pay off for many concurrent short calls that share a long prefix.
        cache_mib: memory for the states of earlier prompts, in MiB: alternating prompts need not be read again.
        fetch: download a known model that is not there yet, at the first call. Else that is an error.
        progress: told about the download, see ``fetch_model``.
        startup_timeout: seconds until the server must be ready.
        retry, deadline, attempt_timeout, around_call, around_attempt: see GatewayLLM.
    """

    is_local = True

    def __init__(
        self,
        model: str | Path = DEFAULT_MODEL,
        *,
        context: int = 8192,
        threads: int | None = None,
        slots: int = 1,
        cache_mib: int = 512,
        fetch: bool = False,
        progress: Callable[[FetchProgress], None] | None = None,
        startup_timeout: float = 300.0,
        retry: RetryPolicy | None = None,
        deadline: float = 1800.0,
        attempt_timeout: float = 900.0,
        around_call: Sequence[Layer] = (),
        around_attempt: Sequence[Layer] = (),
    ) -> None:
        for name, value in (("context", context), ("slots", slots), ("threads", 1 if threads is None else threads)):
            if value < 1:
                raise errors.BadRequest(f"{name}: expected at least 1, got {value}", provider="local")
        backend = LocalBackend(
            model,
            context=context,
            threads=threads or cores(),
            slots=slots,
            cache_mib=cache_mib,
            fetch=fetch,
            progress=progress,
            startup_timeout=startup_timeout,
        )
        self._local = backend
        super().__init__(
            backend,
            retry=retry,
            deadline=deadline,
            attempt_timeout=attempt_timeout,
            around_call=around_call,
            around_attempt=around_attempt,
        )

    def start(self) -> None:
        """Start the server now rather than with the first call."""
        self._local.start()

    @property
    def pid(self) -> int | None:
        """Process id of the server; None while there is none."""
        return self._local.pid
