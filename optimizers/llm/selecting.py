"""Which of several traces to show first, and whose fault they are."""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import TYPE_CHECKING

from trace_core.optimizers.llm.memory import score_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trace_core.parameter import Parameter
    from trace_core.trace import Trace

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def worst_first(traces: Sequence[Trace]) -> list[Trace]:
    """Traces with the lowest scores first; those without a score keep their order at the front."""
    return sorted(traces, key=lambda trace: (s := score_of(trace)) is not None and s)


def varied(traces: Sequence[Trace]) -> list[Trace]:
    """Traces reordered so that the first ones differ in what their feedback says, apart from its numbers.

    Several copies of one failure teach a model one half of what is wrong.
    """
    groups: dict[str, list[Trace]] = {}
    for trace in traces:
        groups.setdefault(_NUMBER.sub("#", trace.feedback.text or trace.error or ""), []).append(trace)
    rounds = zip_longest(*groups.values())
    return [trace for together in rounds for trace in together if trace is not None]


def failing_code(traces: Sequence[Trace]) -> set[Parameter]:
    """Code parameters whose own operator raised."""
    from trace_core.parameter import Version

    found = set()
    for trace in traces:
        if trace.error is None:
            continue
        extra = trace.output._extra
        for read in extra.reads if extra is not None else ():
            if isinstance(read, Version) and read.parameter.kind == "code":
                found.add(read.parameter)
    return found
