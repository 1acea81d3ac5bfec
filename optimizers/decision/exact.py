"""Column-and-constraint generation with a certificate, for a recourse that is a MILP."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from trace_core.errors import ParameterError
from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.errors import DecisionError, ModelMismatch, SolverError
from trace_core.optimizers.decision.adversary import Attack, adversary_for
from trace_core.optimizers.decision.listed import listed
from trace_core.optimizers.decision.main_problem import MainProblem
from trace_core.optimizers.decision.result import Certificate, RobustResult, Round

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trace_core.nodes.decision.checks import Array
    from trace_core.nodes.decision.stage import MilpStage
    from trace_core.optimizers.decision.problem import RobustProblem

EXACT = 1e-6  # a relative gap that counts as none
_FINEST = 1e-9  # relative gap of the main problem


class NoRobustDecision(DecisionError):
    """For every decision there is a scenario to which no reaction is possible. ``scenarios`` shows it."""

    def __init__(self, scenarios: list[Array]) -> None:
        super().__init__(
            f"no decision leaves a reaction to each of these {len(scenarios)} scenarios of the uncertainty set"
        )
        self.scenarios = scenarios


class ExactSolver:
    """Rounds: the main problem proposes a decision, the adversary finds its worst case, which joins the main problem.

    The main problem's bound holds for every decision that was not cut off; those cut off are known. The incumbent is
    the decision with the least proven worst case.

    Args:
        gap: relative gap between bound and incumbent at which to stop.
        seconds: wall time for all rounds.
        seed: for the solver.
    """

    def __init__(
        self,
        problem: RobustProblem,
        stage: MilpStage,
        *,
        gap: float = EXACT,
        seconds: float = 60.0,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.problem, self.gap, self.seconds = problem, gap, seconds
        self._listed = listed(problem, stage)
        self.main = self._listed or MainProblem(problem, stage, seed)
        self.adversary = adversary_for(stage, problem.uncertainty, self._listed.fixed if self._listed else None)
        self.bound, self.best = -math.inf, math.inf  # of the minimised problem
        self.x: Array | None = None
        self.xi: Array | None = None
        self.stop: str | None = None
        self.history: list[Round] = []
        self._seen: dict[bytes, Attack] = {}
        self._precision = 5e-3 if stage.uncertain_rows else 5e-4  # of the main problem, at first
        self._finest = gap / 4 if gap > EXACT else _FINEST
        self._generator = np.random.default_rng(seed)
        self._begun = False
        self._wide, self._radius = False, 4  # whether the last round looked everywhere; how far the others look
        self._clock, self._spent, self._began = clock, 0.0, 0.0
        self._checked: set[tuple[bytes, bytes]] = set()
        self._reserve = 0.0  # seconds kept for the check of the answer: as long as the longest one took
        if not self.main.relaxed:
            self.main.add(problem.uncertainty.center)

    # ---- rounds

    def run(self) -> RobustResult:
        """Rounds until the gap is closed or the time is up. Raises NoRobustDecision; SolverError if none was found."""
        while self.stop is None:
            self.round()
        return self.result()

    def round(self) -> None:
        """One round; sets ``stop`` when there is nothing more to do."""
        self._began = self._clock()
        try:
            self._round()
            if self.x is not None and self.xi is not None and (self.stop or not self._checked):
                self._check(self.x, self.xi)
        finally:
            self._spent += self._clock() - self._began
            self._began = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds spent in rounds."""
        return self._spent + (self._clock() - self._began if self._began else 0.0)

    def _left(self) -> float:
        return self.seconds - self.elapsed - self._reserve

    def _check(self, x: Array, xi: Array) -> None:
        """``check_reaction``, once for each pair."""
        key = (x.tobytes(), xi.tobytes())
        if key not in self._checked:
            began = self._clock()
            check_reaction(self.main.stage, x, xi)
            self._checked.add(key)
            self._reserve = max(self._reserve, min(self._clock() - began, 0.2 * self.seconds))

    def _round(self) -> None:
        if self._left() <= (0 if self.x is None else min(0.5, 0.05 * self.seconds)):  # a solve may run over by so much
            if self.x is None:
                raise SolverError(f"no decision was found within {self.seconds:g} seconds", "limit")
            self.stop = "time"
            return
        if self.problem.binary and self.x is not None and self._wide and not self._listed:
            self._nearby()
            return
        if not self._begun:
            self._begun = True
            if self.main.stage.uncertain_rows:
                self._static()
        self._wide = True
        share = self._left() * (0.6 if self.x is None else 0.5)
        solution = self.main.solve(max(share, 0.2), self._precision)
        if solution.status == "infeasible":
            if self.x is not None or not self.main.forget_necessary():
                self._nothing_better()
            return
        if solution.status == "unbounded":
            raise SolverError("the main problem (is the recourse bounded?)", solution.status)
        self._raise_bound(solution.bound)
        if not solution:
            self._note("main problem: no solution in time")
            return
        try:
            x = self.problem.repaired(solution[self.main.x])
        except ParameterError as error:
            raise SolverError("the main problem's decision breaks its own constraints", str(error)) from error
        self._judge(x, solution[self.main.theta].item(), solution.status == "optimal")

    def _static(self) -> None:
        """With uncertain rows, begin with a decision that one reaction suits, whatever comes: its cost is proven."""
        found = self.main.static(self._left() * 0.1)
        if found is None:
            return
        try:
            x = self.problem.repaired(found[0])
        except ParameterError:  # the solver's tolerance: a start is not worth an error
            return
        first = self.problem.value_of(x)
        cost = found[1] + 1e-6 * max(1.0, abs(found[1]))
        self._take(x, first + cost, Attack(-math.inf, cost, self.problem.uncertainty.center))
        attack = self._attack(x, first)
        self._seen[x.tobytes()] = attack = Attack(attack.lower, max(min(attack.upper, cost), attack.lower), attack.xi)
        self._take(x, first + attack.upper, attack)
        self.xi = attack.xi
        self._note(f"one reaction for all that may come: worst case {first + attack.lower:g}")
        if self.problem.binary:
            self._polish()

    def _nearby(self) -> None:
        """A round that looks near the incumbent only: much faster, and where better decisions mostly are."""
        self._wide = False
        radius = min(self._radius, self.problem.size)
        self.main.near(self.x, radius)
        solution = self.main.solve(max(self._left() * 0.2, 0.2), self._precision)
        self.main.near(None)
        if not solution:
            self._note(f"nothing better found within {radius} changes")
            self._radius = self._radius + 2 if solution.status == "infeasible" else max(self._radius - 1, 2)
            return
        x = self.problem.repaired(solution[self.main.x])
        self._judge(x, solution[self.main.theta].item(), False)

    def _judge(self, x: Array, promised: float, solved: bool) -> None:
        """Attack a decision; learn its worst case."""
        key, first = x.tobytes(), self.problem.value_of(x)
        again = key in self._seen
        attack = self._attack(x, first)
        self._seen[key] = attack
        improved = self._take(x, first + attack.upper, attack)
        self._note(f"decision promised {first + promised:g}, worst case {first + attack.lower:g}")
        if self._closed():
            return
        if self.problem.binary and improved and not self._listed:
            self._polish()
        known = any(np.array_equal(attack.xi, xi) for xi in self.main.scenarios)
        if not known and attack.lower > promised:
            self.main.add(attack.xi)
        settled = first + attack.lower > self.best or attack.upper - attack.lower <= self._slack() / 4
        if self.problem.binary and (settled or math.isinf(attack.lower)):
            self._check(x, attack.xi)  # what is cut off must be proven to be no better
            self.main.exclude(x)
        elif again and known and solved and self._precision <= _FINEST:
            self.stop = "stalled"
        if self.main.stage.uncertain_rows:  # many rounds, dear ones: no finer than what is still open
            self._precision = max(min(self._precision, self._relative_gap() / 5), self._finest)
        else:
            self._precision = max(min(self._precision / 3, self._relative_gap() / 5), self._finest)

    def _take(self, x: Array, total: float, attack: Attack) -> bool:
        """Make a decision the incumbent if its proven worst case is better."""
        if not total < self.best:
            return False
        self.best, self.x, self.xi = total, x, attack.xi
        self.main.below(self.best - self._slack() / 2)
        return True

    def _polish(self) -> None:
        """Local search: one or two entries of the incumbent changed, tried against the scenarios known, then exactly.

        Ends where no neighbour is better, or after a share of the time.
        """
        end, tried = self.elapsed + self._left() * 0.2, 0
        before = self.best
        moves = self._moves()
        while moves and self.elapsed < end and self.x is not None and self.xi is not None:
            x = self.x.copy()
            for entry in moves.pop():
                x[entry] = 1.0 - x[entry]
            if x.tobytes() in self._seen or not self.problem.allows(x):
                continue
            first, tried = self.problem.value_of(x), tried + 1
            attack = self._attack(x, first, [*self.main.scenarios[-3:], self.xi])
            self._seen[x.tobytes()] = attack
            if self._take(x, first + attack.upper, attack):
                moves = self._moves()
        if self.best < before:
            self._note(f"local search: {tried} neighbours tried")

    def _moves(self) -> list[tuple[int, ...]]:
        """Changes of one entry, then of one that is 1 and one that is 0, in random order; the next one last."""
        x = self.x if self.x is not None else np.empty(0)
        pairs = [(int(i), int(j)) for i in np.flatnonzero(x > 0.5) for j in np.flatnonzero(x < 0.5)]
        order = self._generator.permutation(len(pairs))
        singles = [(int(i),) for i in self._generator.permutation(len(x))]
        return [*(pairs[k] for k in order), *singles]

    def _attack(self, x: Array, first: float, known: list[Array] | None = None) -> Attack:
        seen = self._seen.get(x.tobytes())
        if seen is not None and seen.upper - seen.lower <= self._slack():
            return seen
        enough, tolerance, left = (
            self.best - first,
            self._slack() / 4,
            max(self._left(), 1.0 if self.x is None else 0.1),
        )
        if self.main.stage.uncertain_rows and seen is None and self.x is not None:
            # a worst case is dear here: none closer than what is still open, until the decision is proposed again
            tolerance, left = max(tolerance, 0.05 * (self.best - self.bound)), max(0.2 * left, 0.1)
            tolerance = min(tolerance, self._slack() * 10)
        scenarios = self.main.scenarios[-6:] if known is None else known
        deadline = time.monotonic() + left
        return self.adversary.attack(x, tolerance=tolerance, known=scenarios, enough=enough, deadline=deadline)

    def _slack(self) -> float:
        """The absolute difference that counts as none."""
        scale = abs(self.best) if math.isfinite(self.best) else abs(self.bound) if math.isfinite(self.bound) else 1.0
        return max(self.gap, EXACT) * max(scale, 1e-3)

    def _relative_gap(self) -> float:
        if not math.isfinite(self.best - self.bound):
            return math.inf
        return max(self.best - self.bound, 0.0) / max(abs(self.best), 1e-3)

    def _nothing_better(self) -> None:
        """The main problem has no solution (below the incumbent): the incumbent is proven, or there is none at all."""
        if self.x is None:
            raise NoRobustDecision(list(self.main.scenarios))
        self._raise_bound(math.inf)
        self._note("main problem: nothing better is left")
        self._closed()

    def _raise_bound(self, bound: float) -> None:
        """``bound`` holds for all that was not cut off; what was is no better than the cut."""
        self.bound = max(self.bound, min(bound, self.main.cut))

    def _closed(self) -> bool:
        if self.best - self.bound <= self._slack():
            self.stop = "optimal"
        return self.stop is not None

    def _note(self, what: str) -> None:
        sign = self.problem.sign
        bound = sign * self.bound if math.isfinite(self.bound) else None
        best = sign * self.best if math.isfinite(self.best) else None
        self.history.append(Round(bound, best, what, self.elapsed))

    # ---- going on later

    def state(self) -> dict[str, Any]:
        """Plain data: what is proven, and the scenarios to start from."""
        return {
            "bound": self.bound if math.isfinite(self.bound) else None,
            "best": self.best if math.isfinite(self.best) else None,
            "x": None if self.x is None else self.x.tolist(),
            "xi": None if self.xi is None else self.xi.tolist(),
            "scenarios": [xi.tolist() for xi in self.main.scenarios],
            "seconds": self.elapsed,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state`` of the same problem; the time spent counts."""
        self.bound = -math.inf if state["bound"] is None else float(state["bound"])
        for xi in state["scenarios"][len(self.main.scenarios) :]:
            self.main.add(np.array(xi))
        self._spent = float(state["seconds"])
        if state["x"] is not None:
            self.best, self.x, self.xi = float(state["best"]), np.array(state["x"]), np.array(state["xi"])
            self.main.below(self.best - self._slack() / 2)
            self._closed()

    # ---- the answer

    def result(self) -> RobustResult:
        """The incumbent. Raises SolverError if there is none yet."""
        if self.x is None or self.xi is None:
            raise SolverError("no decision has been verified yet", "running")
        self._check(self.x, self.xi)
        sign, ends = self.problem.sign, (self.bound, self.best)
        gap = self._relative_gap()
        lower, upper = (sign * ends[0], sign * ends[1]) if sign > 0 else (-ends[1], -ends[0])
        certificate = Certificate("exact" if gap <= EXACT else "gap", lower=lower, upper=upper, gap=gap)
        return RobustResult(
            x=self.x,
            values=self.problem.split(self.x),
            worst_case=sign * self.best,
            worst_scenario=self.xi,
            certificate=certificate,
            stop=self.stop or "running",
            seconds=self.elapsed,
            history=list(self.history),
        )


def check_reaction(stage: MilpStage, x: Array, xi: Array) -> None:
    """A user's own solver against the MILP solver where it matters. Raises ModelMismatch."""
    if stage.reaction is None:
        return
    fixed = stage.fixed(x)
    ours, theirs = fixed.solved(xi)[0], fixed.best(xi)[0]
    if abs(ours - theirs) > EXACT * max(1.0, abs(ours)):
        raise ModelMismatch("the reaction given to MilpStage", x, xi, ours, theirs)
