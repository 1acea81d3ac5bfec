"""The structure of a traced second stage: exact rows, a surrogate for each opaque node, context keys."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest

import trace_core as tc
from trace_core.nodes.decision import Box, Budget, Model, decision
from trace_core.optimizers.decision import Neur2RO, RobustProblem
from trace_core.optimizers.decision.executions import Executions
from trace_core.optimizers.decision.relu import Domain
from trace_core.optimizers.decision.structured import StructuredSurrogate

PRICES = np.array([3.0, 1.0, 2.0])


def arithmetic(x: Any, xi: Any) -> Any:
    """Only what a MILP can hold: products, sums, dot, maximum, minimum, abs, an entry of x times both."""
    short = np.maximum(xi - x, 0.0)
    late = np.minimum(x @ PRICES, 2.0 * xi.sum())
    return PRICES @ short + abs(x[0] - 0.5 * xi[1]) - late + x[1] * (xi[2] - x[2] + 1.0) / 2 + sum([x[0], xi[1]])


@tc.bundle
def waiting(load: Any) -> float:
    """Grows fast with the load."""
    return float(np.exp(1.5 * load))


@tc.bundle
def transport(staff: Any, demand: Any) -> float:
    """Something that bends."""
    return float(np.sqrt(1.0 + staff + 2.0 * demand**2))


def workflow(x: Any, xi: Any) -> Any:
    return 2.0 * waiting(xi[0] - 0.5 * x[0]) + transport(x[1], xi[1]) + np.maximum(xi[2] - x[2], 0.0)


def problem_of(function: Any, xi: Any = None, **options: Any) -> RobustProblem:
    return RobustProblem(decision("x", binary=3), xi or Budget(3, gamma=1.5), second_stage=function, **options)


def executed(problem: RobustProblem, count: int, seed: int = 0) -> Executions:
    runs, rng = Executions(problem), np.random.default_rng(seed)
    for xi in problem.uncertainty.sample(count, seed):
        runs.run(rng.integers(0, 2, problem.size).astype(float), xi)
    return runs


def fitted(problem: RobustProblem, runs: Executions, epochs: int = 300) -> StructuredSurrogate:
    assert runs.program is not None
    surrogate = StructuredSurrogate(problem, runs.program, hidden=12, members=2, seed=0)
    surrogate.current = runs.keys
    surrogate.fit(runs.records, epochs=epochs)
    return surrogate


def r_squared(surrogate: StructuredSurrogate, test: Executions) -> float:
    truth = np.array([r.value for r in test.records])
    found = surrogate.predict(np.array([r.x for r in test.records]), np.array([r.xi for r in test.records]))
    return float(1 - ((found - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())


def test_arithmetic_needs_no_network_and_is_exact() -> None:
    problem = problem_of(arithmetic)
    runs = executed(problem, 6)
    assert runs.program is not None
    assert runs.program.opaque == []
    surrogate = fitted(problem, runs, epochs=1)
    test = executed(problem, 40, seed=1)
    found = surrogate.predict(np.array([r.x for r in test.records]), np.array([r.xi for r in test.records]))
    assert found == pytest.approx(np.array([r.value for r in test.records]))


@pytest.mark.parametrize("function", [arithmetic, workflow])
def test_what_is_embedded_is_what_is_predicted(function: Any) -> None:
    problem = problem_of(function)
    surrogate = fitted(problem, executed(problem, 40), epochs=60)
    rng = np.random.default_rng(2)
    for xi in problem.uncertainty.sample(3, rng):  # the main problem: x varies
        for sign in (1.0, -1.0):
            model = Model(maximise=sign < 0)
            x = problem.add_to(model)
            value = surrogate.add_value(model, x, Domain.box(problem.low, problem.high), xi=xi)
            assert value is not None
            model.set_costs(value.columns, value.matrix[0])
            rows = np.array(list(itertools.product((0.0, 1.0), repeat=3)))
            every = surrogate.predict(rows, np.broadcast_to(xi, rows.shape))
            best = every.min() if sign > 0 else every.max()
            assert model.solve().objective + value.constant[0] == pytest.approx(best, abs=1e-5)
    for x_ in rng.integers(0, 2, (3, 3)).astype(float):  # the adversarial problem: xi varies
        model, domain = Model(maximise=True), Domain.of(problem.uncertainty)
        columns = domain.add_to(model)
        value = surrogate.add_value(model, columns, domain, x=x_)
        assert value is not None
        model.set_costs(value.columns, value.matrix[0])
        found = model.solve()
        objective = found.objective + value.constant[0]
        at = surrogate.predict(x_[None], found[columns][None])[0]
        sampled = problem.uncertainty.sample(3000, 3)
        assert objective == pytest.approx(at, abs=1e-5)
        assert objective >= surrogate.predict(np.broadcast_to(x_, sampled.shape), sampled).max() - 1e-5


def test_opaque_nodes_have_their_own_inputs_only() -> None:
    problem = problem_of(workflow)
    runs = executed(problem, 3)
    assert runs.program is not None
    steps = runs.program.steps
    found = {steps[k].op.name: [steps[j].size for j in steps[k].inputs] for k in runs.program.opaque}
    assert found == {"waiting": [1], "transport": [1, 1]}
    surrogate = fitted(problem, executed(problem, 50))
    assert r_squared(surrogate, executed(problem, 200, seed=9)) > 0.95


def test_a_transparent_bundle_is_looked_into_and_a_closed_one_is_not() -> None:
    open_ = executed(problem_of(tc.bundle(transparent=True)(workflow)), 3).program
    assert open_ is not None
    assert len(open_.opaque) == 2

    @tc.bundle
    def closed(x: Any, xi: Any) -> float:
        return float(xi.sum() - x.sum())

    shut = executed(problem_of(closed), 3).program
    assert shut is not None
    assert shut.trivial


def test_runs_with_different_graphs_make_that_part_opaque_and_say_so() -> None:
    def branching(x: Any, xi: Any) -> Any:
        extra = waiting(xi[0]) if xi[0] > 0.3 else 2.0 * transport(x[1], xi[2])
        return extra + xi.sum() * 3.0

    problem = problem_of(branching)
    runs = executed(problem, 60)
    assert runs.program is not None
    assert not runs.program.trivial
    assert len(runs.program.diverged) == 1
    (k,) = runs.program.opaque
    assert [runs.program.steps[j].kind for j in runs.program.steps[k].inputs] == ["x", "xi"]


def test_values_taken_out_of_the_graph_are_no_constants() -> None:
    problem = problem_of(lambda x, xi: xi.sum() * float(x.value.sum()) + x[0])
    runs = executed(problem, 12)
    assert runs.program is not None
    assert runs.program.diverged


def test_the_learned_mode_uses_it_by_itself() -> None:
    problem = problem_of(workflow, first_stage=[0.5, 0.3, 0.6])
    optimizer = Neur2RO(problem, executions=80, seconds=600)
    result = optimizer.solve()
    assert isinstance(optimizer._solver.surrogate, StructuredSurrogate)  # type: ignore[union-attr]
    rows, sampled = itertools.product((0.0, 1.0), repeat=3), problem.uncertainty.sample(1500, 1)

    def true(x: Any) -> float:
        values = [2 * np.exp(1.5 * (xi[0] - 0.5 * x[0])) + np.sqrt(1 + x[1] + 2 * xi[1] ** 2) for xi in sampled]
        return float(np.max(np.array(values) + np.maximum(sampled[:, 2] - x[2], 0)) + np.dot([0.5, 0.3, 0.6], x))

    best = min(true(x) for x in rows)
    assert true(result.x) <= best + 0.02 * abs(best)


def test_a_changed_prompt_makes_records_of_its_node_stale_and_no_others() -> None:
    rate = tc.Parameter(1.5, name="rate")

    @tc.bundle
    def priced(load: Any) -> float:
        return float(np.exp(rate.value * load))

    problem = problem_of(lambda x, xi: priced(xi[0] - x[0]) + transport(x[1], xi[1]))
    runs = executed(problem, 10)
    before, context = runs.keys, runs.context
    rate.update(0.5)
    assert runs.context != context
    assert runs.current() == []
    assert runs.renew()
    runs.run(np.zeros(3), problem.uncertainty.center)
    after = runs.keys
    changed = {name for name in before if before[name] != after[name]}
    assert {name.rstrip("0123456789") for name in changed} == {"priced"}
    surrogate = StructuredSurrogate(problem, runs.program, hidden=8, members=1, seed=0)  # type: ignore[arg-type]
    surrogate.current = after
    sizes = {
        surrogate.program.steps[k].op.name: len(surrogate._rows(k, runs.records)[0])  # type: ignore[index]
        for k in surrogate.program.opaque
    }
    assert sizes == {"priced": 1, "transport": 11}


def test_an_incumbent_of_the_old_workflow_is_forgotten() -> None:
    rate = tc.Parameter(0.1, name="rate")

    @tc.bundle
    def cost(x: Any, xi: Any) -> float:
        return float(rate.value * 10 * x.sum() + (1 - x) @ xi)

    problem = problem_of(cost, Box(0, 1, size=3))
    optimizer = Neur2RO(problem, executions=120, seconds=600)
    for _ in range(40):
        optimizer._solver.round()
    rate.update(-0.1)
    result = optimizer.solve()
    assert result.x.tolist() == [1.0, 1.0, 1.0]
    assert result.worst_case == pytest.approx(-3.0)


def test_nodes_survive_a_round_trip() -> None:
    first = Neur2RO(problem_of(workflow), executions=60, seconds=600)
    for _ in range(30):
        first._solver.round()
    state = json.loads(json.dumps(first.state_dict()))
    second = Neur2RO(problem_of(workflow), executions=60, seconds=600)
    second.load_state_dict(state)
    assert second.records() == first.records()
    assert second.solve().certificate.executions <= 60
