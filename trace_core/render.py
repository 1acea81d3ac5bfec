"""Traces as text for an LLM or a person, within a budget of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from trace_core.program import Program, fold
from trace_core.tokens import estimate_tokens
from trace_core.values import elide, render_value, same_value, size_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trace_core.parameter import Parameter
    from trace_core.trace import Trace

__all__ = ["elide", "estimate_tokens", "render_traces", "render_value"]


class _Detail(NamedTuple):
    """How much of everything is shown."""

    value: int  # characters of an input, an intermediate value, an output
    variable: int  # characters of a variable that may change
    lines: int  # lines of code
    docs: int  # characters of a description
    intermediate: int  # number of intermediate values
    examples: int  # number of traces shown
    feedback: int  # characters of one feedback


_ALL = 10**9
# From everything to nearly nothing; values that may change and feedback are the last to be cut.
_LEVELS = (
    _Detail(_ALL, _ALL, _ALL, _ALL, _ALL, _ALL, _ALL),
    _Detail(4000, 16000, 400, 600, 200, _ALL, 4000),
    _Detail(2000, 12000, 200, 400, 100, _ALL, 3000),
    _Detail(1000, 8000, 120, 300, 60, _ALL, 2000),
    _Detail(600, 6000, 80, 240, 40, _ALL, 1500),
    _Detail(400, 4000, 60, 200, 24, _ALL, 1200),
    _Detail(240, 3000, 40, 160, 16, _ALL, 900),
    _Detail(160, 2000, 30, 120, 12, _ALL, 600),
    _Detail(120, 1500, 24, 100, 8, 12, 400),
    _Detail(80, 1000, 16, 80, 6, 8, 300),
    _Detail(60, 600, 12, 60, 4, 5, 200),
    _Detail(40, 400, 8, 40, 2, 3, 150),
    _Detail(30, 200, 6, 0, 0, 2, 100),
    _Detail(24, 100, 4, 0, 0, 1, 60),
)


def render_traces(
    traces: Sequence[Trace],
    *,
    budget: int | None = None,
    count: Callable[[str], int] | None = None,
    names: Mapping[Parameter, str] | None = None,
) -> str:
    """Several traces as one text; what they share (code, documentation, variables, equal inputs) is said once.

    Args:
        traces: at least one.
        budget: the most tokens the text may have; None for no limit. It holds whatever the values are: they are elided
            from the middle, repeated code is folded, intermediate values and then examples are left out, each said so.
        count: tokens of a text; by default ``estimate_tokens``.
        names: names of the parameters that may change. Parameters that are not named appear as inputs. By default all
            may change.
    """
    if not traces:
        return ""
    programs = [Program(trace, names) for trace in traces]
    if budget is None:
        return _text(programs, _LEVELS[0])
    measure = count or estimate_tokens
    low, high = (1 if _is_huge(programs) else 0), len(_LEVELS) - 1
    best = _text(programs, _LEVELS[high])
    if measure(best) > budget:
        return _cut(best, budget, measure)
    while low < high:
        middle = (low + high) // 2
        text = _text(programs, _LEVELS[middle])
        if measure(text) <= budget:
            best, high = text, middle
        else:
            low = middle + 1
    return best


def _is_huge(programs: Sequence[Program]) -> bool:
    """Whether even building the whole text would be a waste."""
    lines = sum(len(program.lines) for program in programs)
    return (
        lines > 2000
        or sum(size_of(v) for p in programs for part in (p.inputs, p.values) for v in part.values()) > 400_000
    )


def _cut(text: str, budget: int, measure: Callable[[str], int]) -> str:
    """The longest beginning-and-end of ``text`` that fits; the last resort for budgets of a few dozen tokens."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if measure(elide(text, middle)) <= budget:
            low = middle
        else:
            high = middle - 1
    return elide(text, low) if low else ""


