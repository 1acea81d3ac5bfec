"""OptoPrime: what the prompt says, what becomes of answers, what the budget guarantees."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trace_core as tc
from trace_core.integrations.llm import ScriptedLLM
from trace_core.integrations.llm.errors import AuthenticationFailed, Transient
from trace_core.optimizers import OptimizerError, OptoPrime


class Agent(tc.Module):
    def __init__(self) -> None:
        self.prompt = tc.node("Answer briefly.", trainable=True, description="the instruction")
        self.strength = tc.node(0.5, trainable=True, constraint=tc.Range(0, 1))
        self.unused = tc.node("nothing reads this", trainable=True)

    @tc.bundle
    def ask(self, question: str) -> str:
        """Ask the model."""
        return f"{self.prompt} {question}"

    @tc.bundle(trainable=True)
    def clean(self, text: str) -> str:
        """Clean the answer."""
        return text.strip()

    def forward(self, question: str) -> tc.Node:
        return self.clean(self.ask(question)) * tc.node(1) + str(self.strength > 0.1)


def changing(**fields: Any) -> str:
    return json.dumps({"reasoning": "because", **fields})


def run(agent: Agent, optimizer: OptoPrime, *scores: float) -> None:
    for number, score in enumerate(scores):
        optimizer.backward(agent(f"question {number}"), (score, f"feedback {number}"))


def test_prompt_shows_code_documentation_variables_values_and_feedback() -> None:
    agent = Agent()
    llm = ScriptedLLM(changing(prompt="Be kind.", clean=None))
    optimizer = OptoPrime(agent, llm, objective="Polite answers are wanted.")
    run(agent, optimizer, 0.0)
    optimizer.step()
    prompt = llm.calls[0].prompt
    for part in (
        "Polite answers are wanted.",
        "ask0 = ask(question, prompt)",
        "Ask the model.",
        "prompt = 'Answer briefly.'",
        "the instruction",
        "return text.strip()",
        "question = 'question 0'",
        "ask0 = 'Answer briefly. question 0'",
        "feedback 0",
    ):
        assert part in prompt, part
    assert "nothing reads this" not in prompt


def test_minibatch_says_shared_text_once() -> None:
    agent = Agent()
    llm = ScriptedLLM(changing(prompt="Be kind.", clean=None))
    optimizer = OptoPrime(agent, llm)
    run(agent, optimizer, 0.0, 0.5, 1.0)
    optimizer.step()
    prompt = llm.calls[0].prompt
    assert prompt.count("ask0 = ask(question, prompt)") == 1
    assert prompt.count("return text.strip()") == 1
    assert all(f"feedback {i}" in prompt and f"question = 'question {i}'" in prompt for i in range(3))


def test_answer_has_one_field_for_each_parameter_that_feedback_reached() -> None:
    agent = Agent()
    llm = ScriptedLLM(changing(prompt="Be kind.", clean=None))
    optimizer = OptoPrime(agent, llm)
    run(agent, optimizer, 0.0)
    optimizer.step()
    schema = llm.calls[0].schema
    assert schema is not None
    assert list(schema.model_fields) == ["reasoning", "prompt", "clean"]


def test_valid_answer_is_applied_and_null_keeps() -> None:
    agent = Agent()
    optimizer = OptoPrime(agent, ScriptedLLM(changing(prompt="Be kind.", clean=None)))
    run(agent, optimizer, 0.0)
    proposal = optimizer.step()
    assert proposal.status == "applied"
    assert proposal.reason == "because"
    assert agent.prompt.value == "Be kind."
    assert agent.clean.code.version == 0


def test_refused_value_is_repaired_with_the_error_shown() -> None:
    threshold = tc.node(0.5, trainable=True, name="threshold", constraint=lambda v: v <= 0.5 or v > 0.6)
    llm = ScriptedLLM([changing(threshold=0.55), changing(threshold=0.3)])
    optimizer = OptoPrime([threshold], llm)
    optimizer.backward(threshold * 2, (0.0, "too high"))
    proposal = optimizer.step()
    assert threshold.value == 0.3
    assert proposal.attempts == 2
    assert proposal.dropped[0].name == "threshold"
    assert "0.55" in llm.calls[1].prompt
    assert "cannot be used" in llm.calls[1].prompt


def test_after_two_repairs_the_proposal_is_dropped_with_its_reason() -> None:
    agent = Agent()
    bad = changing(prompt=None, clean="def tidy(self, text):\n    return text\n")
    llm = ScriptedLLM(lambda messages: bad)
    optimizer = OptoPrime(agent, llm)
    run(agent, optimizer, 0.0)
    before = agent.state_dict()
    proposal = optimizer.step()
    assert not proposal
    assert proposal.status == "empty"
    assert len(llm.calls) == 3
    assert "must still be called 'clean'" in proposal.dropped[-1].reason
    assert agent.state_dict() == before


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def clean(self, text:\n    return 1", "syntax error"),
        ("def clean(self, txt):\n    return 1", "signature must stay clean(self, text)"),
        ("import os\nos.remove('x')\ndef clean(self, text):\n    return 1", "only imports"),
        ("", "must still be called"),
    ],
)
def test_code_that_cannot_stand_is_refused(code: str, reason: str) -> None:
    agent = Agent()
    optimizer = OptoPrime(agent, ScriptedLLM(lambda messages: changing(prompt=None, clean=code)))
    run(agent, optimizer, 0.0)
    proposal = optimizer.step()
    assert not proposal
    assert reason in proposal.dropped[-1].reason


def test_an_unknown_name_is_never_applied_and_is_reported() -> None:
    agent = Agent()
    optimizer = OptoPrime(agent, ScriptedLLM(lambda messages: changing(code="def f(): pass", prompt=None, clean=None)))
    run(agent, optimizer, 0.0)
    before = agent.state_dict()
    proposal = optimizer.step()
    assert not proposal
    assert "code" in proposal.reason
    assert agent.state_dict() == before


def test_proposed_code_runs_outside_this_process_and_inline_only_when_asked() -> None:
    @tc.bundle(trainable=True)
    def where(seed: int) -> int:
        return seed

    @tc.bundle(trainable=True, isolation="inline")
    def here(seed: int) -> int:
        return seed

    for function, same in ((where, False), (here, True)):
        name = function.name
        new = f"import os\n\ndef {name}(seed: int) -> int:\n    return os.getpid()\n"
        optimizer = OptoPrime([function.code], ScriptedLLM(changing(**{name: new})))
        optimizer.backward(function(1), (0.0, "wrong"))
        assert optimizer.step().status == "applied"
        assert (function(1).value == os.getpid()) is same


def test_memory_shows_past_attempts_with_scores_and_not_the_current_value() -> None:
    agent = Agent()
    answers = iter(["First try.", "Second try.", "Third try."])
    llm = ScriptedLLM(lambda messages: changing(prompt=next(answers), clean=None))
    optimizer = OptoPrime(agent, llm)
    for score in (0.25, 0.75, 0.5):
        run(agent, optimizer, score)
        optimizer.step()
        optimizer.zero_feedback()
    last = llm.calls[-1].prompt
    past = last[last.index("# Past attempts") :]
    assert past.index("score 0.25: prompt = 'Answer briefly.'") < past.index("score 0.75: prompt = 'First try.'")
    assert "Second try." not in past


def test_focus_takes_parameters_in_turn_code_first() -> None:
    agent = Agent()
    replies = {
        "for the variable prompt": changing(prompt="Be warm."),
        "Write a better clean": changing(clean="def clean(self, text):\n    return text.lower()\n"),
    }
    llm = ScriptedLLM(replies)
    optimizer = OptoPrime(agent, llm, focus=1)
    run(agent, optimizer, 0.0)
    changed = {agent_name for _ in range(2) for agent_name in [optimizer.names[next(iter(optimizer.step().values))]]}
    assert changed == {"prompt", "clean"}
    assert agent.prompt.value == "Be warm."
    assert agent.clean("ABC").value == "abc"
    assert [list(call.schema.model_fields) for call in llm.calls if call.schema] == [
        ["reasoning", "clean"],
        ["reasoning", "prompt"],
    ]


def test_focus_shows_only_values_that_depend_on_the_parameter() -> None:
    agent = Agent()
    llm = ScriptedLLM(changing(clean="def clean(self, text):\n    return text.lower()\n"))
    optimizer = OptoPrime(agent, llm, focus=1)
    run(agent, optimizer, 0.0)
    optimizer.step()
    prompt = llm.calls[0].prompt
    assert "ask0 = ask(question, prompt)" in prompt
    assert "clean('Answer briefly. question 0') returned 'Answer briefly. question 0'" in prompt
    assert "ask(" not in prompt.replace("ask0 = ask(question, prompt)", "")


def test_focus_on_long_code_asks_for_a_fenced_block() -> None:
    body = "".join(f"    x{i} = {i}\n" for i in range(40))

    @tc.bundle(trainable=True, source=f"def long(text):\n{body}    return text\n")
    def long(text: str) -> str:
        return text

    llm = ScriptedLLM("Reason: shorter\n```python\ndef long(text):\n    return text.upper()\n```\nDone.")
    optimizer = OptoPrime([long.code], llm, focus=1)
    optimizer.backward(long("a"), (0.0, "shout"))
    assert optimizer.step().reason == "shorter"
    assert long("a").value == "A"
    assert llm.calls[0].schema is None


def test_focus_on_a_number_gets_several_proposals_from_one_request() -> None:
    level = tc.node(0.5, trainable=True, name="level", constraint=tc.Range(0, 2))
    llm = ScriptedLLM(changing(level=[0.6, 1.0, 7.0]))
    optimizer = OptoPrime([level], llm, focus=1)
    optimizer.backward(level * 2, (0.0, "too low"))
    proposals = optimizer.propose(n=2)
    assert [proposal.values[level] for proposal in proposals] == [0.6, 1.0]
    assert len(llm.calls) == 1
    assert proposals[0].dropped[0].value == 7.0
    assert level.value == 0.5


def test_focus_prefers_code_that_raised() -> None:
    class Failing(tc.Module):
        def __init__(self) -> None:
            self.prompt = tc.node("p", trainable=True)

        @tc.bundle(trainable=True)
        def parse(self, text: str) -> int:
            return int(text)

    agent = Failing()
    llm = ScriptedLLM(changing(parse="def parse(self, text):\n    return 0\n"))
    optimizer = OptoPrime(agent, llm, focus=1)
    with pytest.raises(tc.ExecutionError) as caught:
        agent.parse(agent.prompt + "x")
    optimizer.backward(caught.value.node, (0.0, str(caught.value)))
    proposal = optimizer.step()
    assert proposal.values == {agent.parse.code: "def parse(self, text):\n    return 0\n"}
    assert "return int(text)" in llm.calls[0].prompt
    assert "ValueError" in llm.calls[0].prompt


def test_closure_gates_the_step() -> None:
    level = tc.node(1, trainable=True, name="level")
    optimizer = OptoPrime([level], ScriptedLLM([changing(level=0), changing(level=5)]))
    optimizer.backward(level + 1, (0.0, "too low"))
    assert optimizer.step(lambda: float(level.value)).status == "rejected"
    assert level.value == 1
    assert optimizer.step(lambda: float(level.value)).status == "applied"
    assert level.value == 5


def test_step_without_feedback_says_what_to_do() -> None:
    optimizer = OptoPrime([tc.node(1, trainable=True)], ScriptedLLM("{}"))
    with pytest.raises(OptimizerError, match="backward"):
        optimizer.step()


def test_failing_model_gives_an_empty_proposal_and_a_wrong_key_stops() -> None:
    level = tc.node(1, trainable=True, name="level")
    optimizer = OptoPrime([level], ScriptedLLM([Transient("503 from the server"), AuthenticationFailed("wrong key")]))
    optimizer.backward(level + 1, (0.0, "too low"))
    proposal = optimizer.step()
    assert not proposal
    assert "503 from the server" in proposal.reason
    with pytest.raises(AuthenticationFailed):
        optimizer.step()


@pytest.mark.parametrize("wrong", [[], [1], ["x"], [tc.node(1)]])
def test_parameters_must_be_parameters(wrong: list[Any]) -> None:
    with pytest.raises(OptimizerError):
        OptoPrime(wrong, ScriptedLLM("{}"))


def test_state_dict_is_plain_and_resumes_memory_and_turns() -> None:
    agent = Agent()
    optimizer = OptoPrime(agent, ScriptedLLM(changing(prompt="Be kind.", clean=None)))
    run(agent, optimizer, 0.25)
    optimizer.step()
    state = json.loads(json.dumps(optimizer.state_dict()))
    other = OptoPrime(agent, ScriptedLLM("{}"))
    other.load_state_dict(state)
    assert other.state_dict() == optimizer.state_dict()
    assert other.memory.attempts[0].score == 0.25


def test_array_parameter_is_asked_for_as_nested_lists() -> None:
    weights = tc.node(np.zeros((2, 2)), trainable=True, name="weights")
    optimizer = OptoPrime([weights], ScriptedLLM(changing(weights=[[1, 2], [3, 4]])))
    optimizer.backward(weights.sum(), (0.0, "larger"))
    optimizer.step()
    assert weights.value.tolist() == [[1, 2], [3, 4]]


def test_many_parameters_take_turns_within_the_budget() -> None:
    levels = [tc.node(i, trainable=True, name=f"level{i}") for i in range(300)]
    total: tc.Node = tc.node(0)
    for level in levels:
        total = total + level
    asked: list[set[str]] = []

    def answer(messages: list[Any]) -> str:
        return changing(**dict.fromkeys(asked_fields(), None))

    def asked_fields() -> list[str]:
        fields = [name for name in llm.calls[-1].schema.model_fields if name != "reasoning"]  # type: ignore[union-attr]
        asked.append(set(fields))
        return fields

    llm = ScriptedLLM(answer)
    optimizer = OptoPrime(levels, llm, max_prompt_tokens=6000)
    optimizer.backward(total, (0.0, "more"))
    for _ in range(3):
        optimizer.step()
    assert set.union(*asked) == {level.name for level in levels}


values = st.one_of(
    st.text(max_size=400).map(lambda text: text * 130),
    st.lists(st.integers(), max_size=400),
    st.dictionaries(st.text(max_size=20), st.text(max_size=200), max_size=60),
    st.integers(1, 20000).map(np.zeros),
    st.binary(max_size=3000),
)


@pytest.mark.parametrize("focus", [None, 1])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=values, feedback=st.text(max_size=2000).map(lambda text: text * 10), budget=st.integers(700, 3000))
def test_the_token_budget_holds_whatever_the_values_are(
    focus: int | None, value: Any, feedback: str, budget: int
) -> None:
    text = tc.node("x" * 50_000, trainable=True, name="text")

    @tc.bundle
    def use(data: Any, text: str) -> Any:
        """Use both. """ + "Long documentation. " * 200
        return [data, text]

    llm = ScriptedLLM(lambda messages: changing(text="short"))
    optimizer = OptoPrime([text], llm, max_prompt_tokens=budget, focus=focus)
    optimizer.remember({text: "y" * 30_000}, 0.1)
    optimizer.backward(use(value, text), tc.Feedback(feedback, score=0.0))
    optimizer.step()
    assert sum(optimizer.count(m["content"]) for m in llm.calls[0].messages) <= budget


@pytest.mark.parametrize("focus", [None, 1])
def test_the_budget_holds_for_a_graph_of_ten_thousand_operations(focus: int | None) -> None:
    level = tc.node(1, trainable=True, name="level")
    result = level + 0
    for number in range(10_000):
        result = result + number % 7 if number % 3 else result * 1
    llm = ScriptedLLM(changing(level=2))
    optimizer = OptoPrime([level], llm, max_prompt_tokens=800, focus=focus)
    optimizer.backward(result, "too small")
    assert optimizer.step().status == "applied"
    prompt = llm.calls[0].prompt
    assert optimizer.count(prompt) <= 800
    assert "too small" in prompt
    assert "level = 1" in prompt
