"""Learned mode: a second stage that can only be run. A network proposes, the workflow is run there, the network learns.

Nothing is proven: the answer is the decision whose worst *executed* scenario is best.
"""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.errors import BudgetTooSmall, NoDependence, SolverError
from trace_core.optimizers.decision.executions import Executions, Record
from trace_core.optimizers.decision.result import Certificate, RobustResult, Round
from trace_core.optimizers.decision.search import Search

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trace_core.nodes.decision.checks import Array
    from trace_core.optimizers.decision.problem import RobustProblem
    from trace_core.optimizers.decision.surrogate import Surrogate

_CHECKED = 12  # records, then some are run again, to see whether they give the same


class LearnedSolver:
    """Asks for executions one by one. ``run`` makes them, or a user does, through ``wanted`` and ``took``.

    What is executed, ``Search`` decides.

    Args:
        executions: of the second stage, at most.
        seconds: wall time.
        seed: of everything random.
        hidden, members: see ``Surrogate``.
        options: of ``Executions``.
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
        self.executions = Executions(problem, **options)
        least = (2 * (problem.size + problem.uncertainty.size) + 10) * self.executions.replicates
        if executions < least:
            raise BudgetTooSmall(executions, least)
        self.problem, self.budget, self.seconds = problem, executions, seconds
        self.search = Search(
            problem,
            self.executions,
            budget=executions // self.executions.replicates,
            seed=seed,
            hidden=hidden,
            members=members,
            note=self._note,
        )
        self.stop: str | None = None
        self.history: list[Round] = []
        self._spent, self._used = 0.0, 0
        self._wanted: tuple[Array, Array] | None = None
        self._checked = self._looked = self._said = False
        self._context = ""

    @property
    def surrogate(self) -> Surrogate:
        """What has been learned."""
        return self.search.surrogate

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
            self._context = self.executions.context
            if self.executions.renew():  # a prompt, code or number of the workflow was changed
                self.search.renew()
                self._wanted = None
        if self._wanted is None:
            self._ask()
        return self._wanted

    def _ask(self) -> None:
        if self.stop is None and self._used + self.executions.replicates > self.budget:
            self.stop = "executions"
        if self.stop is None and self._spent > self.seconds and self.search.worst:
            self.stop = "time"
        if self.stop is None:
            self._wanted = self.search.next(self._used)
            self.stop = "exhausted" if self._wanted is None else None

    def tell(self, record: Record) -> None:
        """What the execution of ``wanted`` gave (or another that happened)."""
        self._wanted = None
        self.search.told(record)
        self._check()
        self._ask()  # at once: between two executions, a state has all there is to go on from
        if self.stop is not None and not self._said:
            self._warn_of_no_dependence()

    def took(self, record: Record) -> None:
        """An execution made by a user: it counts."""
        began = time.monotonic()
        self._used += 1
        self.tell(record)
        self._spent += time.monotonic() - began

    def learn(self, records: Any) -> None:
        """Train on executions of earlier runs too; they use no budget. See ``Executions.load``."""
        self.executions.load(records)
        for record in self.executions.current():
            self.search.learned(record)

    def _check(self) -> None:
        """Once, look for noise, and whether decision and scenario matter."""
        executions, count = self.executions, len(self.executions.records)
        if not self._checked and count >= _CHECKED and self._used + 3 * executions.replicates < self.budget:
            self._checked, before = True, executions.count
            executions.check_noise()
            self._used += executions.count - before
        if not self._looked and self.search.designed:
            self._looked = True
            self._warn_of_no_dependence()

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
                self._said = True
                warnings.warn(f"the second stage's value did not depend on {name} in any execution", NoDependence, 6)

    def _note(self, what: str, total: float) -> None:
        best, sign = self.search.best_total(), self.problem.sign
        shown = f"{what}: worst executed {sign * total:g}"
        self.history.append(Round(None, sign * best if math.isfinite(best) else None, shown, self._spent, self._used))

    # ---- state and result

    def state(self) -> dict[str, Any]:
        """Plain data: the executions, the network, and where the search stands."""
        return {
            "executions": self.executions.state(),
            "search": self.search.state(),
            "wanted": None if self._wanted is None else [each.tolist() for each in self._wanted],
            "history": [list(astuple(each)) for each in self.history],
            "used": self._used,
            "seconds": self._spent,
            "checked": [self._checked, self._looked, self._said],
            "stop": self.stop,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``, as the run that it was taken from would have. A larger budget or more time counts."""
        self.executions.restore(state["executions"])
        self._context = self.executions.context
        self.search.restore(state["search"])
        wanted = state["wanted"]
        self._wanted = None if wanted is None else (np.array(wanted[0], float), np.array(wanted[1], float))
        self.history = [Round(*each) for each in state["history"]]
        self._used, self._spent = int(state["used"]), float(state["seconds"])
        self._checked, self._looked, self._said = state["checked"]
        self.stop = state["stop"] if state["stop"] == "exhausted" else None

    @property
    def x(self) -> Array | None:
        """The best verified decision so far: see ``Search.answer``."""
        return self.search.answer()

    def result(self) -> RobustResult:
        """The best decision by its worst executed scenario. Raises SolverError if every decision was infeasible."""
        x = self.x
        if x is None:
            raise SolverError("no decision was found for which the second stage has a value", self.stop or "running")
        record = self.search.worst[x.tobytes()]
        return RobustResult(
            x=x,
            values=self.problem.split(x),
            worst_case=self.problem.sign * self.search.total(record),
            worst_scenario=record.xi,
            certificate=Certificate(
                "empirical",
                executions=self.executions.count,
                model_error=max((e for e in self.search.errors if math.isfinite(e)), default=None),
                noisy=self.executions.noisy,
            ),
            stop=self.stop or "running",
            seconds=self._spent,
            history=list(self.history),
            rejected=self.executions.rejected,
            infeasible=self.executions.failed,
        )
