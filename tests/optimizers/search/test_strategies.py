"""Gates, guards, credit, validation, merge, contrast and portfolio, each by what it is for."""

from __future__ import annotations

import itertools
import json
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from study_problems import Letters, Numbers, Shift, by_hash, closeness, letters, nearness, offsets

import trace_core as tc
from trace_core.integrations.llm import ScriptedLLM
from trace_core.optimizers import OPRO, OptimizerError, OptoPrime, Proposal, Search, Study
from trace_core.optimizers.base import Optimizer
from trace_core.optimizers.evaluation import evaluate
from trace_core.optimizers.search import (
    Always,
    BetterTrace,
    Candidate,
    CopyGuard,
    Full,
    LengthGuard,
    MergeBranches,
    PairedTest,
    PlaceholderGuard,
    Pool,
    Portfolio,
    Racing,
    Repeats,
    SignatureGuard,
    Strict,
    TraceCredit,
)
from trace_core.optimizers.search.acceptance import sign_flip

# ---- acceptance


@given(st.lists(st.integers(-8, 8), max_size=9))
@settings(max_examples=150, deadline=None)
def test_the_sign_flip_test_counts_all_patterns(differences: list[int]) -> None:
    sums = [
        sum(s * d for s, d in zip(p, differences, strict=True))
        for p in itertools.product((1, -1), repeat=len(differences))
    ]
    exact = sum(total >= sum(differences) for total in sums) / len(sums)
    assert sign_flip([d / 4 for d in differences]) == pytest.approx(exact)


def test_the_sign_flip_test_of_many_is_near_the_exact_one_of_fewer() -> None:
    chance = random.Random(0)
    found = [chance.gauss(0.2, 1) for _ in range(24)]
    assert sign_flip([*found, 1e-12]) == pytest.approx(sign_flip(found), abs=0.01)


def test_gates() -> None:
    assert Strict().judge([0.5, 0.5], [0.5, 0.6]).accept
    assert not Strict().judge([0.5, 0.5], [0.6, 0.4]).accept
    assert Always().judge([1.0], [0.0]).accept
    verdict = PairedTest(0.1).judge([0.0] * 3, [1.0] * 3)
    assert not verdict.accept  # 1/8 is all that three examples can show
    assert "p = 0.125" in verdict.why
    assert PairedTest(0.1).judge([0.0] * 4, [1.0] * 4).accept
    assert Repeats(3).judge([0.2], [0.4]).accept


def test_scores_that_differ_from_run_to_run_are_repeated() -> None:
    workflow, runs = Shift(), []

    def noisy(output: Any, x: int) -> float:
        runs.append(x)
        return closeness(output, x)[0] + (len(runs) * 7 % 5 - 2) / 50

    search = Search(acceptance=Repeats(4), perfect=None, batch_size=2, reuse=0)
    study = Study(workflow, noisy, range(4), optimizer=OptoPrime(workflow, offsets(2)), search=search, steps=1)
    result = study.run()
    assert result.evaluations == len(runs) == 4 + 2 * 4 + 2 * 4 + 4
    assert "means of 4 runs" in result.candidates[1].note


# ---- guards

TRAIN = [
    {
        "question": "Please answer with one word. Which river runs through the old town of Prague in Bohemia?",
        "answer": "Vltava",
    },
    {
        "question": "Please answer with one word. What is the longest wall that people ever built on earth?",
        "answer": "China",
    },
    {"question": "Please answer with one word. Who wrote it?", "answer": "the man from the north"},
] * 1 + [{"question": f"Please answer with one word. Number {i}?", "answer": str(i)} for i in range(9)]


def text(value: str) -> Any:
    return tc.node(value, trainable=True, name="prompt")


def test_copies_of_training_examples_are_refused_and_wording_is_not() -> None:
    guard, parameter = CopyGuard(), text("Answer.")
    copied = "Be brief. The river that runs through the old town of Prague in Bohemia? Vltava!"
    assert "training example 0" in str(guard.check("p", parameter, "Answer.", copied, TRAIN))
    assert guard.check("p", parameter, copied, copied + " Now.", TRAIN) is None  # it was there before
    assert guard.check("p", parameter, "A", "Say: the man from the north", TRAIN) is not None  # a short one, whole
    assert guard.check("p", parameter, "A", "please answer with one word. number", TRAIN) is None
    assert guard.check("p", parameter, "A", "Name rivers, walls and writers by their usual names.", TRAIN) is None


