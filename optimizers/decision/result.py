"""What a robust optimizer hands back: a verified decision, what is proven about it, how it was found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from trace_core.nodes.decision.checks import Array
    from trace_core.parameter import Parameter


@dataclass(frozen=True)
class Certificate:
    """What is proven, and what is not.

    Attributes:
        kind: ``exact`` (worst case and optimality proven, up to a relative 1e-6), ``gap`` (both bounds proven, with a
            gap between them), ``empirical`` (nothing proven: the worst case is the worst that was executed).
        lower, upper: proven bounds on the best worst case, in the problem's sense; one of them is the proven worst case
            of the decision, the other the optimistic one. None where nothing is proven.
        gap: (upper - lower) relative to the decision's worst case; None where nothing is proven.
        executions: how often the second stage was executed.
        model_error: largest difference between the network and an execution at the last attacked points; None if no
            network was used.
        noisy: whether the second stage gave several values for one input.
    """

    kind: Literal["exact", "gap", "empirical"]
    lower: float | None = None
    upper: float | None = None
    gap: float | None = None
    executions: int = 0
    model_error: float | None = None
    noisy: bool = False


@dataclass(frozen=True)
class Round:
    """One round: the proven bound so far (None without), the best worst case so far, what was done, when."""

    bound: float | None
    worst_case: float | None
    what: str
    seconds: float
    executions: int = 0


@dataclass(frozen=True)
class RobustResult:
    """The best verified decision.

    Attributes:
        x: the decision as one vector. ``values`` has the same by parameter.
        worst_case: its worst case, first stage included: proven, or the worst executed; see ``certificate``.
        worst_scenario: where that is taken.
        stop: why the search ended: ``optimal``, ``time``, ``executions``, ``exhausted``, ``stalled``.
        seconds: wall time.
        history: the rounds.
    """

    x: Array
    values: dict[Parameter, Any]
    worst_case: float
    worst_scenario: Array
    certificate: Certificate
    stop: str
    seconds: float
    history: list[Round] = field(default_factory=list, repr=False)
    rejected: int = 0
    infeasible: int = 0
