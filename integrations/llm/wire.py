"""Reading a chat completion as it comes over the wire, whatever odd shape it has."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from trace_core.integrations.llm import errors
from trace_core.integrations.llm.faults import classify
from trace_core.integrations.llm.parsing import MAX_TEXT, clean_text
from trace_core.integrations.llm.protocol import Answer, Request, Sample, Usage

MAX_BODY = 24_000_000
"""Longest body read for one sample, in bytes: an answer of 20 MB with what is around it."""


def read_body(raw: bytes) -> object:
    """Decode the body of an answer with status 200.

    Raises:
        Malformed: empty, not UTF-8, or not JSON (a proxy's HTML page).
    """
    if not raw.strip():
        raise errors.Malformed("the server sent an empty body")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise errors.Malformed(f"the server sent bytes that are not UTF-8 (byte {error.start})") from None
    try:
        payload: object = json.loads(text)
    except (ValueError, RecursionError):
        start = clean_text(" ".join(text[:200].split())[:60])
        raise errors.Malformed(f"the server sent no JSON but: {start!r}") from None
    return payload


def _count(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        return None
    return int(value)


def read_usage(usage: object) -> Usage:
    """Token counts; what is missing, negative, NaN or not a number is None."""
    if not isinstance(usage, Mapping):
        return Usage()
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    return Usage(_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")), _count(cached))


def _content(content: object) -> str:
    """Text of a message; a list of parts is joined."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = (part.get("text") if isinstance(part, Mapping) else part for part in content)
        return "".join(part for part in parts if isinstance(part, str))
    return ""


def _sample(choice: object) -> Sample:
    if not isinstance(choice, Mapping) or not isinstance(choice.get("message"), Mapping):
        raise errors.Malformed("a choice in the answer has no message")
    message = choice["message"]
    reason = choice.get("finish_reason")
    reason = reason if isinstance(reason, str) else "stop"
    if isinstance(refusal := message.get("refusal"), str) and refusal:
        raise errors.Refused(f"the model refused: {clean_text(refusal[:400])}")
    text = clean_text(_content(message.get("content")))
    if reason == "content_filter":
        raise errors.Refused("the answer was stopped by the content filter")
    if not text.strip():
        if reason == "length":
            raise errors.Truncated("max_tokens were used up before any text (a model that thinks first needs more)")
        raise errors.Malformed("the answer has no text" + (" but tool calls" if message.get("tool_calls") else ""))
    if len(text) > MAX_TEXT:
        return Sample(text[:MAX_TEXT], "length")
    return Sample(text, reason)


def read_answer(payload: object, request: Request) -> Answer:
    """The Answer in a decoded chat completion. Samples without usable text are left out while another one is usable.

    Raises:
        Malformed, Refused, Truncated: no sample is usable; the reason of the first.
        LLMError: the body is an error object although the status was 200.
    """
    if not isinstance(payload, Mapping):
        raise errors.Malformed(f"the server sent {type(payload).__name__} where an object was expected")
    choices = payload.get("choices")
    if not isinstance(choices, list) or not choices:
        fault = payload.get("error")
        if isinstance(fault, Mapping):
            status = fault.get("code")
            raise classify(status if isinstance(status, int) and 400 <= status < 600 else None, fault)
        raise errors.Malformed("the answer has no choices")
    samples: list[Sample] = []
    failures: list[errors.LLMError] = []
    for choice in choices[: request.n]:
        try:
            samples.append(_sample(choice))
        except errors.LLMError as failure:
            failures.append(failure)
    if not samples:
        raise failures[0]
    model = payload.get("model")
    return Answer(tuple(samples), read_usage(payload.get("usage")), None, model if isinstance(model, str) else "")
