"""OptoPrime: the trace as a short program, feedback on its outputs, structured answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trace_core.optimizers.llm.base import LLMOptimizer
from trace_core.optimizers.llm.focused import focused_problem
from trace_core.optimizers.llm.prompts import fill
from trace_core.render import render_traces

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trace_core.optimizers.base import Proposal
    from trace_core.parameter import Parameter
    from trace_core.trace import Trace


class OptoPrime(LLMOptimizer):
    """Shows the model the execution trace as a pseudo-program with its values and feedback, and asks for new values.

    Several traces (a minibatch) go into one prompt, with shared text said once; past attempts with their scores follow.
    See ``LLMOptimizer`` for the arguments.

    Source: "Trace is the Next AutoDiff: Generative Optimization with Rich Feedback, Execution Traces, and LLMs" (Cheng,
    Nie, Swaminathan, 2024), section 4: the pseudo-algorithm form of the trace and the memory of past attempts.
    The layout, the budget and the typed answer are this library's own.
    """

    def propose_some(self, traces: Sequence[Trace], names: Mapping[Parameter, str], n: int) -> list[Proposal]:
        """See LLMOptimizer."""
        task, memory = self.task(names, n), self.history(names)
        shown = self.select(traces, names)
        if self.focus == 1:
            system = fill("focus_system", objective=self.objective)
            target = next(iter(names))

            def render(budget: int) -> str:
                return focused_problem(shown, self.names, target, budget=budget, count=self.count)
        else:
            system = fill("optoprime_system", objective=self.objective)

            def render(budget: int) -> str:
                return render_traces(shown, budget=budget, count=self.count, names=names)

        problem = self.fit(render, system + memory + task, names)
        return self.ask(system, fill("optoprime_user", problem=problem, memory=memory, task=task), names, n)
