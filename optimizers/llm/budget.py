"""Prompts within their token budget, whatever stands in them: what is too long gives way, or is not sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trace_core.integrations.llm.errors import ContextTooLong
from trace_core.optimizers.llm.prompts import fill
from trace_core.values import elide

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Messages = list[dict[str, str]]
    Count = Callable[[str], int]

PER_MESSAGE = 8  # what the chat format adds, in tokens
_TASK = "# Task\n"  # from here on a prompt says what to answer with: this part is never cut
_LEAST = 20  # tokens of a problem that is worth asking about


def shrink(text: str, budget: int, count: Count) -> str:
    """``text``, or its head and tail, in at most ``budget`` tokens."""
    if count(text) <= budget:
        return text
    size = len(text)
    while size > 8 and count(elide(text, size)) > budget:
        size = size * 3 // 4
    return elide(text, size)


def size_of(messages: Sequence[dict[str, str]], count: Count) -> int:
    """Tokens of a conversation."""
    return sum(count(message["content"]) + PER_MESSAGE for message in messages)


def within(messages: Messages, limit: int, count: Count) -> Messages:
    """The conversation in at most ``limit`` tokens: of the first question, what stands before the task gives way.

    Raises ContextTooLong if the rest alone is too long.
    """
    over = size_of(messages, count) - limit
    if over <= 0:
        return messages
    question = messages[1]["content"]
    head, mark, task = question.rpartition(_TASK)
    if not mark:
        head, task = question, ""
    room = count(question) - over - count(mark + task) - 1  # two texts joined may be a token longer than each alone
    if room < _LEAST:
        raise ContextTooLong(
            f"the instructions and the form of the answer take {limit - room} tokens and leave no room for the problem "
            f"within {limit}: raise max_prompt_tokens, or shorten names, descriptions and constraints"
        )
    shorter = {"role": "user", "content": shrink(head, room, count).rstrip("\n") + "\n" + mark + task}
    return [messages[0], shorter, *messages[2:]]


def repair(messages: Messages, answer: str, errors: str, limit: int, count: Count) -> Messages:
    """The first two messages, the answer to them, and what is wrong with it; the last two in a third of ``limit``."""
    shown = shrink(answer.strip() or "(nothing)", limit // 5, count)
    asked = fill("repair", errors=shrink(errors, limit // 8, count))
    return [*messages[:2], {"role": "assistant", "content": shown}, {"role": "user", "content": asked}]
