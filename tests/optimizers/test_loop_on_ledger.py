"""The loop on a ledger: what it writes, how it goes on, when it stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import trace_core as tc
from trace_core.integrations.accounting import account, place
from trace_core.integrations.budget import Budget
from trace_core.integrations.llm import ScriptedLLM
from trace_core.integrations.llm.errors import AuthenticationFailed, Refused, Transient
from trace_core.integrations.store import Ledger, LedgerFull, Run, fingerprint
from trace_core.nodes import LLMCall
from trace_core.nodes.tensor import TensorParameter
from trace_core.optimizers import Mixed, OptoPrime, Result, TorchOptimizer, optimize
from trace_core.optimizers.estimate import estimate
from trace_core.optimizers.loop import Event

EXAMPLES = list(range(8))


class Shift(tc.Module):
    """x -> x + offset; the right offset is 3."""

    def __init__(self) -> None:
        self.offset = tc.node(0, trainable=True)

    def forward(self, x: Any) -> tc.Node:
        return self.offset + x


def closeness(output: Any, x: int) -> tuple[float, str]:
    error = output - (x + 3)
    return 1 - abs(error) / 10, f"off by {error}"


def by_seed(values: list[Any]) -> ScriptedLLM:
    """Proposes by what was asked before: the same in a resumed run as in one that was not stopped."""
    llm = ScriptedLLM(lambda messages: json.dumps({"reasoning": "r", "offset": values[len(llm.calls) - 1]}))
    return llm


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        yield opened


def new(ledger: Ledger) -> Run:
    return ledger.new_run("shift", fingerprint={}, config={})


def go(run: Run, llm: ScriptedLLM, **options: Any) -> Result:
    workflow = Shift()
    settings = {"steps": 5, "batch_size": 3} | options
    return optimize(workflow, closeness, EXAMPLES, optimizer=OptoPrime(workflow, llm, seed=1), run=run, **settings)


def rows(run: Run) -> Any:
    return list(run.steps()), run.candidates(), run.evaluations(), run.events(), run.row().best, run.row().score


def facts(result: Result) -> Any:
    events = [(e.kind, e.step, e.score, e.best, e.note, repr(e.proposal)) for e in result.history if e.kind != "end"]
    return events, result.score, result.start_score, list(result.best.values()), list(result.changed.values())


PROPOSED = [1, -4, 2, 5, 3]


@pytest.mark.parametrize("at", [1, 9, 20, 33, 50, 61])
def test_a_run_stopped_at_any_moment_goes_on_as_if_it_had_not_been(ledger: Ledger, at: int) -> None:
    whole, parts = new(ledger), new(ledger)
    expected = go(whole, by_seed(PROPOSED))
    seen = 0

    def stop(event: Event) -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            raise KeyboardInterrupt

    first = by_seed(PROPOSED)
    stopped = go(parts, first, on_event=stop)
    assert stopped.stopped == "interrupted"
    assert parts.row().status == "interrupted"
    second = by_seed(PROPOSED[len(first.calls) :])
    result = go(parts, second)
    assert facts(result) == facts(expected)
    assert rows(parts) == rows(whole)
    assert parts.spent() == whole.spent()
    assert len(first.calls) + len(second.calls) == 5
    again = go(parts, by_seed([]))  # it is done: nothing is run or asked
    assert facts(again) == facts(expected)


@pytest.mark.parametrize("at", [12, 14, 17, 20])
def test_what_was_evaluated_of_other_values_is_not_used(ledger: Ledger, at: int) -> None:
    """A step is done again and its proposal is another one this time: its scores must not be those of the first."""
    seen = 0

    def stop(event: Event) -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            raise KeyboardInterrupt

    def other() -> ScriptedLLM:
        return ScriptedLLM([json.dumps({"reasoning": "r", "offset": value}) for value in (2, 3)], model="other")

    run, fresh = new(ledger), new(ledger)
    go(run, by_seed([1]), steps=2, on_event=stop)
    assert facts(go(run, other(), steps=2)) == facts(go(fresh, other(), steps=2))
    assert rows(run) == rows(fresh)


def test_more_steps_may_be_asked_of_a_run_that_is_done(ledger: Ledger) -> None:
    whole, parts = new(ledger), new(ledger)
    expected = go(whole, by_seed(PROPOSED))
    go(parts, by_seed(PROPOSED[:2]), steps=2)
    assert parts.row().status == "done"
    result = go(parts, by_seed(PROPOSED[2:]))
    assert facts(result) == facts(expected)
    assert rows(parts) == rows(whole)


def test_a_used_up_budget_ends_with_the_best_so_far_and_a_bigger_one_goes_on(ledger: Ledger) -> None:
    run = new(ledger)
    budget = Budget(calls=2)
    result = go(run, by_seed(PROPOSED), budget=budget)
    assert (result.stopped, list(result.best.values())) == ("budget", [1])
    assert "2 of 2 calls spent" in result.why
    assert "2 of 2 calls" in str(run.row().error)
    again = go(run, by_seed([]), budget=Budget(calls=2))
    assert again.stopped == "budget"
    result = go(run, by_seed(PROPOSED[2:]), budget=(budget := Budget(calls=5)))
    assert (result.stopped, result.score) == ("steps", 1.0)
    assert budget.spent.calls == run.spent()["optimizer"].calls == 5
    assert budget.spent.metric_calls == len(run.evaluations())


def test_a_budget_that_does_not_reach_the_first_score_says_so(ledger: Ledger) -> None:
    result = go(new(ledger), by_seed(PROPOSED), budget=Budget(metric_calls=3))
    assert result.stopped == "budget"
    assert not result.changed


def test_a_full_disk_ends_the_run_with_the_best_so_far(ledger: Ledger) -> None:
    run = new(ledger)

    def fill(event: Event) -> None:
        if event.kind == "accepted":
            ledger.query("PRAGMA max_page_count = 1")

    settings = {"on_event": fill}
    result = go(run, by_seed([1, *(("x" * 3000),) * 4]), **settings)
    assert isinstance(result.error, LedgerFull)
    assert (result.stopped, list(result.best.values())) == ("error", [1])
    ledger.query("PRAGMA max_page_count = 100000")
    assert ledger.check() == ["ok"]
    result = go(run, by_seed([-4, 2, 5, 3, 3]))
    assert result.score == 1.0


def test_answers_are_replayed_and_failures_to_answer_are_not(ledger: Ledger) -> None:
    run = new(ledger)
    replies: list[Any] = ["one", Refused("no"), Transient("busy"), AuthenticationFailed("wrong key"), "five"]
    llm = ScriptedLLM(replies)

    def ask(expected: list[str]) -> None:
        said = []
        with account(run=run), place("workflow", "here"):
            for number in range(len(expected)):
                try:
                    said.append(llm.complete([{"role": "user", "content": str(number)}]).text)
                except tc.TraceCoreError as error:
                    said.append(type(error).__name__)
        assert said == expected

    ask(["one", "Refused", "Transient", "AuthenticationFailed"])
    assert len(llm.calls) == 4
    llm = ScriptedLLM(["three", "four"])
    ask(["one", "Refused", "three", "four"])
    assert [call.prompt for call in llm.calls] == ["2", "3"]
    assert run.spent()["workflow"].calls == 6


def test_equal_requests_at_one_place_are_told_apart(ledger: Ledger) -> None:
    run = new(ledger)
    for replies in (["a", "b"], []):  # the second time everything is known
        llm = ScriptedLLM(replies)
        with account(run=run), place("workflow", "here"):
            said = [llm.complete([{"role": "user", "content": "x"}], temperature=1.0).text for _ in range(2)]
        assert said == ["a", "b"]


def test_a_models_cache_outlives_the_process(ledger: Ledger) -> None:
    run = new(ledger)
    first, second = (LLMCall(ScriptedLLM(replies), cache=True) for replies in (["hello"], []))
    with account(run=run), place("workflow", "one"):
        assert first("be kind", "x").value == "hello"
    with account(run=run), place("workflow", "another"):
        assert second("be kind", "x").value == "hello"


def test_a_changed_workflow_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a_workflow.py"
    path.write_text("def workflow(x):\n    return x\n")
    found = []
    for text in ("return x", "return x + 1"):
        path.write_text(f"def workflow(x):\n    {text}\n")
        module: dict[str, Any] = {"__name__": "a_workflow"}
        exec(compile(path.read_text(), str(path), "exec"), module)
        made = {"code": {"workflow": module["workflow"]}, "data": {"train": [1, {"a": 2.5}]}, "config": {"seed": 0}}
        found.append(fingerprint(**made))
    assert {part for part in found[0] if found[0][part] != found[1][part]} == {"code of the workflow"}
    assert fingerprint(**made) == found[1]
    other = fingerprint(**(made | {"data": {"train": [1, {"a": 2.6}]}}))
    assert {part for part in other if other[part] != found[1][part]} == {"train examples"}


class Fit(tc.Module):
    """A word and a weight."""

    def __init__(self) -> None:
        self.word = tc.node("a", trainable=True)
        self.weight = TensorParameter(torch.zeros(3, 3))

    def forward(self, x: Any) -> tc.Node:
        return (self.weight.sum() - self.length(self.word)) - float(x)

    @tc.bundle
    def length(self, word: str) -> float:
        return float(len(word))


@pytest.mark.parametrize("kind", ["torch", "mixed"])
def test_numeric_optimizers_resume_bit_for_bit(ledger: Ledger, kind: str) -> None:
    """Tensors and optimizer state go through the ledger as safetensors."""

    def optimizer(workflow: Fit) -> Any:
        adam = TorchOptimizer([workflow.weight], torch.optim.Adam, lr=0.1)
        if kind == "torch":
            return adam
        words = OptoPrime([workflow.word], ScriptedLLM(json.dumps({"reasoning": "r", "word": "b"})))
        return Mixed({"words": words, "numbers": adam})

    ends = []
    for stops in ([6], [2, 4, 6]):
        run = new(ledger)
        for steps in stops:
            torch.manual_seed(0)
            workflow = Fit()
            result = optimize(
                workflow,
                lambda output, x: tc.Feedback("", -(float(output.detach()) ** 2) / 100, gradient=2 * output.detach()),
                [1.0, 2.0],
                optimizer=optimizer(workflow),
                steps=steps,
                batch_size=2,
                run=run,
                perfect=None,
            )
            assert result.steps == steps
        ends.append((workflow.weight.value.detach().clone(), result.score, run.last_step()))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]
    assert not torch.equal(ends[0][0], torch.zeros(3, 3))


def test_an_estimate_is_an_upper_bound(ledger: Ledger) -> None:
    workflow = Shift()
    optimizer = OptoPrime(
        workflow, by_seed([1, "x", -4, 2, "y", 2.5, 3, 5, 3, 3, 3, 3, 3, 3, 3]), max_prompt_tokens=900
    )
    bounds = estimate(optimizer, train=8, validation=8, steps=5, batch_size=3, proposals=2)
    budget = Budget(calls=10**6)
    optimize(
        workflow, closeness, EXAMPLES, EXAMPLES, optimizer=optimizer, steps=5, batch_size=3, proposals=2, budget=budget
    )
    assert bounds.calls is not None
    assert bounds.tokens is not None
    assert budget.spent.calls <= bounds.calls
    assert budget.spent.tokens <= bounds.tokens
    assert budget.spent.metric_calls <= bounds.metric_calls
    assert str(bounds.metric_calls) in bounds.describe()
    assert bounds.usd is None  # nobody knows the price of a script
