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
from trace_core.optimizers.decision.local import LocalModel
from trace_core.optimizers.decision.proposing import Proposer
from trace_core.optimizers.decision.result import Certificate, RobustResult, Round
from trace_core.optimizers.decision.structured import StructuredSurrogate
from trace_core.optimizers.decision.surrogate import Surrogate

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from trace_core.nodes.decision.checks import Array
    from trace_core.optimizers.decision.problem import RobustProblem

    Plan = Generator[tuple[Array, Array], Record, None]

_ATTACKS = (10, 24)  # executions at most on one decision, for the first time and again; fewer of a small budget
_PATIENCE, _AGAIN = 4, 8  # in a row that are no worse: a decision has stood the attack, for the first time or again
_COURAGE = (0.0, 1.0, 2.0, 4.0)  # standard deviations added in turn: what is known, what is not
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
        hidden: int = 32,
        members: int = 4,
        **options: Any,
    ) -> None:
        least = 2 * (problem.size + problem.uncertainty.size) + 10
        if executions < least:
            raise BudgetTooSmall(executions, least)
        self.problem, self.budget, self.seconds = problem, executions, seconds
        self.executions = Executions(problem, **options)
        self.surrogate: Surrogate = Surrogate(problem, hidden=hidden, members=members, seed=seed)
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
        self._context = ""
        self._limits = [min(most, max(least, executions // 40)) for most, least in zip(_ATTACKS, (4, 6), strict=True)]
        self._whole = {"hidden": hidden, "members": members, "seed": seed}
        self._shape = {"hidden": min(hidden, 12), "members": min(members, 2), "seed": seed}

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
        if self.executions.context != self._context:
            self._renew()
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

    def _renew(self) -> None:
        """A prompt, code or number of the workflow was changed: values executed before it do not hold any more."""
        first = not self._context and not any(record.context for record in self.executions.records[:-1])
        self._context = self.executions.context
        if first:
            return
        self.executions.forget_values()
        self._worst, self._dead, self._plan, self._wanted = {}, set(), None, None
        for record in self.executions.current():
            self._note_worst(record)

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
        first = max(int(0.2 * self.budget), min(24, int(0.35 * self.budget)))
        yield from self._spread(first - len(self.executions.current()))
        self._warn_of_no_dependence()
        tried = idle = 0
        stood: bytes | None = None  # the incumbent that was attacked last
        while True:
            begun = self._used
            late = self._used > 0.75 * self.budget
            if not tried or len(self.executions.records) >= self._fitted + 8:
                self._fit(40 if tried else 400)
            x = None if late and tried % 3 else self._proposal(tried)
            tried += 1
            if x is not None:
                yield from self._attack(x)
            if (best := self._incumbent()) is not None and (late or x is None or best.tobytes() != stood):
                stood = best.tobytes()
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
        """The next decision: by descent from the best ones; every sixteenth by the MILP."""
        scenarios = self._active()
        if turn % 16 == 15:
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
        """Execute scenarios that may be the worst for ``x``, until a few in a row are none."""
        key = x.tobytes()
        bound = math.inf if again else self._best_total()
        local: LocalModel | None = None
        found: tuple[Array, float] | None
        quiet = tried = 0
        while quiet < (_AGAIN if again else _PATIENCE) and tried < self._limits[again]:
            if (tried == 0 and not again) or not (finite := self._finite()):
                found = self._expected_worst(x)
            else:
                local = local or LocalModel(self.problem, self.surrogate, x, finite)
                own = [self._worst[key].xi] if key in self._worst else []
                found = local.worst(
                    [self.problem.uncertainty.center, *self._scenarios[-_SCENARIOS:], *own],
                    self._generator,
                    _COURAGE[tried % len(_COURAGE)],
                    lambda xi: self.executions.known(x, xi) is not None,
                )
                if found is None:
                    break
            tried += 1
            xi, expected = found
            if self.executions.known(x, xi) is not None:
                continue
            before = self._worst[key].value if key in self._worst else -math.inf
            record = yield x, xi
            total = self._total(record)
            if math.isinf(total) or (not again and total > bound):
                self._keep_scenario(xi)
                self._dead.add(key)
                self._note("dropped", total)
                return
            self._errors.append(abs(record.value - expected))
            if local is not None:
                local.add(record)
            quiet = 0 if record.value > before + 5e-3 * self.surrogate.scale else quiet + 1
        self._dead.add(key)
        if key in self._worst:
            self._keep_scenario(self._worst[key].xi)
            self._note("attacked again" if again else "attacked", self._total(self._worst[key]))

    def _expected_worst(self, x: Array) -> tuple[Array, float]:
        """Of the scenarios that were the worst for decisions before, the one that the network takes for the worst."""
        known = [*reversed(self._scenarios[-_SCENARIOS:]), self.problem.uncertainty.center]
        values = self.surrogate.predict(np.broadcast_to(x, (len(known), len(x))), np.array(known))
        best = int(np.argmax(values))
        return known[best], float(values[best])

    def _finite(self) -> list[Record]:
        return [record for record in self.executions.current() if math.isfinite(record.value)]

    def _use(self, surrogate: Surrogate) -> None:
        self.surrogate = self._proposer.surrogate = surrogate

    def _keep_scenario(self, xi: Array) -> None:
        self._scenarios = [*[s for s in self._scenarios if not np.array_equal(s, xi)][-40:], xi]

    def _fit(self, epochs: int, near: Array | None = None) -> None:
        if near is None and (best := self._incumbent()) is not None:
            near = best
        self._fitted = len(self.executions.records)
        program = self.executions.program
        if program is not None and not program.trivial:
            if not isinstance(self.surrogate, StructuredSurrogate):
                self._use(StructuredSurrogate(self.problem, program, **self._shape))
            if isinstance(self.surrogate, StructuredSurrogate):
                self.surrogate.program = program
                self.surrogate.current = self.executions.keys
            self.surrogate.fit(self.executions.records, epochs=epochs, near=near, binary=self.problem.binary)
            return
        if isinstance(self.surrogate, StructuredSurrogate):  # runs differed so much that nothing is left of it
            self._use(Surrogate(self.problem, **self._whole))
            epochs = 300
        self.surrogate.fit(self.executions.current(), epochs=epochs, near=near, binary=self.problem.binary)

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
            raise SolverError("no decision was found for which the second stage has a value", "running")
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
