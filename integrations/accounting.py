"""How calls of language models meet the ledger and the budget of the run they belong to.

One context variable holds what is in force: the run, the budget, the role, and the place in the run (``scope``), from
which each call gets a key that a resumed run hits again. Without it nothing happens. The models of this library ask
here before each request, inside caches and outside retries: an answer from a cache costs nothing, a retry is no new
call. Calls that a workflow makes with a client library of its own are not seen.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from contextvars import ContextVar
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from trace_core.errors import TraceCoreError
from trace_core.integrations.budget import Budget, Cost
from trace_core.integrations.llm import errors
from trace_core.integrations.llm.canonical import digest
from trace_core.integrations.llm.prices import find_price, price_of
from trace_core.integrations.llm.protocol import Answer, Layer, Request, Sample, Send, Usage
from trace_core.tokens import estimate_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trace_core.integrations.budget import Reservation
    from trace_core.integrations.llm.prices import PriceOf, Prices
    from trace_core.integrations.relay.worker import Relay
    from trace_core.integrations.store import CallRow, Run

#: Length of an answer where the caller sets none and a budget limits tokens or dollars: without any, none could hold.
ANSWER_TOKENS = 4096
_PER_MESSAGE = 8  # tokens that the chat format adds


class AccountingError(TraceCoreError):
    """A call cannot be accounted for where it is made."""


_idents = itertools.count()


class Account:
    """What is in force: which run pays, from which budget, in which role, at which place in the run.

    Attributes:
        closed: why no further call may be made; "" while calls may. Closes the places inside, too.
        relay: in a worker process, the way to the process that keeps the accounts.
        ident: a number of its own in this process.
    """

    __slots__ = ("_closed", "_counts", "_lock", "_outer", "budget", "ident", "price", "relay", "role", "run", "scope")

    def __init__(
        self,
        run: Run | None,
        budget: Budget | None,
        price: PriceOf | None = None,
        role: str = "",
        scope: str = "",
        closed: str = "",
        relay: Relay | None = None,
        outer: Account | None = None,
    ) -> None:
        self.run, self.budget, self.price, self.role, self.scope = run, budget, price, role, scope
        self.relay, self._closed, self._outer = relay, closed, outer
        self.ident = next(_idents)
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def closed(self) -> str:
        """See Account."""
        return self._closed or ("" if self._outer is None else self._outer.closed)

    @closed.setter
    def closed(self, why: str) -> None:
        self._closed = why

    def inner(self, role: str, scope: str) -> Account:
        """The accounts of another place in the same run."""
        return Account(self.run, self.budget, self.price, role, scope, relay=self.relay, outer=self)

    def key(self, request_hash: str) -> str:
        """A key for a call: equal requests at one place of the run are told apart by their number."""
        with self._lock:
            number = self._counts[request_hash] = self._counts.get(request_hash, -1) + 1
        return f"{self.run.id if self.run else ''}/{self.scope}/{self.role}/{request_hash}/{number}"


_current: ContextVar[Account | None] = ContextVar("trace_core.account", default=None)
#: Set in a worker process: why a call outside of any rollout cannot be made.
_outside = ""


@contextlib.contextmanager
def account(*, run: Run | None = None, budget: Budget | None = None, price: PriceOf | None = None) -> Iterator[None]:
    """Calls made inside, also by threads and tasks that get this context, belong to ``run`` and ``budget``.

    ``price``: model -> dollars for each prompt token and each completion token, None where unknown; in place of the
    prices that the library knows; None = as around this.
    """
    outer = _current.get()
    if price is None and outer is not None:
        price = outer.price
    token = _current.set(Account(run, budget, price))
    try:
        yield
    finally:
        _current.reset(token)


_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


def place(role: str, scope: str) -> contextlib.AbstractContextManager[Account | None]:
    """Say what is going on: ``workflow``, ``optimizer`` or ``judge``, and where in the run. Gives what is in force."""
    return _NOTHING if _current.get() is None else _place(role, scope)


@contextlib.contextmanager
def _place(role: str, scope: str) -> Iterator[Account | None]:
    outer = _current.get()
    if outer is None:
        yield None
        return
    inner = outer.inner(role, scope)
    token = _current.set(inner)
    try:
        yield inner
    finally:
        _current.reset(token)


def role(name: str) -> contextlib.AbstractContextManager[Account | None]:
    """Another role at the same place."""
    outer = _current.get()
    return _NOTHING if outer is None else _place(name, outer.scope)


@contextlib.contextmanager
def no_calls(why: str) -> Iterator[None]:
    """Inside, a call of a language model raises AccountingError: nobody could reserve or journal it."""
    token = _current.set(Account(None, None, closed=why))
    try:
        yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def in_force(here: Account) -> Iterator[None]:
    """Calls inside belong to ``here``."""
    token = _current.set(here)
    try:
        yield
    finally:
        _current.reset(token)


def enter_account(here: Account) -> None:
    """Put ``here`` in force for the rest of the present context: for contexts made for one call."""
    _current.set(here)


def current() -> Account | None:
    """What is in force; None outside of any run."""
    return _current.get()


def worker_process(why: str) -> None:
    """From now on this process makes no calls of its own; one outside of a rollout is refused with ``why``."""
    global _outside
    _outside = why


def is_worker() -> bool:
    """Whether calls made here are another process's to make, so that no key is needed here."""
    here = _current.get()
    return bool(_outside) or (here is not None and here.relay is not None)


