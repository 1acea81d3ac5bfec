"""Selection of parents and minibatches against slow, obviously right references."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_core.optimizers.search import (
    UCB,
    Acceptance,
    Beam,
    Best,
    Candidate,
    EpsilonGreedy,
    Fronts,
    Latest,
    MultiObjective,
    PairedTest,
    Pareto,
    Pool,
    TopK,
    Verdict,
)
from trace_core.optimizers.search.minibatches import minibatch

Scores = list[dict[int, float]]
some_scores = st.lists(
    st.dictionaries(st.integers(0, 20), st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=20), min_size=1, max_size=12
)


def reference(scores: Scores) -> dict[int, int]:
    """GEPA's rule word for word: while a candidate is left all of whose fronts hold another one that is left, the one
    of those with the lowest mean goes; then each is counted on the fronts it is on."""
    examples = {example for mine in scores for example in mine}
    fronts = {
        e: {k for k, mine in enumerate(scores) if mine.get(e) == max(s[e] for s in scores if e in s)} for e in examples
    }
    left = {k for front in fronts.values() for k in front}
    means = [sum(mine.values()) / len(mine) if mine else float("-inf") for mine in scores]
    while True:
        removable = [
            k for k in left if all(any(other != k and other in left for other in f) for f in fronts.values() if k in f)
        ]
        if not removable:
            return {k: sum(k in front for front in fronts.values()) for k in left}
        left.remove(min(removable, key=lambda k: (means[k], k)))


@given(some_scores)
@settings(max_examples=300, deadline=None)
def test_fronts_and_weights_are_those_of_the_reference(scores: Scores) -> None:
    fronts = Fronts()
    for mine in scores:
        fronts.add(mine)
        fronts.weights()  # looking in between changes nothing
    assert fronts.weights() == reference(scores)
    for example in {e for mine in scores for e in mine}:
        best = max(mine[example] for mine in scores if example in mine)
        assert fronts.best_on(example) == best
        assert fronts.front(example) == [k for k, mine in enumerate(scores) if mine.get(example) == best]


def pool_of(
    *scores: float | list[float],
    objectives: list[dict[str, float]] | None = None,
    leading: Acceptance | None = None,
) -> Pool:
    pool = Pool(leading)
    for number, given_scores in enumerate(scores):
        every = given_scores if isinstance(given_scores, list) else [given_scores]
        candidate = Candidate(str(number), {"p": number}, status="accepted")
        candidate.add_scores(dict(enumerate(every)))
        if objectives is not None:
            candidate._objectives = {name: [score] for name, score in objectives[number].items()}
        pool.add(candidate)
    return pool


def drawn(strategy: object, pool: Pool, tickets: int = 400) -> Counter[str]:
    return Counter(
        strategy.select(pool, random.Random(f"0/parent/{t}"), t).id  # type: ignore[attr-defined]
        for t in range(1, tickets + 1)
    )


def test_a_gain_within_the_noise_is_no_new_best() -> None:
    """Twelve examples, a mean higher by .0005; then gains that add up; one that is chance again."""
    start = [0.5, 0.9] * 6
    noisy = [0.8, 0.6] * 5 + [0.6, 0.806]
    assert sum(noisy) - sum(start) == pytest.approx(0.006)
    better = [score + 0.05 for score in start]
    lucky = [score + (0.2 if i % 3 else -0.35) for i, score in enumerate(better)]
    assert sum(lucky) > sum(better)
    careful = pool_of(start, noisy, better, lucky, leading=PairedTest(0.1))
    assert careful.best is not None
    assert careful.best.id == "2"
    assert [c.note != "" for c in careful.members] == [False, True, False, True]
    assert careful.members[1].note.startswith("; no new best over 0: 0.700 -> 0.701, p = 0.")
    assert len(careful) == 4  # they are parents all the same
    anyone = pool_of(start, noisy, better, lucky)
    assert anyone.best is not None
    assert anyone.best.id == "3"
    assert [c.id for c in anyone.ranked()] == [c.id for c in careful.ranked()]


def test_the_gain_is_judged_on_what_both_were_run_on() -> None:
    """Of a candidate with other examples nothing is known but its mean."""
    seen: list[tuple[list[float], list[float]]] = []

    class Never:
        repeats, gated = 1, True

        def judge(self, before: Sequence[float], after: Sequence[float]) -> Verdict:
            seen.append((list(before), list(after)))
            return Verdict(False, "never")

    pool = Pool(Never())
    for name, scores in (("0", {0: 0.1, 1: 0.2}), ("1", {1: 0.9, 2: 0.9}), ("2", {5: 1.0})):
        candidate = Candidate(name, {"p": name}, status="accepted")
        candidate.add_scores(scores)
        assert pool.add(candidate) is (name != "1")
    assert seen == [([0.2], [0.9])]


def test_each_strategy_draws_whom_it_should() -> None:
    pool = pool_of(0.1, 0.9, 0.5, 0.9, 0.3)
    assert set(drawn(Best(), pool)) == {"1"}
    assert set(drawn(Latest(), pool)) == {"4"}
    assert set(drawn(TopK(3), pool)) == {"1", "3", "2"}
    assert drawn(Beam(2), pool) == {"1": 200, "3": 200}
    greedy = drawn(EpsilonGreedy(0.2), pool)
    assert len(greedy) == 5
    assert 300 < greedy["1"] < 370


def test_pareto_draws_by_the_number_of_examples_and_leaves_out_the_dominated() -> None:
    found = drawn(Pareto(), pool_of([1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0]), 1000)
    assert set(found) == {"0", "1"}
    assert 700 < found["0"] < 800


def test_ucb_tries_each_once_and_then_weighs_score_against_doubt() -> None:
    pool, strategy = pool_of(0.0, 1.0, 0.9), UCB(0.3)
    order = []
    for ticket in range(1, 31):
        found = strategy.select(pool, random.Random(0), ticket)
        pool.chosen[found.id] = pool.chosen.get(found.id, 0) + 1
        order.append(found.id)
    assert sorted(order[:3]) == ["0", "1", "2"]
    assert pool.chosen["1"] > pool.chosen["2"] > pool.chosen["0"]


def test_several_objectives_leave_those_that_no_other_beats_in_all() -> None:
    objectives = [{"a": 0.1, "b": 0.9}, {"a": 0.9, "b": 0.1}, {"a": 0.1, "b": 0.8}, {"a": 0.5, "b": 0.5}]
    pool = pool_of(0.5, 0.5, 0.45, 0.5, objectives=objectives)
    assert set(drawn(MultiObjective(), pool)) == {"0", "1", "3"}


@given(st.integers(0, 5), st.integers(1, 6), st.integers(1, 15))
def test_minibatches_walk_through_epochs(seed: int, batch_size: int, size: int) -> None:
    wanted = min(batch_size, size)
    row = [minibatch(seed, ticket, batch_size, size) for ticket in range(1, 3 * size + 1)]
    assert all(len(set(batch)) == len(batch) == wanted for batch in row)
    if size % wanted == 0:
        epochs = [i for batch in row for i in batch]
        for start in range(0, len(epochs), size):
            assert sorted(epochs[start : start + size]) == list(range(size))
    assert row == [minibatch(seed, ticket, batch_size, size) for ticket in range(1, 3 * size + 1)]


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 15), st.sets(st.integers(0, 14)))
def test_what_is_skipped_comes_only_when_nothing_else_is_left(
    ticket: int, batch_size: int, size: int, skip: set[int]
) -> None:
    batch = minibatch(0, ticket, batch_size, size, skip)
    others = set(range(size)) - skip
    assert len(set(batch)) == len(batch) == min(batch_size, size)
    assert len(others & set(batch)) == min(len(others), batch_size)


def test_other_seeds_give_other_orders() -> None:
    assert len({minibatch(seed, 1, 5, 20) for seed in range(10)}) > 5


@pytest.mark.parametrize(
    "strategy", [Best(), Latest(), EpsilonGreedy(), TopK(), Beam(), UCB(), Pareto(), MultiObjective()]
)
def test_a_pool_of_one_gives_that_one(strategy: object) -> None:
    assert set(drawn(strategy, pool_of(0.0), 5)) == {"0"}
