"""Models against problems whose optima are known by hand or by enumeration."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_core.nodes.decision import InvalidProblem, Model, SolverError


def test_a_linear_program_solved_by_hand() -> None:
    model = Model(maximise=True)  # corner (2, 6) of the textbook's three rows
    x = model.add_columns(2, cost=[3.0, 5.0])
    model.add_rows([(x, [[1, 0], [0, 2], [3, 2]])], high=[4, 12, 18])
    found = model.solve()
    assert (found.status, found.objective, found.bound) == ("optimal", 36.0, 36.0)
    assert found[x].tolist() == [2.0, 6.0]


def test_rows_costs_and_bounds_may_change_between_solves() -> None:
    model = Model()
    x = model.add_columns(2, 0, 10, cost=1.0)
    model.add_rows([(x, [1, 1])], low=3)
    assert model.solve().objective == pytest.approx(3)
    model.add_rows([(x, [1, -1])], low=1)
    model.set_costs(x, [2.0, 1.0])
    assert model.solve()[x].tolist() == pytest.approx([2.0, 1.0])
    model.set_bounds(x[:1], 5, 6)
    assert model.solve()[x].tolist() == pytest.approx([5.0, 0.0])
    model.offset = 7.0
    assert model.solve().objective == pytest.approx(17)
    y = model.add_columns(1, 2, 3, cost=10.0)
    assert model.solve().objective == pytest.approx(37)
    assert y.tolist() == [2]


def test_sides_of_rows_may_change_between_solves() -> None:
    model = Model()
    x = model.add_columns(2, 0, 10, cost=1.0)
    first = model.add_rows([(x, [[1, 1], [1, 0]])], low=[3, 1])
    assert first.tolist() == [0, 1]
    assert model.solve().objective == pytest.approx(3)
    model.set_row_bounds(first[:1], 4, 8)
    assert model.solve().objective == pytest.approx(4)
    more = model.add_rows([(x, [0, 1])], low=9)
    model.set_row_bounds(np.append(first, more), [0, 2, 5], 20)
    assert more.tolist() == [2]
    assert model.solve()[x].tolist() == pytest.approx([2, 5])
    model.add_columns(1, 1, 2, cost=1.0)  # a model made anew has them too
    assert model.solve().objective == pytest.approx(8)


def test_terms_of_several_column_blocks_and_equalities() -> None:
    model = Model()
    x, y = model.add_columns(2, 0, 5, cost=1.0), model.add_columns(1, -3, 3, integer=True, cost=0.5)
    model.add_rows([(x, np.eye(2)), (y, [[1], [2]])], low=[1.0, 1.0], high=[1.0, 1.0])
    found = model.solve()
    assert found[y].tolist() == [0.0]
    assert found[x].tolist() == pytest.approx([1.0, 1.0])
    assert found.objective == pytest.approx(2)


@pytest.mark.parametrize("integer", [False, True])
def test_statuses_without_a_solution(integer: bool) -> None:
    model = Model()
    x = model.add_columns(2, -math.inf, math.inf, integer=integer, cost=1.0)
    assert model.solve().status == "unbounded"
    model.add_rows([(x, [1, 1])], low=3, high=2)
    found = model.solve()
    assert found.status == "infeasible"
    assert not found
    with pytest.raises(SolverError, match="infeasible"):
        found[x]


def test_unbounded_and_infeasible_are_told_apart_with_integers() -> None:
    unbounded, empty = Model(), Model()
    x = unbounded.add_columns(2, 0, math.inf, integer=True, cost=-1.0)
    unbounded.add_rows([(x, [1, -1])], low=0, high=0)
    assert unbounded.solve().status == "unbounded"
    x = empty.add_columns(2, 0, math.inf, integer=True, cost=-1.0)
    empty.add_rows([(x, [2, -2])], low=1, high=1)  # no integers differ by a half
    empty.add_rows([(x, [1, 1])], high=50)
    assert empty.solve().status == "infeasible"


def test_a_limit_gives_no_solution_or_one_with_a_bound() -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(10, 100, (30, 60)).astype(float)
    model = Model(maximise=True)
    x = model.add_columns(60, 0, 1, integer=True, cost=rng.integers(10, 100, 60))
    model.add_rows([(x, weights)], high=weights.sum(axis=1) / 2)
    found = model.solve(seconds=0.3)
    assert found.status in ("feasible", "limit")
    if found:
        assert (weights @ found[x] <= weights.sum(axis=1) / 2 + 1e-6).all()
        assert found.bound >= found.objective


def test_a_model_without_columns() -> None:
    model = Model()
    assert model.solve().status == "optimal"


def test_a_coefficient_that_is_no_number_is_refused() -> None:
    model = Model()
    with pytest.raises(InvalidProblem, match="not a number"):
        model.add_columns(1, 0, 1, cost=math.nan)
    x = model.add_columns(2, 0, 1)
    with pytest.raises(InvalidProblem, match="not a number"):
        model.add_rows([(x, [1, math.nan])], high=1)
    with pytest.raises(InvalidProblem, match="not a number"):
        model.set_costs(x, math.nan)


@st.composite
def programs(draw: Any) -> tuple[Any, ...]:
    n, m = draw(st.integers(1, 6)), draw(st.integers(0, 4))
    number = st.integers(-9, 9)
    cost = draw(st.lists(number, min_size=n, max_size=n))
    rows = draw(st.lists(st.lists(number, min_size=n, max_size=n), min_size=m, max_size=m))
    right = draw(st.lists(st.integers(-12, 12), min_size=m, max_size=m))
    return n, cost, rows, right, draw(st.booleans())


@settings(max_examples=60, deadline=None)
@given(programs())
def test_binary_programs_equal_enumeration(program: tuple[Any, ...]) -> None:
    n, cost, rows, right, maximise = program
    model = Model(maximise=maximise)
    x = model.add_columns(n, 0, 1, integer=True, cost=cost)
    if rows:
        model.add_rows([(x, rows)], high=right)
    allowed = [
        sum(c * v for c, v in zip(cost, point, strict=True))
        for point in itertools.product((0, 1), repeat=n)
        if all(sum(a * v for a, v in zip(row, point, strict=True)) <= b for row, b in zip(rows, right, strict=True))
    ]
    found = model.solve()
    if not allowed:
        assert found.status == "infeasible"
    else:
        best = max(allowed) if maximise else min(allowed)
        assert found.objective == pytest.approx(best, abs=1e-6)
        assert found.bound == pytest.approx(best, abs=1e-5)


def test_a_solver_error_can_be_copied_and_sent() -> None:
    error = copy.copy(SolverError("main problem", "kUnknown"))  # by __reduce__, as processes send it
    assert (error.what, error.status, str(error)) == (
        "main problem",
        "kUnknown",
        "main problem: the solver ended with 'kUnknown'",
    )