def test_length_placeholders_and_signatures_are_kept() -> None:
    prompt = text("Q: {question} of {{ user }} and ${place}, {not a field}")
    keep = PlaceholderGuard()
    assert keep.check("p", prompt, prompt.value, "Say {question} {{user}} ${place}", []) is None
    assert keep.check("p", prompt, prompt.value, "Say {question} $place", []) == "p loses {{user}}, ${place}"
    assert LengthGuard(10).check("p", prompt, "a", "b" * 11, []) is not None
    assert LengthGuard(10).check("p", prompt, "a" * 20, "b" * 15, []) is None
    assert "at most 3 times" in str(LengthGuard(growth=3).check("p", prompt, "aaa", "b" * 10, []))

    @tc.bundle(trainable=True)
    def rule(x: int) -> int:
        return x

    code = rule.code
    signature = SignatureGuard()
    assert signature.check("rule", code, code.value, "def rule(x: int) -> int:\n    return 2", []) is None
    assert signature.check("rule", code, code.value, "def rule(x):\n    return 2", []) is None  # called the same way
    assert "must keep its signature" in str(
        signature.check("rule", code, code.value, "def rule(x, y):\n    return 2", [])
    )
    assert "must keep its keys" in str(signature.check("d", text("x"), {"a": 1}, {"b": 1}, []))


def test_a_guarded_candidate_is_not_run_and_says_which_guard_refused_it() -> None:
    class Ask(tc.Module):
        def __init__(self) -> None:
            self.prompt = tc.node("Answer {question}", trainable=True)

        def forward(self, x: str) -> tc.Node:
            return self.prompt + x

    workflow = Ask()
    llm = ScriptedLLM([json.dumps({"reasoning": "r", "prompt": "Answer briefly"})])
    ran: list[str] = []

    def metric(output: str, x: str) -> float:
        ran.append(output)
        return 0.0

    result = Study(workflow, metric, ["a", "b"], optimizer=OptoPrime(workflow, llm), steps=1).run()
    (rejected,) = [event for event in result.history if event.kind == "rejected"]
    assert (rejected.stage, rejected.reason) == ("guard", "prompt loses {question}")
    assert result.candidates[1].detail["guard"] == "PlaceholderGuard"
    assert all(output.startswith("Answer {question}") for output in ran)


def test_the_values_of_another_candidate_are_not_run_again() -> None:
    workflow = Shift()
    study = Study(
        workflow,
        closeness,
        range(8),
        optimizer=OptoPrime(workflow, offsets(1, 2, 1, 2)),
        search=Search(parents=First(), perfect=None),
        steps=4,
    )
    result = study.run()
    reasons = [c.note for c in result.candidates if c.status == "rejected"]
    assert reasons == ["candidate 1.0 has the same values", "candidate 2.0 has the same values"]


class First:
    def select(self, pool: Pool, rng: random.Random, ticket: int) -> Candidate:
        return pool.members[0]


# ---- credit


class Branches(tc.Module):
    """Even inputs go through one parameter, odd ones through the other; all through a third."""

    def __init__(self) -> None:
        self.even, self.odd, self.shared = (tc.node(1, trainable=True, name=n) for n in ("even", "odd", "shared"))

    @tc.bundle
    def inner(self, branch: int, x: int) -> int:
        return 10 // branch

    @tc.bundle
    def outer(self, shared: int, inner: int) -> int:
        return shared * inner

    def forward(self, x: int) -> Any:
        return self.outer(self.shared, self.inner(self.odd if x % 2 else self.even, x))


def names_of(workflow: Any) -> dict[Any, str]:
    return Optimizer(workflow).names


def blamed(workflow: Any, metric: Any, examples: Any, **settings_: Any) -> list[str]:
    names = names_of(workflow)
    traces = [evaluate(workflow, metric, x)[0] for x in examples]
    return [names[p] for p in TraceCredit(**settings_).choose(traces, names, 0)]


