"""Which parameters to change, read off the traces: who is on the paths that fail, and who is on those that do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from trace_core.optimizers.llm.memory import score_of
from trace_core.parameter import Version

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trace_core.parameter import Parameter
    from trace_core.trace import Trace


class Credit(Protocol):
    """Chooses the parameters that a proposal may change."""

    def choose(self, traces: Sequence[Trace], names: Mapping[Parameter, str], turn: int) -> list[Parameter]:
        """Some of ``names``, or none for all. ``turn`` counts tickets: who is equal takes turns."""
        ...


class TraceCredit:
    """Suspects the parameters that reach failing outputs rather than good ones, and those near the error.

    A trace counts as failing by how far its score is below the best of the minibatch, or below ``perfect`` where that
    is more. The suspicion of a parameter is the share of failure among the paths it is on ("Scalable Statistical Bug
    Isolation", Liblit et al., 2005, section 3), with these weights in place of counts: only a path that does not fail
    clears it, since each example may fail for a reason of its own. And it has one: of every path that fails at least
    half as much as the worst, the most suspicious are chosen. Where the output is an error, a parameter counts
    with 1/2 for each step between the operator that raised and the first that reads it. Of equally suspicious ones
    those go first that more failing paths have in common.

    Args:
        k: at most so many, the most suspicious; None for all that come near the most suspicious one of a path.
        near: how near, as a share of its suspicion.
        perfect: score of an output with nothing wrong.
    """

    def __init__(self, k: int | None = None, near: float = 0.75, perfect: float = 1.0) -> None:
        self.k, self.near, self.perfect = k, near, perfect

    def choose(self, traces: Sequence[Trace], names: Mapping[Parameter, str], turn: int) -> list[Parameter]:
        """See Credit."""
        failing = _failing(traces, self.perfect)
        found = self._found(traces, failing, names)
        near: set[Parameter] = set()
        for trace, failure in zip(traces, failing, strict=True):
            on_it = [p for p in presence(trace) if p in found] if failure >= 0.5 else []
            top = max((found[p][0] for p in on_it), default=0.0)
            near.update(p for p in on_it if found[p][0] >= self.near * top)
        chosen = [p for p in found if p in near]
        if self.k is None or len(chosen) <= self.k:
            return chosen
        # who is equal takes turns: rotated first, and sorting keeps the order of equals
        start = turn * self.k % len(chosen)
        rotated = chosen[start:] + chosen[:start]
        ranks = {p: tuple(-round(value, 9) for value in found[p]) for p in chosen}
        kept = set(sorted(rotated, key=ranks.__getitem__)[: self.k])
        return [p for p in chosen if p in kept]

    def suspicion(self, traces: Sequence[Trace], names: Mapping[Parameter, str]) -> dict[Parameter, float]:
        """parameter -> how suspicious, from 0 to 1, of those on a failing path; in the order of ``names``."""
        found = self._found(traces, _failing(traces, self.perfect), names)
        return {p: suspicion for p, (suspicion, _) in found.items()}

    def _found(
        self, traces: Sequence[Trace], failing: Sequence[float], names: Mapping[Parameter, str]
    ) -> dict[Parameter, tuple[float, float]]:
        """parameter -> (suspicion, failure on the paths it is on)."""
        reached: dict[Parameter, float] = {}
        failed: dict[Parameter, float] = {}
        passed: dict[Parameter, float] = {}
        for trace, failure in zip(traces, failing, strict=True):
            for parameter, weight in presence(trace).items():
                reached[parameter] = reached.get(parameter, 0.0) + failure
                failed[parameter] = failed.get(parameter, 0.0) + failure * weight
                passed[parameter] = passed.get(parameter, 0.0) + (1 - failure) * weight
        return {
            p: (failed[p] / reached[p] * failed[p] / (failed[p] + passed[p]), failed[p])
            for p in names
            if failed.get(p, 0.0) > 0
        }


def _failing(traces: Sequence[Trace], perfect: float) -> list[float]:
    """How much each fails, from 0 to 1; all 0 if none does."""
    scores = [score_of(trace) for trace in traces]
    known = [score for score in scores if score is not None]
    top, worst = max([perfect, *known]), min(known, default=0.0)
    return [1.0 if s is None else (top - s) / (top - worst) if top > worst else 0.0 for s in scores]


def presence(trace: Trace) -> dict[Parameter, float]:
    """parameter -> 1 if the output depends on it; of an error, halved for each step away from what raised it."""
    if trace.error is None:
        return dict.fromkeys(trace.parameters, 1.0)
    from trace_core.graph import dependencies

    steps = {trace.output: 0}
    queue = [trace.output]
    for node in queue:
        for before in dependencies(node, trace.unfolded):
            if before not in steps:
                steps[before] = steps[node] + 1
                queue.append(before)
    found: dict[Parameter, float] = {}
    for version in trace.versions:
        weight = 0.5 ** (steps.get(version, 1) - 1) if isinstance(version, Version) else 1.0
        found[version.parameter] = max(weight, found.get(version.parameter, 0.0))
    return found
