"""Parameters: constraints of every kind, versions, feedback."""

from __future__ import annotations

import re
from datetime import date
from enum import Enum
from fractions import Fraction
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

import trace_core as tc

NAN, INF = float("nan"), float("inf")


class Colour(Enum):
    RED = "red"


class Settings(BaseModel):
    depth: int = Field(ge=1)


class Unknown:
    pass


def positive(value: Any) -> bool:
    """a positive number"""
    return bool(value > 0)


# (first value, constraint, accepted {given: stored}, refused)
CASES: list[tuple[Any, Any, list[tuple[Any, Any]], list[Any]]] = [
    (1, None, [(5, 5), (4.0, 4), (10**400, 10**400), (np.int64(3), 3)], [True, 4.5, NAN, INF, "5", None, [1], np.nan]),
    (
        1.0,
        None,
        [(5, 5.0), (0.5, 0.5), (np.float32(0.5), 0.5), (Fraction(1, 2), 0.5)],
        [True, NAN, INF, -INF, "5", None, 10**400, 1j],
    ),
    (True, None, [(False, False)], [0, 1, "true", None]),
    ("a", None, [("b", "b"), ("", "")], [1, None, b"a", ["a"]]),
    ([1], None, [([], [])], [(1,), "a", None, 1]),
    ({"a": 1}, None, [({}, {})], [[], None]),
    ((1,), None, [((2, 3), (2, 3))], [[1], None]),
    (1j, None, [(2j, 2j)], [complex(NAN, 0), "1"]),
    (None, None, [(5, 5), ("x", "x")], []),
    (0.5, tc.Range(0, 1), [(0, 0), (1.0, 1.0)], [-0.1, 1.1, NAN, INF, True, "0.5", None]),
    (5, tc.Range(1, 9, integer=True), [(9, 9), (2.0, 2)], [0, 10, 2.5, True, NAN]),
    (5, tc.Range(low=0), [(1e308, 1e308)], [-1, INF]),
    (5, tc.Range(high=9), [(-5, -5)], [10]),
    ("a", ["a", "b"], [("b", "b")], ["c", None, 1, ["a"]]),
    (1, (1, 2, 3), [(2.0, 2)], [True, 4, "1"]),
    (True, [True, False], [(False, False)], [1, 0]),
    ("a", {"a", "b"}, [("b", "b")], ["c"]),
    ([1], [[1], [2]], [([2], [2])], [[3], (1,)]),
    ("ab12", re.compile(r"[a-z]+\d+"), [("x1", "x1")], ["x", "1x", 5, "x1 "]),
    ("ab", tc.Regex("[ab]+"), [("ba", "ba")], ["abc"]),
    (1, int, [(2, 2)], [True, 2.5, "2"]),
    (1.0, float, [(2, 2.0)], ["2", NAN, INF, True]),
    (1, Annotated[int, Field(ge=1, le=3)], [(3, 3)], [0, 4, True]),
    ("a", Literal["a", "b"], [("b", "b")], ["c"]),
    ([1], list[int], [([2], [2])], [["a"], [True], 5]),
    ((1, "a"), tuple[int, str], [((2, "b"), (2, "b")), ([2, "b"], (2, "b"))], [("b", 2), [2]]),
    (1, int | None, [(None, None), (2, 2)], ["a"]),
    (Settings(depth=1), Settings, [({"depth": 2}, Settings(depth=2))], [{"depth": 0}, {"depth": "2"}, 5]),
    (Colour.RED, Colour, [("red", Colour.RED)], ["blue"]),
    (date(2020, 1, 1), date, [("2021-02-03", date(2021, 2, 3))], ["nonsense", 5]),
    (Unknown(), Unknown, [], [5, "x"]),
    (1, positive, [(2, 2)], [-1, 0, "a", NAN]),
    (2, lambda v: v % 2 == 0, [(4, 4)], [3]),
    (2, lambda v: np.bool_(v > 0), [(4, 4)], [-3]),
    (2, lambda v: None, [(4, 4)], ["x"]),
    (1, "a whole number of days", [(2, 2)], ["two"]),
    (1, tc.Anything(), [("x", "x"), (NAN, NAN)], []),
    (
        np.zeros(2),
        None,
        [([1, 2], np.array([1.0, 2.0])), (np.ones(2, np.float32), np.ones(2))],
        [np.zeros(3), [1, NAN], "ab", None, [1], ["a", "b"], [[1], [2, 3]]],
    ),
    (np.array([1, 2]), None, [([3, 4], np.array([3, 4]))], [[1.5, 2], ["a", "b"]]),
]


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right)
    return bool(left == right) or (left != left and right != right)


@pytest.mark.parametrize(("first", "constraint", "accepted", "refused"), CASES, ids=range(len(CASES)))
def test_constraints(first: Any, constraint: Any, accepted: Any, refused: Any) -> None:
    for given, stored in accepted:
        parameter = tc.Parameter(first, name="p", constraint=constraint)
        found = parameter.check(given)
        assert equal(found, stored)
        assert type(found) is type(stored)
        assert parameter.version == 0
        parameter.update(given)
        assert equal(parameter.value, stored)
        assert parameter.version == 1
        with tc.using({parameter: given}):
            assert equal(parameter.value, stored)
    for bad in refused:
        parameter = tc.Parameter(first, name="p", constraint=constraint)
        with pytest.raises(tc.ParameterError, match="parameter 'p'"):
            parameter.update(bad)
        with pytest.raises(tc.ParameterError):
            tc.using({parameter: bad})
        assert parameter.value is first or equal(parameter.value, first)
        assert parameter.version == 0
    parameter = tc.Parameter(first, constraint=constraint)
    assert parameter.constraint.describe()
    assert isinstance(parameter.constraint, tc.Constraint)


