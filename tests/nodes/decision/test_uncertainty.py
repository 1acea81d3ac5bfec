"""Uncertainty sets: membership, samples and worst cases against the definition; ill-posed ones."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_core.nodes.decision import Box, Budget, Ellipsoid, InvalidProblem, Model, Polytope, Scenarios, UncertaintySet

SETS: list[UncertaintySet] = [
    Box(-1, 1, size=4),
    Box([0, 1, 2], [0, 3, 2.5]),
    Budget(6, gamma=2.5),
    Budget(gamma=1.2, lower=[1, 2, 3], upper=[1, 4, 9]),
    Budget(5, gamma=0.0),
    Budget(5, gamma=9.0),
    Budget(4, gamma=0.5),
    Scenarios([[0, 1], [2, 2], [5, -1]]),
    Scenarios([[3.0, 4.0]]),
    Polytope([[1, 1], [-1, 0], [0, -1]], [1, 0, 0]),
    Polytope([[1, 1, 1]], [1.5], low=0, high=1),
    Polytope([[1, 0], [-1, 0], [0, 1], [0, -1]], [2, -2, 3, -3]),
    Ellipsoid([1, 2], [[2, 0], [0, 1]]),
    Ellipsoid([0, 0, 0], [[1, 0, 0], [0.5, 1, 0], [0.2, 0.1, 2]]),
]


def lp_worst(xi: UncertaintySet, cost: Any) -> float:
    """The same by the set's description as box and rows."""
    model = Model(maximise=True)
    columns = model.add_columns(xi.size, xi.low, xi.high, cost=cost)
    if len(xi.matrix):
        model.add_rows([(columns, xi.matrix)], high=xi.right)
    return model.solve().objective


@pytest.mark.parametrize("xi", SETS, ids=repr)
def test_samples_lie_inside_and_below_the_worst_case(xi: UncertaintySet) -> None:
    points = xi.sample(200, seed=3)
    assert points.shape == (200, xi.size)
    assert all(xi.contains(point) for point in points)
    assert np.array_equal(points, xi.sample(200, seed=3))
    assert xi.contains(xi.center)
    rng = np.random.default_rng(1)
    for _ in range(10):
        cost = rng.normal(size=xi.size)
        value, worst = xi.worst(cost)
        assert xi.contains(worst)
        assert value == pytest.approx(float(cost @ worst))
        assert (points @ cost <= value + 1e-6).all()
        if isinstance(xi, Scenarios):
            assert value == (xi.vectors @ cost).max()
        else:
            assert value == pytest.approx(lp_worst(xi, cost), abs=1e-6)


@pytest.mark.parametrize("xi", SETS, ids=repr)
def test_the_bound_box_is_touched_and_what_lies_outside_is_seen(xi: UncertaintySet) -> None:
    for k, direction in enumerate(np.eye(xi.size)):
        assert xi.worst(direction)[0] == pytest.approx(xi.high[k], abs=1e-7)
        assert -xi.worst(-direction)[0] == pytest.approx(xi.low[k], abs=1e-7)
        assert not xi.contains(xi.center + direction * (xi.high[k] - xi.center[k] + 1.0))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=7), st.integers(0, 8))
def test_the_worst_case_of_a_budget_is_at_a_corner(cost: list[int], gamma: int) -> None:
    xi = Budget(len(cost), gamma=gamma)
    corners = [c for c in itertools.product((0, 1), repeat=len(cost)) if sum(c) <= gamma]
    assert xi.worst(cost)[0] == pytest.approx(max(float(np.dot(c, cost)) for c in corners))


def test_the_ellipsoid_is_inside_its_polytope_and_touches_it() -> None:
    factor = np.array([[2.0, 0.0], [1.0, 0.5]])
    xi = Ellipsoid([1, 1], factor)
    for angle in np.linspace(0, 2 * math.pi, 40):
        direction = np.array([math.cos(angle), math.sin(angle)])
        true = direction @ [1, 1] + np.linalg.norm(factor.T @ direction)
        outer = xi.worst(direction)[0]
        assert true - 1e-9 <= outer
        assert xi.contains([1, 1] + factor @ direction)
    assert xi.worst(np.linalg.inv(factor)[0])[0] == pytest.approx(1 + np.linalg.inv(factor)[0] @ [1, 1])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Box(1, [0, 2]), r"\[0\] has a lower bound above"),
        (lambda: Box(0, 1), "size is needed"),
        (lambda: Box(0, math.inf, size=2), "high is inf"),
        (lambda: Box([0, 0], [1, 1, 1]), r"high has shape \(3,\)"),
        (lambda: Box(0, 1, size=2, center=[0, 2]), "center lies outside"),
        (lambda: Box(True, 1, size=2), "low must hold numbers"),
        (lambda: Budget(3, gamma=-1), "gamma must not be negative"),
        (lambda: Budget(3, gamma=math.nan), "gamma is nan"),
        (lambda: Budget(3, gamma="2"), "gamma must hold numbers"),
        (lambda: Budget(0, gamma=1), "at least 1"),
        (lambda: Budget(2, gamma=1, lower=[0, 3], upper=1), r"\[1\] has a lower bound above"),
        (lambda: Scenarios([]), "has shape"),
        (lambda: Scenarios(np.empty((0, 2))), "is empty"),
        (lambda: Scenarios([[1, 2], [3]]), "no regular array"),
        (lambda: Scenarios([[1, 2], [3, math.nan]]), r"vectors\[1, 1\] is nan"),
        (lambda: Scenarios([["a", "b"]]), "must hold numbers"),
        (lambda: Scenarios([[1, 2]], center=1), "center must be a row"),
        (lambda: Polytope([[1, 0], [-1, 0]], [0, -1], low=0, high=1), "is empty"),
        (lambda: Polytope([[1, 1]], [1], low=[2, 0], high=1), "is empty"),
        (lambda: Polytope([[1, 0], [-1, 0]], [1, 0]), "is unbounded in coordinate 1"),
        (lambda: Polytope([[0, 0, 1]], [1], low=0, high=[1, math.inf, 1]), "is unbounded in coordinate 1"),
        (lambda: Polytope([[1, 1]], [1, 2]), r"b has shape \(2,\), expected 1"),
        (lambda: Polytope([[1, math.nan]], [1]), r"A\[0, 1\] is nan"),
        (lambda: Polytope([[1, 1]], [1], low=0, high=1, center=[1, 1]), "center lies outside"),
        (lambda: Ellipsoid([0, 0], [[1, 1], [1, 1]]), "not invertible"),
        (lambda: Ellipsoid([0, 0], [[1, 0]]), "factor has shape"),
    ],
)
def test_ill_posed_sets_say_what_and_where(make: Any, text: str) -> None:
    with pytest.raises(InvalidProblem, match=text) as caught:
        make()
    assert "'xi'" in str(caught.value)


def test_membership_of_what_is_no_vector_is_an_error() -> None:
    with pytest.raises(InvalidProblem, match=r"has shape \(2,\), expected 3"):
        Box(0, 1, size=3).contains([0, 1])
    with pytest.raises(InvalidProblem, match=r"\[1\] is nan"):
        Box(0, 1, size=2).contains([0, math.nan])
