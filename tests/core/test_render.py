"""Traces as text: short, readable, and never over the budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trace_core as tc
from trace_core.render import estimate_tokens, render_traces, render_value


def small_trace() -> tc.Trace:
    @tc.bundle(trainable=True, isolation="inline")
    def plan(text: str, limit: int) -> str:
        """Cut the text."""
        return text[:limit]

    @tc.bundle
    def judge(text: str) -> float:
        """Share of vowels."""
        return 0.5

    prompt = tc.node("say hi", trainable=True, name="prompt", description="the instruction")
    limit = tc.node(4, trainable=True, name="limit", constraint=tc.Range(1, 9, integer=True))
    return tc.Trace.of(judge(plan(prompt + "!", limit)) * 2, (0.25, "too short"))


def test_what_a_reader_needs_is_there() -> None:
    text = small_trace().render()
    for words in (
        "add0 = prompt + '!'",
        "plan0 = plan(add0, limit)",
        "mul0 = judge0 * 2",
        "judge: Share of vowels.",
        "prompt = 'say hi'  # the instruction",
        "limit = 4  # must be an integer from 1 to 9",
        "def plan(text: str, limit: int) -> str:",
        "plan0 = 'say '",
        "mul0 = 1.0",
        "score 0.25: too short",
    ):
        assert words in text
    assert "plan: Cut the text." not in text, "the code itself says it"
    assert text.count("Cut the text") == 1


def test_constant_results_are_inputs() -> None:
    p = tc.node(1, trainable=True)
    text = tc.Trace.of(p + tc.node(3) * 7, "").render()
    assert "3 * 7" not in text
    assert "21" in text


def test_names_choose_the_variables() -> None:
    p, q = tc.node(1, trainable=True, name="a"), tc.node(2, trainable=True, name="a")
    trace = tc.Trace.of(p + q, "")
    text = trace.render(names={p: "first"})
    assert "# Variables\nfirst = 1\n" in text
    assert "# Inputs\na = 2" in text


def test_shared_text_is_said_once() -> None:
    @tc.bundle
    def judge(x: str, prompt: str) -> str:
        """A long description of what judging means."""
        return x + prompt

    p = tc.node("the instruction", trainable=True, name="prompt")
    traces = [tc.Trace.of(judge(text, p), f"feedback {text}") for text in ("one", "two", "three")]
    text = render_traces(traces)
    assert text.count("judge0 = judge(") == 1
    assert text.count("A long description") == 1
    assert text.count("the instruction") <= 4
    for words in ("# Example 3", "feedback two", "'one'"):
        assert words in text


def test_a_parameter_that_moved_between_traces_says_what_it_was() -> None:
    p = tc.node(1, trainable=True, name="p")
    first = tc.Trace.of(p + 1, "a")
    p.update(2)
    text = render_traces([first, tc.Trace.of(p + 1, "b")])
    assert "p was 1" in text


def test_loops_are_folded() -> None:
    p = tc.node(0, trainable=True)
    x = p + 0
    for _ in range(500):
        x = (x + 1) * 2 if False else x + 1
    text = tc.Trace.of(x, "").render(budget=400)
    assert "repeated" in text
    assert estimate_tokens(text) <= 400


def test_errors_are_shown() -> None:
    p = tc.node(0, trainable=True, name="p")
    with pytest.raises(ZeroDivisionError) as caught:
        1 / p
    text = caught.value.node.backward("fix").render()
    assert "ZeroDivisionError" in text
    assert "(raised an error)" in text


NASTY: list[Any] = [
    "x" * 50_000,
    "\n" * 3000,
    '"""' * 100,
    "\\'\"{}[]`" * 300,
    "🤖" * 5000,
    "\ud800",
    "\x00\x1b[31m",
    "a " * 10_000,
    ["item"] * 50_000,
    [[[1] * 100] * 100] * 100,
    {f"k{i}": list(range(50)) for i in range(2000)},
    np.zeros((300, 300)),
    np.array([np.nan, np.inf, 1e300] * 10),
    np.array([], dtype=int),
    np.array(["a", None, [1]], dtype=object),
    10**6000,
    [10**6000],
    b"\x00" * 10_000,
    {1, 2, 3},
    float("nan"),
    object(),
]


