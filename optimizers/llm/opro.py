"""OPRO: values with their scores, and what to do better; no trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trace_core.optimizers.llm.base import LLMOptimizer, variable_lines
from trace_core.optimizers.llm.prompts import fill
from trace_core.program import Program
from trace_core.values import elide, render_value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trace_core.optimizers.base import Proposal
    from trace_core.parameter import Parameter
    from trace_core.trace import Trace


class OPRO(LLMOptimizer):
    """Shows the model earlier values with their scores and a few outputs, and asks for better values.

    Source: "Large Language Models as Optimizers" (Yang et al., 2023), section 2: the meta-prompt of scored solutions in
    ascending order. The score of an attempt is the mean over the outputs seen with it.
    """

    def propose_some(self, traces: Sequence[Trace], names: Mapping[Parameter, str], n: int) -> list[Proposal]:
        """See LLMOptimizer."""
        system = fill("opro_system", objective=self.objective)
        task, memory = self.task(names, n), self.history(names)
        variables = self.shrink(variable_lines(names), self.max_prompt_tokens // 3)
        rest = system + task + memory + variables
        examples = self.fit(lambda budget: self._examples(traces, names, budget), rest, names)
        user = fill("opro_user", variables=variables, memory=memory, examples=examples, task=task)
        return self.ask(system, user, names, n)

    def _examples(self, traces: Sequence[Trace], names: Mapping[Parameter, str], budget: int) -> str:
        lines: list[str] = []
        for trace in self.select(traces, names):
            program = Program(trace, names)
            inputs = ", ".join(f"{name} = {render_value(value, 300)}" for name, value in program.inputs.items())
            line = f"{inputs} -> {program.describe_output(300)}; {elide(program.feedback(), 300)}"
            if self.count("\n".join([*lines, line])) > budget:
                break
            lines.append(line)
        return "# Examples\n" + "\n".join(lines) if lines else ""
