"""Words about a target, turned into what it should be: a language model names entries and values, which are checked."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from trace_core.optimizers.base import Dropped, OptimizerError
from trace_core.optimizers.llm.prompts import fill

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import BaseModel

    from trace_core.integrations.llm import LLM
    from trace_core.node import Node
    from trace_core.trace import Trace

#: More entries than this cannot be shown to a model with their values.
MOST_ENTRIES = 400
_PACKAGE = "trace_core.optimizers.surrogate"


class TextTarget:
    """Asks a language model for a desired target.

    Args:
        llm: a model by name or object; see ``resolve_llm``.
        objective: what is wanted, in words, beyond the feedback.
        entries: names for the target's entries, in order; by default their indices, such as ``3`` or ``0,2``.
        bounds: lowest and highest value of an entry.
        most: how far one entry may move; by default ten times the largest entry, at least 10.
        repairs: how often a refused answer is asked for again with the reasons.
    """

    def __init__(
        self,
        llm: LLM | str | None,
        *,
        objective: str = "",
        entries: Sequence[str] | None = None,
        bounds: tuple[float, float] | None = None,
        most: float | None = None,
        repairs: int = 2,
    ) -> None:
        from trace_core.integrations.llm import resolve_llm

        if bounds is not None and not bounds[0] < bounds[1]:
            raise OptimizerError(f"bounds must be (lowest, highest), got {bounds}")
        if most is not None and not most > 0:
            raise OptimizerError(f"most must be positive, got {most}")
        self.llm: LLM = resolve_llm(llm)
        self.objective = objective
        self.entries = None if entries is None else list(entries)
        self.bounds = bounds
        self.most = most
        self.repairs = repairs

    def goal(self, trace: Trace, node: Node, here: Any) -> tuple[Any, list[Dropped], int]:
        """(the desired target, refused values with reasons, requests made). Entries not spoken of stay where they are.

        Raises OptimizerError if the target has too many entries, and what the model's ``complete`` raises.
        """
        names = self._names(here)
        current = dict(zip(names, here.flatten().tolist(), strict=True))
        most = self.most if self.most is not None else 10 * max(1.0, *(abs(value) for value in current.values()))
        system = fill("target_system", _PACKAGE, objective=self.objective)
        user = fill(
            "target_user",
            _PACKAGE,
            target=trace.names()[node],
            entries="\n".join(f"{name}: {value:.6g}" for name, value in current.items()),
            limits=self._limits(most),
            feedback=trace.feedback.summary(),
        )
        schema = _schema(names)
        messages: list[Any] = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        goal, requests = dict(current), 0
        dropped: list[Dropped] = []
        for _ in range(1 + self.repairs):
            requests += 1
            completion = self.llm.complete(messages, schema=schema)
            accepted, dropped = self._check(completion.parsed, current, most)
            goal.update(accepted)
            if not dropped:
                break
            problems = "\n".join(f"{item.name} = {item.value}: {item.reason}" for item in dropped)
            messages += [
                {"role": "assistant", "content": completion.text},
                {"role": "user", "content": fill("target_repair", _PACKAGE, problems=problems)},
            ]
        return here.new_tensor(list(goal.values())).view_as(here), dropped, requests

    def _names(self, here: Any) -> list[str]:
        count = here.numel()
        if self.entries is not None:
            if len(self.entries) != count or len(set(self.entries)) != count:
                raise OptimizerError(f"expected {count} different names of entries, got {len(self.entries)}")
            return self.entries
        if count > MOST_ENTRIES:
            raise OptimizerError(
                f"text feedback needs a target of at most {MOST_ENTRIES} entries, which can be shown; this one has "
                f"{count}: name another target, or give feedback on one example at a time"
            )
        places = here.new_ones(tuple(here.shape)).nonzero().tolist()
        return [",".join(str(index) for index in place) or "value" for place in places]

    def _limits(self, most: float) -> str:
        if self.bounds is None:
            return f"An entry may move by at most {most:.6g}."
        low, high = self.bounds
        return f"An entry may move by at most {most:.6g} and must be from {low:.6g} to {high:.6g}."

    def _check(self, answer: Any, current: Mapping[str, float], most: float) -> tuple[dict[str, float], list[Dropped]]:
        accepted: dict[str, float] = {}
        dropped: list[Dropped] = []
        for change in answer.changes:
            reason = self._objection(change.value, current[change.entry], most)
            if reason:
                dropped.append(Dropped(change.entry, change.value, reason))
            else:
                accepted[change.entry] = change.value
        return accepted, dropped

    def _objection(self, value: float, now: float, most: float) -> str:
        if not math.isfinite(value):
            return "must be a finite number"
        if self.bounds is not None and not self.bounds[0] <= value <= self.bounds[1]:
            return f"must be from {self.bounds[0]:.6g} to {self.bounds[1]:.6g}"
        if abs(value - now) > most:
            return f"may move by at most {most:.6g} from {now:.6g}"
        return ""


def _schema(names: Sequence[str]) -> type[BaseModel]:
    from typing import Literal

    from pydantic import ConfigDict, Field, create_model

    closed = ConfigDict(extra="forbid")
    entry: Any = Literal[tuple(names)]
    change: Any = create_model(
        "Change",
        __config__=closed,
        entry=(entry, Field(description="Name of the entry.")),
        value=(float, Field(description="What it should be.")),
    )
    made: type[BaseModel] = create_model(
        "Goal",
        __config__=closed,
        reasoning=(str, Field(description="What the feedback asks for, in one or two sentences.")),
        changes=(list[change], Field(description="The entries that should be different; others stay.")),
    )
    return made