@pytest.mark.parametrize("value", NASTY, ids=range(len(NASTY)))
@pytest.mark.parametrize("budget", [0, 1, 20, 200, 2000])
def test_the_budget_holds_for_any_value(value: Any, budget: int) -> None:
    @tc.bundle
    def use(item: Any, p: Any, text: str = "t") -> Any:
        """Describe."""
        return [item, p]

    p = tc.Parameter(value, constraint=tc.Anything())
    q = tc.node("instruction", trainable=True)
    trace = tc.Trace.of(
        use(p, q, text=value if isinstance(value, str) else "t")[0], (0.5, value if isinstance(value, str) else "no")
    )
    assert estimate_tokens(trace.render(budget=budget)) <= budget
    assert estimate_tokens(render_traces([trace] * 5, budget=budget)) <= budget


def test_the_budget_holds_for_big_graphs() -> None:
    p = tc.node(1, trainable=True)
    wide = tc.node([p + i for i in range(5000)])
    deep = p + 0
    for i in range(10_000):
        deep = deep + i if i % 3 else deep * 2 - (p if i % 5 == 0 else 1)
    for output in (wide, deep):
        trace = tc.Trace.of(output, "x")
        for budget in (0, 50, 500, 3000):
            assert estimate_tokens(trace.render(budget=budget)) <= budget


@settings(max_examples=60)
@given(
    texts=st.lists(st.text(max_size=3000), min_size=1, max_size=5),
    budget=st.integers(0, 800),
    ways=st.sampled_from(["estimate", "characters", "words"]),
)
def test_the_budget_holds_by_any_count(texts: list[str], budget: int, ways: str) -> None:
    count = {"estimate": estimate_tokens, "characters": len, "words": lambda text: len(text.split())}[ways]
    p = tc.node(texts[0], trainable=True, description=texts[-1])
    x: Any = p
    for text in texts:
        x = x + tc.node(text)
    assert count(tc.Trace.of(x, texts[-1]).render(budget=budget, count=count)) <= budget


def test_more_budget_shows_more() -> None:
    p = tc.node("p" * 2000, trainable=True)
    trace = tc.Trace.of(p + "q" * 3000, "f" * 500)
    assert len(trace.render(budget=100)) < len(trace.render(budget=1000)) < len(trace.render())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a", "'a'"),
        ([1, "b"], "[1, 'b']"),
        ((1,), "(1,)"),
        ({"a": {1}}, "{'a': {1}}"),
        (ValueError("bad"), "ValueError: bad"),
        (AssertionError(), "AssertionError: the assertion failed"),
        (np.array([1.0, 2.5]), "array(2, float64: [1, 2.5])"),
        (frozenset({1}), "frozenset({1})"),
        (None, "None"),
    ],
)
def test_render_value(value: Any, expected: str) -> None:
    assert render_value(value, 200) == expected


def test_render_value_is_bounded_and_survives_anything() -> None:
    cyclic: list[Any] = [1]
    cyclic.append(cyclic)
    for value in [*NASTY, cyclic]:
        for limit in (10, 100, 1000):
            assert len(render_value(value, limit)) <= limit + 20
    assert "at 0x" not in render_value(object(), 100)


def test_elision_keeps_head_and_tail() -> None:
    text = render_value("head" + "x" * 5000 + "tail", 100)
    assert "head" in text
    assert "tail" in text
    assert "5,008 characters" in text


def test_the_estimate_is_conservative() -> None:
    text = "The quick brown fox jumps over the lazy dog. def f(x):\n    return x + 1\n" * 20
    assert estimate_tokens(text) >= len(text) / 4.5
    assert estimate_tokens("") == 0
