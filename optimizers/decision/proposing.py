"""What the network proposes: decisions good against the scenarios collected, and scenarios bad for a decision."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

from trace_core.errors import ParameterError
from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.errors import LargeProblem, SolverError
from trace_core.nodes.decision.milp import Model
from trace_core.nodes.decision.uncertainty import Scenarios
from trace_core.optimizers.decision.relu import Domain, IllConditioned

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trace_core.nodes.decision.checks import Array
    from trace_core.nodes.decision.milp import Solution
    from trace_core.optimizers.decision.problem import RobustProblem
    from trace_core.optimizers.decision.setnet import InstanceNetwork
    from trace_core.optimizers.decision.surrogate import Surrogate


_BINARIES = 400  # of networks, beyond which no MILP is tried


class Proposer:
    """Main and adversarial problems on a surrogate, by MILP and, faster, by local search and ascent.

    Source: section 3 of "Neur2RO" (2024) for the MILPs; there the network is trained once.
    """

    def __init__(
        self, problem: RobustProblem, surrogate: Surrogate | InstanceNetwork, generator: np.random.Generator
    ) -> None:
        self.problem, self.surrogate, self.generator = problem, surrogate, generator
        self._by_milp = True

    # ---- decisions

    def predicted(self, rows: Array, scenarios: Sequence[Array]) -> Array:
        """Worst predicted total of each row of decisions over the scenarios."""
        return self._worst_of(scenarios)(rows)

    def _worst_of(self, scenarios: Sequence[Array]) -> Callable[[Array], Array]:
        values = [self.surrogate.in_scenario(xi) for xi in scenarios]

        def predicted(rows: Array) -> Array:
            worst = np.full(len(rows), -np.inf)
            for value in values:
                worst = np.maximum(worst, value(rows))
            found: Array = worst + rows @ self.problem.cost + self.problem.constant
            return found

        return predicted

    def main(self, scenarios: Sequence[Array], taken: set[bytes], seconds: float, gap: float = 0.01) -> Array | None:
        """The main problem as a MILP without the binary decisions ``taken``. None if none is found in time.

        Nor where it would be too large or too badly scaled: then a LargeProblem warning says so, once.
        """
        if not self._by_milp:
            return None
        try:
            return self._main(scenarios, taken, seconds, gap)
        except IllConditioned as error:
            self.without_milp(str(error))
            return None

    def without_milp(self, why: str) -> None:
        """From now on ``main`` gives nothing; a LargeProblem warning says why."""
        self._by_milp = False
        warnings.warn(f"{why}: decisions are looked for by local search alone", LargeProblem, stacklevel=2)

    def _main(self, scenarios: Sequence[Array], taken: set[bytes], seconds: float, gap: float) -> Array | None:
        problem, model = self.problem, Model(seed=int(self.generator.integers(1 << 30)))
        x = problem.add_to(model)
        theta = model.add_columns(1, -math.inf, math.inf, cost=1.0)
        domain = Domain.box(problem.low, problem.high)
        for xi in scenarios:
            value = self.surrogate.add_value(model, x, domain, xi=xi)
            if value is None:
                return None
            model.add_rows([(theta, [1.0]), (value.columns, -value.matrix)], low=value.constant)
            doubt = self.surrogate.add_doubt(model, x, domain, xi=xi)
            if doubt is not None:
                model.add_rows([(doubt.columns, doubt.matrix)], high=-doubt.constant)
        if model.integers - np.count_nonzero(problem.integer) > _BINARIES:
            self.without_milp(f"the main problem has {model.integers} whole variables")
            return None
        if problem.binary:
            for key in taken:
                one = np.frombuffer(key) > 0.5
                model.add_rows([(x, np.where(one, -1.0, 1.0))], low=1.0 - np.count_nonzero(one))
        found = _solved(model, seconds, gap)
        return self._repaired(found[x]) if found else None

    def near(self, starts: Sequence[Array], scenarios: Sequence[Array], taken: set[bytes]) -> Array | None:
        """The best decision that a descent over the network finds from ``starts``, none of ``taken``."""
        found = self.nearest(starts, scenarios, taken, 1)
        return found[0] if found else None

    def nearest(
        self, starts: Sequence[Array], scenarios: Sequence[Array], taken: set[bytes], count: int
    ) -> list[Array]:
        """The ``count`` best ones that it meets on its way, the best first."""
        pool: dict[bytes, tuple[float, Array]] = {}
        predicted = self._worst_of(scenarios)
        for start in starts:
            x, here = start, math.inf
            for _ in range(12):
                rows = self._neighbours(x)
                totals = predicted(rows) if len(rows) else np.empty(0)
                order = np.argsort(totals, kind="stable")[: 80 + count]
                allowed = order[self.problem.allowed(rows[order])]
                for k in allowed:
                    if (key := rows[k].tobytes()) not in taken:
                        pool[key] = (float(totals[k]), rows[k])
                here = here if math.isfinite(here) else float(predicted(x[None])[0])
                if not len(allowed) or totals[allowed[0]] >= here - 1e-12:
                    break
                x, here = rows[allowed[0]], float(totals[allowed[0]])
        best = sorted(pool.values(), key=lambda each: each[0])[:count]
        return [x.copy() for _, x in best]

    def _neighbours(self, x: Array) -> Array:
        """One entry changed, or two that move against each other; a random part where there are too many."""
        problem = self.problem
        if problem.binary:
            on, off = np.flatnonzero(x > 0.5), np.flatnonzero((x < 0.5) & (problem.high > 0.5))
            one = np.flatnonzero(problem.high > problem.low)
            flips = np.repeat(x[None], len(one), axis=0)
            flips[np.arange(len(one)), one] = 1.0 - x[one]
            pairs = np.stack(np.meshgrid(on, off, indexing="ij"), axis=-1).reshape(-1, 2)
            if len(pairs) > 1500:
                pairs = pairs[self.generator.choice(len(pairs), 1500, replace=False)]
            swaps = np.repeat(x[None], len(pairs), axis=0)
            swaps[np.arange(len(pairs)), pairs[:, 0]], swaps[np.arange(len(pairs)), pairs[:, 1]] = 0.0, 1.0
            return np.concatenate([flips, swaps])
        count = 40 * len(x)
        rows = np.repeat(x[None], count, axis=0)
        entry = self.generator.integers(len(x), size=count)
        reach = (problem.high - problem.low)[entry] * 10.0 ** self.generator.uniform(-3, 0, count)
        rows[np.arange(count), entry] += reach * self.generator.choice([-1.0, 1.0], count)
        rows = np.clip(np.where(problem.integer, np.round(rows), rows), problem.low, problem.high)
        changed: Array = rows[(rows != x).any(axis=1)]
        return changed

    def random(self, count: int) -> list[Array]:
        """Decisions spread over the allowed ones."""
        problem, found = self.problem, []
        for _ in range(count):
            share = self.generator.uniform(size=problem.size) < self.generator.uniform()
            x = np.where(share, problem.high, problem.low)
            if not problem.binary:
                x = problem.low + self.generator.uniform(size=problem.size) * (problem.high - problem.low)
            x = np.where(problem.integer, np.round(x), x)
            found.append(x if problem.allows(x) else self._projected(x))
        return found

    def _projected(self, x: Array) -> Array:
        """An allowed decision in a random direction."""
        model = Model()
        columns = self.problem.add_to(model)
        model.set_costs(
            columns, self.generator.normal(size=len(x)) - 2.0 * (x - (self.problem.low + self.problem.high) / 2)
        )
        solution = model.solve(seconds=5.0, gap=0.1)
        repaired = self._repaired(solution[columns]) if solution else None
        return self.problem.current() if repaired is None else repaired

    def _repaired(self, x: Array) -> Array | None:
        try:
            return self.problem.repaired(x)
        except ParameterError:
            return None

    # ---- scenarios

    def worst(self, x: Array, known: Sequence[Array]) -> tuple[Array, float]:
        """(scenario, prediction) that the network takes for the worst: ascent by the set's own support function.

        Steps lead to corners of the set and stop on the way where that is better (Frank and Wolfe, 1956), so they never
        leave it.
        """
        xi = self.problem.uncertainty
        if isinstance(xi, Scenarios):
            starts = xi.vectors
        else:
            starts = np.concatenate([np.array([xi.center, *known]), xi.sample(120, self.generator)])
        values = self._values(x, starts)
        if isinstance(xi, Scenarios):
            return starts[int(np.argmax(values))].copy(), float(values.max())
        best, value = starts[int(np.argmax(values))], float(values.max())
        for k in np.argsort(-values)[:5]:
            point, here = starts[k], float(values[k])
            for _ in range(15):
                corner = xi.worst(self.surrogate.slopes(x, point[None])[0])[1]
                trial = point + np.array([1.0, 0.6, 0.3, 0.1, 0.03])[:, None] * (corner - point)
                found = self._values(x, trial)
                if found.max() <= here + 1e-9 * self.surrogate.scale:
                    break
                point, here = trial[int(np.argmax(found))], float(found.max())
            if here > value:
                best, value = point, here
        return best.copy(), value

    def exact_worst(self, x: Array, seconds: float) -> tuple[Array, float] | None:
        """The same by MILP; None if nothing is found in time, or without a network."""
        xi = self.problem.uncertainty
        if isinstance(xi, Scenarios):
            return None
        model = Model(maximise=True)
        domain = Domain.of(xi)
        columns = domain.add_to(model)
        out = self.surrogate.add_value(model, columns, domain, x=x)
        if out is None:
            return None
        model.set_costs(out.columns, out.matrix[0])
        model.offset = float(out.constant[0])
        found = _solved(model, seconds, 0.005)
        return (np.clip(found[columns], xi.low, xi.high), found.objective) if found else None

    def _values(self, x: Array, points: Array) -> Array:
        return self.surrogate.predict(np.broadcast_to(x, (len(points), len(x))), points)


def _solved(model: Model, seconds: float, gap: float) -> Solution | None:
    """A solution, or None: a proposal is verified by executing, and others come from local search.

    So numerical trouble in a model of a network (HiGHS ends with ``kSolveError`` at times) is no reason to give up what
    was executed so far.
    """
    try:
        found = model.solve(seconds=seconds, gap=gap)
    except SolverError:
        return None
    return found or None
