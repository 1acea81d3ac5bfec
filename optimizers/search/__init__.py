"""Search over what optimizers propose. Loaded lazily."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trace_core.optimizers.search.acceptance import Acceptance as Acceptance
    from trace_core.optimizers.search.acceptance import Always as Always
    from trace_core.optimizers.search.acceptance import PairedTest as PairedTest
    from trace_core.optimizers.search.acceptance import Repeats as Repeats
    from trace_core.optimizers.search.acceptance import StepsPass as StepsPass
    from trace_core.optimizers.search.acceptance import Strict as Strict
    from trace_core.optimizers.search.acceptance import Verdict as Verdict
    from trace_core.optimizers.search.candidate import Candidate as Candidate
    from trace_core.optimizers.search.contrast import BetterTrace as BetterTrace
    from trace_core.optimizers.search.contrast import Contrast as Contrast
    from trace_core.optimizers.search.credit import Credit as Credit
    from trace_core.optimizers.search.credit import TraceCredit as TraceCredit
    from trace_core.optimizers.search.events import Accepted as Accepted
    from trace_core.optimizers.search.events import Chosen as Chosen
    from trace_core.optimizers.search.events import Ended as Ended
    from trace_core.optimizers.search.events import Evaluated as Evaluated
    from trace_core.optimizers.search.events import Event as Event
    from trace_core.optimizers.search.events import NewBest as NewBest
    from trace_core.optimizers.search.events import Proposed as Proposed
    from trace_core.optimizers.search.events import Rejected as Rejected
    from trace_core.optimizers.search.events import Started as Started
    from trace_core.optimizers.search.guards import CopyGuard as CopyGuard
    from trace_core.optimizers.search.guards import Guard as Guard
    from trace_core.optimizers.search.guards import LengthGuard as LengthGuard
    from trace_core.optimizers.search.guards import PlaceholderGuard as PlaceholderGuard
    from trace_core.optimizers.search.guards import SignatureGuard as SignatureGuard
    from trace_core.optimizers.search.merge import Merge as Merge
    from trace_core.optimizers.search.merge import MergeBranches as MergeBranches
    from trace_core.optimizers.search.merge import Merged as Merged
    from trace_core.optimizers.search.parents import UCB as UCB
    from trace_core.optimizers.search.parents import Beam as Beam
    from trace_core.optimizers.search.parents import Best as Best
    from trace_core.optimizers.search.parents import EpsilonGreedy as EpsilonGreedy
    from trace_core.optimizers.search.parents import Latest as Latest
    from trace_core.optimizers.search.parents import MultiObjective as MultiObjective
    from trace_core.optimizers.search.parents import Parents as Parents
    from trace_core.optimizers.search.parents import Pareto as Pareto
    from trace_core.optimizers.search.parents import TopK as TopK
    from trace_core.optimizers.search.pareto import Fronts as Fronts
    from trace_core.optimizers.search.pool import Pool as Pool
    from trace_core.optimizers.search.portfolio import Portfolio as Portfolio
    from trace_core.optimizers.search.result import StudyResult as StudyResult
    from trace_core.optimizers.search.search import Search as Search
    from trace_core.optimizers.search.study import Study as Study
    from trace_core.optimizers.search.validation import Full as Full
    from trace_core.optimizers.search.validation import Racing as Racing
    from trace_core.optimizers.search.validation import Validation as Validation

_HOME = {
    "acceptance": ("Acceptance", "Always", "PairedTest", "Repeats", "StepsPass", "Strict", "Verdict"),
    "candidate": ("Candidate",),
    "contrast": (
        "BetterTrace",
        "Contrast",
    ),
    "credit": (
        "Credit",
        "TraceCredit",
    ),
    "guards": (
        "CopyGuard",
        "Guard",
        "LengthGuard",
        "PlaceholderGuard",
        "SignatureGuard",
    ),
    "merge": (
        "Merge",
        "MergeBranches",
        "Merged",
    ),
    "portfolio": ("Portfolio",),
    "events": ("Accepted", "Chosen", "Ended", "Evaluated", "Event", "NewBest", "Proposed", "Rejected", "Started"),
    "parents": ("UCB", "Beam", "Best", "EpsilonGreedy", "Latest", "MultiObjective", "Parents", "Pareto", "TopK"),
    "pareto": ("Fronts",),
    "pool": ("Pool",),
    "result": ("StudyResult",),
    "search": ("Search",),
    "study": ("Study",),
    "validation": ("Full", "Racing", "Validation"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
