"""What can be wrong with a robust decision problem, each with what is needed to find the place."""

from __future__ import annotations

from typing import Any

from trace_core.errors import TraceCoreError


class DecisionError(TraceCoreError):
    """Root of the errors of decisions under uncertainty."""


class InvalidProblem(DecisionError, ValueError):
    """A field of a decision, an uncertainty set or a stage cannot be used.

    Attributes:
        field: its name, such as ``uncertainty 'xi': gamma``.
        index: position of the offending entry; None where the whole field is wrong.
        value: the offending value.
    """

    def __init__(self, field: str, problem: str, *, index: tuple[int, ...] | None = None, value: Any = None) -> None:
        where = "" if index is None else f"[{', '.join(map(str, index))}]"
        super().__init__(f"{field}{where} {problem}")
        self.field, self.index, self.value = field, index, value


class InfeasibleFirstStage(DecisionError):
    """No decision satisfies the constraints.

    Attributes:
        conflict: a smallest set of constraints that cannot hold together, as text; without any of them it could.
    """

    def __init__(self, conflict: list[str]) -> None:
        super().__init__(f"no decision within its bounds satisfies these constraints together: {'; '.join(conflict)}")
        self.conflict = conflict


class SolverError(DecisionError):
    """The MILP solver ended without an answer that can be used.

    Attributes:
        what: which problem.
        status: the solver's word for it.
    """

    def __init__(self, what: str, status: str) -> None:
        super().__init__(f"{what}: the solver ended with {status!r}")
        self.what = what
        self.status = status

    def __reduce__(self) -> tuple[type[SolverError], tuple[str, str]]:
        return type(self), (self.what, self.status)  # it crosses processes


class Infeasible(DecisionError):
    """A second stage raises it where the decision leaves no way to react; ``violation`` says by how much, if known."""

    def __init__(self, message: str = "no reaction is possible", *, violation: float | None = None) -> None:
        super().__init__(message)
        self.violation = violation


class ModelMismatch(DecisionError):
    """Two descriptions of the second stage differ at one point.

    Attributes:
        x, xi: the point.
        expected, found: the values.
    """

    def __init__(self, what: str, x: Any, xi: Any, expected: float, found: float) -> None:
        super().__init__(
            f"{what} gives {found:.9g} where the recourse says {expected:.9g}, at x={x!r:.120}, xi={xi!r:.120}"
        )
        self.x, self.xi, self.expected, self.found = x, xi, expected, found


class BadOutcome(DecisionError):
    """The second stage gave what is no cost: not one finite number, or an exception.

    Attributes:
        x, xi: where, to run it again.
        value: what it gave.
    """

    def __init__(self, problem: str, x: Any, xi: Any, value: Any = None) -> None:
        super().__init__(f"the second stage {problem}, at x={x.tolist()!r:.200}, xi={xi.tolist()!r:.200}")
        self.x, self.xi, self.value = x, xi, value


class BudgetTooSmall(DecisionError, ValueError):
    """Too few executions to learn anything; ``minimum`` says how many are needed."""

    def __init__(self, given: int, minimum: int) -> None:
        super().__init__(f"{given} executions are too few to learn the second stage: at least {minimum} are needed")
        self.minimum = minimum


class NoisySecondStage(UserWarning):
    """The second stage gave different values for the same input."""


class LargeProblem(UserWarning):
    """The main problem would be too large for a MILP: decisions are looked for by local search alone."""


class RejectedRecords(UserWarning):
    """More than a tenth of the executions that were handed over lie outside of the problem."""


class NoDependence(UserWarning):
    """The second stage's value does not depend on the decision, or not on what comes."""
