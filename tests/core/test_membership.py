"""Looking for a node in a container goes by identity, a comparison by value (behaviour 3)."""

from __future__ import annotations

import operator
from collections import deque
from typing import Any

import pytest

import trace_core as tc


class Refuses:
    """A value that must not be compared."""

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")

    __hash__ = object.__hash__


@pytest.mark.parametrize("make", [list, deque])
@pytest.mark.parametrize("value", [1, [1], Refuses()])
def test_searching_a_container_goes_by_identity(make: Any, value: Any) -> None:
    first, second = tc.node(value), tc.node(value)
    for _ in range(50):  # also once the interpreter has specialised the instructions
        nodes = make([first, second])
        assert second in nodes
        assert tc.node(value) not in nodes
        assert nodes.index(second) == 1
        assert nodes.count(second) == 1
        nodes.remove(second)
        assert list(map(id, nodes)) == [id(first)]
        with pytest.raises(ValueError, match=r"not in|\bx\b"):
            nodes.remove(second)


def test_searching_in_longer_expressions() -> None:
    first, second, third = tc.node(1), tc.node(1), tc.node(1)
    holder = {"nodes": [[first, second], [third]]}
    # fmt: off
    where = (holder["nodes"][0]
             .index(second))
    # fmt: on
    assert where == 1
    assert (first, second, third).index([second, third][0 * [third].index(third)]) == 1
    assert [holder["nodes"][0].count(node) for node in (first, second, third)] == [1, 1, 0]
    holder["nodes"][0].remove(holder["nodes"][0][[first, second].index(second)])
    assert holder["nodes"][0] == [first]


def test_comparisons_are_recorded_however_they_are_made() -> None:
    left, right = tc.node(2), tc.node(2)
    for result in (left == right, operator.eq(left, right), left.__eq__(right), *map(operator.eq, [left], [right])):
        assert isinstance(result, tc.Node)
        assert result.value is True
        assert list(result.inputs.values()) == [left, right]


def test_a_method_of_a_value_that_is_called_count_compares_values() -> None:
    letters = tc.node(["a", "b", "a"])
    assert letters.count(tc.node("a")).value == 2
    assert letters.index(tc.node("b")).value == 1
