"""Code that a model answers with, with something left out."""

from __future__ import annotations

from typing import Any

import pytest

import trace_core as tc
from trace_core.integrations.llm import ScriptedLLM
from trace_core.optimizers import OptoPrime


class Splitter(tc.Module):
    """Has one function to improve."""

    @tc.bundle(trainable=True)
    def tokens(self, name: str, size: int = 2) -> list:
        """Split a name."""
        return name.split()


def proposed(answer: str) -> tuple[Any, Splitter, ScriptedLLM]:
    splitter = Splitter()
    llm = ScriptedLLM(lambda messages: {"reasoning": "pairs", "tokens": answer})
    optimizer = OptoPrime(splitter, llm=llm)
    optimizer.backward(splitter.tokens("ab cd"), "should be pairs of letters")
    return optimizer.step(), splitter, llm


@pytest.mark.parametrize(
    "answer",
    [
        "def tokens(self, name, size=2):\n    return [name[i : i + 2] for i in range(len(name) - 1)]",
        "tokens(self, name: str, size: int = 2) -> list:\n    return [name[i : i + 2] for i in range(len(name) - 1)]",
        "[name[i : i + 2] for i in range(len(name) - 1)]",
        "pairs = [name[i : i + 2] for i in range(len(name) - 1)]\nreturn pairs",
        "    pairs = [name[i : i + 2] for i in range(len(name) - 1)]\n    return pairs",
        "def tokens(self, name, size=2):\n    return [name[i : i + 2] for i in range(len(name) - 1)]\n\n"
        "Reason: it's split by words, it\nshould be pairs.",
        "def tokens(self, name, size=2):\n    return [name[i : i + 2] for i in range(len(name) - 1)]\n\n"
        "# Example usage\npairs = tokens(None, 'abc')\nprint(pairs)",
        "```python\nreturn [name[i : i + 2] for i in range(len(name) - 1)]\n```",
    ],
)
def test_what_a_model_leaves_out_is_put_in(answer: str) -> None:
    proposal, splitter, llm = proposed(answer)
    assert proposal.status == "applied"
    assert len(llm.calls) == 1
    assert splitter.tokens("abc").value == ["ab", "bc"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("name", "functions defined in the text: none"),
        ("pairs of letters", "syntax error"),
        ("def split(self, name, size=2):\n    return []", "must still be called 'tokens'"),
        ("tokens(self, name):\n    return []", "signature must stay"),
        ("", "functions defined in the text: none"),
        ('return ["""a\nb"""]', "functions defined in the text: none"),  # to indent it would change the text
    ],
)
def test_what_is_no_function_is_refused_with_the_reason(answer: str, said: str) -> None:
    proposal, splitter, llm = proposed(answer)
    assert proposal.status == "empty"
    assert said in proposal.reason
    assert len(llm.calls) > 1  # asked again with the reason
    assert splitter.tokens("ab cd").value == ["ab", "cd"]


def test_helpers_beside_the_function_do_not_matter() -> None:
    splitter = Splitter()
    splitter.tokens.code.update(
        "def tokens(self, name, size=2):\n    return half(name)\n\ndef half(text):\n    return [text[:1]]\n"
    )
    llm = ScriptedLLM([{"reasoning": "pairs", "tokens": "[name[i : i + 2] for i in range(len(name) - 1)]"}])
    optimizer = OptoPrime(splitter, llm=llm)
    optimizer.backward(splitter.tokens("ab cd"), "should be pairs of letters")
    assert optimizer.step().status == "applied"
    assert splitter.tokens("abc").value == ["ab", "bc"]


def test_a_tensor_is_asked_for_as_data() -> None:
    pytest.importorskip("torch")
    from trace_core.nodes.tensor import TensorParameter

    sizes = TensorParameter([1.0, 2.0], name="sizes")
    llm = ScriptedLLM([{"reasoning": "too small", "sizes": [3.0, 4.0]}])
    optimizer = OptoPrime([sizes], llm=llm, focus=1)
    optimizer.backward(sizes.sum(), "should be 7")
    assert optimizer.step().status == "applied"
    assert sizes.value.tolist() == [3.0, 4.0]
