"""What an OpenAI-compatible server sent to litellm, byte for byte.

litellm turns an odd answer (no usage, content in parts, an HTML page) into a failure of the server or into zeros. With
this client its requests stay its own, and the body is read by us, as for the openai client.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

from trace_core._lazy import require


class Received:
    """The body of the answer to one request, once it has come with a status of success."""

    __slots__ = ("limit", "overlong", "raw")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.raw: bytes | None = None
        self.overlong = False


_receiving: ContextVar[Received | None] = ContextVar("trace_core_litellm_body", default=None)


def receive(limit: int) -> Received:
    """Keep what the requests of this task get from now on, up to ``limit`` bytes."""
    kept = Received(limit)
    _receiving.set(kept)
    return kept


async def _keep(response: Any) -> None:
    kept = _receiving.get()
    if kept is None or not response.is_success:
        return
    response.stream = _limited(response.stream, kept)
    kept.raw = await response.aread()


def _limited(stream: Any, kept: Received) -> Any:
    httpx: Any = require("httpx", extra="litellm")

    class Limited(httpx.AsyncByteStream):  # type: ignore[misc]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for chunk in stream:
                size += len(chunk)
                if size > kept.limit:
                    kept.overlong = True
                    raise OSError("the answer is too long")
                yield chunk

        async def aclose(self) -> None:
            await stream.aclose()

    return Limited()


def watched_client(*, key: str, base_url: str | None) -> Any:
    """An openai client for litellm: it follows no redirect, retries nothing, and keeps the bodies."""
    import openai

    http = openai.DefaultAsyncHttpxClient(follow_redirects=False, event_hooks={"response": [_keep]})
    return openai.AsyncOpenAI(api_key=key, base_url=base_url, max_retries=0, timeout=None, http_client=http)
