"""Neur2RO: robust decisions as an optimizer, alone or beside others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core.errors import StateError
from trace_core.nodes.decision.errors import Infeasible, InvalidProblem, ModelMismatch
from trace_core.optimizers.base import Optimizer, Proposal
from trace_core.optimizers.decision.exact import EXACT, ExactSolver

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trace_core.optimizers.decision.problem import RobustProblem
    from trace_core.optimizers.decision.result import RobustResult
    from trace_core.trace import Trace


class Neur2RO(Optimizer):
    """The decision whose worst case is best.

    With ``problem.recourse`` by column-and-constraint generation, whose bounds are proven. ``solve`` does all of it and
    sets the decisions; ``step`` does one round and sets them to the best verified so far.

    Args:
        problem: what is decided, what may come, what reacting costs.
        seconds: wall time for all rounds.
        gap: relative gap at which a proven decision is good enough.
        seed: makes runs equal, except where a time limit ends a search.

    Source: "Neur2RO: Neural Two-Stage Robust Optimization" (Dumouchelle et al., ICLR 2024).
    """

    def __init__(self, problem: RobustProblem, *, seconds: float = 60.0, gap: float = EXACT, seed: int = 0) -> None:
        super().__init__(problem.decisions)
        if not seconds > 0:
            raise InvalidProblem("seconds", f"must be positive, got {seconds!r}", value=seconds)
        if not 0 <= gap < 1:
            raise InvalidProblem("gap", f"must be from 0 to below 1, got {gap!r}", value=gap)
        if problem.recourse is None:
            raise InvalidProblem("recourse", "is missing")
        self.problem = problem
        self._solver = ExactSolver(problem, problem.recourse, gap=gap, seconds=seconds, seed=seed)

    @property
    def done(self) -> bool:
        """Whether there is nothing more to do."""
        return self._solver.stop is not None

    def solve(self) -> RobustResult:
        """All rounds; sets the decisions to the best verified ones.

        Raises NoRobustDecision if every decision fails in some scenario, SolverError if none was found in time,
        ModelMismatch if ``second_stage`` and ``recourse`` differ.
        """
        while not self.done:
            self._solver.round()
        result = self.result()
        for parameter, value in result.values.items():
            parameter.update(value)
        return result

    def result(self) -> RobustResult:
        """The best verified decision so far."""
        result = self._solver.result()
        self._compare(result)
        return result

    def propose(self, traces: Sequence[Trace] | None = None, n: int = 1) -> list[Proposal]:
        """One round; the proposal is the best verified decision. Needs no traces: the recourse is known."""
        if not self.done:
            self._solver.round()
        if self._solver.x is None:
            return [Proposal({}, reason="no decision has been verified yet")]
        last = self._solver.history[-1].what if self._solver.history else "restored"
        return [Proposal(self.problem.split(self._solver.x), reason=f"{last}; {self._solver.stop or 'goes on'}")]

    def _compare(self, result: RobustResult) -> None:
        """Execute a second stage that is given beside the recourse, where it matters."""
        stage, function = self.problem.recourse, self.problem.second_stage
        if stage is None or function is None:
            return
        from trace_core.node import unwrap

        for xi in (result.worst_scenario, self.problem.uncertainty.center):
            expected = stage(result.x, xi)
            try:
                found = float(unwrap(function(*result.values.values(), xi.copy()))[0])
            except Infeasible as error:
                raise ModelMismatch("the second stage", result.x, xi, expected, float("inf")) from error
            if not abs(found - expected) <= EXACT * max(1.0, abs(expected)):
                raise ModelMismatch("the second stage", result.x, xi, expected, found)

    def state_dict(self) -> dict[str, Any]:
        """Plain data (lists and numbers): what is proven, and the scenarios collected."""
        return {"problem": self.problem.fingerprint(), "exact": self._solver.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken. Raises StateError for the state of another problem."""
        if state.get("problem") != self.problem.fingerprint():
            raise StateError("this state belongs to another problem: what is proven there need not hold here")
        self._solver.restore(state["exact"])
