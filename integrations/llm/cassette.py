"""Recorded conversations with a model, in a file that can be committed and compared: tests run without model or key."""

from __future__ import annotations

import difflib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias

from trace_core.errors import TraceCoreError
from trace_core.integrations.llm import errors
from trace_core.integrations.llm.canonical import canonical, describe_call, pack, unpack
from trace_core.integrations.llm.protocol import Completion
from trace_core.integrations.llm.wrapping import Call, Exchange, Wrapper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trace_core.integrations.llm.protocol import LLM, Message

Mode: TypeAlias = Literal["replay", "record", "extend"]

_FORMAT = 1
_COMPARED = 400  # recorded requests that an unseen one is compared with
_SHOWN = 24  # lines of a difference
_OUTCOMES = (errors.Unusable, errors.Refused, errors.ContextTooLong)  # what the model or the prompt is to blame for


class Cassette:
    """A file of requests and what the model answered. Thread-safe. Use it with ``Recorded``, by one process at a time.

    The file is JSON in a fixed order, texts as lists of lines, without times: recording the same again changes nothing.
    It holds prompts and answers, and no key, address or header.

    Args:
        path: the file.
        mode: ``replay`` sends nothing, and an unseen request is an error; ``record`` sends everything and writes the
            file anew; ``extend`` sends what is not in the file and adds it.

    Equal requests are answered in the order in which they were recorded. Failures that lie in the answer (refused, cut,
    of no use, prompt too long) are recorded, too; those of the server or the key are not.

    Raises CassetteError for a file that cannot be read, or is missing in replay.
    """

    def __init__(self, path: str | os.PathLike[str], mode: Mode = "replay") -> None:
        if mode not in ("replay", "record", "extend"):
            raise errors.CassetteError(f"mode must be 'replay', 'record' or 'extend', got {mode!r}")
        self.path = Path(path)
        self.mode: Mode = mode
        self._lock = threading.Lock()
        self._entries: dict[str, dict[str, Any]] = {}
        self._used: dict[str, int] = {}
        if mode != "record":
            self._load()

    def _load(self) -> None:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            if self.mode == "extend":
                return
            raise errors.CassetteError(
                f"there is no cassette {self.path}: record it with Cassette({str(self.path)!r}, 'record')"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise errors.CassetteError(f"the cassette {self.path} cannot be read: {error}") from error
        try:
            data = json.loads(text)
            if data["cassette"] != _FORMAT:
                raise errors.CassetteError(
                    f"the cassette {self.path} has format {data['cassette']!r}, this version reads {_FORMAT}: record "
                    "it anew"
                )
            for entry in data["entries"]:
                request = _map_texts(entry["request"], _joined)
                answers = [_map_texts(answer, _joined) for answer in entry["answers"]]
                self._entries[canonical(request)] = {"request": request, "answers": answers}
        except (ValueError, KeyError, TypeError) as error:
            raise errors.CassetteError(f"{self.path} is no cassette: {type(error).__name__}: {error}") from error

    @property
    def models(self) -> list[str]:
        """The models that were recorded."""
        return sorted({entry["request"]["model"] for entry in self._entries.values()})

    def take(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """The next recorded answer to ``request``; None if it is to be sent. Raises UnseenRequest in replay."""
        key = canonical(request)
        with self._lock:
            entry = self._entries.get(key)
            number = self._used.get(key, 0)
            if self.mode != "record" and entry is not None and number < len(entry["answers"]):
                self._used[key] = number + 1
                answer: dict[str, Any] = entry["answers"][number]
                return answer
            if self.mode == "replay":
                self._refuse(request, number)
        return None

    def add(self, request: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        """Record an answer, and write the file."""
        key = canonical(request)
        with self._lock:
            entry = self._entries.setdefault(key, {"request": dict(request), "answers": []})
            entry["answers"].append(dict(answer))
            self._used[key] = len(entry["answers"])
            self._write()

    def _write(self) -> None:
        entries = [
            {
                "request": _map_texts(entry["request"], _split),
                "answers": [_map_texts(answer, _split) for answer in entry["answers"]],
            }
            for _, entry in sorted(self._entries.items())
        ]
        text = json.dumps({"cassette": _FORMAT, "entries": entries}, indent=1, ensure_ascii=False) + "\n"
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(text, encoding="utf-8")
            part.replace(self.path)
        except OSError as error:
            raise errors.CassetteError(f"the cassette {self.path} cannot be written: {error}") from error

    def _refuse(self, request: Mapping[str, Any], number: int) -> NoReturn:
        last = request["messages"][-1]["content"]
        named = f"{request['model']}: {' '.join(last.split())[:160]!r}"
        if number:
            raise errors.UnseenRequest(
                f"the cassette {self.path} has {number} answers to this request, and it is asked once more ({named}); "
                "record it with mode='extend'"
            )
        nearest = self._nearest(request)
        differs = "it holds no request at all" if nearest is None else "\n".join(_difference(nearest, request))
        raise errors.UnseenRequest(
            f"the cassette {self.path} does not hold this request ({named}); record it with mode='extend'. "
            f"What differs from the most similar one it holds:\n{differs}"
        )

    def _nearest(self, request: Mapping[str, Any]) -> Mapping[str, Any] | None:
        text = _plain(request)
        matcher = difflib.SequenceMatcher(autojunk=False)
        matcher.set_seq2(text.splitlines())
        best, found = -1.0, None
        for entry in list(self._entries.values())[:_COMPARED]:
            matcher.set_seq1(_plain(entry["request"]).splitlines())
            if (score := matcher.ratio()) > best:
                best, found = score, entry["request"]
        return found


class Recorded(Wrapper):
    """An LLM whose answers are recorded on a cassette, or come from one.

    Args:
        llm: a model by name or object. In replay it is never asked: a name will do without key and network, and None
            stands for the model on the cassette.
        cassette: the Cassette, or its path (replay).
    """

    def __init__(self, llm: LLM | str | None, cassette: Cassette | str | os.PathLike[str]) -> None:
        self.cassette = cassette if isinstance(cassette, Cassette) else Cassette(cassette)
        super().__init__(self._stand_in(llm) if self.cassette.mode == "replay" else _given(llm))

    def _stand_in(self, llm: LLM | str | None) -> LLM:
        from trace_core.integrations.llm.resolve import resolve_llm

        if llm is None:
            if len(self.cassette.models) != 1:
                raise errors.CassetteError(
                    f"the cassette {self.cassette.path} holds {len(self.cassette.models)} models: name one of "
                    f"{self.cassette.models}"
                )
            return _Absent(self.cassette.models[0])
        try:
            return resolve_llm(llm)
        except TraceCoreError:  # no key, no extra, no file: none is needed
            if not isinstance(llm, str):
                raise
            return _Absent(llm.partition("/")[2] or llm)

    def _around(self, call: Call) -> Exchange:
        request = describe_call(call, self.model)
        known = self.cassette.take(request)
        if known is not None:
            return _played(known, call)
        try:
            completion: Completion = yield call
        except _OUTCOMES as error:
            self.cassette.add(request, _packed_error(error))
            raise
        self.cassette.add(request, pack(completion))
        return completion


class _Absent:
    """The model of a cassette: it has a name and is never asked."""

    def __init__(self, model: str) -> None:
        self.model = model

    def complete(self, messages: Sequence[Message], **options: Any) -> Completion:
        raise errors.CassetteError("a cassette in replay asks no model")

    async def acomplete(self, messages: Sequence[Message], **options: Any) -> Completion:
        raise errors.CassetteError("a cassette in replay asks no model")

    def count_tokens(self, text: str) -> int | None:
        return None


def _given(llm: LLM | str | None) -> LLM | str:
    if llm is None:
        raise errors.CassetteError("recording needs a model: give its name or object")
    return llm


def _packed_error(error: errors.LLMError) -> dict[str, Any]:
    spent = error.completion if isinstance(error, errors.Unusable) else None
    told = {"error": type(error).__name__, "message": str(error.args[0]), "status": error.status}
    return {**told, "attempts": error.attempts, "completion": None if spent is None else pack(spent)}


def _played(known: Mapping[str, Any], call: Call) -> Completion:
    if "error" not in known:
        return unpack(known, call.schema)
    kind: type[errors.LLMError] = getattr(errors, known["error"])
    error = kind(known["message"], status=known["status"], attempts=known["attempts"])
    if isinstance(error, errors.Unusable) and known["completion"] is not None:
        error.completion = unpack(known["completion"], call.schema)
    raise error


def _split(text: str) -> list[str]:
    return text.split("\n")


def _joined(lines: list[str]) -> str:
    return "\n".join(lines)


def _map_texts(data: Mapping[str, Any], change: Any) -> dict[str, Any]:
    """``data`` with its texts, the messages' contents and the answers, as lists of lines or back."""
    changed = dict(data)
    if "messages" in changed:
        changed["messages"] = [{**m, "content": change(m["content"])} for m in changed["messages"]]
    if "texts" in changed:
        changed["texts"] = [change(text) for text in changed["texts"]]
    if changed.get("completion"):
        changed["completion"] = _map_texts(changed["completion"], change)
    return changed


def _plain(request: Mapping[str, Any]) -> str:
    return json.dumps(_map_texts(request, _split), indent=1, sort_keys=True, ensure_ascii=False)


def _difference(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    lines = difflib.unified_diff(
        _plain(recorded).splitlines(), _plain(asked).splitlines(), "recorded", "asked", n=1, lineterm=""
    )
    for number, line in enumerate(lines):
        if number == _SHOWN:
            yield "…"
            return
        yield line[:200]
