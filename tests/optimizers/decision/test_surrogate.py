"""One network for a second stage that can only be run: embedded, predicted and sloped, it is the same function."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trace_core.nodes.decision import Box, Budget, Linear, Model, decision
from trace_core.optimizers.decision import RobustProblem
from trace_core.optimizers.decision.executions import Record
from trace_core.optimizers.decision.relu import Domain
from trace_core.optimizers.decision.surrogate import Surrogate

SETS: dict[str, Any] = {  # x has four entries: an uncertainty each, in part fixed, or others
    "one each": Budget(4, gamma=1.5),
    "of other ranges": Box([-1, 2, 0, 0], [3, 2, 5, 1]),
    "fewer": Box(0, 2, size=2),
}


def cost(x: Any, xi: Any) -> float:
    return float(np.minimum(xi, 0.6).sum() * (3.0 - x[0]) + abs(x.sum() - xi.sum()))


@pytest.fixture(params=SETS)
def fitted(request: pytest.FixtureRequest) -> tuple[RobustProblem, Surrogate, Any, Any]:
    rng, xi = np.random.default_rng(0), SETS[request.param]
    problem = RobustProblem(
        decision("x", integer=4, low=0, high=2, constraints=[Linear([1, 1, 1, 1], "<=", 7)]), xi, second_stage=cost
    )
    rows, points = rng.integers(0, 3, (90, 4)).astype(float), xi.sample(90, rng)
    surrogate = Surrogate(problem, hidden=5, members=2)
    surrogate.fit([Record(*pair, cost(*pair)) for pair in zip(rows, points, strict=True)], epochs=150)
    return problem, surrogate, rows, points


def test_the_main_problem_has_what_is_predicted(fitted: Any) -> None:
    problem, surrogate, rows, points = fitted
    for xi in points[:3]:
        expected = surrogate.predict(rows, np.broadcast_to(xi, (len(rows), len(xi))))
        assert surrogate.in_scenario(xi)(rows) == pytest.approx(expected)
        model = Model()
        x = problem.add_to(model)
        value = surrogate.add_value(model, x, Domain.box(problem.low, problem.high), xi=xi)
        model.set_costs(value.columns, value.matrix[0])
        solution = model.solve()
        at = surrogate.predict(solution[x][None], xi[None])[0]
        assert solution.objective + value.constant[0] == pytest.approx(at, abs=1e-5)
        assert at <= expected.min() + 1e-5


def test_the_adversarial_problem_has_what_is_predicted(fitted: Any) -> None:
    problem, surrogate, rows, _ = fitted
    sampled = problem.uncertainty.sample(2000, 1)
    for x in rows[:3]:
        model, domain = Model(maximise=True), Domain.of(problem.uncertainty)
        columns = domain.add_to(model)
        value = surrogate.add_value(model, columns, domain, x=x)
        model.set_costs(value.columns, value.matrix[0])
        solution = model.solve()
        objective = solution.objective + value.constant[0]
        assert objective == pytest.approx(surrogate.predict(x[None], solution[columns][None])[0], abs=1e-5)
        assert objective >= surrogate.predict(np.broadcast_to(x, (2000, 4)), sampled).max() - 1e-5


def test_slopes_are_those_of_small_steps(fitted: Any) -> None:
    _, surrogate, rows, points = fitted
    size, step = points.shape[1], 1e-6
    for x in rows[:3]:
        found = surrogate.slopes(x, points)
        moved = (points[:, None, :] + step * np.eye(size)).reshape(-1, size)
        x_ = np.broadcast_to(x, (len(moved), 4))
        up = surrogate.predict(x_, moved).reshape(-1, size)
        down = surrogate.predict(x_, (2 * np.repeat(points, size, axis=0) - moved)).reshape(-1, size)
        here = surrogate.predict(np.broadcast_to(x, (len(points), 4)), points)[:, None]
        sides = np.array([(up - here) / step, (here - down) / step])  # at a kink, there are two
        assert np.isclose(found, sides, atol=1e-5).any(axis=0).mean() > 0.98


def test_rows_are_allowed_as_single_decisions_are(fitted: Any) -> None:
    problem = fitted[0]
    rng = np.random.default_rng(1)
    rows = np.concatenate([rng.integers(-1, 4, (60, 4)), rng.uniform(0, 2, (5, 4))]).astype(float)
    found = problem.allowed(rows)
    assert found.tolist() == [problem.allows(row) for row in rows]
    assert 0 < found.sum() < len(rows)
