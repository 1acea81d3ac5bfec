"""Textual gradients: first criticism of one variable, then a new value that follows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core.optimizers.base import Proposal
from trace_core.optimizers.llm.base import LLMOptimizer, variable_lines
from trace_core.optimizers.llm.prompts import fill
from trace_core.render import render_traces
from trace_core.values import elide

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trace_core.parameter import Parameter
    from trace_core.trace import Trace


class TextGrad(LLMOptimizer):
    """Asks the model for criticism of each variable in view of the trace, then for a value that follows the criticism.

    Two requests for each parameter that may change (by default every one the feedback reached).

    Source: "TextGrad: Automatic Differentiation via Text" (Yuksekgonul et al., 2024), section 2. There, criticism goes
    backward through every node; here one request sees the whole trace, which costs two requests whatever its depth.
    """

    def propose_some(self, traces: Sequence[Trace], names: Mapping[Parameter, str], n: int) -> list[Proposal]:
        """See LLMOptimizer."""
        parts = [self._improve(traces, parameter, name) for parameter, name in names.items()]
        return [parts[0] if len(parts) == 1 else _joined(parts)]

    def _improve(self, traces: Sequence[Trace], parameter: Parameter, name: str) -> Proposal:
        only = {parameter: name}
        system = fill("textgrad_system", objective=self.objective)
        question = fill("textgrad_user", problem="", name=name)
        problem = self.fit(
            lambda budget: render_traces(self.select(traces, only), budget=budget, count=self.count, names=only),
            system + question,
        )
        prompt = fill("textgrad_user", problem=problem, name=name)
        said = self.complete([{"role": "system", "content": system}, {"role": "user", "content": prompt}])
        criticism = elide(said.text.strip(), self.max_prompt_tokens)  # a quarter of the budget or so, in characters
        memory, task = self.history(only), self.task(only)
        update = fill("textgrad_update", objective=self.objective)
        variable = self.fit(
            lambda budget: self.shrink(variable_lines(only), budget),
            update + memory + task + criticism,
            only,
        )
        user = fill("textgrad_apply", variable=variable, criticism=criticism, memory=memory, task=task)
        proposal = self.ask(update, user, only)[0]
        return Proposal(
            proposal.values,
            reason=f"{criticism}\n{proposal.reason}".strip(),
            dropped=proposal.dropped,
            attempts=proposal.attempts + 1,
            prompt_tokens=_sum(proposal.prompt_tokens, said.usage.prompt_tokens),
            completion_tokens=_sum(proposal.completion_tokens, said.usage.completion_tokens),
            cost=_sum(proposal.cost, said.cost),
            prompt=prompt,
        )


def _sum(*amounts: Any) -> Any:
    """The sum; None if an amount is unknown."""
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if len(known) == len(amounts) else None


def _joined(parts: Sequence[Proposal]) -> Proposal:
    return Proposal(
        {parameter: value for part in parts for parameter, value in part.values.items()},
        reason="\n".join(part.reason for part in parts if part.reason),
        dropped=[item for part in parts for item in part.dropped],
        attempts=sum(part.attempts for part in parts),
        prompt_tokens=_sum(*[part.prompt_tokens for part in parts]),
        completion_tokens=_sum(*[part.completion_tokens for part in parts]),
        cost=_sum(*[part.cost for part in parts]),
        prompt="\n\n".join(part.prompt for part in parts),
    )
