"""Decision parameters: what they accept, repair and refuse."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import trace_core as tc
from trace_core.nodes.decision import DecisionError, InfeasibleFirstStage, InvalidProblem, Linear, decision


def test_a_binary_decision_starts_at_its_lower_bounds() -> None:
    x = decision("open", binary=3, description="warehouses")
    assert (x.name, x.kind, x.description, x.size) == ("open", "decision", "warehouses", 3)
    assert x.value.tolist() == [0, 0, 0]
    assert x.value.dtype == np.int64
    x.update([1, 0, 1])
    assert x.value.tolist() == [1, 0, 1]
    assert x.version == 1


def test_what_a_solver_returns_is_repaired_and_what_is_wrong_refused() -> None:
    x = decision("x", integer=2, low=[0, -1], high=5)
    assert x.check([3.0000004, -1.0000002]).tolist() == [3, -1]
    for wrong, text in [
        ([0.5, 0], "an integer"),
        ([6, 0], "from 0 to 5 at"),
        ([0, -2], r"from -1 to 5 at \[1\]"),
        ([0], "a vector of 2 integers"),
        ([0, float("nan")], "a vector of 2"),
        ("many", "a vector of 2"),
        ([None, 1], "a vector of 2"),
    ]:
        with pytest.raises(tc.ParameterError, match=text):
            x.update(wrong)
    assert x.version == 0


def test_linear_constraints_hold_for_every_value() -> None:
    x = decision("x", binary=3, constraints=[Linear([3, 4, 5], "<=", 8, name="room"), Linear([1, 1, 1], ">=", 1)])
    assert x.value.sum() == 1  # the lower bounds are not allowed: one was found
    with pytest.raises(tc.ParameterError, match="room"):
        x.update([0, 1, 1])
    with pytest.raises(tc.ParameterError, match=r"weights \. x >= 1"):
        x.update([0, 0, 0])
    x.update([1, 0, 1])
    equal = decision("y", continuous=2, low=0, high=1, constraints=[Linear([1, 1], "==", 1)])
    assert equal.value.sum() == pytest.approx(1)
    assert equal.check([0.25, 0.75]).tolist() == [0.25, 0.75]


def test_a_candidate_is_checked_and_reaches_the_trace() -> None:
    x = decision("x", binary=2)

    @tc.bundle
    def cost(x):  # type: ignore[no-untyped-def]
        return float(x @ np.array([1.0, 2.0]))

    with tc.using({x: [1, 1]}):
        assert cost(x).value == 3.0
    assert cost(x).value == 0.0
    assert tc.Trace.of(cost(x)).parameters == [x]
    with pytest.raises(tc.ParameterError):
        tc.using({x: [2, 0]})


def test_nothing_is_allowed_names_a_smallest_conflict() -> None:
    rows = [
        Linear([1, 1, 0], "<=", 2, name="harmless"),
        Linear([1, 1, 1], ">=", 3, name="all"),
        Linear([0, 0, 1], "<=", 0, name="not the third"),
    ]
    with pytest.raises(InfeasibleFirstStage) as caught:
        decision("x", binary=3, constraints=rows)
    assert [text.split(": ")[1] for text in caught.value.conflict] == ["all", "not the third"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "exactly one of"),
        ({"binary": 2, "integer": 2}, "exactly one of"),
        ({"binary": 0}, "at least 1"),
        ({"binary": True}, "at least 1"),
        ({"binary": 2, "low": 0}, "takes no low"),
        ({"integer": 2, "low": 0}, "high is missing: bounds are needed"),
        ({"continuous": 2, "low": 0, "high": float("inf")}, "high is inf"),
        ({"continuous": 2, "low": [0, float("nan")], "high": 1}, r"low\[1\] is nan"),
        ({"continuous": 2, "low": [0, 2], "high": 1}, r"\[1\] has a lower bound above the upper one: 2 > 1"),
        ({"integer": 1, "low": 0.4, "high": 0.6}, "lower bound above"),
        ({"continuous": 2, "low": [0, 0, 0], "high": 1}, "has shape"),
        ({"continuous": 2, "low": False, "high": 1}, "must hold numbers"),
        ({"continuous": 2, "low": "0", "high": 1}, "must hold numbers"),
        ({"binary": 2, "constraints": [Linear([1], "<=", 1)]}, r"constraint 0: weights has shape \(1,\)"),
        ({"binary": 2, "constraints": [Linear([1, float("inf")], "<=", 1)]}, r"weights\[1\] is inf"),
        ({"binary": 2, "constraints": [Linear([1, 1], "<", 1)]}, "sense must be"),
        ({"binary": 2, "constraints": [Linear([1, 1], "<=", None)]}, "right must hold numbers"),
        ({"binary": 2, "constraints": ["x <= 1"]}, "must be a Linear"),
    ],
)
def test_ill_posed_decisions_say_where(options: dict[str, object], text: str) -> None:
    with pytest.raises(InvalidProblem, match=text):
        decision("x", **options)  # type: ignore[arg-type]


def test_a_wrong_first_value_is_refused() -> None:
    with pytest.raises(tc.ParameterError, match="from 0 to 1"):
        decision("x", binary=2, value=[0, 2])
    assert decision("x", binary=2, value=[True, False]).value.tolist() == [1, 0]


def test_errors_carry_field_index_and_value() -> None:
    with pytest.raises(InvalidProblem) as caught:
        decision("x", continuous=3, low=0, high=[1, 1, float("-inf")])
    assert (caught.value.field, caught.value.index, caught.value.value) == ("decision 'x': high", (2,), float("-inf"))
    assert isinstance(caught.value, DecisionError)
    assert isinstance(caught.value, ValueError)


def test_importing_the_package_loads_neither_numpy_nor_a_solver() -> None:
    look = "import sys, trace_core.nodes.decision; print('numpy' in sys.modules, 'highspy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
