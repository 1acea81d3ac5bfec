"""How a study searches: its strategies, by name or one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from trace_core.optimizers.base import OptimizerError
from trace_core.optimizers.search.acceptance import Acceptance, Always, StepsPass, Strict
from trace_core.optimizers.search.credit import Credit, TraceCredit
from trace_core.optimizers.search.guards import Guard, default_guards
from trace_core.optimizers.search.parents import UCB, Beam, Best, EpsilonGreedy, Latest, MultiObjective, Pareto, TopK
from trace_core.optimizers.search.validation import Full, Validation

if TYPE_CHECKING:
    from trace_core.optimizers.search.contrast import Contrast
    from trace_core.optimizers.search.merge import Merge
    from trace_core.optimizers.search.parents import Parents


@dataclass(frozen=True, kw_only=True)
class Search:
    """The strategies of a study. Each is an object with one or two methods, which can be replaced by one of your own.

    Attributes:
        parents: which candidate a ticket starts from; see ``Parents``.
        acceptance: whether a candidate passes its minibatch; see ``Acceptance``.
        validation: on which validation examples it is run then; see ``Validation``.
        leading: whether a member with a higher mean than the best takes its place, judged on the validation examples
            that both were run on; see ``Acceptance``. ``PairedTest()`` asks for more than chance gives, and for five
            examples or more. None for any gain.
        batch_size: training examples in a minibatch.
        in_flight: tickets at work at once. The outcome depends on it, and on nothing else that runs at once.
        proposals: asked for in each ticket, at most; the first that passes ends it.
        patience: the run ends after so many tickets in a row without a new best; None for no such limit.
        perfect: nothing can be better: a minibatch whose scores all reach it is skipped, a mean on the validation
            examples that does ends the run; None for neither.
        credit: which parameters a proposal may change; see ``Credit``. None for all that the optimizer chooses itself.
        merge: whether and how two candidates are merged; see ``Merge``. None for never.
        contrast: traces of other candidates shown beside those of the minibatch; see ``Contrast``. None for none.
        guards: what a candidate may not do; see ``Guard``.
        stalled: the run ends after so many tickets in a row in which nothing was evaluated.
        reuse: the outcome of a candidate on a training example is taken again, instead of another run, for so many
            tickets. 0 for scores that differ from run to run.
    """

    parents: Parents = field(default_factory=Pareto)
    acceptance: Acceptance = field(default_factory=Strict)
    validation: Validation = field(default_factory=Full)
    leading: Acceptance | None = None
    credit: Credit | None = field(default_factory=TraceCredit)
    merge: Merge | None = None
    contrast: Contrast | None = None
    guards: Sequence[Guard] = field(default_factory=default_guards)
    batch_size: int = 3
    in_flight: int = 1
    proposals: int = 1
    patience: int | None = None
    perfect: float | None = 1.0
    stalled: int = 30
    reuse: int = 64

    def __post_init__(self) -> None:
        for name in ("batch_size", "in_flight", "proposals", "stalled"):
            if getattr(self, name) < 1:
                raise OptimizerError(f"{name} must be at least 1, got {getattr(self, name)}")


PARENTS: dict[str, Callable[[], Any]] = {
    "pareto": Pareto,
    "best": Best,
    "epsilon": EpsilonGreedy,
    "topk": TopK,
    "beam": Beam,
    "ucb": UCB,
    "multi": MultiObjective,
    "latest": Latest,
}


def search_from(given: Search | str, *, chained: bool = False, gated: bool = False) -> Search:
    """The Search that is meant: itself, or by the name of how parents are selected.

    A chained optimizer takes every step from the latest values, so under a name it gets ``Latest`` and ``Always``; one
    that makes other proposals, too, which are to be ``gated``, gets ``StepsPass``.
    Raises OptimizerError for an unknown name, and for a Search that a chained optimizer cannot follow.
    """
    if isinstance(given, Search):
        if chained and (given.in_flight != 1 or not isinstance(given.parents, Latest)):
            raise OptimizerError(
                "each step of this optimizer goes on from the one before: it needs Search(parents=Latest(), "
                "in_flight=1), or search='latest'"
            )
        return given
    if given not in PARENTS:
        raise OptimizerError(f"search must be a Search or one of {', '.join(PARENTS)}; got {given!r}")
    if chained:
        return Search(parents=Latest(), acceptance=StepsPass() if gated else Always(), reuse=0)
    return Search(parents=PARENTS[given]())


#: Settings that say when a run ends, not what it does: a resumed run may have others.
_ENDS = ("patience", "stalled")


def described(search: Search) -> dict[str, Any]:
    """Plain data that is the same for the same search, in every process."""
    return {f.name: _plain(getattr(search, f.name)) for f in fields(search) if f.name not in _ENDS}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    settings = {name: _plain(v) for name, v in sorted(getattr(value, "__dict__", {}).items()) if name[0] != "_"}
    return {"type": type(value).__qualname__, **settings}
