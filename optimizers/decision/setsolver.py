"""A network trained beforehand proposes decisions; the worst case of each is worked out or executed, and joins in.

Column-and-constraint generation as in "Neur2RO" (Dumouchelle et al., ICLR 2024), section 3, with three changes: the
scenarios are true worst cases and not predicted ones, decisions come from local search on the network beside the main
problem's MILP, and the answer is the best decision that was verified, not the last one.
"""

from __future__ import annotations

import math
import time
import warnings
from typing import TYPE_CHECKING, Any

from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.errors import InvalidProblem, SolverError
from trace_core.optimizers.decision.adversary import Attack, adversary_for
from trace_core.optimizers.decision.exact import EXACT, check_reaction
from trace_core.optimizers.decision.executions import Executions
from trace_core.optimizers.decision.main_problem import MainProblem
from trace_core.optimizers.decision.proposing import Proposer
from trace_core.optimizers.decision.result import Certificate, RobustResult, Round
from trace_core.optimizers.decision.setnet import InstanceNetwork, StrangeInstance

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trace_core.nodes.decision.checks import Array
    from trace_core.optimizers.decision.adversary import Adversary
    from trace_core.optimizers.decision.problem import RobustProblem

_MAIN = 8  # scenarios in the main problem, beside what is expected; the latest ones
_POOL = 40  # scenarios in local search
_FIRST = 4  # rounds with the main problem at the beginning; later, every fourth
_IDLE = 8  # rounds in a row that propose nothing new end the search
_STRANGE = 0.1  # share of features outside of the training data's range that is worth a warning


