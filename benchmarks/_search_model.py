"""A language model that follows rules: it knows what stands in its prompt, and nothing else.

``answer`` reads a prompt of OptoPrime, ``reflect`` the prompt of gepa's own template. Both see feedback such as
``missing: rule-3a`` and ``useless: tool2:rule-4b`` beside an example, and change the value that they see of a component
that this example went through. What a prompt leaves out cannot be used, and what it shortens is lost from the value.
"""

from __future__ import annotations

import ast
import json
import re
import zlib
from collections.abc import Sequence
from typing import Any

from _search_landscapes import RULE, WORLD, Landscape, rules

from trace_core.integrations.llm.errors import ContextTooLong

MISSING = re.compile(r"missing: (rule-\w+)(?: or (rule-\w+))?")
USELESS = re.compile(r"useless: (\w+):(rule-\w+)")
_LONG = r"(?:[^\\]|\\[\s\S])*?"
ASSIGNED = re.compile(rf"""^(\w+) = (\"{{3}}{_LONG}\"{{3}}|'{{3}}{_LONG}'{{3}}|'.*'|".*")$""", re.MULTILINE)
UNKNOWN = re.compile(r"KeyError: '?\"?'?(\w+)")


class Model:
    """Follows the rules of a landscape."""

    def __init__(self, landscape: Landscape) -> None:
        self.landscape = landscape
        self.asked = 0

    # ---- prompts of OptoPrime

    def answer(self, messages: Sequence[Any]) -> str:
        """JSON with new values, for a ScriptedLLM."""
        prompt = next(m["content"] for m in messages if m["role"] == "user")
        luck = self._luck("".join(m["content"] for m in messages))
        body, _, task = prompt.rpartition("# Task\n")
        body = body.partition("# Past attempts")[0]
        wanted = [name for name in re.findall(r'"(\w+)"', task) if name != "reasoning"]
        head, *blocks = re.split(r"^# Example \d+$", body, flags=re.MULTILINE)
        shared = assigned(head)
        answer: dict[str, Any] = {"reasoning": "as the feedback says"}
        for name in wanted:
            used = [b for b in blocks or [head] if re.search(rf"\b{name}\b", code_of(b) or code_of(head))]
            value = shared.get(name, next((v[name] for v in map(assigned, used) if name in v), None))
            answer[name] = self.improved(name, value, used, luck) if isinstance(value, str) else None
        return json.dumps(answer)

    # ---- prompts of gepa

    def reflect(self, prompt: Any) -> str:
        """A fenced block with a new text, for gepa's ``reflection_lm``."""
        luck = self._luck(prompt)
        value, rest = prompt.split("```\n", 1)[1].split("\n```\n", 1)
        blocks = re.split(r"^# Example \d+$", rest, flags=re.MULTILINE)[1:]
        named = re.search(r"^## Component\n(\w+)", rest, re.MULTILINE)
        return f"```\n{self.improved(named.group(1) if named else '', value, blocks, luck)}\n```"

    # ---- the rules

    def improved(self, name: str, value: str, blocks: Sequence[str], luck: int) -> str:
        """A better value, from the examples that the component had a part in."""
        if self.landscape.code:
            return with_words(value, [word for block in blocks for word in UNKNOWN.findall(block)])
        wrong = {rule for block in blocks for place, rule in USELESS.findall(block) if place == name}
        lines = [line for line in value.split("\n") if wrong.isdisjoint(RULE.findall(line))]
        for block in blocks:
            for first, second in MISSING.findall(block):
                rule = second if second and luck % 2 else first
                if rule not in wrong and rule not in rules("\n".join(lines)):
                    lines.append(f"- {rule}")
        if luck % 1000 < 1000 * self.landscape.sloppy:
            held = [line for line in lines if RULE.search(line)]
            if len(held) > 1:
                lines.remove(held[luck % len(held)])
        return "\n".join(lines)

    def _luck(self, prompt: str) -> int:
        """The same for the same prompt asked at the same time."""
        self.asked += 1
        if self.landscape.window is not None and len(prompt) > self.landscape.window:
            raise ContextTooLong(f"{len(prompt)} characters, at most {self.landscape.window} can be read")
        return zlib.crc32(f"{self.asked}/{prompt}".encode())


def assigned(text: str) -> dict[str, Any]:
    """name -> value, of the literals that a prompt assigns."""
    found = {}
    for name, literal in ASSIGNED.findall(text):
        try:
            found[name] = ast.literal_eval(literal)
        except (SyntaxError, ValueError):
            continue
    return found


def code_of(text: str) -> str:
    """The lines under ``# Code``."""
    found = re.search(r"^# Code\n((?:.+\n)*?)(?=# |\Z|\w+ = [\"'])", text, re.MULTILINE)
    return found.group(1) if found else ""


def with_words(source: str, words: Sequence[str]) -> str:
    """The function, with more words in its table."""
    known = [word for word in dict.fromkeys(words) if word in WORLD and f"'{word}'" not in source]
    more = "".join(f", '{word}': {WORLD[word]}" for word in known)
    return re.sub(r"(table = \{[^}]*)\}", rf"\g<1>{more}}}", source, count=1)
