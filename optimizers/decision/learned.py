"""Learned mode: a second stage that can only be run. A network proposes, the workflow is run there, the network learns.

Nothing is proven: the answer is the decision whose worst *executed* scenario is best.
"""

from __future__ import annotations

import math
import time
import warnings
from typing import TYPE_CHECKING, Any

from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.errors import BudgetTooSmall, NoDependence, SolverError
from trace_core.optimizers.decision.executions import Executions, Record
from trace_core.optimizers.decision.proposing import Proposer
from trace_core.optimizers.decision.result import Certificate, RobustResult, Round
from trace_core.optimizers.decision.surrogate import Surrogate

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from trace_core.nodes.decision.checks import Array
    from trace_core.optimizers.decision.problem import RobustProblem

    Plan = Generator[tuple[Array, Array], Record, None]

_ATTACKS = 8  # executions at most on one decision in one go
_SCENARIOS = 6  # that the main problem looks at
_IDLE = 3  # rounds without an execution, then something random is executed


class LearnedSolver:
    """Asks for executions one by one. ``run`` makes them, or a user does, through ``wanted`` and ``took``.

    A first part of the budget goes to spread inputs. Then the network is fitted, the main problem on it proposes a
    decision, the adversarial problem on it proposes the worst scenario; that is executed; and so on with this decision
    until it turns out worse than the incumbent, or network and executions agree. A new incumbent has stood the
    scenarios that were worst for others. Every few decisions the incumbent itself is attacked again.

    Args:
        executions: of the second stage, at most.
        seconds: wall time.
        seed: of everything random.
    """

    def __init__(
        self,
        problem: RobustProblem,
        *,
        executions: int = 1000,
        seconds: float = math.inf,
        seed: int = 0,
        hidden: int = 16,
        members: int = 2,
        **options: Any,
    ) -> None:
        least = 2 * (problem.size + problem.uncertainty.size) + 10
        if executions < least:
            raise BudgetTooSmall(executions, least)
        self.problem, self.budget, self.seconds = problem, executions, seconds
        self.executions = Executions(problem, **options)
        self.surrogate = Surrogate(problem, hidden=hidden, members=members, seed=seed)
        self._generator = np.random.default_rng(seed)
        self._proposer = Proposer(problem, self.surrogate, self._generator)
        self.stop: str | None = None
        self.history: list[Round] = []
        self._worst: dict[bytes, Record] = {}  # of each decision, the worst record
        self._dead: set[bytes] = set()  # decisions that need no more executions
        self._scenarios: list[Array] = []
        self._errors: list[float] = []
        self._spent, self._used, self._fitted = 0.0, 0, 0
        self._plan: Plan | None = None
        self._wanted: tuple[Array, Array] | None = None
        self._checked = False

    # ---- one execution after the other

    def run(self) -> RobustResult:
        """All executions. Raises BadOutcome."""
        while self.stop is None:
            self.round()
        return self.result()

    def round(self) -> None:
        """One execution."""
        began = time.monotonic()
        wanted = self.wanted()
        if wanted is not None:
            before = self.executions.count
            record = self.executions.run(*wanted)
            self._used += max(1, self.executions.count - before)
            self.tell(record)
        self._spent += time.monotonic() - began

    def wanted(self) -> tuple[Array, Array] | None:
        """The next (decision, scenario) to be executed; None at the end, with ``stop`` set."""
        if self.stop is None and self._wanted is None:
            if self._used >= self.budget:
                self.stop = "executions"
            elif self._spent > self.seconds and self._worst:
                self.stop = "time"
            else:
                self._plan = self._plan or self._planned()
                try:
                    self._wanted = next(self._plan)
                except StopIteration:
                    self.stop = "exhausted"
        return None if self.stop is not None else self._wanted

    def tell(self, record: Record) -> None:
        """What the execution of ``wanted`` gave (or another that happened)."""
        self._note_worst(record)
        if not self._checked and len(self.executions.records) >= 12:
            self._checked = True
            before = self.executions.count
            if self.problem.second_stage is not None:
                self.executions.check_noise()
            self._used += self.executions.count - before
        asked = self._wanted is not None and np.array_equal(record.x, self._wanted[0])
        self._wanted = None
        if self._plan is not None and asked:
            try:
                self._wanted = self._plan.send(record)
            except StopIteration:
                self.stop = "exhausted"
        if self._used >= self.budget and self.stop is None:
            self.stop = "executions"

    def took(self, record: Record) -> None:
        """An execution made by a user: it counts."""
        self._used += 1
        self.tell(record)

    # ---- the plan

    def _planned(self) -> Plan:
        yield from self._spread(int(0.35 * self.budget) - len(self.executions.records))
        self._warn_of_no_dependence()
        tried = idle = 0
        while True:
            begun = self._used
            late = self._used > 0.9 * self.budget
            if not tried or len(self.executions.records) >= self._fitted + 6:
                self._fit(30 if tried else 300)
            x = None if late else self._proposal(tried)
            tried += 1
            if x is not None:
                yield from self._attack(x)
            if (late or x is None or tried % 4 == 0) and (best := self._incumbent()) is not None:
                yield from self._attack(best, again=True)
            # A round may execute nothing: what it proposes is known already, or there is no incumbent to attack.
            idle = idle + 1 if self._used == begun else 0
            if (idle >= _IDLE or (idle and x is None)) and (yield from self._refresh()):
                return

    def _refresh(self) -> Generator[tuple[Array, Array], Record, bool]:
        """Nothing new is proposed: execute something random. True if there is nothing left at all."""
        for x in self._proposer.random(20):
            xi = self.problem.uncertainty.sample(1, self._generator)[0]
            if self.executions.known(x, xi) is None:
                yield x, xi
                return False
        return True

    def _spread(self, count: int) -> Plan:
        """A first design: decisions of all densities, each with what is expected, a scenario shared, one of its own."""
        xi = self.problem.uncertainty
        shared, turn = xi.sample(4, self._generator), 0
        while count > 0:
            x = self._proposer.random(1)[0]
            turn += 1
            for scenario in [xi.center, shared[turn % 4], *xi.sample(1, self._generator)][: min(3, count)]:
                count -= 1
                if self.executions.known(x, scenario) is None:
                    yield x, scenario

    def _proposal(self, turn: int) -> Array | None:
        """The next decision: by descent from the best ones; every eighth by the MILP."""
        scenarios = self._active()
        if turn % 8 == 7:
            x = self._proposer.main(scenarios[:4], self._dead, 1.0)
            if x is not None and x.tobytes() not in self._dead:
                return x
        best = sorted(self._tried().values(), key=self._total)[:2]
        starts = [*(record.x for record in best), *self._proposer.random(1)]
        return self._proposer.near(starts, scenarios, self._dead)

    def _active(self) -> list[Array]:
        """What is expected, and the scenarios that were worst lately."""
        return [self.problem.uncertainty.center, *self._scenarios[-_SCENARIOS:]]

    def _attack(self, x: Array, again: bool = False) -> Plan:
        """Execute the worst scenarios that the network and the past know for ``x``."""
        key = x.tobytes()
        bound = math.inf if again else self._best_total()
        known = list(reversed(self._scenarios[-_SCENARIOS:]))
        quiet = 0
        for k in range(_ATTACKS):
            xi, expected = self._candidate(x, known, k, again)
            if self.executions.known(x, xi) is not None:
                quiet += 1
                if quiet >= 2:
                    break
                continue
            record = yield x, xi
            total = self._total(record)
            if math.isinf(total) or (not again and total > bound):
                self._keep_scenario(xi)
                self._dead.add(key)
                self._note("dropped", total)
                return
            error = abs(record.value - expected) if math.isfinite(expected) else math.inf
            self._errors.append(error)
            worse = self._worst[key].xi is record.xi or np.array_equal(self._worst[key].xi, record.xi)
            if worse and k > 0:
                self._keep_scenario(xi)
            if error < 0.01 * self.surrogate.scale and k >= 2 and not again:
                quiet += 1
                if quiet >= 2:
                    break
            else:
                self._fit(12, x)
        self._dead.add(key)
        self._keep_scenario(self._worst[key].xi)
        self._note("attacked again" if again else "attacked", self._total(self._worst[key]))

    def _candidate(self, x: Array, known: list[Array], k: int, again: bool) -> tuple[Array, float]:
        """The k-th scenario to try: the network's worst; first of all one that was the worst for a decision before."""
        if k == 0 and not again and known:
            values = [float(self.surrogate.predict(x[None], xi[None])[0]) for xi in known]
            best = int(np.argmax(values))
            return known[best], values[best]
        if k == 4:
            exact = self._proposer.exact_worst(x, 0.5)
            if exact is not None:
                return exact
        if k >= 5 and again:  # around the worst so far
            worst, xi = self._worst[x.tobytes()].xi, self.problem.uncertainty
            other = xi.sample(1, self._generator)[0] if k % 2 else xi.worst(self._generator.normal(size=xi.size))[1]
            mixed = worst + 0.25 * (other - worst)
            if xi.contains(mixed):
                return mixed, math.inf
        own = [self._worst[x.tobytes()].xi] if x.tobytes() in self._worst else []
        return self._proposer.worst(x, [*known, *own])

    def _keep_scenario(self, xi: Array) -> None:
        self._scenarios = [*[s for s in self._scenarios if not np.array_equal(s, xi)][-40:], xi]

    def _fit(self, epochs: int, near: Array | None = None) -> None:
        if near is None and (best := self._incumbent()) is not None:
            near = best
        self._fitted = len(self.executions.records)
        self.surrogate.fit(self.executions.records, epochs=epochs, near=near, binary=self.problem.binary)

    # ---- what is known

    def _note_worst(self, record: Record) -> None:
        key = record.x.tobytes()
        if key not in self._worst or record.value > self._worst[key].value:
            self._worst[key] = record

    def _total(self, record: Record) -> float:
        return self.problem.value_of(record.x) + record.value

    def _tried(self) -> dict[bytes, Record]:
        """Decisions that were attacked to the end."""
        return {key: record for key, record in self._worst.items() if key in self._dead and math.isfinite(record.value)}

    def _incumbent(self) -> Array | None:
        tried = self._tried()
        return min(tried.values(), key=self._total).x if tried else None

    def _best_total(self) -> float:
        return min((self._total(record) for record in self._tried().values()), default=math.inf)

    def _warn_of_no_dependence(self) -> None:
        records = self.executions.records
        for part, name in (("x", "the decision"), ("xi", "what comes")):
            other = "xi" if part == "x" else "x"
            groups: dict[bytes, list[tuple[bytes, float]]] = {}
            for r in records:
                groups.setdefault(getattr(r, other).tobytes(), []).append((getattr(r, part).tobytes(), r.value))
            several = [g for g in groups.values() if len({key for key, _ in g}) > 1]
            enough = len(several) >= 2 and sum(len(g) - 1 for g in several) >= 4
            if enough and all(len({value for _, value in g}) == 1 for g in several):
                warnings.warn(f"the second stage's value did not depend on {name} in any execution", NoDependence, 6)

    def _note(self, what: str, total: float) -> None:
        best = self._best_total()
        sign = self.problem.sign
        shown = f"{what}: worst executed {sign * total:g}"
        self.history.append(Round(None, sign * best if math.isfinite(best) else None, shown, self._spent, self._used))

    def state(self) -> dict[str, Any]:
        """Plain data: the executions, which decisions are done with, and the scenarios kept."""
        return {
            "records": [record.data() for record in self.executions.records],
            "done": [np.frombuffer(key).tolist() for key in sorted(self._dead)],
            "scenarios": [xi.tolist() for xi in self._scenarios],
            "used": self._used,
            "seconds": self._spent,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        self.learn(state["records"])
        self._dead |= {np.array(x, dtype=np.float64).tobytes() for x in state["done"]}
        for xi in state["scenarios"]:
            self._keep_scenario(np.array(xi, dtype=np.float64))
        self._used, self._spent = int(state["used"]), float(state["seconds"])

    def learn(self, records: Any) -> None:
        """Train on executions of earlier runs too; they use no budget. See ``Executions.load``."""
        first = len(self.executions.records)
        self.executions.load(records)
        for record in self.executions.records[first:]:
            self._note_worst(record)

    @property
    def x(self) -> Array | None:
        """The best decision so far: attacked to the end, or if there is none, the best of all."""
        best = self._incumbent()
        if best is None:
            finite = [record for record in self._worst.values() if math.isfinite(record.value)]
            best = min(finite, key=self._total).x if finite else None
        return best

    def result(self) -> RobustResult:
        """The best decision by its worst executed scenario. Raises SolverError if every decision was infeasible."""
        x = self.x
        if x is None:
            raise SolverError("no decision was found for which the second stage has a value", self.stop or "running")
        record = self._worst[x.tobytes()]
        errors = self._errors[-20:]
        return RobustResult(
            x=x,
            values=self.problem.split(x),
            worst_case=self.problem.sign * self._total(record),
            worst_scenario=record.xi,
            certificate=Certificate(
                "empirical",
                executions=self.executions.count,
                model_error=max((e for e in errors if math.isfinite(e)), default=None),
                noisy=self.executions.noisy,
            ),
            stop=self.stop or "running",
            seconds=self._spent,
            history=list(self.history),
            rejected=self.executions.rejected,
            infeasible=self.executions.failed,
        )