def test_who_is_on_the_failing_path_alone_is_blamed() -> None:
    workflow = Branches()
    assert blamed(workflow, lambda out, x: float(x % 2 == 0), [0, 1, 2, 3]) == ["odd"]
    assert blamed(workflow, lambda out, x: 0.0, [0, 2]) == ["even", "shared"]
    assert blamed(workflow, lambda out, x: 1.0, [0, 1, 2]) == []


def test_only_a_path_that_does_not_fail_clears_a_parameter() -> None:
    workflow = Branches()
    everybody = ["even", "odd", "shared"]
    assert sorted(blamed(workflow, lambda out, x: 0.0, [0, 2, 4, 1])) == everybody  # each may have a reason of its own
    fails_on = {1, 2}
    assert sorted(blamed(workflow, lambda out, x: float(x not in fails_on), [0, 1, 2])) == everybody
    assert blamed(workflow, lambda out, x: float(x not in fails_on), [0, 1, 2], k=1) == ["odd"]


def test_who_is_nearest_to_an_error_is_blamed() -> None:
    workflow = Branches()
    workflow.odd.update(0)
    assert blamed(workflow, lambda out, x: 1.0, [0, 1, 2, 3]) == ["odd"]


def test_equals_take_turns() -> None:
    workflow = Branches()
    names = names_of(workflow)
    traces = [evaluate(workflow, lambda out, x: 0.0, 0)[0]]
    found = [TraceCredit(k=1).choose(traces, names, turn) for turn in range(4)]
    assert [names[p] for (p,) in found] == ["even", "shared", "even", "shared"]


def test_a_study_asks_for_the_parameter_that_is_to_blame_alone() -> None:
    asked: list[set[str]] = []

    def reply(messages: Any) -> str:
        prompt = messages[-1]["content"]
        words = re.findall(r"word (\d): letter (\d) must be (\w)", prompt)
        if not words:
            return json.dumps({"reasoning": "none"})
        fields = set(re.findall(r'"(first|second|third)"', prompt.rsplit("# Task", 1)[-1]))
        asked.append(fields)
        answer: dict[str, Any] = dict.fromkeys(fields)
        for number, at, letter in words:
            name = ("first", "second", "third")[int(number)]
            if name in fields:
                word = re.findall(rf"{name} = '?([a-z.]{{4}})", prompt)[0]
                answer[name] = word[: int(at)] + letter + word[int(at) + 1 :]
        return json.dumps({"reasoning": "r", **answer})

    workflow = Letters()
    result = Study(
        workflow,
        letters,
        range(9),
        optimizer=OptoPrime(workflow, ScriptedLLM(reply)),
        search=Search(credit=TraceCredit(k=1)),
        steps=40,
    ).run()
    assert (result.score, result.stopped) == (1.0, "perfect")
    assert all(len(fields) == 1 for fields in asked)


# ---- validation


def test_a_race_is_lost_early_and_a_specialist_stays() -> None:
    def validated(scores: list[float]) -> tuple[bool, int]:
        pool = Pool()
        best = Candidate("0", {"p": 0}, status="start")
        best.add_scores(dict.fromkeys(range(32), 0.5))
        pool.add(best)
        candidate = Candidate("1.0", {"p": 1})

        def run(indices: Any) -> list[float]:
            candidate.add_scores({i: scores[i] for i in indices})
            return [scores[i] for i in indices]

        return Racing().run(candidate, pool, 32, run).accept, len(candidate.scores)

    assert validated([0.4] * 32) == (False, 4)
    assert validated([0.6] * 32) == (True, 32)
    assert validated([0.1, 0.9] * 16) == (True, 32)
    accept, ran = validated([0.5 - (i % 2) / 10 for i in range(32)])
    assert not accept
    assert ran < 32


def test_a_race_spends_less_than_full_validation() -> None:
    spent = {}
    for validation in (Full(), Racing()):
        workflow = Numbers()
        search = Search(validation=validation, acceptance=Always(), perfect=None)
        result = Study(
            workflow, nearness, range(6), range(64), optimizer=OptoPrime(workflow, by_hash()), search=search, steps=12
        ).run()
        spent[type(validation)] = result.evaluations
    assert spent[Racing] < 0.6 * spent[Full]


# ---- merge


