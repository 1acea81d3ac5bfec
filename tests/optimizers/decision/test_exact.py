"""Exact mode against enumeration, hand-solved problems and ill-posed ones."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from _robust_problems import FAMILIES, Knapsack, capital, generate, published

from trace_core.nodes.decision import (
    Box,
    Budget,
    Infeasible,
    InvalidProblem,
    Linear,
    MilpStage,
    Polytope,
    Scenarios,
    SolverError,
    UncertaintySet,
    decision,
)
from trace_core.optimizers.decision import NoRobustDecision, RobustProblem, exact
from trace_core.optimizers.decision.adversary import adversary_for
from trace_core.optimizers.decision.exact import ExactSolver


def solve(problem: RobustProblem, **options: Any) -> Any:
    assert problem.recourse is not None
    return ExactSolver(problem, problem.recourse, **{"seconds": 60.0, **options}).run()


def small(family: str, n: int, seed: int) -> Knapsack:
    return generate(family, n, share=0.25, spread=0.5, seed=seed, top=30)


CASES = [(n, FAMILIES[k % 4], k) for n, how_many in ((6, 12), (8, 12), (10, 6)) for k in range(how_many)]


@pytest.mark.parametrize("case", CASES[:3] + CASES[12:14], ids=str)
def test_knapsack_equals_enumeration(case: tuple[int, str, int]) -> None:
    check_knapsack(*case)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[3:12] + CASES[14:], ids=str)
def test_more_knapsacks_equal_enumeration(case: tuple[int, str, int]) -> None:
    check_knapsack(*case)


def check_knapsack(n: int, family: str, seed: int) -> None:
    knapsack = small(family, n, seed)
    best, _ = knapsack.enumerate()
    for dynamic in (False, True):
        found = solve(knapsack.problem(dynamic))
        assert found.worst_case == pytest.approx(best, rel=1e-6)
        assert found.certificate.kind == "exact"
        assert found.certificate.lower <= best * (1 + 1e-9) + 1e-9
        assert found.certificate.upper >= best * (1 - 1e-9) - 1e-9
        assert found.stop == "optimal"
        reached = knapsack.second_stage(found.x, found.worst_scenario) + (knapsack.p - knapsack.f) @ found.x
        assert reached == pytest.approx(found.worst_case, rel=1e-5)
        assert knapsack.problem().uncertainty.contains(found.worst_scenario)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_capital_budgeting_is_no_worse_than_enumeration_says(seed: int) -> None:
    project = capital(5, seed)
    problem = project.problem()
    found = solve(problem, gap=1e-4)
    assert found.certificate.gap <= 1e-4
    points = np.concatenate(
        [np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=4))), problem.uncertainty.sample(200)]
    )
    every = [np.array(x) for x in itertools.product((0.0, 1.0), repeat=5)]
    sampled = {x.tobytes(): project.worst_case(x, points) for x in every}
    # a sampled worst case is optimistic: the best of them bounds the optimum from above
    assert found.certificate.lower <= max(sampled.values()) + 1e-6
    assert found.worst_case <= sampled[found.x.tobytes()] + 1e-6
    at = project.worst_case(found.x, [found.worst_scenario])
    assert at == pytest.approx(found.worst_case, rel=2e-4)
    for x in every:  # no other decision is proven better: its worst case over a fine sample is not above the bound
        if sampled[x.tobytes()] > found.certificate.upper * (1 + 1e-4):
            exact = solve(fixed_to(project, x), gap=1e-4)
            assert exact.worst_case <= found.certificate.upper * (1 + 1e-4)


def fixed_to(project: Any, x: Any) -> RobustProblem:
    rows = [Linear(unit, "==", value) for unit, value in zip(np.eye(project.n), x, strict=True)]
    chosen = decision("invest", binary=project.n, constraints=rows)
    return RobustProblem(chosen, Box(-1, 1, size=4), first_stage=project.r, recourse=project.stage(), sense="max")


# ---- solved by hand


def newsvendor(xi: UncertaintySet, **options: Any) -> RobustProblem:
    """Order x at 1 each; missing ones cost 3 each, left ones 0: y >= demand - x. Demand enters the rows."""
    x = decision("order", integer=1, low=0, high=10)
    stage = MilpStage(q=[3.0], W=[[-1.0]], T=[[-1.0]], h=[0.0], H=[[-1.0]], high=20.0, **options)
    return RobustProblem(x, xi, first_stage=[1.0], recourse=stage)


def test_uncertain_rows_with_scenarios_and_with_integer_reactions() -> None:
    found = solve(newsvendor(Scenarios([[4.0], [7.0], [2.0]])))
    assert (found.x.tolist(), found.worst_case) == ([7.0], 7.0)
    assert found.certificate.kind == "exact"
    found = solve(newsvendor(Box([2.0], [7.0]), integer=True))
    assert (found.x.tolist(), found.worst_case) == ([7.0], pytest.approx(7.0))


def test_continuous_reactions_with_uncertain_rows_are_refused() -> None:
    with pytest.raises(InvalidProblem, match="second_stage="):
        solve(newsvendor(Box([2.0], [7.0])))


def test_a_hand_solved_problem_with_uncertain_costs() -> None:
    """Two suppliers, prices 1 + xi_i, one of them may rise by 3: opening both (0.5 each) halves the damage."""
    x = decision("open", binary=2)
    stage = MilpStage(
        q=[1.0, 1.0],
        Q=[[3.0, 0.0], [0.0, 3.0]],
        W=[[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]],
        T=[[-1.0, 0.0], [0.0, -1.0], [0.0, 0.0]],
        h=[0.0, 0.0, -1.0],
        high=1.0,
    )
    problem = RobustProblem(x, Budget(2, gamma=1), first_stage=[0.5, 0.5], recourse=stage)
    found = solve(problem)
    assert found.x.tolist() == [1.0, 1.0]
    # V(xi) = min(1 + 3 xi_1, 1 + 3 xi_2) is largest at (1/2, 1/2): 2.5, and 1 for opening
    assert found.worst_case == pytest.approx(3.5)
    assert found.worst_scenario.tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("gamma", [0.0, 6.0, 60.0])
def test_degenerate_sets_are_the_nominal_and_the_box_problem(gamma: float) -> None:
    knapsack = small("UN", 6, 3)
    problem = knapsack.problem()
    assert problem.recourse is not None
    x = problem.decisions[0]
    degenerate = RobustProblem(
        x, Budget(6, gamma=gamma), first_stage=knapsack.p - knapsack.f, recourse=problem.recourse, sense="max"
    )
    found = solve(degenerate)
    xi = np.ones(6) if gamma else np.zeros(6)
    best = max(
        (knapsack.p - knapsack.f) @ np.array(x) + knapsack.second_stage(np.array(x), xi)
        for x in itertools.product((0.0, 1.0), repeat=6)
    )
    assert found.worst_case == pytest.approx(best, rel=1e-6)


def test_sets_that_describe_the_same_give_the_same() -> None:
    knapsack = small("SC", 6, 1)
    stage, x = knapsack.stage(), decision("take", binary=6)
    gamma = knapsack.gamma
    values = [
        solve(RobustProblem(x, xi, first_stage=knapsack.p - knapsack.f, recourse=stage, sense="max")).worst_case
        for xi in (Budget(6, gamma=gamma), Polytope(np.ones((1, 6)), [gamma], low=0, high=1))
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_integer_and_continuous_decisions() -> None:
    """Capacity x at 2 a unit, price of what is bought later 3 + xi, demand 5: with xi up to 1, all is bought now."""
    for kind in ("integer", "continuous"):
        x = decision("capacity", **{kind: 1}, low=0, high=8)  # type: ignore[arg-type]
        stage = MilpStage(q=[3.0], Q=[[1.0]], W=[[-1.0]], T=[[-1.0]], h=[-5.0])
        found = solve(RobustProblem(x, Box(-2.5, 1, size=1), first_stage=[2.0], recourse=stage))
        assert found.x.tolist() == pytest.approx([5.0])
        assert found.worst_case == pytest.approx(10.0)
        cheap = solve(RobustProblem(x, Box(-2.5, -1.5, size=1), first_stage=[2.0], recourse=stage))
        assert cheap.x.tolist() == pytest.approx([0.0])
        assert cheap.worst_case == pytest.approx(7.5)


def test_several_decisions_and_an_affine_first_stage() -> None:
    a, b = decision("a", binary=2), decision("b", integer=1, low=0, high=3)
    stage = MilpStage(q=[5.0], Q=[[1.0]], W=[[-1.0]], T=[[-1.0, -1.0, -1.0]], h=[-3.0])
    problem = RobustProblem(
        [a, b], Box(0, 1, size=1), first_stage=lambda a, b: 1.0 + a @ np.array([2.0, 7.0]) + 4.0 * b[0], recourse=stage
    )
    found = solve(problem)
    assert found.x.tolist() == [1.0, 0.0, 2.0]
    assert found.worst_case == pytest.approx(1 + 2 + 8)
    assert found.values[a].tolist() == [1, 0]
    assert found.values[b].tolist() == [2]


# ---- ill-posed


def test_no_robust_decision_shows_the_scenarios() -> None:
    x = decision("x", binary=1)
    stage = MilpStage(q=[1.0], W=[[1.0]], T=[[0.0]], h=[0.0], H=[[-1.0]], high=1.0)  # y <= -xi
    with pytest.raises(NoRobustDecision) as caught:
        solve(RobustProblem(x, Scenarios([[0.0], [1.0]]), recourse=stage))
    assert [1.0] in [s.tolist() for s in caught.value.scenarios]


def test_a_decision_that_some_scenario_makes_impossible_is_avoided() -> None:
    """With x = 0 (cheap) no reaction is left when xi = 1; y >= xi, y <= x."""
    x = decision("x", binary=1)
    stage = MilpStage(
        q=[0.0], W=[[-1.0], [1.0]], T=[[0.0], [-1.0]], h=[0.0, 0.0], H=[[-1.0], [0.0]], integer=True, high=1.0
    )
    found = solve(RobustProblem(x, Box(0, 1, size=1), first_stage=[10.0], recourse=stage))
    assert found.x.tolist() == [1.0]
    with pytest.raises(Infeasible):
        stage([0.0], [1.0])


def test_a_recourse_without_a_bound_is_an_error() -> None:
    x = decision("x", binary=1)
    stage = MilpStage(q=[-1.0], W=[[-1.0]], T=[[0.0]], h=[0.0], Q=[[0.0]])
    with pytest.raises((InvalidProblem, SolverError), match="bound"):
        solve(RobustProblem(x, Box(0, 1, size=1), recourse=stage))


def test_a_time_limit_keeps_what_is_proven() -> None:
    knapsack, best, _ = published(20)[0]
    found = solve(knapsack.problem(), seconds=1.0)
    assert found.certificate.kind in ("gap", "exact")
    assert found.worst_case <= best + 0.01
    assert found.certificate.upper >= best - 0.01
    assert found.certificate.lower == found.worst_case


def test_the_history_tightens() -> None:
    found = solve(small("WC", 8, 5).problem())
    bounds = [r.bound for r in found.history if r.bound is not None]
    best = [r.worst_case for r in found.history if r.worst_case is not None]
    assert bounds == sorted(bounds, reverse=True)  # a maximisation: bounds come down, worst cases go up
    assert best == sorted(best)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"q": [1.0, float("nan")]}, r"recourse: q\[1\] is nan"),
        ({"W": [[1.0]]}, r"recourse: W has shape \(1, 1\), expected anyx2"),
        ({"h": [1.0, 2.0]}, r"recourse: h has shape \(2,\), expected 1"),
        ({"T": [[1.0, 2.0], [3.0, 4.0]]}, r"recourse: T has shape"),
        ({"Q": [[1.0]]}, r"recourse: Q has shape"),
        ({"integer": 1}, "integer must be True, False or"),
        ({"low": 2.0, "high": 1.0}, "lower bound above"),
        ({"sense": "least"}, "sense must be"),
        ({"T": None}, "does not depend on decisions"),
        ({"Q": None}, "does not depend on xi"),
    ],
)
def test_ill_posed_stages_say_where(change: dict[str, Any], text: str) -> None:
    given = {"q": [1.0, 1.0], "W": [[1.0, 1.0]], "T": [[1.0, 1.0]], "h": [1.0], "Q": [[1.0], [1.0]], **change}
    with pytest.raises(InvalidProblem, match=text):
        MilpStage(**given)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"decisions": []}, "at least one"),
        ({"decisions": ["x"]}, "made by decision"),
        ({"uncertainty": [0, 1]}, "must be an uncertainty set"),
        ({"recourse": None}, "second_stage: one of them is needed"),
        ({"recourse": lambda x: x}, "must be a MilpStage"),
        ({"first_stage": [1.0]}, r"first_stage has shape \(1,\), expected 2"),
        ({"first_stage": lambda x: float(x[0] * x[1])}, "is not affine"),
        ({"first_stage": lambda x: None}, "must hold numbers"),
        ({"sense": "max"}, "the problem's is 'max'"),
        ({"uncertainty": Box(0, 1, size=2)}, "made for 1 uncertainties, the problem has 2"),
        ({"second_stage": 3}, "must be callable"),
    ],
)
def test_ill_posed_problems_say_where(change: dict[str, Any], text: str) -> None:
    stage = MilpStage(q=[1.0], W=[[1.0]], T=[[1.0, 1.0]], h=[1.0], Q=[[1.0]])
    given = {"decisions": decision("x", binary=2), "uncertainty": Box(0, 1, size=1), "recourse": stage, **change}
    with pytest.raises(InvalidProblem, match=text):
        RobustProblem(given.pop("decisions"), given.pop("uncertainty"), **given)


def test_a_reaction_of_ones_own_is_checked() -> None:
    knapsack = small("UN", 6, 0)
    stage = knapsack.stage()
    stage.reaction = lambda x, xi: np.ones(12)  # breaks the capacity
    problem = RobustProblem(
        decision("take", binary=6), Budget(6, gamma=1), first_stage=knapsack.p - knapsack.f, recourse=stage, sense="max"
    )
    with pytest.raises(InvalidProblem, match="breaks a row"):
        solve(problem)


@pytest.mark.slow
def test_the_worst_case_with_uncertain_rows_bounds_a_fine_sample() -> None:
    project = capital(7, 20)
    problem = project.problem()
    stage, xi = problem.recourse, problem.uncertainty
    assert stage is not None
    adversary = adversary_for(stage, xi)
    points = np.concatenate([np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=4))), xi.sample(400, 1)])
    for chosen in ([], [1], [0, 3], [2, 4]):
        x = np.zeros(7)
        x[chosen] = 1.0
        attack = adversary.attack(x, tolerance=1e-4)
        first = problem.value_of(x)
        if np.isinf(attack.lower):
            with pytest.raises(Infeasible):
                stage(x, attack.xi)
            continue
        assert attack.upper - attack.lower <= 1e-4
        assert xi.contains(attack.xi)
        assert -(first + attack.lower) == pytest.approx(project.worst_case(x, [attack.xi]), rel=1e-6)
        assert -(first + attack.upper) <= project.worst_case(x, points) + 1e-6
        quick = adversary.attack(x, tolerance=1e-4, enough=attack.lower - 0.05)
        assert quick.lower > attack.lower - 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", [30])
def test_a_table_of_all_decisions_gives_what_the_main_problem_gives(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = capital(5, seed).problem()
    by_table = solve(problem, gap=1e-4)
    monkeypatch.setattr(exact, "listed", lambda problem, stage: None)
    by_models = solve(problem, gap=1e-4)
    assert by_table.stop == by_models.stop == "optimal"
    assert by_table.worst_case == pytest.approx(by_models.worst_case, rel=2e-4)
    assert (
        max(by_table.certificate.lower, by_models.certificate.lower)
        <= min(by_table.certificate.upper, by_models.certificate.upper) + 1e-6
    )


@pytest.mark.slow
def test_a_larger_problem_has_a_verified_answer_from_the_beginning() -> None:
    """In the first round: one reaction for all that may come, whose cost is proven."""
    problem = capital(25, 30).problem()
    assert problem.recourse is not None
    solver = ExactSolver(problem, problem.recourse, gap=1e-3, seconds=3.0)
    solver.round()
    found = solver.result()
    assert found.certificate.kind == "gap"
    assert found.certificate.lower == found.worst_case <= found.certificate.upper
    for xi in problem.uncertainty.sample(20):
        assert problem.recourse(found.x, xi) + problem.sign * problem.value_of(found.x) >= found.worst_case - 1e-6
