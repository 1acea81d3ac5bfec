"""Kept traces and a proposal on trial as plain data, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core.optimizers.mixed.trial import Trial, own_copy
from trace_core.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from trace_core.parameter import Parameter


def store_traces(traces: Iterable[Trace], names: Mapping[Parameter, str]) -> list[dict[str, Any]]:
    """The traces as data; parameters by the names given here."""
    stored = []
    for trace in traces:
        shown = trace.names()
        live = {shown[version]: names[version.parameter] for version in trace.versions if version.parameter in names}
        stored.append({"trace": trace.to_dict(), "parameters": live})
    return stored


def load_traces(stored: Sequence[Mapping[str, Any]], parameters: Mapping[str, Parameter]) -> list[Trace]:
    """What ``store_traces`` gave, linked to live parameters again."""
    return [
        Trace.from_dict(item["trace"], {shown: parameters[name] for shown, name in item["parameters"].items()})
        for item in stored
    ]


def store_trial(trial: Trial | None, names: Mapping[Parameter, str]) -> dict[str, Any] | None:
    """A trial as data."""
    if trial is None:
        return None
    return {
        "part": trial.part,
        "values": {names[parameter]: own_copy(value) for parameter, value in trial.values.items()},
        "reason": trial.reason,
        "before": trial.before,
        "left": trial.left,
        "since": trial.since,
        "saved": own_copy(trial.saved),
        "told": dict(trial.told),
        "traces": store_traces(trial.traces, names),
        "failed": trial.failed,
    }


def load_trial(stored: Mapping[str, Any] | None, parameters: Mapping[str, Parameter]) -> Trial | None:
    """What ``store_trial`` gave."""
    if stored is None:
        return None
    return Trial(
        part=stored["part"],
        values={parameters[name]: value for name, value in stored["values"].items()},
        reason=stored["reason"],
        before=float(stored["before"]),
        left=int(stored["left"]),
        since=int(stored["since"]),
        saved=own_copy(dict(stored["saved"])),
        told={name: int(steps) for name, steps in stored["told"].items()},
        traces=load_traces(stored["traces"], parameters),
        failed=stored["failed"],
    )
