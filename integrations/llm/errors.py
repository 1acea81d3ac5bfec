"""What can go wrong between a prompt and a usable answer. One class for each thing a caller may want to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trace_core.errors import TraceCoreError

if TYPE_CHECKING:
    from trace_core.integrations.llm.protocol import Completion


class LLMError(TraceCoreError):
    """Root of every error of the LLM gateway.

    Attributes:
        provider: who was asked ("openai", "litellm", "local", "scripted"); None before a provider was chosen.
        model: model name as given by the caller.
        status: HTTP status of the last answer; None where no answer came.
        retry_after: seconds the server asked to wait; None where it did not say.
        attempts: requests sent for this call, retries and repairs included.
    """

    def __init__(
        self,
        message: str = "",
        *,
        provider: str | None = None,
        model: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
        attempts: int = 0,
    ) -> None:
        super().__init__(message)
        self.provider = provider
        self.model = model
        self.status = status
        self.retry_after = retry_after
        self.attempts = attempts

    def __str__(self) -> str:
        facts = []
        if self.provider and self.model:
            facts.append(f"{self.provider}, {self.model}")
        if self.status is not None:
            facts.append(f"HTTP {self.status}")
        if self.attempts > 1:
            facts.append(f"{self.attempts} requests sent")
        message = super().__str__()
        return f"{message} [{'; '.join(facts)}]" if facts else message


class Transient(LLMError):
    """The same request may well succeed later: server errors, lost connections, time-outs. Retried a few times."""


class RateLimited(Transient):
    """The server asks to slow down."""


class WaitTooLong(RateLimited):
    """The server asks for a longer pause than the retry policy's ``max_wait``: stop, and go on later."""


class CircuitOpen(Transient):
    """Not sent: the last calls all failed, and the circuit breaker waits before it tries again."""


class Deadline(Transient):
    """The total time allowed for one call is used up, retries and pauses included."""


class Fatal(LLMError):
    """Every further call would fail the same way: stop the run and tell the user."""


class AuthenticationFailed(Fatal):
    """The key is wrong, or not allowed to use this model (HTTP 401, 403)."""


class QuotaExceeded(Fatal):
    """The account has no credit left (HTTP 402, or 429 with a quota code)."""


class NotFound(Fatal):
    """No such model or endpoint (HTTP 404)."""


class BadRequest(Fatal):
    """The server, or this library before sending, refused the request as it stands (HTTP 400 and other 4xx)."""


class MissingKey(Fatal):
    """No API key. ``variable`` is the environment variable that would hold it."""

    def __init__(self, message: str = "", *, variable: str = "", provider: str | None = None) -> None:
        super().__init__(message, provider=provider)
        self.variable = variable


class UnknownModel(Fatal, ValueError):
    """The string or object given as LLM has no known form; the message lists the valid ones."""


class LocalServerError(Fatal):
    """The local model could not be started: file missing or unreadable, runtime failed, not ready in time."""


class ModelFetchError(LLMError):
    """A model file could not be fetched or does not have the pinned checksum."""


class ScriptError(Fatal):
    """A ScriptedLLM has no answer for the request it got."""


class Unavailable(Fatal):
    """The model failed several times in a row, each time after its retries: the run stops instead of going on empty."""


class CassetteError(Fatal):
    """A cassette file cannot be read or written; the message names it."""


class UnseenRequest(CassetteError):
    """A request that the cassette does not hold; the message says in what it differs from the most similar one."""


class Unusable(LLMError):
    """An answer came and does not fit.

    Attributes:
        completion: the last answer with what all requests of the call used; None where no text came.
    """

    completion: Completion | None = None


class Malformed(Unusable):
    """An answer came and cannot be used: no JSON, no text, or not what the schema asks for."""


class Truncated(Unusable):
    """The answer stops before its end; the message says where."""


class Refused(LLMError):
    """The model or the provider's content filter declined to answer."""


class ContextTooLong(LLMError):
    """The prompt does not fit the model's context window: shorten it."""
