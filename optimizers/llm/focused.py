"""The problem as shown for one parameter: what it does in each example, step by step, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trace_core.optimizers.llm.prompts import fill
from trace_core.program import Program, fold
from trace_core.steps import evaluated_steps
from trace_core.values import elide, render_value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trace_core.parameter import Parameter
    from trace_core.trace import Trace

#: (characters of a value, characters of the current value, lines of code and steps), from everything to nearly nothing.
_LEVELS = (
    (2000, 8000, 60),
    (600, 6000, 40),
    (300, 4000, 30),
    (160, 2500, 20),
    (80, 1500, 12),
    (50, 800, 8),
    (30, 300, 5),
)


def focused_problem(
    traces: Sequence[Trace],
    names: Mapping[Parameter, str],
    target: Parameter,
    *,
    budget: int,
    count: Callable[[str], int],
) -> str:
    """The program, the target's value and the examples, in at most ``budget`` tokens as ``count`` counts.

    Static text comes first, so that a server's prefix cache serves most of the prompt.
    """
    programs = [Program(trace, names) for trace in traces]
    text = ""
    for value_chars, variable_chars, lines in _LEVELS:
        text = _text(traces, programs, names, target, value_chars, variable_chars, lines)
        if count(text) <= budget:
            return text
    size = len(text)
    while size > 8 and count(elide(text, size)) > budget:
        size = size * 3 // 4
    return elide(text, size)


def _text(
    traces: Sequence[Trace],
    programs: Sequence[Program],
    names: Mapping[Parameter, str],
    target: Parameter,
    value_chars: int,
    variable_chars: int,
    lines: int,
) -> str:
    reached = dict.fromkeys(parameter for trace in traces for parameter in trace.parameters if parameter in names)
    about = [f"{names[p]}: {elide(_about(p), 240)}" for p in reached]
    code = max((program.lines for program in programs), key=len, default=[])
    docs = {name: text for program in programs for name, text in program.docs.items()}
    described = [f"{name}: {elide(text, 240)}" for name, text in docs.items() if name not in names.values()]
    examples = []
    for trace, program in zip(traces, programs, strict=True):
        steps = evaluated_steps(trace, names, {target}, value_chars)
        if len(steps) > lines:
            steps = [
                *steps[: lines // 2],
                f"… {len(steps) - lines:,} steps left out …",
                *steps[-(lines - lines // 2) :],
            ]
        examples.append("\n".join([*steps, f"feedback: {elide(program.feedback(), 2 * value_chars)}"]))
    return fill(
        "focus_problem",
        code="\n".join([*fold(code, lines), *described[:lines]]),
        variables="\n".join(about[:lines]),
        current=_current(target, names[target], variable_chars),
        examples="\n\n".join(examples),
    )


def _about(parameter: Parameter) -> str:
    rule = parameter.constraint.describe()
    if parameter.kind == "code":
        rule = "code"
    return f"{rule}: {' '.join(parameter.description.split())}" if parameter.description else rule


def _current(parameter: Parameter, name: str, max_chars: int) -> str:
    value = parameter.value
    # code in a block of its own: small models go on with the sections around it as if they were its comments
    return (
        f"```python\n{elide(str(value).strip(), max_chars)}\n```"
        if parameter.kind == "code"
        else f"{name} = {render_value(value, max_chars)}"
    )
