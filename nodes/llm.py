"""A call of a language model as one traced operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core.bundle import bundle
from trace_core.integrations.accounting import hash_of, keep, recall
from trace_core.module import Module

if TYPE_CHECKING:
    from trace_core.integrations.llm import LLM
    from trace_core.node import Node


class LLMCall(Module):
    """Calls a model with an instruction (often a Parameter) and a text; gives the answer as a node.

    Args:
        llm: a model by name or object; by default the provider whose key is in the environment, else the local model.
        temperature: 0 by default, so that the same input gives the same answer where the model allows.
        max_tokens: limit of the answer.
        cache: keep answers to equal requests in this object, and in the ledger of the run where there is one, and do
            not ask again; only done at temperature 0.

    A failing call raises ExecutionError from the operator, so feedback can flow back from it.
    """

    def __init__(
        self,
        llm: LLM | str | None = None,
        *,
        temperature: float = 0.0,
        max_tokens: int = 512,
        cache: bool = False,
    ) -> None:
        from trace_core.integrations.llm import resolve_llm

        self.llm = resolve_llm(llm)
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.calls = 0
        self.tokens = 0
        self._answers: dict[tuple[str, str], str] | None = {} if cache and temperature == 0.0 else None

    def __call__(self, instruction: Node | str, text: Node | str) -> Node:
        """The model's answer to ``text`` under ``instruction`` (the system message)."""
        answer: Node = self._ask(instruction, text)
        return answer

    @bundle(name="llm", description="Ask a language model: follows the instruction on the text, returns its answer.")
    def _ask(self, instruction: Any, text: Any) -> str:
        key = (str(instruction), str(text))
        if self._answers is not None:
            if key not in self._answers and (known := recall(self._kept_as(key))) is not None:
                self._answers[key] = known
            if key in self._answers:
                return self._answers[key]
        completion = self.llm.complete(
            [{"role": "system", "content": key[0]}, {"role": "user", "content": key[1]}],
            temperature=self.temperature,
            max_tokens=self.max_tokens,
        )
        self.calls += 1
        self.tokens += (completion.usage.prompt_tokens or 0) + (completion.usage.completion_tokens or 0)
        if self._answers is not None:
            self._answers[key] = completion.text
            keep(self._kept_as(key), completion.text)
        return completion.text

    def _kept_as(self, key: tuple[str, str]) -> str:
        return hash_of([self.llm.model, self.max_tokens, *key])