@pytest.mark.parametrize(
    ("first", "constraint", "accepted", "refused"),
    [case for case in CASES if not isinstance(case[0], np.ndarray | Unknown)],
)
def test_annotations_accept_what_the_constraint_accepts(
    first: Any, constraint: Any, accepted: Any, refused: Any
) -> None:
    adapter = TypeAdapter(tc.Parameter(first, constraint=constraint).constraint.annotation())
    for given, _ in accepted:
        if type(given) in (int, float, str, bool, list, dict) and abs(given if isinstance(given, int) else 0) < 10**300:
            adapter.validate_python(given)


def test_annotations_are_tight() -> None:
    for constraint, bad in ((tc.Range(0, 1), 2), (tc.Choices(["a"]), "b"), (tc.Range(1, 3, integer=True), 9)):
        with pytest.raises(ValidationError):
            TypeAdapter(constraint.annotation()).validate_python(bad)


@pytest.mark.parametrize(
    ("value", "constraint"),
    [
        (2, tc.Range(0, 1)),
        ("c", ["a", "b"]),
        (NAN, None),
        (INF, float),
        (np.array([NAN]), None),
        ("a", int),
        (-1, positive),
    ],
)
def test_the_first_value_must_fit(value: Any, constraint: Any) -> None:
    with pytest.raises(tc.ParameterError):
        tc.Parameter(value, constraint=constraint)


@pytest.mark.parametrize(
    "make",
    [
        lambda: tc.Range(2, 1),
        lambda: tc.Range(NAN),
        lambda: tc.Choices([]),
        lambda: tc.Regex("("),
        lambda: tc.Regex(b"a"),
        lambda: tc.Parameter(1, constraint=tc.Anything),
        lambda: tc.Parameter(1, constraint=5),
        lambda: tc.Parameter(1, constraint=[]),
    ],
)
def test_impossible_constraints_are_refused(make: Any) -> None:
    with pytest.raises(tc.ParameterError):
        make()


def test_messages_say_what_was_expected_and_what_came() -> None:
    p = tc.node(0.5, trainable=True, name="rate", constraint=tc.Range(0, 1234567))
    with pytest.raises(tc.ParameterError, match=r"parameter 'rate': expected a number from 0 to 1234567, got str: 'x'"):
        p.update("x")


def test_a_rule_that_raises_refuses() -> None:
    class Broken:
        def check(self, value: Any) -> Any:
            if value == 1:
                return value
            raise RuntimeError("broken rule")

        def describe(self) -> str:
            return "x"

        def annotation(self) -> Any:
            return int

    p = tc.node(1, trainable=True, constraint=Broken())
    with pytest.raises(tc.ParameterError, match="broken rule"):
        p.update(2)


def test_updating_with_a_node_takes_its_value() -> None:
    p = tc.node(1, trainable=True)
    p.update(tc.node(5))
    assert p.value == 5
    assert type(p.value) is int
    p.value = 6
    p.data = 7
    assert (p.value, p.version) == (7, 3)


def test_kinds() -> None:
    kinds = {"text": "a", "number": 1.5, "data": [1]}
    assert {tc.node(value, trainable=True).kind: value for value in kinds.values()} == kinds
    assert tc.node(True, trainable=True).kind == "data"


def test_attributes_are_fixed_except_name_and_description() -> None:
    p = tc.node(1, trainable=True)
    p.name, p.description = "a", "b"
    assert (p.name, p.description) == ("a", "b")
    with pytest.raises(tc.MutationError):
        p.constraint = tc.Anything()  # type: ignore[misc]
    again = tc.node(p, trainable=True)
    assert again is p
    with pytest.raises(tc.ParameterError, match="already"):
        tc.node(p, trainable=True, constraint=tc.Range(0, 1))


def test_parameters_in_a_list_are_told_apart() -> None:
    p, q = tc.node(1, trainable=True), tc.node(1, trainable=True)
    assert p not in [q]
    assert p in [q, p]


def test_repr() -> None:
    assert repr(tc.node("x", trainable=True, name="p")) == "Parameter(p: 'x')"


def test_feedback_lists() -> None:
    p, q = tc.node(1, trainable=True), tc.node(2, trainable=True)
    trace = (p + q).backward({"speed": 0.5, "size": 1})
    assert p.feedback == [trace] == q.feedback
    assert p.feedback is not q.feedback
    p.zero_feedback()
    assert p.feedback == []
    assert q.feedback == [trace]


def test_numpy_parameters_keep_shape_and_type() -> None:
    p = tc.node(np.zeros((2, 2), np.float32), trainable=True)
    p.update([[1, 2], [3, 4]])
    assert p.value.dtype == np.float32
    assert p.constraint.describe() == "a ndarray of shape (2, 2)"


def test_pydantic_can_hold_feedback() -> None:
    class Report(BaseModel):
        feedback: tc.Feedback

    report = Report(feedback=(0.5, "good"))
    assert report.feedback.score == 0.5
    assert Report(**report.model_dump()).feedback == report.feedback
