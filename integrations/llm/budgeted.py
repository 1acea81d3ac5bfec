"""A budget around one language model: its requests are reserved before they are sent, and settled after."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from trace_core.integrations.accounting import ANSWER_TOKENS, current_role, estimate_of
from trace_core.integrations.budget import Budget, Cost
from trace_core.integrations.llm.errors import Refused, Unusable
from trace_core.integrations.llm.guarding import Guard, Guarded, Outcome
from trace_core.integrations.llm.prices import Price, Prices, price_of
from trace_core.integrations.llm.wrapping import Call, Exchange

if TYPE_CHECKING:
    from trace_core.integrations.llm.protocol import LLM, Request

# What a call of an LLM that is not ours may take at most, in estimates of one request: asking twice, the second time
# with twice the room for the answer.
_ONCE_MORE = 3


class Budgeted(Guarded):
    """An LLM with a budget of its own, beside that of the run: a judge that may spend a dollar, say.

    A request that does not fit what is left raises BudgetExhausted and is not sent. Under a limit of tokens or dollars
    an answer without ``max_tokens`` gets one, as no reservation could hold otherwise.

    Args:
        llm: a model by name or object.
        budget: may be shared by several models.
        role: under which the spending is noted; None = the role of the run.
        prices: what models cost, by name, where litellm's table does not say.
    """

    def __init__(
        self, llm: LLM | str, budget: Budget, *, role: str | None = None, prices: Prices | None = None
    ) -> None:
        super().__init__(llm)
        self.budget = budget
        self._role = role
        free = getattr(self._llm, "is_local", False)
        self._prices = {self.model: Price(0.0, 0.0)} if free else prices

    def _around(self, call: Call) -> Exchange:
        if self.budget.limits_answers and call.max_tokens is None:
            call = replace(call, max_tokens=ANSWER_TOKENS)
        return (yield from super()._around(call))

    def _guard(self, request: Request, whole: bool = False) -> Guard:
        estimate = estimate_of(request, self.model, None, lambda model: price_of(model, self._prices))
        if whole:
            usd = None if estimate.usd is None else _ONCE_MORE * estimate.usd
            estimate = Cost(usd, _ONCE_MORE * estimate.tokens, 2)
        reserved = self.budget.reserve(estimate, current_role() if self._role is None else self._role)
        with reserved:
            outcome = yield None
            if outcome is not None and (actual := _actual(outcome, estimate)) is not None:
                reserved.settle(actual)


def _actual(outcome: Outcome, estimate: Cost) -> Cost | None:
    """What was spent; None where nothing was answered, so nothing was paid."""
    error = outcome.error
    if error is not None and isinstance(error, Exception) and not isinstance(error, Unusable | Refused):
        return None
    if error is not None and not isinstance(error, Exception):
        return estimate  # interrupted: it may have been paid for
    usage = outcome.usage
    if usage.prompt_tokens is None or usage.completion_tokens is None:
        return Cost(outcome.cost, estimate.tokens, max(1, outcome.requests))
    return Cost(outcome.cost, usage.prompt_tokens + usage.completion_tokens, outcome.requests)
