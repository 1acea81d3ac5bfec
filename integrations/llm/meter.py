"""Counting calls, tokens and cost of a language model, by the role it was asked in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING

from trace_core.integrations.accounting import current_role
from trace_core.integrations.llm.prices import Prices, cost_of
from trace_core.integrations.llm.wrapping import Call, Exchange, Wrapper

if TYPE_CHECKING:
    from trace_core.integrations.llm.protocol import LLM, Completion


@dataclass
class Tally:
    """Sums over calls.

    Attributes:
        calls: completed calls; ``failed`` those that raised; ``cached`` those of the completed that sent no request.
        requests: requests sent by the completed calls, retries and repairs included.
        prompt_tokens, completion_tokens: what the servers reported.
        dollars: what the calls of known cost took; ``unpriced`` is how many were of unknown cost.
    """

    calls: int = 0
    failed: int = 0
    cached: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float = 0.0
    unpriced: int = 0

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def cost(self) -> float | None:
        """US dollars; None once a call's cost was unknown."""
        return None if self.unpriced else self.dollars

    def add(self, completion: Completion) -> None:
        """Count what a call used."""
        self.requests += completion.attempts
        self.cached += completion.attempts == 0
        self.prompt_tokens += completion.usage.prompt_tokens or 0
        self.completion_tokens += completion.usage.completion_tokens or 0
        self.dollars += completion.cost or 0.0
        self.unpriced += completion.cost is None

    def __str__(self) -> str:
        parts = [f"{self.calls} calls"]
        parts += [f"{self.cached} from the cache"] if self.cached else []
        parts += [f"{self.failed} failed"] if self.failed else []
        return ", ".join([*parts, f"{self.tokens:,} tokens", _dollars(self)])


def _dollars(tally: Tally) -> str:
    if not tally.unpriced:
        return f"${tally.dollars:.4f}"
    known = f"at least ${tally.dollars:.4f}, " if tally.dollars else ""
    return f"cost unknown ({known}{tally.unpriced} calls of unknown cost)"


class Metered(Wrapper):
    """An LLM that counts what another LLM does. Safe from many threads at once.

    Args:
        llm: a model by name or object.
        role: under which calls are counted; None = the role of the run they belong to (``workflow``, ``optimizer``,
            ``judge``; "" outside of one).
        prices: what models cost, by name; completions of unknown cost get it from there.

    Attributes:
        total: the sums over all calls; ``calls``, ``failed``, ``tokens``, ``cost`` and so on are its.
    """

    def __init__(self, llm: LLM | str, role: str | None = None, *, prices: Prices | None = None) -> None:
        super().__init__(llm)
        self._lock = Lock()
        self._role = role
        self._prices = prices
        self._roles: dict[str, Tally] = {}
        self.total = Tally()

    @property
    def by_role(self) -> Mapping[str, Tally]:
        """The sums of each role that made a call."""
        with self._lock:
            return {role: replace(tally) for role, tally in sorted(self._roles.items())}

    def _around(self, call: Call) -> Exchange:
        role = current_role() if self._role is None else self._role
        try:
            completion: Completion = yield call
        except Exception as error:
            with self._lock:
                for tally in self._tallies(role):
                    tally.failed += 1
                    spent = getattr(error, "completion", None)
                    if spent is not None:  # an answer that did not fit was paid for, too
                        tally.add(self._priced(spent))
            raise
        completion = self._priced(completion)
        with self._lock:
            for tally in self._tallies(role):
                tally.calls += 1
                tally.add(completion)
        return completion

    def _tallies(self, role: str) -> tuple[Tally, Tally]:
        return self.total, self._roles.setdefault(role, Tally())

    def _priced(self, completion: Completion) -> Completion:
        if completion.cost is not None or self._prices is None:
            return completion
        for model in (completion.model, self.model):
            if (cost := cost_of(model, completion.usage, self._prices)) is not None:
                return replace(completion, cost=cost)
        return completion

    @property
    def calls(self) -> int:
        """Completed calls."""
        return self.total.calls

    @property
    def failed(self) -> int:
        """Calls that raised."""
        return self.total.failed

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts, as far as servers reported them."""
        return self.total.prompt_tokens

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answers, as far as servers reported them."""
        return self.total.completion_tokens

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.total.tokens

    @property
    def cost(self) -> float | None:
        """US dollars; None once a call's cost was unknown."""
        return self.total.cost
