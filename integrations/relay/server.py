"""The side that keeps the accounts: it makes the calls that rollouts in other processes ask for, at their places."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import struct
import tempfile
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

from trace_core.integrations import accounting
from trace_core.integrations.accounting import Account, AccountingError
from trace_core.integrations.engines._frames import LIMIT, packed, unpacked
from trace_core.integrations.llm.cache import NamedRollout, enter_rollout
from trace_core.integrations.llm.canonical import canonical
from trace_core.integrations.llm.loop import in_daemon_thread, shared_loop
from trace_core.integrations.llm.resolve import resolve_llm
from trace_core.integrations.relay.wire import TICKET, call_of, completion_as_data, error_as_data
from trace_core.integrations.relay.worker import LOADING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trace_core.integrations.llm.protocol import LLM, Completion
    from trace_core.integrations.llm.wrapping import Call

_LONGEST = 100  # bytes of a unix socket's path; the system's limit is 104 or 108


class Ticket:
    """One rollout's right to make calls, while it runs.

    Attributes:
        here: the accounts at its place in the run; None outside of a run.
        context: in which its calls are made.
    """

    def __init__(self, here: Account | None) -> None:
        self.name = secrets.token_hex(TICKET // 2)
        self.here, self.context = here, copy_context()
        self.work: set[asyncio.Task[bytes]] = set()
        self._accounts: dict[int, Account] = {}
        self._samples: dict[int, NamedRollout] = {}

    def at(self, place: Mapping[str, Any]) -> Context:
        """The context of a call from ``place``: one account, and one sample, for each that the worker has."""
        context = self.context.copy()
        if place["sample"] is not None:
            ident, name = place["sample"]
            context.run(enter_rollout, self._samples.setdefault(ident, NamedRollout(name)))
        if self.here is not None and "account" in place:
            ident, role, scope = place["account"]
            account = self._accounts.get(ident)
            if account is None:
                account = self._accounts[ident] = self.here.inner(role, scope)
            context.run(accounting.enter_account, account)
        return context


class CallServer:
    """A unix socket in a folder that only this user can enter. Whoever connects shows the ticket of a rollout first.

    Args:
        held: what ``held_models`` finds in the workflow and the metric here.

    A connection that ends before its answer was sent takes the call back: it is cancelled, and settled as one whose end
    nobody saw. Works where processes share a machine and a file system.
    """

    def __init__(self, held: Sequence[LLM]) -> None:
        self._held = held
        self._named: dict[str | None, LLM] = {}
        self._tickets: dict[str, Ticket] = {}
        self._first: dict[str, asyncio.Task[Completion]] = {}  # calls that find parameters: made once
        self._folder = tempfile.mkdtemp(prefix="trace_core-")  # for this user alone
        if len(self._folder) > _LONGEST - len("/calls"):
            os.rmdir(self._folder)
            self._folder = tempfile.mkdtemp(prefix="trace_core-", dir="/tmp")
        self.path = os.path.join(self._folder, "calls")
        self._server = shared_loop().run(asyncio.start_unix_server(self._serve, self.path))

    def open(self, here: Account | None) -> tuple[Ticket, dict[str, Any]]:
        """A ticket for a rollout whose calls are made in this context, and what its worker is to be told."""
        ticket = Ticket(here)
        self._tickets[ticket.name] = ticket
        scope = here.scope if here is not None else ""
        return ticket, {"path": self.path, "ticket": ticket.name, "scope": scope, "process": os.getpid()}

    def end(self, ticket: Ticket) -> None:
        """No more calls for this ticket; those under way are cancelled, and settled when this returns."""
        self._tickets.pop(ticket.name, None)
        if ticket.work:
            shared_loop().run(_cancelled(ticket.work))

    def close(self) -> None:
        """Stop serving. Never blocks."""
        loop = shared_loop().loop
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._server.close)
        shutil.rmtree(self._folder, ignore_errors=True)

    # ---- serving

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            ticket = self._tickets.get((await reader.readexactly(TICKET)).decode("ascii", "replace"))
            if ticket is None:
                return
            (length,) = struct.unpack("!I", await reader.readexactly(4))
            if length > LIMIT:
                return
            asked = unpacked(await reader.readexactly(length))
            answer = await self._watched(ticket, asked, reader)
            if answer is not None:
                writer.write(struct.pack("!I", len(answer)) + answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # the worker is gone
        finally:
            writer.close()

    async def _watched(self, ticket: Ticket, asked: Mapping[str, Any], reader: asyncio.StreamReader) -> bytes | None:
        """The reply; None if the worker hung up, or the ticket ended, before there was one."""
        work = asyncio.get_running_loop().create_task(self._reply(asked), context=ticket.at(asked["place"]))
        gone = asyncio.ensure_future(reader.read(1))
        ticket.work.add(work)
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
            return None if work.cancelled() else work.result()
        finally:
            ticket.work.discard(work)
            gone.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await gone

    async def _reply(self, asked: Mapping[str, Any]) -> bytes:
        try:
            return packed({"result": await self._done(asked)})
        except Exception as error:  # noqa: BLE001 - told to the worker, which raises it
            data = error_as_data(error)
            return packed({"error": data or error_as_data(AccountingError(f"{type(error).__name__}: {error}"))})

    async def _done(self, asked: Mapping[str, Any]) -> Any:
        what = asked["what"]
        if what == "recall":
            return accounting.recall(asked["key"])
        if what == "keep":
            return accounting.keep(asked["key"], asked["answer"])
        if what == "model":
            llm = self._named_model(asked["name"])
            return {"model": llm.model, "is_local": bool(getattr(llm, "is_local", False))}
        return completion_as_data(await self._complete(asked))

    async def _complete(self, asked: Mapping[str, Any]) -> Completion:
        llm, call = self._model(asked["llm"]), call_of(asked["call"])
        if asked["place"].get("account", ("", "", ""))[2] != LOADING:
            return await _made(llm, call)
        key = canonical([asked["llm"], asked["call"]])
        if key not in self._first or (self._first[key].done() and self._first[key].exception() is not None):
            self._first[key] = asyncio.ensure_future(_made(llm, call))
        return await asyncio.shield(self._first[key])

    # ---- models

    def _model(self, told: Mapping[str, Any]) -> LLM:
        if "name" in told:
            return self._named_model(told["name"])
        number = int(told["held"])
        found: LLM | None = self._held[number] if number < len(self._held) else None
        if found is None or (type(found).__name__, found.model) != (told["kind"], told["model"]):
            raise AccountingError(
                f"the workflow of a worker process holds the language model {told['model']!r} ({told['kind']}) where "
                f"that of this process holds {found!r}: give models by their names, such as 'openai/MODEL'"
            )
        return found

    def _named_model(self, name: str | None) -> LLM:
        if name not in self._named:
            self._named[name] = resolve_llm(name)
        return self._named[name]


async def _made(llm: LLM, call: Call) -> Completion:
    if getattr(llm, "sends_requests", False):  # it waits without holding up the loop, and can be cancelled
        return await llm.acomplete(call.messages, **call.options())
    return await in_daemon_thread(lambda: llm.complete(call.messages, **call.options()))


async def _cancelled(work: set[asyncio.Task[bytes]]) -> None:
    open_ = list(work)
    for task in open_:
        task.cancel()
    if open_:
        await asyncio.wait(open_)
