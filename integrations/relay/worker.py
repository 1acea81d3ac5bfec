"""The worker's side: each call of a language model goes to the process that keeps the accounts, and waits for it."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

from trace_core.integrations import accounting
from trace_core.integrations.accounting import Account, AccountingError
from trace_core.integrations.engines._frames import packed, received, unpacked
from trace_core.integrations.llm.cache import current_rollout
from trace_core.integrations.llm.loop import in_daemon_thread
from trace_core.integrations.llm.wrapping import Call
from trace_core.integrations.relay.wire import call_as_data, completion_of, error_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from trace_core.integrations.llm.protocol import LLM, Completion, Message

_OUTSIDE = (
    "a language model was called in a worker process, but in no rollout (from a thread that was started without the "
    "context?): start threads with contextvars.copy_context().run, or run this workflow on a ThreadEngine"
)


#: The place in the run of calls that find parameters.
LOADING = "parameters"


class Relay:
    """The way from one rollout to the process that makes its calls: a unix socket, with a ticket that is its own.

    One connection for each call. It closes with this process, which tells the other side that nobody waits any more.

    Attributes:
        held: the models that the workflow holds, in an order that the other side shares.
    """

    def __init__(self, path: str, ticket: str) -> None:
        self._path, self._ticket = path, ticket
        self.held: Sequence[LLM] = ()
        self.base = -1

    def complete(self, llm: object, call: Call) -> Completion:
        """What ``llm.complete`` gives or raises over there."""
        asked = {"what": "complete", "llm": self._name(llm), "call": call_as_data(call), "place": self._place()}
        reply = self._ask(asked)
        if "error" in reply:
            raise error_of(reply["error"], call.schema)
        return completion_of(reply["result"], call.schema)

    async def acomplete(self, llm: object, call: Call) -> Completion:
        """``complete`` for coroutines."""
        return await in_daemon_thread(lambda: self.complete(llm, call))

    def recall(self, what: str) -> str | None:
        """See accounting.recall."""
        found: str | None = self._plain({"what": "recall", "key": what, "place": self._place()})
        return found

    def keep(self, what: str, answer: str) -> None:
        """See accounting.keep."""
        self._plain({"what": "keep", "key": what, "answer": answer, "place": self._place()})

    def model(self, name: str | None) -> dict[str, Any]:
        """Model and kind of what ``name`` means over there."""
        found: dict[str, Any] = self._plain({"what": "model", "name": name, "place": self._place()})
        return found

    def _plain(self, asked: dict[str, Any]) -> Any:
        reply = self._ask(asked)
        if "error" in reply:
            raise error_of(reply["error"])
        return reply["result"]

    def _name(self, llm: object) -> dict[str, Any]:
        if isinstance(llm, Relayed):
            return {"name": llm.name}
        for number, held in enumerate(self.held):
            if held is llm:
                return {"held": number, "kind": type(llm).__name__, "model": held.model}
        raise AccountingError(
            f"the language model {llm!r} was made inside of a rollout in a worker process, where nobody can keep its "
            "accounts: make it where the workflow is made, or give it by its name, such as 'openai/MODEL'"
        )

    def _place(self) -> dict[str, Any]:
        """Where in the run this is, in a way that the other side can tell equal calls at one place apart."""
        here, sample = accounting.current(), current_rollout()
        data: dict[str, Any] = {"sample": None if sample is None else [sample.ident, sample.name]}
        if here is not None and here.ident != self.base:
            data["account"] = [here.ident, here.role, here.scope]
        return data

    def _ask(self, asked: dict[str, Any]) -> Mapping[str, Any]:
        frame = packed(asked)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(self._path)
                connection.sendall(self._ticket.encode() + struct.pack("!I", len(frame)) + frame)
                answer = received(connection, lambda: None)
        except OSError as error:
            raise AccountingError(
                f"the process that keeps the accounts cannot be reached ({error}): it has ended, or it runs on another "
                "machine or in another container, where only a ThreadEngine or an AsyncEngine can help"
            ) from error
        if answer is None:
            raise AccountingError("the process that keeps the accounts has given this rollout up")
        reply: dict[str, Any] = unpacked(answer)
        return reply


class Relayed:
    """A model by its name, in a worker process: it is resolved, and called, in the process that keeps the accounts.

    Raises what resolving it raises there.
    """

    def __init__(self, name: str | None) -> None:
        relay = accounting.relay()
        if relay is None:
            raise AccountingError(_OUTSIDE)
        told = relay.model(name)
        self.name, self.model, self.is_local = name, str(told["model"]), bool(told["is_local"])

    def complete(self, messages: Sequence[Message], **options: Any) -> Completion:
        """See LLM.complete."""
        return _relay().complete(self, _call(messages, options))

    async def acomplete(self, messages: Sequence[Message], **options: Any) -> Completion:
        """See LLM.complete."""
        return await _relay().acomplete(self, _call(messages, options))

    def count_tokens(self, text: str) -> int | None:
        """None: not known here."""
        return None

    def __repr__(self) -> str:
        return f"<Relayed {self.name or self.model}>"


def _relay() -> Relay:
    found = accounting.relay()
    if found is None:
        raise AccountingError(_OUTSIDE)
    return found


def _call(messages: Sequence[Message], options: dict[str, Any]) -> Call:
    from trace_core.integrations.llm.conversation import checked_messages

    return Call(checked_messages(messages), **options)


@contextlib.contextmanager
def relayed(channel: Mapping[str, Any]) -> Iterator[Relay]:
    """Calls inside go through ``channel``, which ``CallServer.open`` gave."""
    if channel["process"] != os.getpid():  # an engine may keep its workers in threads of the same process
        accounting.worker_process(_OUTSIDE)
    way = Relay(channel["path"], channel["ticket"])
    here = Account(None, None, role="workflow", scope=channel["scope"], relay=way)
    way.base = here.ident
    with accounting.in_force(here):
        yield way


@contextlib.contextmanager
def loading(way: Relay) -> Iterator[None]:
    """Calls inside are those by which a workflow's parameters are found: the same for every worker, paid for once."""
    with accounting.in_force(Account(None, None, role="workflow", scope=LOADING, relay=way)):
        yield
