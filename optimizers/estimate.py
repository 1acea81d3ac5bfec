"""What a run may take at most, before anything is spent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from trace_core.integrations.accounting import account, current, place
from trace_core.integrations.budget import Budget, Cost
from trace_core.integrations.llm.prices import price_of
from trace_core.optimizers.evaluation import evaluate
from trace_core.optimizers.llm.base import MAX_REPAIRS, LLMOptimizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from trace_core.optimizers.base import Optimizer


class Estimate(NamedTuple):
    """Upper bounds for evaluations and the optimizer; for the workflow, what one example took, so many times.

    Attributes:
        metric_calls: examples evaluated.
        calls: requests of the optimizer to its model; None where the optimizer is not one of the ``llm`` kind.
        tokens: of those requests, prompts and answers.
        usd: for those tokens; None where the price of the model is not known.
        workflow: what workflow and metric ask of language models in all evaluations together, as far as one example can
            say; None where none was measured: that is unknown, not nothing.
    """

    metric_calls: int
    calls: int | None
    tokens: int | None
    usd: float | None
    workflow: Cost | None = None

    def describe(self) -> str:
        """In words."""
        asked = "the optimizer's requests are not known beforehand"
        if self.calls is not None:
            price = "at a price not known" if self.usd is None else f"${self.usd:.4f}"
            asked = f"at most {self.calls} requests of the optimizer with {self.tokens:,} tokens, {price}"
        return f"at most {self.metric_calls} evaluations; {asked}; {self._of_workflow()}"

    def _of_workflow(self) -> str:
        if self.workflow is None:
            return (
                "what the workflow and the metric ask of language models comes on top and is unknown: one example, "
                "evaluated, would tell (--probe, or per_example=probe(...))"
            )
        if not self.workflow.calls:
            return "the example that was tried asked no language model of this library"
        price = "at a price not known" if self.workflow.usd is None else f"${self.workflow.usd:.4f}"
        return (
            f"workflow and metric about {self.workflow.calls} requests with {self.workflow.tokens:,} tokens, {price}, "
            "if every example takes what the one that was tried took"
        )


def estimate(
    optimizer: Optimizer,
    *,
    train: int,
    validation: int,
    steps: int,
    batch_size: int = 4,
    proposals: int = 1,
    held_out: int = 0,
    per_example: Cost | None = None,
) -> Estimate:
    """Bounds for a study, or ``optimize``, with these settings. Asks and evaluates nothing.

    The seed is validated; each step may run its minibatch, each proposal on it, and one on the validation examples.

    Args:
        optimizer: as it will be used.
        train: number of training examples.
        validation: number of validation examples; 0 if the training examples are used.
        steps: tickets of the study.
        batch_size, proposals: see ``Search``.
        held_out: examples that the first and the best values are measured on.
        per_example: what one evaluation asks of language models: see ``probe``.
    """
    batch, checked = min(batch_size, train), validation or train
    metric_calls = checked + steps * (batch + proposals * batch + checked) + 2 * held_out
    asks = None
    if per_example is not None:
        usd = None if per_example.usd is None else per_example.usd * metric_calls
        asks = Cost(usd, per_example.tokens * metric_calls, per_example.calls * metric_calls, metric_calls)
    if not isinstance(optimizer, LLMOptimizer):
        return Estimate(metric_calls, None, None, None, asks)
    asked = steps * proposals * (1 + MAX_REPAIRS)  # an answer cut off is asked for once more with twice the room
    prompt, answer = 2 * asked * optimizer.max_prompt_tokens, 3 * asked * optimizer.max_answer_tokens
    here = current()
    known = price_of if here is None or here.price is None else here.price
    price = (0.0, 0.0) if getattr(optimizer.llm, "is_local", False) else known(optimizer.llm.model)
    usd = None if price is None else prompt * price[0] + answer * price[1]
    return Estimate(metric_calls, 2 * asked, prompt + answer, usd, asks)


def probe(workflow: Callable[[Any], Any], metric: Callable[[Any, Any], Any], example: Any) -> Cost:
    """Evaluate ``example`` once, and say what that asked of language models. It costs what it says.

    Calls made with a client library of your own are not seen. Raises what ``evaluate`` raises.
    """
    budget = Budget()
    with account(budget=budget), place("workflow", "probe"):
        evaluate(workflow, metric, example)
    spent = budget.spent
    return Cost(None if budget.unknown else spent.usd, spent.tokens, spent.calls, 1)