def relay() -> Relay | None:
    """The way to the process that makes the calls of this one; None where it makes them itself.

    Raises AccountingError in a worker process outside of a rollout.
    """
    here = _current.get()
    if here is not None and here.relay is not None:
        return here.relay
    if _outside:
        raise AccountingError(_outside)
    return None


def current_role() -> str:
    """The role in force; "" outside of any run."""
    found = _current.get()
    return found.role if found is not None else ""


def accounted(model: str, *, free: bool = False, prices: Prices | None = None) -> Layer:
    """The layer that journals a request before it is sent, and reserves what it may cost.

    Args:
        model: its name, by which prices are found.
        free: whether it runs on this machine and costs nothing.
        prices: that it was given.

    Its ``send`` raises BudgetExhausted or UnknownPrice, and nothing was sent then.
    """

    def layer(send: Send) -> Send:
        async def send_accounted(request: Request) -> Answer:
            entry = enter(request, model, usd=0.0 if free else None, prices=prices)
            if entry is None:
                return await send(request)
            if entry.answer is not None:
                return entry.answer
            with entry:
                return entry.settle(await send(entry.request))

        return send_accounted

    return layer


def enter(request: Request, model: str, *, usd: float | None = None, prices: Prices | None = None) -> Entry | None:
    """Open the accounts for one request; None where there are none. See ``accounted``.

    Args:
        request: what is to be sent.
        model: who is asked.
        usd: its price where that is known without a table.
        prices: that the model was given; they go before those of the run.
    """
    here = _current.get()
    if here is None:
        return None
    if here.closed:
        raise AccountingError(here.closed)
    if here.run is None and here.budget is None:
        return None
    if here.budget is not None and here.budget.limits_answers and request.max_tokens is None:
        request = replace(request, max_tokens=ANSWER_TOKENS)
    price = here.price or price_of
    if prices and find_price(model, prices) is not None:
        price = partial(price_of, prices=prices)
    return Entry(here, request, model, estimate_of(request, model, usd, price))


