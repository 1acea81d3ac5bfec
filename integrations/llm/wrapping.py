"""What wrappers around a language model share: one description of what they do, for blocking and async calls.

A wrapper is a generator. It yields the Call to make, or seconds to wait, and is sent the Completion, or has the error
thrown in; what it returns is the result. So caches, recorders and breakers know nothing of threads and event loops.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from trace_core.integrations.llm.conversation import checked_messages
from trace_core.integrations.llm.protocol import LLM, Completion, Message

if TYPE_CHECKING:
    from typing import Self

    from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one ``complete``."""

    messages: tuple[Message, ...]
    schema: type[BaseModel] | None = None
    n: int = 1
    temperature: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    repair: bool = True

    def options(self) -> dict[str, Any]:
        """Everything but the messages, by name."""
        names = ("schema", "n", "temperature", "seed", "max_tokens", "repair")
        return {name: getattr(self, name) for name in names}


Exchange: TypeAlias = Generator[Call | float, Any, Completion]


@dataclass(frozen=True)
class Clock:
    """How time passes; tests put in one that does not wait."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    asleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class Wrapper:
    """An LLM around another one. Subclasses say in ``_around`` what they do; everything else is passed through.

    Args:
        llm: a model by name or object.
        clock: for tests.
    """

    def __init__(self, llm: LLM | str, *, clock: Clock | None = None) -> None:
        from trace_core.integrations.llm.resolve import resolve_llm

        self._llm = resolve_llm(llm)
        self._clock = clock or Clock()
        self.model = self._llm.model

    def _around(self, call: Call) -> Exchange:
        raise NotImplementedError

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
        """See LLM.complete."""
        steps = self._around(Call(checked_messages(messages), schema, n, temperature, seed, max_tokens, repair))
        try:
            step = next(steps)
            while True:
                if isinstance(step, Call):
                    try:
                        done = self._send(step)
                    except BaseException as error:  # noqa: BLE001 - the wrapper sees it, and raises it again
                        step = steps.throw(error)
                    else:
                        step = steps.send(done)
                else:
                    self._clock.sleep(step)
                    step = steps.send(None)
        except StopIteration as stop:
            result: Completion = stop.value
            return result
        finally:
            steps.close()

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
        """See LLM.complete."""
        steps = self._around(Call(checked_messages(messages), schema, n, temperature, seed, max_tokens, repair))
        try:
            step = next(steps)
            while True:
                if isinstance(step, Call):
                    try:
                        done = await self._asend(step)
                    except BaseException as error:  # noqa: BLE001 - the wrapper sees it, and raises it again
                        step = steps.throw(error)
                    else:
                        step = steps.send(done)
                else:
                    await self._clock.asleep(step)
                    step = steps.send(None)
        except StopIteration as stop:
            result: Completion = stop.value
            return result
        finally:
            steps.close()

    def _send(self, call: Call) -> Completion:
        return self._llm.complete(call.messages, **call.options())

    async def _asend(self, call: Call) -> Completion:
        return await self._llm.acomplete(call.messages, **call.options())

    def count_tokens(self, text: str) -> int | None:
        """See LLM.count_tokens."""
        return self._llm.count_tokens(text)

    def describe(self) -> str:
        """One line for people, the wrapped model's own."""
        return str(self._llm.describe()) if hasattr(self._llm, "describe") else self.model

    def __repr__(self) -> str:
        return f"<{type(self).__name__} around {self._llm!r}>"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        """The same object: a copied workflow goes on with the same cache, limits and counts."""
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._llm, name)