class SetSolver:
    """Rounds: the network proposes a decision, its worst case is found, and its scenario joins the network's problem.

    With ``problem.recourse``, worst cases are exact and the linear relaxation bounds what any decision can reach: the
    certificate has both. With only ``problem.second_stage`` they are executed, and it is empirical.

    Args:
        network: ``SetNetwork.on(features)`` of this problem: as many items as entries of x and of xi.
        seconds: wall time for all rounds; the network's training is not in it.
        executions: of the second stage, where there is no recourse.
        seed: of everything random.

    Raises InvalidProblem; warns with StrangeInstance if the features are far from those of the training data.
    """

    def __init__(
        self,
        problem: RobustProblem,
        network: InstanceNetwork,
        *,
        seconds: float = 60.0,
        executions: int = 1000,
        gap: float = EXACT,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        _check(problem, network)
        self.problem, self.network, self.seconds, self.gap = problem, network, seconds, gap
        self.executions = Executions(problem, **options)
        self.budget = executions
        self.proposer = Proposer(problem, network, np.random.default_rng(seed))
        self.adversary: Adversary
        if problem.recourse is not None:
            self.adversary = adversary_for(problem.recourse, problem.uncertainty)
        else:
            self.adversary = ExecutedAdversary(problem, self.proposer, self.executions, executions)
        self.stop: str | None = None
        self.history: list[Round] = []
        self.bound, self.best = -math.inf, math.inf
        self.x: Array | None = None
        self.xi: Array | None = None
        self._scenarios = [problem.uncertainty.center]
        self._seen: dict[bytes, float] = {}  # verified decisions, with the worst that is known of each
        self._errors: list[float] = []
        self._turn = self._idle = 0
        self._seed, self._clock, self._spent, self._began = seed, clock, 0.0, 0.0

    def run(self) -> RobustResult:
        """Rounds until the time is up or nothing new is proposed. Raises SolverError, BadOutcome."""
        while self.stop is None:
            self.round()
        return self.result()

    def round(self) -> None:
        """One decision proposed and verified; sets ``stop`` when there is nothing more to do."""
        self._began = self._clock()
        try:
            self._round(self.seconds - self._spent)
        finally:
            self._spent, self._began = self.elapsed, 0.0

    @property
    def elapsed(self) -> float:
        """Seconds spent in rounds."""
        return self._spent + (self._clock() - self._began if self._began else 0.0)

    def _round(self, left: float) -> None:
        if not self._turn:
            self.bound = self._relaxation(left)
        if self.x is not None and (left <= 0 or self.executions.count >= self.budget):
            self.stop = "time" if left <= 0 else "executions"
            return
        self._turn += 1
        x = self._proposal(left)
        if x is None or x.tobytes() in self._seen:
            self._idle += 1
            if self._idle >= _IDLE:
                self.stop = "exhausted"
            return
        self._idle = 0
        self._verify(x, self.seconds - self.elapsed)

    def _proposal(self, left: float) -> Array | None:
        """By the main problem at first and now and then, else by local search from the best decisions."""
        if self._turn <= _FIRST or self._turn % 4 == 0 or not self._seen:
            scenarios = [self._scenarios[0], *self._scenarios[1:][-_MAIN:]]
            seconds = min(max(left / 2, 0.05), 0.3 if self._seen else math.inf)
            return self.proposer.main(scenarios, set(self._seen), seconds, gap=2e-3)
        best = sorted(self._seen, key=lambda key: self._seen[key])[:2]
        starts = [np.frombuffer(key) for key in best]
        return self.proposer.near(starts, self._scenarios[-_POOL:], set(self._seen))

    def _verify(self, x: Array, left: float) -> None:
        problem, first = self.problem, self.problem.value_of(x)
        enough = self.best - first
        attack = self.adversary.attack(
            x,
            tolerance=1e-4 * max(abs(self.best), abs(first)) if math.isfinite(self.best) else 1e-4 * abs(first),
            known=self._scenarios[-3:],
            enough=enough,
            deadline=time.monotonic() + max(left, 0.5),
        )
        self._seen[x.tobytes()] = first + attack.lower
        if not any(np.array_equal(attack.xi, xi) for xi in self._scenarios):
            self._scenarios.append(attack.xi)
        if first + attack.upper < self.best:
            self.best, self.x, self.xi = first + attack.upper, x, attack.xi
        if math.isfinite(attack.lower):
            self._errors.append(abs(float(self.network.predict(x[None], attack.xi[None])[0]) - attack.lower))
        sign = problem.sign
        self.history.append(
            Round(
                sign * self.bound if math.isfinite(self.bound) else None,
                sign * self.best if math.isfinite(self.best) else None,
                f"decision verified, worst case {sign * (first + attack.lower):g}",
                self.elapsed,
                self.executions.count,
            )
        )
        if self.best - self.bound <= max(self.gap, EXACT) * max(abs(self.best), 1e-3):
            self.stop = "optimal"

    def _relaxation(self, left: float) -> float:
        """What no decision can be better than, by one linear program; nothing without a recourse."""
        if self.problem.recourse is None:
            return -math.inf
        main = MainProblem(self.problem, self.problem.recourse, self._seed)
        if not main.relaxed:
            main.add(self.problem.uncertainty.center)
        main.model.relax()
        found = main.solve(max(left / 2, 0.1), 1e-9)
        return found.bound if found.status == "optimal" else -math.inf

    # ---- the answer

    def result(self) -> RobustResult:
        """The best verified decision. Raises SolverError if there is none."""
        if self.x is None or self.xi is None:
            raise SolverError("no decision was found whose worst case has a value", self.stop or "running")
        sign, stage = self.problem.sign, self.problem.recourse
        error = max(self._errors[-20:], default=None)
        certificate = Certificate("empirical", executions=self.executions.count, model_error=error)
        if stage is not None:
            check_reaction(stage, self.x, self.xi)
            proven = math.isfinite(self.bound)
            gap = max(self.best - self.bound, 0.0) / max(abs(self.best), 1e-3) if proven else None
            ends = [sign * self.bound if proven else None, sign * self.best]
            lower, upper = ends if sign > 0 else reversed(ends)
            kind = "exact" if gap is not None and gap <= EXACT else "gap"
            certificate = Certificate(kind, lower=lower, upper=upper, gap=gap, model_error=error)  # type: ignore[arg-type]
        return RobustResult(
            x=self.x,
            values=self.problem.split(self.x),
            worst_case=sign * self.best,
            worst_scenario=self.xi,
            certificate=certificate,
            stop=self.stop or "running",
            seconds=self._spent,
            history=list(self.history),
            rejected=self.executions.rejected,
            infeasible=self.executions.failed,
        )

    def state(self) -> dict[str, Any]:
        """Plain data: the decisions verified, the scenarios kept, the executions."""
        return {
            "seen": [[np.frombuffer(key).tolist(), _plain(worst)] for key, worst in self._seen.items()],
            "scenarios": [xi.tolist() for xi in self._scenarios],
            "best": _plain(self.best),
            "bound": _plain(self.bound),
            "x": None if self.x is None else self.x.tolist(),
            "xi": None if self.xi is None else self.xi.tolist(),
            "records": [record.data() for record in self.executions.records],
            "executions": self.executions.count,
            "seconds": self._spent,
            "turn": self._turn,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state`` of the same problem; the time spent counts."""
        self._seen = {
            np.array(x, dtype=np.float64).tobytes(): math.inf if worst is None else worst for x, worst in state["seen"]
        }
        self._scenarios = [np.array(xi, dtype=np.float64) for xi in state["scenarios"]]
        self.best = math.inf if state["best"] is None else float(state["best"])
        self.bound = -math.inf if state["bound"] is None else float(state["bound"])
        self.x, self.xi = (None if state[k] is None else np.array(state[k], dtype=np.float64) for k in ("x", "xi"))
        self.executions.load(state["records"])
        self.executions.count, self._turn = int(state["executions"]), int(state["turn"])
        self._spent = float(state["seconds"])


class ExecutedAdversary:
    """Executes what the network and the past take for the worst scenarios. Proves nothing: ``upper`` is ``lower``."""

    _TRIED = 6  # scenarios for a decision that stands all of them

    def __init__(self, problem: RobustProblem, proposer: Proposer, executions: Executions, budget: int) -> None:
        self.problem, self.proposer, self.executions, self.budget = problem, proposer, executions, budget

    def attack(
        self,
        x: Array,
        *,
        tolerance: float,
        known: Sequence[Array] = (),
        enough: float = math.inf,
        deadline: float = math.inf,
    ) -> Attack:
        """See Adversary."""
        worst, at = -math.inf, self.problem.uncertainty.center
        for k in range(self._TRIED):
            if k and (self.executions.count >= self.budget or time.monotonic() > deadline):
                break
            xi = self._candidate(x, k, [*known, at])
            if xi is None:
                continue
            record = self.executions.run(x, xi)
            if record.value > worst:
                worst, at = record.value, xi
            if worst > enough or math.isinf(worst):
                break
        return Attack(worst, worst, at)

    def _candidate(self, x: Array, k: int, known: Sequence[Array]) -> Array | None:
        """What was worst for others, the network's worst by ascent from several starts, by MILP, what is expected."""
        if k == 0:
            values = self.proposer.surrogate.predict(np.repeat(x[None], len(known), axis=0), np.array(known))
            return known[int(np.argmax(values))]
        if k == 2:
            exact = self.proposer.exact_worst(x, 0.5)
            return None if exact is None else exact[0]
        if k == 5:
            return self.problem.uncertainty.center
        return self.proposer.worst(x, known)[0]


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _check(problem: RobustProblem, network: InstanceNetwork) -> None:
    if not isinstance(network, InstanceNetwork):
        raise InvalidProblem(
            "network", f"must be SetNetwork.on(features) of this problem, got {type(network).__name__}", value=network
        )
    for what, size in (("entries of x", problem.size), ("entries of xi", problem.uncertainty.size)):
        if network.items != size:
            raise InvalidProblem("network", f"has features of {network.items} items, the problem has {size} {what}")
    if network.source.sense != problem.sense:
        raise InvalidProblem("network: sense", f"is {network.source.sense!r}, the problem's is {problem.sense!r}")
    if network.strangeness > _STRANGE:
        warnings.warn(
            f"{100 * network.strangeness:.0f} % of the items' features lie outside of the range that the network was "
            "trained on: are they made in the same way? Its proposals may be poor; what it proposes is verified",
            StrangeInstance,
            stacklevel=4,
        )
