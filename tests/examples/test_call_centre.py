"""The call centre: its day is a function of roster and demand, its rules react, and each method keeps to its budget."""

from __future__ import annotations

import pytest

import trace_core as tc
from trace_core.examples import call_centre
from trace_core.examples.call_centre_workflow import POSTS, USUAL, CallCentre, Floor, lending, wages, work_shift

pytest.importorskip("simpy")
pytest.importorskip("highspy")
torch = pytest.importorskip("torch")

PLAIN = [3, 2, 2, 0, 0, 2, 3, 2, 0, 0]
SURGED = [36.0, 9.0, 6.0, 8.0, 10.0, 5.0]  # orders in the morning


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_a_day_is_a_function_of_roster_and_demand() -> None:
    centre = CallCentre()
    usual, surged = float(centre(PLAIN, USUAL).value), float(centre(PLAIN, SURGED).value)
    assert float(centre(PLAIN, USUAL).value) == usual
    assert surged > usual + 300
    assert float(centre([6, 2, 2, 2, 0, 2, 3, 2, 0, 0], SURGED).value) < surged - 300
    assert centre.runs == 4
    assert centre.euros(PLAIN, USUAL) == usual + wages(PLAIN)
    assert float(CallCentre(range(7, 9))(PLAIN, USUAL).value) != usual  # other chance


def test_reactions_are_in_the_trace() -> None:
    roster = tc.Parameter([1, 1, 1, 0, 2, 1, 1, 1, 0, 0], name="roster")
    out = CallCentre(range(1))(roster, SURGED)
    trace = tc.Trace.of(out)
    assert trace.parameters == [roster]
    shown = trace.render()
    assert all(reaction in shown for reaction in ("work_shift", "stay_on", "close", "bill"))


def test_people_on_call_come_in_where_many_wait() -> None:
    few, more = [1, 1, 1, 0, 0] * 2, [1, 1, 1, 0, 2] * 2
    without = work_shift(few, SURGED, None, None, 0, [0]).value[0]
    with_them = work_shift(more, SURGED, None, None, 0, [0]).value[0]
    calm = work_shift([6, 5, 5, 0, 2] * 2, USUAL, None, None, 0, [0]).value[0]
    assert (without.called_in, with_them.called_in, calm.called_in) == (0, 2, 0)
    assert with_them.lost + with_them.called_back < without.lost + without.called_back


def test_who_stayed_on_serves_who_waits_and_then_goes() -> None:
    waiting = work_shift([0, 0, 0, 0, 0] * 2, SURGED, None, None, 0, [0]).value[0].waiting
    assert len(waiting) > 4
    alone = Floor([0, 0, 0], 0, 0, 0).run([], waiting, 60.0)
    helped = Floor([0, 0, 0], 0, 0, 3).run([], waiting, 60.0)
    assert alone.lost == len(waiting) - len(alone.waiting)
    assert helped.lost < alone.lost
    late = [call._replace(at=61.0, leaves=100.0) for call in waiting]
    gone = Floor([0, 0, 0], 0, 0, 3).run(late, [], 120.0)  # one idle agent of three used to swallow the first call
    assert gone.lost == len(late) - gone.called_back


@pytest.mark.parametrize(
    ("waiting", "crew", "move"),
    [
        ([0, 5, 0], [2, 1, 3], (2, 1)),  # the larger crew gives
        ([0, 2, 0], [2, 1, 3], None),  # too few wait
        ([0, 5, 0], [1, 1, 1], None),  # nobody is left alone
        ([1, 5, 1], [4, 1, 4], None),  # all have callers of their own
    ],
)
def test_the_supervisor_lends(waiting: list[int], crew: list[int], move: tuple[int, int] | None) -> None:
    assert lending(waiting, crew) == move


def test_what_is_drawn_may_come() -> None:
    demands = call_centre.what_may_come()
    assert all(demands.contains(day) for day in call_centre.some_days(40, 3))
    assert all(demands.contains(day) for day in call_centre.unseen(5))
    assert len(call_centre.unseen(5)) == 15 + 5
    assert call_centre.some_days(2, 3) == call_centre.some_days(40, 3)[:2]


@pytest.mark.slow
def test_each_method_keeps_to_its_budget_and_to_the_room() -> None:
    found = call_centre.compare(seeds=(1,), executions=44, inside=1, days=2)
    assert [each.method for each in found] == list(call_centre.METHODS)
    assert found[0].runs == 0
    allowed = call_centre.problem(CallCentre()).allows
    for each in found:
        assert each.runs <= 44
        assert len(each.roster) == 2 * len(POSTS)
        assert allowed(each.roster)
        assert each.worst > wages(each.roster)


def test_the_average_roster_is_better_than_the_rule_on_the_days_it_saw() -> None:
    roster = call_centre.average_case(CallCentre(), 60, 1, sample=4)
    days = call_centre.some_days(4, 1)
    rule = call_centre.rule_of_thumb(CallCentre(), 0, 1)
    assert sum(CallCentre().euros(roster, day) for day in days) < sum(CallCentre().euros(rule, day) for day in days)


def test_the_report_says_what_was_measured() -> None:
    rows = [
        call_centre.Verified("rule of thumb", 1, PLAIN, 4000.0, 3000.0, 0),
        call_centre.Verified("average case", 1, PLAIN, 4000.0, 2000.0, 44),
        call_centre.Verified("robust", 1, PLAIN, 3000.0, 2100.0, 44),
    ]
    shown = call_centre.report(rows)
    assert "worst day 25.0 % cheaper and the average day 5.0 % dearer" in shown
    assert "3+2+2+0+0 / 2+3+2+0+0" in shown
