"""What a learned run executes next: a first design, then decisions that the network likes and scenarios it fears.

Everything that a run goes on from is plain data (``state``): it can be taken up anywhere between two executions.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.uncertainty import Scenarios
from trace_core.optimizers.decision.fitting import Fitting
from trace_core.optimizers.decision.local import LocalModel
from trace_core.optimizers.decision.proposing import Proposer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trace_core.nodes.decision.checks import Array
    from trace_core.optimizers.decision.executions import Executions, Record
    from trace_core.optimizers.decision.problem import RobustProblem
    from trace_core.optimizers.decision.surrogate import Surrogate

# Executions at most on one decision, and how many in a row that are no worse mean that it has stood: for the first
# time, as a new incumbent, as an old one. Fewer of a small budget.
_FIRST, _NEW, _OLD = (10, 4), (24, 8), (8, 3)
_EVERY = 15  # proposals between two attacks on an old incumbent
_COURAGE = (0.0, 1.0, 2.0, 4.0)  # standard deviations added in turn: what is known, what is not
_DARING = (0.0, 0.5, 1.0)  # the same, taken off from decisions
_RECENT = 6  # worst scenarios that attacks begin from
_KEPT = 40  # worst scenarios remembered
_LEADERS = 8  # decisions whose worst scenarios others are measured by
_CANDIDATES = 24  # of a descent on the network; the local model chooses among them
_IDLE, _LARGE = 5, 500  # turns without an execution till one at random; entries of x and xi that forbid a MILP
_LATE = 0.75  # of the budget: from then on the incumbent is attacked until it has used ...
_SHARE = 0.08  # ... of the budget by itself: until then, it may be one whose worst case has not been found


@dataclass
class Attack:
    """Scenarios that may be the worst for ``x`` are executed, until a few in a row are none.

    Attributes:
        most, patience: executions at most, and in a row without a worse one.
        again: whether ``x`` stood one before.
        tried, quiet: scenarios so far; of these, the latest ones that were no worse.
        since: how many records there were when the local model was made; None before that.
        expected: what the last one was expected to give.
    """

    x: Array
    most: int
    patience: int
    again: bool = False
    tried: int = 0
    quiet: int = 0
    since: int | None = None
    expected: float | None = None


class Search:
    """The plan of a learned run.

    A first part of the budget goes to spread inputs. Then the network is fitted, a descent on it (or the main problem)
    proposes a decision, which is attacked until it turns out worse than the incumbent, or has stood the attack. Only
    such can be incumbents. A new incumbent is attacked again, and now and then an old one. If that makes it worse than
    one that was dropped, the attack on this one goes on.

    Args:
        note: told what became of a decision: (words, worst total executed).

    Attributes:
        worst: of each decision that was executed, the worst record.
        stood: decisions that stood an attack, as bytes, and how many they stood as incumbents.
        dropped: decisions whose attack was ended because they were worse than the incumbent.
        errors: differences between what attacks expected and what came.
    """

    def __init__(
        self,
        problem: RobustProblem,
        executions: Executions,
        *,
        budget: int,
        seed: int,
        hidden: int,
        members: int,
        note: Callable[[str, float], None],
    ) -> None:
        self.problem, self.executions, self.budget, self.note = problem, executions, budget, note
        self.generator = np.random.default_rng(seed)
        self.fitting = Fitting(problem, executions, hidden=hidden, members=members, seed=seed)
        self.proposer = Proposer(problem, self.fitting.surrogate, self.generator)
        if problem.size + problem.uncertainty.size > _LARGE:
            self.proposer.without_milp(f"x and xi have {problem.size} and {problem.uncertainty.size} entries")
        self.worst: dict[bytes, Record] = {}
        self.stood: dict[bytes, int] = {}
        self.dropped: set[bytes] = set()
        self.errors: list[float] = []
        self._scenarios: list[Array] = []
        self._queue: list[tuple[Array, Array]] | None = None
        self._attack: Attack | None = None
        self._local: LocalModel | None = None
        self._turn = self._idle = 0
        self._begun, self._confirmed = -1, 0  # executions when the turn began; turn of an incumbent's last attack
        self._proposed = True

    @property
    def surrogate(self) -> Surrogate:
        """What has been learned."""
        return self.fitting.surrogate

    @property
    def designed(self) -> bool:
        """Whether the first design has been executed."""
        return self._queue is not None and not self._queue

    # ---- one execution after the other

    def next(self, used: int) -> tuple[Array, Array] | None:
        """The (decision, scenario) to execute; None if there is nothing left."""
        if self._queue is None:
            first = max(int(0.2 * self.budget), min(24, int(0.35 * self.budget)))
            self._queue = self._spread(first - len(self.executions.current()))
        while True:
            while self._queue:
                x, xi = self._queue.pop(0)
                if self.executions.known(x, xi) is None:
                    return x, xi
            if self._attack is None:
                if not self._go_on(used):
                    return None
            elif (xi_ := self._scenario(self._attack)) is not None:
                return self._attack.x, xi_
            else:
                self._end(self._attack)

    def told(self, record: Record) -> None:
        """What an execution gave."""
        self.proposer.surrogate = self.fitting.revive()
        key, attack = record.x.tobytes(), self._attack
        before = self.worst[key].value if key in self.worst else -math.inf
        bound = self.best_total()
        if record.value > before or key not in self.worst:
            self.worst[key] = record
        if attack is None or not np.array_equal(record.x, attack.x):
            return
        total = self.total(record)
        if math.isinf(total) or (not attack.again and total > bound):
            self._end(attack, dropped=True)
            return
        if attack.expected is not None:
            self.errors = [*self.errors[-19:], abs(record.value - attack.expected)]
        if self._local is not None:
            self._local.add(record)
        attack.quiet = 0 if record.value > before + 5e-3 * self.surrogate.scale else attack.quiet + 1

    def renew(self) -> None:
        """Values executed before do not hold any more: the workflow was changed."""
        self.worst, self.stood, self.dropped = {}, {}, set()
        self._attack = self._queue = self._local = None
        self._begun, self._proposed = -1, True
        for record in self.executions.current():
            self.learned(record)

    def learned(self, record: Record) -> None:
        """A record that is no answer to ``next``."""
        key = record.x.tobytes()
        if key not in self.worst or record.value > self.worst[key].value:
            self.worst[key] = record

    # ---- rounds

    def _go_on(self, used: int) -> bool:
        """Begin the next attack, or put something random into the queue. False if there is nothing left at all."""
        # A turn may execute nothing: what it proposes is known already, or there is no incumbent to attack.
        self._idle = self._idle + 1 if self._begun == used else 0
        self._begun = used
        if self._idle >= _IDLE or (self._idle and not self._proposed):
            self._queue, self._begun = self._random(), -1
            return bool(self._queue)
        best = self.incumbent()
        if best is not None and not self._idle and self._due(best, used):
            self._confirm(best)
            return True
        if (rival := self._rival()) is not None:
            self._attack = self._new(rival, _FIRST)
            return True
        if not self._turn or len(self.executions.records) >= self.fitting.at + 8:
            self.proposer.surrogate = self.fitting.fit(40 if self._turn else 400, best)
        x = self._proposal(best)
        self._turn += 1
        self._proposed = x is not None
        if x is not None:
            self._attack = self._new(x, _FIRST)
        elif best is not None:
            self._confirm(best)
        return True

    def _new(self, x: Array, kind: tuple[int, int], again: bool = False) -> Attack:
        most, patience = kind
        return Attack(x, min(most, max(2 + patience // 2, self.budget // 40)), patience, again)

    def _due(self, best: Array, used: int) -> bool:
        """Whether the incumbent is to be attacked."""
        times = self.stood[best.tobytes()]
        if used > _LATE * self.budget:
            own = sum(np.array_equal(record.x, best) for record in self.executions.current())
            return not times or own < _SHARE * self.budget
        return not times or self._turn >= self._confirmed + _EVERY

    def _confirm(self, best: Array) -> None:
        key = best.tobytes()
        early = self.stood[key] and self._begun <= _LATE * self.budget
        self._attack = self._new(best, _OLD if early else _NEW, again=True)
        self.stood[key] += 1
        self._confirmed = self._turn

    def _rival(self) -> Array | None:
        """The best of the dropped decisions, if the incumbent has become worse than it."""
        known = [self.worst[key] for key in self.dropped if key not in self.stood]
        best = min(known, key=self.total, default=None)
        return None if best is None or self.total(best) >= self.best_total() else best.x

    def _random(self) -> list[tuple[Array, Array]]:
        for x in self.proposer.random(20):
            xi = self.problem.uncertainty.sample(1, self.generator)[0]
            if self.executions.known(x, xi) is None:
                return [(x, xi)]
        return []

    def _spread(self, count: int) -> list[tuple[Array, Array]]:
        """A first design: decisions of all densities, each with what is expected, a scenario shared, one of its own."""
        xi, found = self.problem.uncertainty, []
        shared, turn = xi.sample(4, self.generator), 0
        while count > 0:
            x = self.proposer.random(1)[0]
            turn += 1
            for scenario in [xi.center, shared[turn % 4], *xi.sample(1, self.generator)][: min(3, count)]:
                count -= 1
                found.append((x, scenario))
        return found

    def _proposal(self, incumbent: Array | None) -> Array | None:
        """The next decision: by descent from the best ones and a choice among what it met; every sixteenth by MILP."""
        bound = self.best_total()
        taken = {key for key, record in self.worst.items() if key in self.stood or self.total(record) > bound}
        if self._turn % 16 == 15:
            x = self.proposer.main([self.problem.uncertainty.center, *self._scenarios[-2:]], taken, 1.0)
            if x is not None and x.tobytes() not in taken:
                return x
        leaders = sorted(self.tried().values(), key=self.total)[:_LEADERS]
        scenarios = [self.problem.uncertainty.center]
        for xi in (*(record.xi for record in leaders), *reversed(self._scenarios[-_RECENT:])):
            if not any(np.array_equal(xi, each) for each in scenarios):
                scenarios.append(xi)
        starts = [*(record.x for record in leaders[:2]), *self.proposer.random(1)]
        found = self.proposer.nearest(starts, scenarios, taken, _CANDIDATES)
        if len(found) < 2 or incumbent is None:
            return found[0] if found else None
        model = LocalModel(self.problem, self.surrogate, incumbent, self._finite())
        totals = model.totals(np.array(found), scenarios, _DARING[self._turn % len(_DARING)])
        return found[int(np.argmin(totals))]

    # ---- attacks

    def _scenario(self, attack: Attack) -> Array | None:
        """The next scenario for a decision; None if it has stood the attack."""
        key = attack.x.tobytes()
        while attack.quiet < attack.patience and attack.tried < attack.most:
            found: tuple[Array, float] | None
            if (attack.tried == 0 and not attack.again) or not self._finite():
                found = self._expected_worst(attack.x)
            else:
                own = [self.worst[key].xi] if key in self.worst else []
                courage = _COURAGE[attack.tried % len(_COURAGE)]
                found = self._model(attack).worst([*self._scenarios, *own], self.generator, courage)
                if found is None:
                    return None
            attack.tried += 1
            if self.executions.known(attack.x, found[0]) is None:
                attack.expected = found[1]
                return found[0]
        return None

    def _model(self, attack: Attack) -> LocalModel:
        """The local model at the decision, with what was executed there since it was made."""
        if self._local is None:
            records = self.executions.records
            since = attack.since = len(records) if attack.since is None else attack.since
            current = set(map(id, self._finite()))
            self._local = LocalModel(
                self.problem, self.surrogate, attack.x, [r for r in records[:since] if id(r) in current]
            )
            for record in records[since:]:
                if id(record) in current and np.array_equal(record.x, attack.x):
                    self._local.add(record)
        return self._local

    def _end(self, attack: Attack, *, dropped: bool = False) -> None:
        key = attack.x.tobytes()
        self._attack = self._local = None
        if dropped:
            self.dropped.add(key)
            self.stood.pop(key, None)
        elif key in self.worst:
            self.stood.setdefault(key, 0)
        if key in self.worst:
            self._keep_scenario(self.worst[key].xi)
            how = "dropped" if dropped else "attacked again" if attack.again else "attacked"
            self.note(how, self.total(self.worst[key]))

    def _expected_worst(self, x: Array) -> tuple[Array, float]:
        """Of the scenarios that were the worst for decisions before, the one that the network takes for the worst."""
        known = [*reversed(self._scenarios), self.problem.uncertainty.center]
        values = self.surrogate.predict(np.broadcast_to(x, (len(known), len(x))), np.array(known))
        best = int(np.argmax(values))
        return known[best], float(values[best])

    def _finite(self) -> list[Record]:
        return [record for record in self.executions.current() if math.isfinite(record.value)]

    def _keep_scenario(self, xi: Array) -> None:
        self._scenarios = [*[s for s in self._scenarios if not np.array_equal(s, xi)][1 - _KEPT :], xi]

    # ---- what is known

    def total(self, record: Record) -> float:
        """First stage and second, minimised."""
        return self.problem.value_of(record.x) + record.value

    def tried(self) -> dict[bytes, Record]:
        """The worst records of decisions that stood an attack."""
        return {key: self.worst[key] for key in self.stood if math.isfinite(self.worst[key].value)}

    def incumbent(self) -> Array | None:
        """The decision whose worst executed scenario is best, of those that stood an attack."""
        best = min(self.tried().values(), key=self.total, default=None)
        return None if best is None else best.x

    def answer(self) -> Array | None:
        """The best decision of those attacked for long: else one would win because its worst case was not looked for.

        Without such a decision, the incumbent; without that, the best of all that were executed.
        """
        xi, tried = self.problem.uncertainty, self.tried()
        enough = min(_SHARE * self.budget / 2, len(xi.vectors) if isinstance(xi, Scenarios) else math.inf)
        times = Counter(record.x.tobytes() for record in self.executions.current())
        finite = {key: record for key, record in self.worst.items() if math.isfinite(record.value)}
        for known in ({key: record for key, record in tried.items() if times[key] >= enough}, tried, finite):
            if known:
                return min(known.values(), key=self.total).x
        return None

    def best_total(self) -> float:
        """Its total; infinite without one."""
        return min(map(self.total, self.tried().values()), default=math.inf)

    # ---- state

    def state(self) -> dict[str, Any]:
        """Plain data."""
        attack = None if self._attack is None else asdict(self._attack) | {"x": self._attack.x.tolist()}
        queue = None if self._queue is None else [[x.tolist(), xi.tolist()] for x, xi in self._queue]
        return {
            "stood": [[np.frombuffer(key).tolist(), times] for key, times in self.stood.items()],
            "dropped": [np.frombuffer(key).tolist() for key in sorted(self.dropped)],
            "scenarios": [xi.tolist() for xi in self._scenarios],
            "queue": queue,
            "attack": attack,
            "turn": [self._turn, self._idle, self._begun, self._confirmed, self._proposed],
            "errors": list(self.errors),
            "random": self.generator.bit_generator.state,
            "fitting": self.fitting.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``, the executions having been restored."""
        self.worst, self._local = {}, None
        for record in self.executions.current():
            self.learned(record)
        self.stood = {_vector(x).tobytes(): int(times) for x, times in state["stood"]}
        self.dropped = {_vector(x).tobytes() for x in state["dropped"]}
        self._scenarios = [_vector(xi) for xi in state["scenarios"]]
        queue = state["queue"]
        self._queue = None if queue is None else [(_vector(x), _vector(xi)) for x, xi in queue]
        given = state["attack"]
        self._attack = None if given is None else Attack(**{**given, "x": _vector(given["x"])})
        self._turn, self._idle, self._begun, self._confirmed, self._proposed = state["turn"]
        self.errors = [float(each) for each in state["errors"]]
        self.generator.bit_generator.state = state["random"]
        self.proposer.surrogate = self.fitting.restore(state["fitting"])


def _vector(values: Any) -> Array:
    return np.array(values, dtype=np.float64)
