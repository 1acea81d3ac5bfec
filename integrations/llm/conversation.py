"""The exchange that turns messages into a Completion: ask, read, ask for a repair, give up with a typed error.

It is a generator that yields Requests and is sent Answers (or has an LLMError thrown in), so that it knows nothing of
threads, event loops or networks: asynchronous and blocking drivers run the same code.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from trace_core.integrations.llm import errors
from trace_core.integrations.llm.parsing import ParseFailure, parse_answer
from trace_core.integrations.llm.protocol import Answer, Completion, Contract, Message, Request, Sample, Usage

if TYPE_CHECKING:
    from pydantic import BaseModel

Dialogue: TypeAlias = Generator[Request, Answer, Completion]
Exchange: TypeAlias = Generator[Request, Answer, Answer]

_SHOWN = 6000  # characters of a bad answer that are shown to the model again


@cache
def _template(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8").strip()


def checked_messages(messages: Sequence[Message]) -> tuple[Message, ...]:
    """A private copy of ``messages``. Raises BadRequest, naming the first entry that is not a message."""
    if isinstance(messages, str) or not messages:
        got = repr(messages[:60])
        raise errors.BadRequest(f'messages: expected a list such as [{{"role": "user", "content": "…"}}], got {got}')
    out: list[Message] = []
    for index, message in enumerate(messages):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise errors.BadRequest(
                f"messages[{index}]: expected a role (system, user or assistant) and a content of type str, "
                f"got role {role!r} and content of type {type(content).__name__}"
            )
        out.append(cast(Message, {"role": role, "content": content}))
    return tuple(out)


@dataclass(slots=True)
class _Bill:
    """What all answers of one call used together. Unknown plus known is unknown."""

    usage: Usage = field(default_factory=lambda: Usage(0, 0, 0))
    cost: float | None = 0.0

    def add(self, answer: Answer) -> None:
        self.usage = self.usage + answer.usage
        self.cost = None if self.cost is None or answer.cost is None else self.cost + answer.cost


def _in_words(messages: tuple[Message, ...], schema: type[BaseModel]) -> tuple[Message, ...]:
    """The schema asked for at the end of the last message, so that the static start of the prompt stays cacheable."""
    wanted = _template("schema_prompt.md").replace(
        "{schema}", json.dumps(schema.model_json_schema(), separators=(",", ":"))
    )
    last = messages[-1]
    if last["role"] == "assistant":
        return (*messages, {"role": "user", "content": wanted})
    return (*messages[:-1], {"role": last["role"], "content": f"{last['content']}\n\n{wanted}"})


def _clip(text: str) -> str:
    half = _SHOWN // 2
    return text if len(text) <= _SHOWN else f"{text[:half]}\n…\n{text[-half:]}"


def _read(sample: Sample, schema: type[BaseModel]) -> BaseModel | ParseFailure:
    try:
        return parse_answer(sample.text, schema)
    except ParseFailure as failure:
        if sample.finish_reason == "length" and not failure.truncated:
            return ParseFailure(f"the answer was cut at its length limit ({failure})", truncated=True)
        return failure


def _with_more_room(request: Request, bill: _Bill) -> Exchange:
    """Ask; if the length limit ended every sample before any text, ask once more with twice the room."""
    try:
        answer = yield request
    except errors.Truncated:
        if request.max_tokens is None:
            raise
        answer = yield replace(request, max_tokens=2 * request.max_tokens)
    bill.add(answer)
    return answer


def _completion(answer: Answer, bill: _Bill, parsed: tuple[BaseModel | None, ...] = ()) -> Completion:
    first = answer.samples[0]
    return Completion(
        text=first.text,
        texts=tuple(sample.text for sample in answer.samples),
        parsed=next((value for value in parsed if value is not None), None),
        usage=bill.usage,
        cost=bill.cost,
        model=answer.model,
        finish_reason=first.finish_reason,
        parsed_all=parsed,
    )


def converse(
    request: Request, schema: type[BaseModel] | None, contract: Contract | None, repair: bool = True
) -> Dialogue:
    """The whole exchange for ``request``. ``contract`` is the schema as the server enforces it, if it can.

    Without ``repair`` an answer that does not fit is an error at once; one cut by ``max_tokens`` is asked for again.
    """
    bill = _Bill()
    if schema is None:
        return _completion((yield from _with_more_room(request, bill)), bill)
    request, answer = yield from _constrained_or_plain(request, schema, contract, bill)
    results = [_read(sample, schema) for sample in answer.samples]
    cut = request.max_tokens is not None and answer.samples[0].finish_reason == "length"
    if (repair or cut) and all(isinstance(result, ParseFailure) for result in results):
        request, answer = yield from _again(request, answer, results, bill)
        results = [_read(sample, schema) for sample in answer.samples]
    parsed = tuple(None if isinstance(result, ParseFailure) else result for result in results)
    if all(value is None for value in parsed):
        failure = cast(ParseFailure, results[0])
        kind = errors.Truncated if failure.truncated else errors.Malformed
        error = kind(f"no answer that fits {schema.__name__}{', after one more try' if repair else ''}: {failure}")
        error.completion = _completion(answer, bill, parsed)
        raise error
    return _completion(answer, bill, parsed)


def _constrained_or_plain(
    request: Request, schema: type[BaseModel], contract: Contract | None, bill: _Bill
) -> Generator[Request, Answer, tuple[Request, Answer]]:
    """Ask with the schema enforced by the server; if it refuses that, once without, asking in words."""
    plain = replace(request, messages=_in_words(request.messages, schema))
    if contract is not None:
        enforced = replace(request, contract=contract)
        try:
            answer = yield from _with_more_room(enforced, bill)
        except errors.BadRequest as refusal:
            if refusal.status not in (400, 422, 501):
                raise
        else:
            return enforced, answer
    return plain, (yield from _with_more_room(plain, bill))


def _again(
    request: Request, answer: Answer, results: Sequence[BaseModel | ParseFailure], bill: _Bill
) -> Generator[Request, Answer, tuple[Request, Answer]]:
    """One more try: with twice the room if max_tokens cut the answer, else with the error shown to the model."""
    first, failure = answer.samples[0], cast(ParseFailure, results[0])
    if first.finish_reason == "length" and request.max_tokens is not None:
        retry = replace(request, max_tokens=2 * request.max_tokens)
    else:
        problem = str(failure).rstrip(".") + ("; answer more briefly" if failure.truncated else "")
        shown: tuple[Message, ...] = (
            {"role": "assistant", "content": _clip(first.text)},
            {"role": "user", "content": _template("repair_prompt.md").replace("{problem}", problem)},
        )
        retry = replace(request, messages=(*request.messages, *shown), n=1)
    return retry, (yield from _with_more_room(retry, bill))
