"""A budget holds: under many callers at once, for any order of reserving, settling and giving back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_core.integrations.accounting import account, place
from trace_core.integrations.budget import Budget, BudgetExhausted, Cost, Reservation, UnknownPrice
from trace_core.integrations.llm import Message, ScriptedLLM, Usage

ASK: list[Message] = [{"role": "user", "content": "x"}]
amounts = st.tuples(st.integers(0, 40), st.floats(0, 1))  # estimate, and the share of it that is really used


@given(limit=st.integers(0, 200), steps=st.lists(st.tuples(st.sampled_from("rsx"), amounts), max_size=60))
def test_spent_and_reserved_never_exceed_the_limit(limit: int, steps: list[tuple[str, tuple[int, float]]]) -> None:
    budget = Budget(tokens=limit, usd=limit / 1000)
    held: list[tuple[Reservation, int, float]] = []
    expected = 0
    for what, (estimate, share) in steps:
        if what == "r":
            fits = budget.spent.tokens + budget.reserved.tokens + estimate <= limit
            try:
                held.append((budget.reserve(Cost(estimate / 1000, estimate)), estimate, share))
            except BudgetExhausted:
                assert not fits
            else:
                assert fits
        elif held:
            reservation, reserved, used = held.pop(0)
            if what == "s":
                actual = int(reserved * used)
                reservation.settle(Cost(actual / 1000, actual))
                expected += actual
            else:
                reservation.release()
        assert budget.spent.tokens + budget.reserved.tokens <= limit
        assert budget.spent.tokens == expected
    assert budget.spent.usd == expected / 1000
    assert budget.reserved.tokens == sum(reserved for _, reserved, _ in held)
    assert not budget.excess()


@given(limit=st.integers(1, 300), costs=st.lists(st.integers(1, 9), min_size=64, max_size=64), exact=st.booleans())
def test_64_callers_at_once_never_pass_it(limit: int, costs: list[int], exact: bool) -> None:
    budget = Budget(tokens=limit)
    seen: list[int] = []
    start = threading.Barrier(64)

    def call(cost: int) -> int:
        start.wait()
        try:
            reservation = budget.reserve(Cost(tokens=cost), "workflow")
        except BudgetExhausted:
            return 0
        seen.append(budget.spent.tokens + budget.reserved.tokens)
        actual = cost if exact else cost // 2
        reservation.settle(Cost(tokens=actual))
        return actual

    with ThreadPoolExecutor(64) as pool:
        used = sum(pool.map(call, costs))
    assert used == budget.spent.tokens <= limit
    assert budget.reserved == Cost()
    assert used == sum(costs) or not exact or budget.spent.tokens + max(costs) > limit


def test_64_callers_of_a_model_make_exactly_as_many_calls_as_allowed() -> None:
    llm = ScriptedLLM("yes", usage=Usage(5, 1, 0))
    budget = Budget(calls=40)

    def call(_: int) -> bool:
        with account(budget=budget), place("workflow", ""):
            try:
                llm.complete(ASK)
            except BudgetExhausted:
                return False
            return True

    with ThreadPoolExecutor(64) as pool:
        made = sum(pool.map(call, range(200)))
    assert made == len(llm.calls) == budget.spent.calls == 40
    assert budget.by_role == {"workflow": Cost(0.0, 240, 40)}


def test_a_call_without_a_length_gets_one_where_the_length_counts() -> None:
    llm = ScriptedLLM("yes", usage=Usage(5, 1, 0))
    with account(budget=Budget(tokens=100)), pytest.raises(BudgetExhausted, match="tokens"):
        llm.complete(ASK)
    assert not llm.calls
    with account(budget=Budget(tokens=10_000)):
        llm.complete(ASK)
    assert llm.calls[0].max_tokens == 4096


@pytest.mark.parametrize("name", ["usd", "tokens", "calls", "metric_calls", "seconds"])
def test_each_limit_says_what_is_used_up(name: str) -> None:
    limits: dict[str, Callable[[], Budget]] = {
        "usd": lambda: Budget(usd=0.001),
        "tokens": lambda: Budget(tokens=1),
        "calls": lambda: Budget(calls=1),
        "metric_calls": lambda: Budget(metric_calls=1),
        "seconds": lambda: Budget(seconds=0),
    }
    budget = limits[name]()
    if name != "seconds":
        budget.reserve(Cost(0.001, 1, 1, 1)).settle(Cost(0.001, 1, 1, 1))
    with pytest.raises(BudgetExhausted, match=name) as caught:
        budget.reserve(Cost(0.001, 1, 1, 1))
    assert caught.value.limit == name
    with pytest.raises(BudgetExhausted):
        budget.check()


def test_dollars_are_added_up_exactly() -> None:
    budget = Budget(usd=1.0)
    for _ in range(10):
        budget.reserve(Cost(0.1)).settle(Cost(0.1))
    assert budget.spent.usd == 1.0
    with pytest.raises(BudgetExhausted):
        budget.reserve(Cost(1e-9))


def test_a_budget_in_dollars_refuses_a_model_without_a_price() -> None:
    llm = ScriptedLLM("yes", cost=None, model="unheard-of")
    with account(budget=Budget(usd=1.0)), pytest.raises(UnknownPrice):
        llm.complete(ASK)
    assert not llm.calls
    budget = Budget(usd=1.0)
    with account(budget=budget, price=lambda model: (1e-6, 2e-6)):
        llm.complete(ASK, max_tokens=10)
    assert budget.unknown == 1
    assert budget.spent.usd == pytest.approx((8 + 1) * 1e-6 + 10 * 2e-6)  # the estimate stands in


def test_more_than_estimated_is_kept_and_shown() -> None:
    budget = Budget(tokens=10)
    budget.reserve(Cost(tokens=10)).settle(Cost(tokens=13))
    assert budget.excess() == {"tokens": 3}


def test_settling_twice_counts_once() -> None:
    budget = Budget(calls=2)
    reservation = budget.reserve(Cost(calls=1))
    reservation.settle(Cost(calls=1))
    reservation.settle(Cost(calls=1))
    reservation.release()
    assert (budget.spent.calls, budget.reserved.calls) == (1, 0)


def test_a_limit_must_be_a_number() -> None:
    with pytest.raises(ValueError, match="usd"):
        Budget(usd=float("nan"))
    with pytest.raises(ValueError, match="calls"):
        Budget(calls=-1)