def _text(programs: Sequence[Program], detail: _Detail) -> str:
    first = programs[0]
    shared_code = all(program.code() == first.code() for program in programs[1:])
    variables, changed = _variables(programs)
    shared = _shared_inputs(programs) if len(programs) > 1 and shared_code else {}
    parts: list[str] = []
    if shared_code and first.lines:
        parts.append("# Code\n" + "\n".join(fold(first.lines, detail.lines)))
    docs = {name: text for program in programs for name, text in program.docs.items()}
    if docs and detail.docs:
        parts.append(
            "# Documentation\n" + "\n".join(f"{name}: {elide(text, detail.docs)}" for name, text in docs.items())
        )
    if variables:
        parts.append("# Variables\n" + "\n".join(_variable(name, *item, detail) for name, item in variables.items()))
    if shared:
        parts.append("# Inputs\n" + _values(shared, detail.value))
    for number, program in enumerate(programs[: detail.examples], start=1):
        title = f"# Example {number}" if len(programs) > 1 else ""
        parts.append(_example(program, title, shared_code, shared, changed, detail))
    if len(programs) > detail.examples:
        parts.append(f"… {len(programs) - detail.examples} more examples left out …")
    return "\n".join(part for part in parts if part)


def _variables(programs: Sequence[Program]) -> tuple[dict[str, tuple[Any, Parameter]], set[str]]:
    """Each variable with its value, and the names of those whose value differs from trace to trace."""
    found: dict[str, tuple[Any, Parameter]] = {}
    changed: set[str] = set()
    for program in programs:
        for name, parameter in program.variables.items():
            value = program.values_of_variables[name]
            if name in found and not same_value(found[name][0], value):
                changed.add(name)
            found[name] = (value, parameter)
    return found, changed


def _variable(name: str, value: Any, parameter: Parameter, detail: _Detail) -> str:
    notes = []
    if parameter.description and parameter.kind != "code":
        notes.append(elide(" ".join(parameter.description.split()), detail.docs or 40))
    rule = parameter.constraint.describe() if parameter.kind != "code" else ""
    if parameter.kind == "tensor" and getattr(parameter.constraint, "also", None) is None:
        rule = ""  # shape and dtype stand in the value's own text
    if rule and rule not in _PLAIN_RULES:
        notes.append("must be " + elide(rule, 200))
    note = f"  # {'; '.join(notes)}" if notes else ""
    if parameter.kind == "code":
        return f"{name} = '''\n{elide(str(value).rstrip(), detail.variable)}\n'''"
    return f"{name} = {render_value(value, detail.variable)}{note}"


_PLAIN_RULES = frozenset({"a text", "a finite number", "an integer", "true or false", "any value", "a list", "a dict"})


def _shared_inputs(programs: Sequence[Program]) -> dict[str, Any]:
    """Inputs that have the same value in every trace."""
    first = programs[0].inputs
    return {
        name: value
        for name, value in first.items()
        if all(name in other.inputs and same_value(other.inputs[name], value) for other in programs[1:])
    }


def _values(values: Mapping[str, Any], max_chars: int) -> str:
    return "\n".join(f"{name} = {render_value(value, max_chars)}" for name, value in values.items())


def _example(
    program: Program, title: str, shared_code: bool, shared: Mapping[str, Any], changed: set[str], detail: _Detail
) -> str:
    parts = [title] if title else []
    if not shared_code and program.lines:
        parts.append("# Code\n" + "\n".join(fold(program.lines, detail.lines)))
    if changed:
        parts += [
            f"{name} was {render_value(program.values_of_variables[name], detail.value)}"
            for name in program.variables
            if name in changed
        ]
    own = {name: value for name, value in program.inputs.items() if name not in shared}
    if own:
        parts.append(("# Inputs\n" if not title else "") + _values(own, detail.value))
    steps = _intermediate(program.values, detail)
    if steps:
        parts.append(("# Values\n" if not title else "") + steps)
    output = f"{program.output_name} = {program.describe_output(detail.value)}"
    parts.append(f"# Output\n{output}" if not title else output)
    feedback = elide(program.feedback(), detail.feedback)
    if feedback:
        parts.append(f"# Feedback\n{feedback}" if not title else f"feedback: {feedback}")
    return "\n".join(parts)


def _intermediate(values: Mapping[str, Any], detail: _Detail) -> str:
    names = list(values)
    if len(names) <= detail.intermediate:
        return _values(values, detail.value)
    head = (detail.intermediate + 1) // 2
    tail = detail.intermediate - head
    kept = [*names[:head], *(names[-tail:] if tail else [])]
    lines = [f"{name} = {render_value(values[name], detail.value)}" for name in kept]
    lines.insert(head, f"… {len(names) - len(kept):,} values left out …")
    return "\n".join(lines)
