"""What a provider's error means, as one of our errors. Shared by every backend that speaks the OpenAI protocol."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from trace_core.integrations.llm import errors

if TYPE_CHECKING:
    import openai

_LONGEST_MESSAGE = 600
_NO_CREDIT = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance"}
_TOO_LONG_CODES = {"context_length_exceeded", "exceed_context_size_error", "context_window_exceeded"}
_TOO_LONG_WORDS = re.compile(
    r"context[ _](length|window|size)|maximum context|prompt is too long|input is too long|too many (input )?tokens",
    re.IGNORECASE,
)
_FILTERED = {"content_filter", "content_policy_violation", "responsibleaipolicyviolation"}
_LATER = {408, 409, 425}


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "…"


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """The pause a server asks for, in seconds, from ``retry-after-ms`` or ``retry-after`` (seconds or a date)."""
    import math

    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            seconds = float(text) * unit
        except ValueError:
            seconds = _until(text)
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    return None


def _until(date: str) -> float:
    import time
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(date).timestamp() - time.time())
    except ValueError:
        return float("nan")


def says_no_credit(text: str) -> bool:
    """Whether a message holds one of the codes for an account without credit."""
    return any(code in text.lower() for code in _NO_CREDIT)


def classify(
    status: int | None, body: object, *, message: str = "", retry_after: float | None = None
) -> errors.LLMError:
    """The error for an HTTP status and the error object in the body (``{"message", "type", "code", ...}``)."""
    if isinstance(body, Mapping) and isinstance(body.get("error"), Mapping):
        body = body["error"]
    fields = body if isinstance(body, Mapping) else {}
    words = {str(fields.get(key)).lower() for key in ("code", "type") if fields.get(key) is not None}
    said = _short(str(fields.get("message") or message or "no message"))
    kind, text = _kind(status, words, said)
    return kind(text, status=status, retry_after=retry_after)


def _kind(status: int | None, words: set[str], said: str) -> tuple[type[errors.LLMError], str]:
    if words & _NO_CREDIT or status == 402:
        return errors.QuotaExceeded, f"the account has no credit left: {said}"
    if status == 429:
        return errors.RateLimited, f"too many requests: {said}"
    if status in (401, 403):
        return errors.AuthenticationFailed, f"the key was refused, check it and what it may use: {said}"
    if status == 404:
        return errors.NotFound, f"no such model or address: {said}"
    if status is None or status >= 500 or status in _LATER:
        return errors.Transient, f"the server failed: {said}"
    if 300 <= status < 400:
        text = "the server redirects and redirects are not followed (the key would go along): give the final base_url"
        return errors.BadRequest, text
    if words & _TOO_LONG_CODES or status == 413 or _TOO_LONG_WORDS.search(said):
        return errors.ContextTooLong, f"the prompt is too long for the model: {said}"
    if words & _FILTERED:
        return errors.Refused, f"refused by the content filter: {said}"
    return errors.BadRequest, f"the request was refused: {said}"


def from_client_error(error: openai.APIError, clean: Callable[[str], str]) -> errors.LLMError:
    """Our error for one of the openai client's (litellm's derive from them).

    Raise the result outside the ``except`` block that caught ``error``: the original holds the request with its key,
    and its text may quote the key, so it is not chained. ``clean`` masks secrets in what is kept.
    """
    import openai

    if isinstance(error, openai.APITimeoutError):
        return errors.Transient("no answer in time")
    status = getattr(error, "status_code", None)
    status = status if isinstance(status, int) else None
    if isinstance(error, openai.APIConnectionError) and not isinstance(error, openai.APIStatusError):
        cause = error.__cause__
        detail = f"{type(cause).__name__}: {cause}" if cause is not None else str(error)
        return errors.Transient(_short(clean(f"the connection failed: {detail}")), status=_wire_status(status))
    pause = _pause(error)
    body = error.body if isinstance(error.body, Mapping) else {"message": str(error), "code": error.code}
    return classify(status, _cleaned(body, clean), message=clean(str(error)), retry_after=pause)


def _cleaned(body: Mapping[str, object], clean: Callable[[str], str]) -> dict[str, object]:
    """The error object without secrets, before anything is cut from it: half a key is still too much of it."""
    inner = body.get("error")
    fields = inner if isinstance(inner, Mapping) else body
    return {str(name): clean(value) if isinstance(value, str) else value for name, value in fields.items()}


def _pause(error: openai.APIError) -> float | None:
    """The pause asked for; litellm keeps the server's headers beside an empty response."""
    response = getattr(error, "response", None)
    for headers in (getattr(error, "litellm_response_headers", None), getattr(response, "headers", None)):
        pause = retry_after_seconds(headers) if isinstance(headers, Mapping) else None
        if pause is not None:
            return pause
    return None


def _wire_status(status: int | None) -> int | None:
    """litellm invents a status for connections that failed; only a plausible client-visible one is kept."""
    return status if status is not None and status >= 400 and status != 500 else None


def is_connection_fault(error: BaseException) -> bool:
    """Whether ``error`` comes from the connection while a body is being read: there the client wraps nothing.

    Told by the module that defines it, so that no HTTP library is imported or named in a type.
    """
    if isinstance(error, OSError | EOFError):
        return True
    root = type(error).__module__.partition(".")[0]
    return root.startswith(("httpx", "httpcore", "h11", "h2", "anyio", "aiohttp"))
