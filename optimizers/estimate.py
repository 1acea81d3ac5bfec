"""What a run may take at most, before anything is spent."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from trace_core.integrations.llm.prices import price_of
from trace_core.optimizers.llm.base import MAX_REPAIRS, LLMOptimizer

if TYPE_CHECKING:
    from trace_core.optimizers.base import Optimizer


class Estimate(NamedTuple):
    """Upper bounds. What the workflow itself asks of language models is not in them: it is known when it has run.

    Attributes:
        metric_calls: examples evaluated.
        calls: requests of the optimizer to its model; None where the optimizer is not one of the ``llm`` kind.
        tokens: of those requests, prompts and answers.
        usd: for those tokens; None where the price of the model is not known.
    """

    metric_calls: int
    calls: int | None
    tokens: int | None
    usd: float | None

    def describe(self) -> str:
        """In words."""
        asked = "the optimizer's requests are not known beforehand"
        if self.calls is not None:
            price = "at a price not known" if self.usd is None else f"${self.usd:.4f}"
            asked = f"at most {self.calls} requests of the optimizer with {self.tokens:,} tokens, {price}"
        return f"at most {self.metric_calls} evaluations; {asked}; what the workflow asks comes on top"


def estimate(
    optimizer: Optimizer,
    *,
    train: int,
    validation: int,
    steps: int,
    batch_size: int = 4,
    proposals: int = 1,
    held_out: int = 0,
) -> Estimate:
    """Bounds for ``optimize`` with these settings. Asks and evaluates nothing.

    Args:
        optimizer: as it will be used.
        train: number of training examples.
        validation: number of validation examples; 0 if the training examples are used.
        steps, batch_size, proposals: see ``optimize``.
        held_out: examples measured before and after.
    """
    batch, checked = min(batch_size, train), validation or train
    metric_calls = checked + steps * (batch + proposals * batch + checked) + 2 * held_out
    if not isinstance(optimizer, LLMOptimizer):
        return Estimate(metric_calls, None, None, None)
    asked = steps * proposals * (1 + MAX_REPAIRS)  # an answer cut off is asked for once more with twice the room
    prompt, answer = 2 * asked * optimizer.max_prompt_tokens, 3 * asked * optimizer.max_answer_tokens
    price = (0.0, 0.0) if getattr(optimizer.llm, "is_local", False) else price_of(optimizer.llm.model)
    usd = None if price is None else prompt * price[0] + answer * price[1]
    return Estimate(metric_calls, 2 * asked, prompt + answer, usd)