class Entry:
    """One request in the accounts. As a context it notes how the request failed, if it did.

    Attributes:
        request: what is to be sent.
        answer: what the ledger already has for it; then nothing is to be sent.
    """

    def __init__(self, here: Account, request: Request, model: str, estimate: Cost) -> None:
        self.request, self.answer = request, None
        self._run, self._estimate = here.run, estimate
        self._reservation: Reservation | None = None
        self._key = ""
        hashed = request_hash(request, model)
        if here.run is not None:
            self._key = here.key(hashed)
            known = here.run.ledger.known_call(self._key)
            if known is not None:
                self.answer = _replayed(known)
                return
        if here.budget is not None:
            self._reservation = here.budget.reserve(estimate, here.role)
        if here.run is not None:
            try:
                here.run.ledger.begin_call(self._key, here.role, hashed, estimate, run=here.run.id, model=model)
            except BaseException:
                if self._reservation is not None:
                    self._reservation.release()
                raise

    def settle(self, answer: Answer) -> Answer:
        """Note the answer and what it took."""
        self._note(_cost(answer.usage, answer.cost, self._estimate), result=json.dumps(asdict(answer)))
        return answer

    def __enter__(self) -> Entry:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            return
        if isinstance(error, errors.Unusable | errors.Refused):  # something came, and it was paid for
            completion = getattr(error, "completion", None)
            cost = _cost(completion.usage, completion.cost, self._estimate) if completion else self._estimate
            said = {
                "type": type(error).__name__,
                "message": error.args[0] if error.args else "",
                "status": error.status,
            }
            self._note(cost, error=json.dumps(said))
        elif isinstance(error, Exception):  # no answer: a resumed run asks again
            self._settle(Cost(calls=1))
            if self._run is not None:
                self._run.ledger.drop_call(self._key, str(error))
        elif self._reservation is not None:  # interrupted: it may have been paid for
            self._reservation.settle(self._estimate)

    def _note(self, cost: Cost, *, result: str | None = None, error: str | None = None) -> None:
        self._settle(cost)
        if self._run is not None:
            self._run.ledger.finish_call(self._key, cost, result=result, error=error)

    def _settle(self, cost: Cost) -> None:
        if self._reservation is not None:
            self._reservation.settle(cost)


def recall(what: str) -> str | None:
    """An answer that this run has kept with ``keep``; None outside of a run."""
    here = _current.get()
    if here is not None and here.relay is not None:
        return here.relay.recall(what)
    if here is None or here.run is None:
        return None
    return here.run.ledger.get_response(f"{here.run.id}/{what}")


def keep(what: str, answer: str) -> None:
    """Keep an answer for the whole run, so that it is not asked for again after a kill. Outside of a run: nothing."""
    here = _current.get()
    if here is not None and here.relay is not None:
        here.relay.keep(what, answer)
    elif here is not None and here.run is not None:
        here.run.ledger.put_response(f"{here.run.id}/{what}", answer)


def request_hash(request: Request, model: str) -> str:
    """A short hash of everything that decides what is asked."""
    contract = request.contract
    data = [
        model,
        [[m["role"], m["content"]] for m in request.messages],
        request.n,
        request.temperature,
        request.seed,
        request.max_tokens,
        None if contract is None else [contract.name, contract.schema, contract.strict],
    ]
    return hash_of(data)


def hash_of(data: Any) -> str:
    """A short hash of plain data."""
    return digest(data)[:16]


def estimate_of(request: Request, model: str, usd: float | None, price: PriceOf) -> Cost:
    """What ``request`` may take at most."""
    prompt = sum(_PER_MESSAGE + estimate_tokens(message["content"]) for message in request.messages)
    if request.contract is not None:
        prompt += estimate_tokens(json.dumps(request.contract.schema, default=str))
    answer = (ANSWER_TOKENS if request.max_tokens is None else request.max_tokens) * request.n
    if usd is None and (known := price(model)) is not None:
        usd = prompt * known[0] + answer * known[1]
    return Cost(usd, prompt + answer, 1)


def _cost(usage: Usage, usd: float | None, estimate: Cost) -> Cost:
    """What a server reported; tokens it did not report are taken from the estimate."""
    if usage.prompt_tokens is None or usage.completion_tokens is None:
        return Cost(usd, estimate.tokens, 1)
    return Cost(usd, usage.prompt_tokens + usage.completion_tokens, 1)


def _replayed(row: CallRow) -> Answer:
    """The answer of a finished call, or its error raised again."""
    if row.result is None:
        said: dict[str, Any] = json.loads(row.error or "{}")
        kind = getattr(errors, str(said.get("type")), errors.Malformed)
        raise kind(said.get("message", ""), status=said.get("status"))
    data = json.loads(row.result)
    samples = tuple(Sample(**sample) for sample in data["samples"])
    return Answer(samples, Usage(**data["usage"]), data["cost"], data["model"])
