"""Cache, meter, prices and budget around any language model, alone and on top of each other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from llm_raw_server import ASK, RawServer, chat, fault
from pydantic import BaseModel

import trace_core as tc
from trace_core.integrations.accounting import account, place
from trace_core.integrations.budget import Budget, BudgetExhausted, UnknownPrice
from trace_core.integrations.llm import (
    LLM,
    Budgeted,
    Cached,
    CircuitBreaker,
    Completion,
    Limited,
    LiteLLM,
    Message,
    Metered,
    OpenAILLM,
    Price,
    ScriptedLLM,
    Usage,
    errors,
    rollout,
)
from trace_core.integrations.llm import prices as price_table
from trace_core.integrations.llm.prices import cost_of, find_price, price_of
from trace_core.integrations.store import Ledger
from trace_core.optimizers import OptoPrime

Make = Callable[..., tuple[OpenAILLM, RawServer]]


class Word(BaseModel):
    word: str


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.sqlite") as opened:
        yield opened


def counting() -> ScriptedLLM:
    """Each answer is another one."""
    numbers = iter(range(1000))
    return ScriptedLLM(lambda messages: f"answer {next(numbers)}", cost=0.25)


def say(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


# --- cache -----------------------------------------------------------------------------------------------------------


def test_the_same_request_is_sent_once(ledger: Ledger) -> None:
    llm = Cached(counting(), ledger)
    first, second = llm.complete(ASK), llm.complete(ASK)
    assert (first.text, second.text) == ("answer 0", "answer 0")
    assert (first.cost, second.cost, second.attempts, second.usage) == (0.25, 0.0, 0, Usage(0, 0, 0))
    assert (llm.hits, llm.misses) == (1, 1)
    assert Cached(counting(), ledger).complete(ASK).text == "answer 0"


@pytest.mark.parametrize(
    "other", [{"temperature": 0.5}, {"seed": 1}, {"max_tokens": 5}, {"n": 2}, {"messages": say("other")}]
)
def test_another_request_is_another_answer(other: dict[str, object], ledger: Ledger) -> None:
    llm = Cached(counting(), ledger)
    llm.complete(ASK)
    assert llm.complete(**{"messages": ASK, **other}).text == "answer 1"  # type: ignore[arg-type]
    assert Cached(ScriptedLLM("x", model="another"), ledger).complete(ASK).text == "x"


def test_rollouts_give_fresh_samples_that_can_be_repeated(ledger: Ledger) -> None:
    llm = Cached(counting(), ledger)

    def sampled(name: object) -> list[str]:
        with rollout(str(name)):
            return [llm.complete(ASK).text, llm.complete(ASK).text]

    first, second = sampled(1), sampled(2)
    assert len({*first, *second}) == 4
    assert (sampled(1), sampled(2)) == (first, second)
    with rollout("outer"):
        assert sampled(1) != first


def test_threads_in_rollouts_of_their_own(ledger: Ledger) -> None:
    llm = Cached(counting(), ledger)

    def sampled(name: int) -> str:
        with rollout(name):
            return llm.complete(ASK).text

    with ThreadPoolExecutor(8) as pool:
        first = list(pool.map(sampled, range(16)))
        assert list(pool.map(sampled, range(16))) == first
    assert len(set(first)) == 16


async def test_async_and_schema(ledger: Ledger) -> None:
    script = ScriptedLLM(["no json", '{"word": "hi"}'])
    llm = Cached(script, ledger)
    first, second = await llm.acomplete(ASK, schema=Word), await llm.acomplete(ASK, schema=Word)
    assert first.parsed == second.parsed == Word(word="hi")
    assert len(script.calls) == 2  # the request and its repair, once
    assert llm.complete(ASK, schema=Word).parsed == Word(word="hi")


def test_failures_are_not_kept(ledger: Ledger) -> None:
    llm = Cached(ScriptedLLM([errors.Transient("away"), "back"]), ledger)
    with pytest.raises(errors.Transient):
        llm.complete(ASK)
    assert llm.complete(ASK).text == "back"


@pytest.mark.parametrize("damaged", ["", "{}", "[]", "7", '{"texts": []}'])
def test_a_damaged_entry_is_asked_anew(damaged: str, ledger: Ledger) -> None:
    class Damaged:
        def get_response(self, key: str) -> str | None:
            return damaged

        def put_response(self, key: str, value: str) -> None:
            ledger.put_response(key, value)

    assert Cached(ScriptedLLM("new"), Damaged()).complete(ASK).text == "new"


def test_a_cache_does_not_give_an_optimizer_the_same_proposal_again(ledger: Ledger) -> None:
    word = tc.node("no", trainable=True, name="word")
    numbers = iter(range(9))
    script = ScriptedLLM(lambda messages: {"reasoning": "r", "word": f"value {next(numbers)}"})
    optimizer = OptoPrime({"word": word}, llm=Cached(script, ledger))
    optimizer.backward(word + "!", "no")
    assert [next(iter(p.values.values())) for p in optimizer.propose(n=3)] == ["value 0", "value 1", "value 2"]
    again = OptoPrime({"word": word}, llm=Cached(ScriptedLLM([]), ledger))
    again.backward(word + "!", "no")
    word.zero_feedback()
    optimizer.backward(word + "!", "no")
    assert [next(iter(p.values.values())) for p in again.propose(n=3)] == ["value 0", "value 1", "value 2"]


# --- meter and prices ------------------------------------------------------------------------------------------------


def test_calls_are_counted_by_the_role_of_the_run() -> None:
    meter = Metered(ScriptedLLM("hi", usage=Usage(10, 2), cost=0.5))
    with account(budget=Budget()):
        for role, times in (("workflow", 3), ("optimizer", 2), ("judge", 1)):
            with place(role, "somewhere"):
                for _ in range(times):
                    meter.complete(ASK)
    assert {role: tally.calls for role, tally in meter.by_role.items()} == {"judge": 1, "optimizer": 2, "workflow": 3}
    assert meter.by_role["optimizer"].cost == 1.0
    assert (meter.calls, meter.tokens, meter.cost) == (6, 72, 3.0)


def test_an_unknown_cost_is_said_to_be_unknown() -> None:
    meter = Metered(ScriptedLLM("hi", cost=None), "judge")
    meter.complete(ASK)
    assert meter.cost is None
    assert "cost unknown" in str(meter.by_role["judge"])


def test_failed_and_cached_calls_are_told_apart(ledger: Ledger) -> None:
    script = ScriptedLLM(["hi", errors.Transient("away")])
    meter = Metered(Cached(script, ledger))
    meter.complete(ASK)
    meter.complete(ASK)
    with pytest.raises(errors.Transient):
        meter.complete(say("other"))
    assert (meter.calls, meter.failed, meter.total.cached, meter.total.requests) == (2, 1, 1, 1)


def test_prices_the_user_gives(ask_openai: Make) -> None:
    llm, _ = ask_openai(chat("hi"), prices={"some-model": Price(2.0, 10.0, cached=0.5)})
    assert llm.complete(ASK).cost == pytest.approx((3 * 2.0 + 8 * 0.5 + 3 * 10.0) / 1e6)
    unknown, _ = ask_openai(chat("hi"))
    assert unknown.complete(ASK).cost is None
    priced = Metered(unknown, prices={"some-model": Price(1.0, 1.0)})
    assert priced.complete(ASK).cost == pytest.approx(14e-6)
    assert priced.cost == pytest.approx(14e-6)


def test_prices_of_litellm_without_its_import(serve: Callable[..., RawServer]) -> None:
    price = find_price("openai/gpt-4.1-mini")
    assert price is not None
    assert (price.prompt, price.completion) == (0.4, 1.6)
    assert price_of("gpt-4.1-mini") == pytest.approx((4e-7, 1.6e-6))
    assert find_price("another-provider/gpt-4.1-mini") is None
    assert price_of("home-made") is None
    assert cost_of("gpt-4.1-mini", Usage(None, 3)) is None
    own = LiteLLM("openai/mine", api_key="x", base_url=serve(chat("hi")).url, prices={"mine": Price(1.0, 1.0)})
    assert own.complete(ASK).cost == pytest.approx(14e-6)


def test_dearer_long_prompts() -> None:
    price = Price(1.0, 1.0, long=(1000, Price(2.0, 2.0)))
    assert price.of(Usage(1000, 0)) == pytest.approx(1e-3)
    assert price.of(Usage(1001, 0)) == pytest.approx(2.002e-3)


def test_without_litellm_every_price_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(price_table, "find_spec", lambda name: None)
    price_table._table.cache_clear()
    try:
        assert price_of("gpt-4.1-mini") is None
        assert price_of("local") == (0.0, 0.0)
        assert price_of("gpt-4.1-mini", {"gpt-4.1-mini": Price(1.0, 2.0)}) == pytest.approx((1e-6, 2e-6))
    finally:
        price_table._table.cache_clear()


@pytest.mark.parametrize("amount", [-1.0, float("nan"), float("inf")])
def test_senseless_prices_are_refused(amount: float) -> None:
    with pytest.raises(errors.BadRequest, match="a million tokens"):
        Price(amount, 1.0)


# --- budget ----------------------------------------------------------------------------------------------------------


class Foreign:
    """An LLM that is not of this library."""

    model = "gpt-4.1-mini"
    sent = 0

    def complete(self, messages: object, **options: object) -> Completion:
        self.sent += 1
        return Completion("hi", ("hi",), None, Usage(10, 5), 0.001, self.model)

    async def acomplete(self, messages: object, **options: object) -> Completion:
        return self.complete(messages, **options)

    def count_tokens(self, text: str) -> int | None:
        return None


@pytest.mark.parametrize("limits", [{"calls": 10}, {"tokens": 2000}, {"usd": 0.004}])
def test_a_budget_holds_with_64_callers_at_once(limits: dict[str, float]) -> None:
    budget = Budget(**limits)  # type: ignore[arg-type]
    foreign = Foreign()
    llm = Budgeted(foreign, budget, role="judge")

    def call(number: int) -> bool:
        try:
            llm.complete(say(str(number)), max_tokens=100)
        except BudgetExhausted:
            return False
        return True

    with ThreadPoolExecutor(64) as pool:
        done = sum(pool.map(call, range(200)))
    assert 0 < done == foreign.sent < 200
    spent = budget.by_role["judge"]
    assert (budget.excess(), spent.calls, budget.reserved.calls) == ({}, done, 0)


def test_requests_of_a_gateway_are_reserved_one_by_one(ask_openai: Make) -> None:
    llm, server = ask_openai(fault(503), chat("hi"), chat("hi"))
    budget = Budget(calls=2, tokens=5000)
    limited = Budgeted(llm, budget)
    assert limited.complete(ASK).attempts == 2  # the failed request cost nothing
    assert (budget.spent.calls, budget.spent.tokens) == (1, 14)
    assert server.requests[0].body["max_tokens"] == 4096  # without a limit no reservation could hold


def test_a_request_that_does_not_fit_is_not_sent(ask_openai: Make) -> None:
    llm, server = ask_openai(chat("hi"))
    everything = Metered(CircuitBreaker(Limited(Budgeted(llm, Budget(tokens=50)))))
    for _ in range(7):
        with pytest.raises(BudgetExhausted):
            everything.complete(ASK, max_tokens=100)
    assert server.requests == []
    assert everything.state == "closed"


def test_dollars_need_a_price(ask_openai: Make) -> None:
    llm, server = ask_openai(chat("hi"))
    with pytest.raises(UnknownPrice):
        Budgeted(llm, Budget(usd=1.0)).complete(ASK)
    assert server.requests == []
    budget = Budget(usd=1.0)
    Budgeted(llm, budget, prices={"some-model": Price(1.0, 1.0)}).complete(ASK, max_tokens=10)
    assert budget.spent.usd is not None
    assert 0 < budget.spent.usd < 1e-3


# --- all of them -----------------------------------------------------------------------------------------------------


async def test_wrappers_are_llms_and_compose_in_any_order(ask_openai: Make, ledger: Ledger) -> None:
    makers: list[Callable[[LLM], LLM]] = [
        Metered,
        Limited,
        CircuitBreaker,
        lambda llm: Cached(llm, ledger),
        lambda llm: Budgeted(llm, Budget(calls=50)),
    ]
    for turn in range(len(makers)):
        llm, server = ask_openai(chat("hi"))
        stack: LLM = llm
        for make in makers[turn:] + makers[:turn]:
            stack = make(stack)
            assert isinstance(stack, LLM)
        question = say(f"turn {turn}")
        assert stack.complete(question).text == "hi"
        assert (await stack.acomplete(question)).text == "hi"
        await asyncio.gather(*(stack.acomplete(question) for _ in range(3)))
        assert len(server.requests) == 1
        assert (stack.model, stack.is_local, stack.describe()) == ("some-model", False, llm.describe())  # type: ignore[attr-defined]
