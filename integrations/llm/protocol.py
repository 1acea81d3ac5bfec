"""The data of one LLM call and the protocols around it.

Two levels. An ``LLM`` is what optimizers and workflows hold: messages in, Completion out, with retries, parsing and
repair done. A ``Backend`` is one provider's wire format: one Request out, one Answer back or an LLMError, no retries.
A ``Layer`` wraps a ``Send`` in another; caches, recorders, meters and rate limits are layers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, TypedDict, runtime_checkable

if TYPE_CHECKING:
    from pydantic import BaseModel


class Message(TypedDict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


def _sum(left: int | None, right: int | None) -> int | None:
    return None if left is None or right is None else left + right


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a call. None means that the server did not say, which is not zero."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            _sum(self.prompt_tokens, other.prompt_tokens),
            _sum(self.completion_tokens, other.completion_tokens),
            _sum(self.cached_tokens, other.cached_tokens),
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """The result of one call.

    Attributes:
        text: first sample.
        texts: all ``n`` samples; one only if none of them fitted the schema and the repair did.
        parsed: first sample that fits the schema; None without a schema.
        usage: tokens over all requests this call needed, repairs included.
        cost: US dollars over all requests; None = unknown, 0.0 = free (local).
        model: model as named by the server, else by the caller.
        finish_reason: of the first sample: "stop", or "length" where ``max_tokens`` ended it.
        attempts: requests sent, retries and repairs included.
        seconds: wall-clock time, without the start of a local server.
        parsed_all: one entry per text, None where that sample does not fit the schema; () without a schema.
    """

    text: str
    texts: tuple[str, ...]
    parsed: BaseModel | None
    usage: Usage
    cost: float | None
    model: str
    finish_reason: str = "stop"
    attempts: int = 1
    seconds: float = 0.0
    parsed_all: tuple[BaseModel | None, ...] = ()


@runtime_checkable
class LLM(Protocol):
    """What optimizers and workflows need of a language model. Thread-safe; one object serves many callers at once."""

    model: str

    def complete(
        self,
        messages: Sequence[Message],
        *,
        schema: type[BaseModel] | None = None,
        n: int = 1,
        temperature: float | None = None,
        seed: int | None = None,
        max_tokens: int | None = None,
        repair: bool = True,
    ) -> Completion:
        """Answer ``messages``. Works inside a running event loop too (it blocks that loop).

        Args:
            messages: the conversation; static text first, so that prefix caches serve it.
            schema: pydantic model the answer must fit; the result is in ``parsed``.
            n: number of independent samples.
            temperature: sampling temperature; None = the provider's default.
            seed: for repeatable sampling where the provider offers it.
            max_tokens: upper limit of each sample's length. Without a schema, text cut by it is returned with
                finish_reason "length"; with a schema the call is retried once with twice the room.
            repair: whether an answer that does not fit the schema is asked for once more with the error shown. Without,
                Malformed is raised at once; it holds the answer.

        Raises:
            LLMError: see trace_core.integrations.llm.errors.
        """
        ...

    async def acomplete(
        self,
        messages: Sequence[Message],
        *,
        schema: type[BaseModel] | None = None,
        n: int = 1,
        temperature: float | None = None,
        seed: int | None = None,
        max_tokens: int | None = None,
        repair: bool = True,
    ) -> Completion:
        """Like ``complete``, for coroutines."""
        ...

    def count_tokens(self, text: str) -> int | None:
        """Length of ``text`` by the model's own tokenizer; None where that cannot be had offline."""
        ...


@dataclass(frozen=True, slots=True)
class Contract:
    """A JSON schema in the form a server is asked to enforce.

    Attributes:
        name: short identifier, letters, digits, ``_`` and ``-`` only.
        schema: JSON schema of the answer.
        strict: False where the schema says things strict mode cannot express (open dictionaries, Any).
    """

    name: str
    schema: Mapping[str, object]
    strict: bool = True


@dataclass(frozen=True, slots=True)
class Request:
    """One request on the wire; ``contract`` asks the server to enforce a JSON schema while generating."""

    messages: tuple[Message, ...]
    n: int = 1
    temperature: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    contract: Contract | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One generated text and why it ended."""

    text: str
    finish_reason: str = "stop"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one Request: at least one sample, perhaps fewer than asked for."""

    samples: tuple[Sample, ...]
    usage: Usage = field(default_factory=Usage)
    cost: float | None = None
    model: str = ""


Send: TypeAlias = Callable[[Request], Awaitable[Answer]]
Layer: TypeAlias = Callable[[Send], Send]


class Backend(Protocol):
    """One provider's wire format. Used from one event loop only, by many tasks at once."""

    provider: str
    model: str

    async def prepare(self) -> None:
        """Whatever must be ready before the clock of a call starts (a local server). Cheap when it is."""
        ...

    async def send(self, request: Request) -> Answer:
        """Send once. Raises LLMError, never anything of the client library, and never with a secret in it."""
        ...

    def contract(self, schema: type[BaseModel]) -> Contract | None:
        """The schema in the form this server enforces; None where it is to be asked for in words."""
        ...

    def max_samples(self) -> int | None:
        """The most samples one request may ask for; None = no limit known."""
        ...

    def count_tokens(self, text: str) -> int | None:
        """See LLM.count_tokens."""
        ...

    def describe(self) -> str:
        """One line for people: which model, where."""
        ...
