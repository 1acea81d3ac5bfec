"""Past attempts with their scores: what keeps a model from going round in circles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from trace_core.optimizers.llm.answer import same_value
from trace_core.values import render_value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trace_core.parameter import Parameter
    from trace_core.trace import Trace


class Attempt(NamedTuple):
    """Values that were tried, by parameter name, with the mean score over so many outputs; -inf for a failure."""

    values: dict[str, Any]
    score: float
    outputs: int
    note: str = ""


class Memory:
    """The best and the latest attempts, at most ``size`` in all.

    An attempt is a set of values with the mean score they got. The same values tried again are one attempt whose score
    is the mean over everything seen.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.attempts: list[Attempt] = []
        self._added: list[Attempt] = []
        self._notes_added = False

    def fork(self) -> Memory:
        """A copy that knows what was added to it, for ``join``."""
        twin = Memory(self.size)
        twin.attempts, twin._notes_added = list(self.attempts), True
        return twin

    def join(self, fork: Memory) -> None:
        """Add what was added to a fork."""
        for attempt in fork._added:
            self.add(*attempt)

    def add(self, values: Mapping[str, Any], score: float, outputs: int = 1, note: str = "") -> None:
        """Record an attempt."""
        if self.size <= 0 or not values:
            return
        if self._notes_added:
            self._added.append(Attempt(dict(values), score, outputs, note))
        key = _key(values)
        for index, known in enumerate(self.attempts):
            if _key(known.values) == key:
                total = known.outputs + outputs
                mean = (known.score * known.outputs + score * outputs) / total
                self.attempts.append(Attempt(known.values, mean, total, note or known.note))
                del self.attempts[index]
                return
        self.attempts.append(Attempt(dict(values), score, outputs, note))
        if len(self.attempts) > self.size:
            # Keep the best and the newest: the worst of the older half goes.
            older = self.attempts[: max(1, self.size // 2)]
            self.attempts.remove(min(older, key=lambda attempt: attempt.score))

    def add_traces(self, traces: Sequence[Trace], names: Mapping[Parameter, str]) -> float | None:
        """Record what the traces show of the values they ran with; returns the mean score, None if none has a score."""
        groups: dict[str, tuple[dict[str, Any], list[float]]] = {}
        for trace in traces:
            score = score_of(trace)
            values = {names[p]: value for p, value in trace.values.items() if p in names}
            if score is not None and values:
                groups.setdefault(_key(values), (values, []))[1].append(score)
        for values, scores in groups.values():
            self.add(values, sum(scores) / len(scores), len(scores))
        every = [score for _, scores in groups.values() for score in scores]
        return sum(every) / len(every) if every else None

    def lines(self, names: Sequence[str], current: Mapping[str, Any], max_chars: int, limit: int) -> list[str]:
        """Attempts on the named parameters as text, without the current values; worst first: the best is read last."""
        shown: dict[str, str] = {}
        for attempt in sorted(self.attempts, key=lambda a: a.score)[-limit:] if limit else ():
            values = {name: attempt.values[name] for name in names if name in attempt.values}
            changed = {
                name: value
                for name, value in values.items()
                if name not in current or not same_value(current[name], value)
            }
            if not changed:
                continue
            text = "; ".join(f"{name} = {render_value(value, max_chars)}" for name, value in changed.items())
            head = "failed" if attempt.score == float("-inf") else f"score {attempt.score:.3g}"
            shown[text] = f"{head}: {text}" + (f" ({attempt.note})" if attempt.note else "")
        return list(shown.values())

    def state(self) -> list[dict[str, Any]]:
        """Plain data."""
        return [attempt._asdict() for attempt in self.attempts]

    def load(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Take over what ``state`` gave."""
        self.attempts = [Attempt(**item) for item in state]


def score_of(trace: Trace) -> float | None:
    """The score of a trace's feedback; of several objectives, their mean; None without any."""
    feedback = trace.feedback
    if feedback.score is not None:
        return feedback.score
    if feedback.scores:
        return sum(feedback.scores.values()) / len(feedback.scores)
    return None


def _key(values: Mapping[str, Any]) -> str:
    return repr(sorted((name, repr(value)) for name, value in values.items()))