class Both(Optimizer):
    """Proposes one good change of the one parameter, then one of the other, always to the seed."""

    def propose(self, traces: Any = None, n: int = 1) -> list[Proposal]:
        even, odd = self.parameters
        number = len(traces)
        self.count = getattr(self, "count", 0) + 1
        return [Proposal({even: 876_543} if self.count % 2 else {odd: 123_456}, reason=f"from {number} traces")]


@pytest.mark.parametrize("floor", [0.0, 0.5])
def test_two_branches_are_merged_even_if_the_ancestor_scores_nothing(floor: float) -> None:
    def metric(output: int, x: int) -> float:
        return 1.0 if output == (123_456 if x % 2 else 876_543) else floor

    workflow = Numbers()
    search = Search(parents=First(), merge=MergeBranches(), batch_size=6, credit=None)
    result = Study(workflow, metric, range(6), optimizer=Both(workflow), search=search, steps=4).run()
    assert result.start_score == floor
    assert (result.score, result.stopped) == (1.0, "perfect")
    best = result.best
    assert best is not None
    assert (best.id, best.parents, best.status) == ("3.m", ("1.0", "2.0"), "merged")
    assert best.values == {"even": 876_543, "odd": 123_456}
    assert "merged 1.000" in best.note


values_of = st.fixed_dictionaries({"a": st.integers(0, 2), "b": st.integers(0, 2), "c": st.integers(0, 2)})


@given(st.lists(st.tuples(st.integers(0, 9), values_of, st.integers(0, 3)), min_size=2, max_size=7), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_what_is_merged_has_each_value_from_the_side_that_changed(made: list[Any], seed: int) -> None:
    pool = Pool()
    seed_candidate = Candidate("0", {"a": 0, "b": 0, "c": 0}, status="start")
    seed_candidate.add_scores({0: 0.0, 1: 0.0})
    pool.add(seed_candidate)
    for number, (parent, values, score) in enumerate(made, 1):
        above = pool.members[parent % len(pool.members)].id
        child = Candidate(str(number), values, parents=(above,), ticket=number, status="accepted")
        child.add_scores({0: score / 3, 1: (number % 3) / 2})
        pool.add(child)
    found = MergeBranches().pair(pool, random.Random(seed))
    if found is None:
        return
    better, other = found.parents
    assert better.score is not None
    assert other.score is not None
    assert better.score >= other.score
    assert found.ancestor.id in pool.ancestors(better.id)
    assert found.ancestor.id in pool.ancestors(other.id)
    for name, value in found.values.items():
        sides = {c.values[name] for c in found.parents if c.values[name] != found.ancestor.values[name]}
        assert value in (sides or {found.ancestor.values[name]})
        if better.values[name] != found.ancestor.values[name]:
            assert value == better.values[name]
    assert found.values not in [c.values for c in pool]


# ---- contrast


def test_a_better_trace_of_the_same_example_is_shown_beside_the_bad_one() -> None:
    workflow = Shift()
    llm = offsets(2, 1)
    search = Search(parents=First(), contrast=BetterTrace(), perfect=None, batch_size=2)
    Study(workflow, closeness, [5, 6], [5, 6], optimizer=OptoPrime(workflow, llm), search=search, steps=2).run()
    assert "for comparison" not in llm.calls[0].prompt
    shown = llm.calls[1].prompt
    assert shown.count("(for comparison, with other values of the variables) off by -1") == 1
    assert shown.count("off by -3") == 2
    assert re.search(r"offset = 2", shown)


# ---- portfolio


def test_a_portfolio_goes_over_to_the_next_optimizer_when_one_gets_nowhere() -> None:
    workflow = Shift()
    stuck, good = OPRO(workflow, offsets(*[-5] * 20)), OptoPrime(workflow, offsets(1, 2, 3))
    portfolio = Portfolio([stuck, good], plateau=3)
    result = Study(workflow, closeness, range(6), optimizer=portfolio, steps=12).run()
    assert (result.score, result.stopped) == (1.0, "perfect")
    assert len(stuck.llm.calls) == 3  # type: ignore[attr-defined]
    assert result.steps == 6
    assert any(attempt.values == {"offset": -5} for attempt in good.memory.attempts)


def test_a_portfolio_needs_one_set_of_parameters() -> None:
    with pytest.raises(OptimizerError, match="same parameters"):
        Portfolio([OPRO(Shift(), offsets(1)), OPRO(Shift(), offsets(1))])
