"""One budget over everything a run spends: reserved before a call, settled after it, so that it holds."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from trace_core.errors import TraceCoreError

if TYPE_CHECKING:
    from collections.abc import Mapping


class BudgetExhausted(TraceCoreError):
    """A reservation does not fit what is left. No failure of a call: nothing was sent.

    Attributes:
        limit: which limit: ``usd``, ``tokens``, ``calls``, ``metric_calls`` or ``seconds``.
    """

    def __init__(self, message: str, limit: str) -> None:
        super().__init__(message)
        self.limit = limit


class UnknownPrice(TraceCoreError):
    """A budget in dollars cannot hold for a model whose price is not known."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What something cost, or may cost at most.

    Attributes:
        usd: US dollars; None where the price is not known.
        tokens: prompt and completion tokens together.
        calls: requests to a language model; sending one again after a failure is no new one.
        metric_calls: examples evaluated.
    """

    usd: float | None = 0.0
    tokens: int = 0
    calls: int = 0
    metric_calls: int = 0

    def __add__(self, other: Cost) -> Cost:
        usd = None if self.usd is None or other.usd is None else self.usd + other.usd
        return Cost(usd, self.tokens + other.tokens, self.calls + other.calls, self.metric_calls + other.metric_calls)


_NANO = 1_000_000_000  # dollars are added up as whole billionths: sums of floats would drift


class _Amount(NamedTuple):
    usd: int = 0
    tokens: int = 0
    calls: int = 0
    metric_calls: int = 0

    def plus(self, other: _Amount, sign: int = 1) -> _Amount:
        return _Amount(
            self.usd + sign * other.usd,
            self.tokens + sign * other.tokens,
            self.calls + sign * other.calls,
            self.metric_calls + sign * other.metric_calls,
        )

    def cost(self) -> Cost:
        return Cost(self.usd / _NANO, self.tokens, self.calls, self.metric_calls)


def _amount(cost: Cost, usd_if_unknown: int = 0) -> _Amount:
    usd = usd_if_unknown if cost.usd is None else round(cost.usd * _NANO)
    return _Amount(usd, cost.tokens, cost.calls, cost.metric_calls)


class Budget:
    """Limits of a run over all of its roles (workflow, optimizer, judge) together. Safe from many threads and tasks.

    What is spent plus what is reserved never exceeds a limit. A call is reserved with its estimate and settled with
    what it really took, so the budget holds exactly wherever estimates are upper bounds; an excess is kept and shown.

    Args:
        usd: US dollars.
        tokens: prompt and completion tokens.
        calls: requests to language models.
        metric_calls: examples evaluated, cached ones not counted.
        seconds: wall-clock time, from ``start`` (or the first reservation) on; earlier parts of a resumed run count.

    Raises ValueError for a limit that is negative or not finite.
    """

    def __init__(
        self,
        *,
        usd: float | None = None,
        tokens: int | None = None,
        calls: int | None = None,
        metric_calls: int | None = None,
        seconds: float | None = None,
    ) -> None:
        self.limits: dict[str, float] = {
            name: limit
            for name, limit in {
                "usd": usd,
                "tokens": tokens,
                "calls": calls,
                "metric_calls": metric_calls,
                "seconds": seconds,
            }.items()
            if limit is not None
        }
        for name, limit in self.limits.items():
            if not math.isfinite(limit) or limit < 0:
                raise ValueError(f"{name} must be a number from 0, got {limit!r}; leave it out for no limit")
        self._whole = {name: round(v * _NANO) if name == "usd" else v for name, v in self.limits.items()}
        self._lock = threading.Lock()
        self._spent: dict[str, _Amount] = {}
        self._total = _Amount()
        self._reserved = _Amount()
        self._before = 0.0
        self._began: float | None = None
        self.unknown = 0  # settled calls of unknown cost; a budget in dollars counts them with their estimates

    # ---- spending

    def reserve(self, estimate: Cost, role: str = "") -> Reservation:
        """Set ``estimate`` aside, all of it or nothing.

        Raises BudgetExhausted if a limit would be passed, UnknownPrice for ``usd=None`` under a limit in dollars.
        """
        if estimate.usd is None and "usd" in self.limits:
            raise UnknownPrice(
                "the price of this call is not known, so a budget in dollars could not hold: give the model's prices, "
                "or limit tokens or calls instead"
            )
        wanted = _amount(estimate)
        with self._lock:
            self._check(wanted)
            self._reserved = self._reserved.plus(wanted)
        return Reservation(self, wanted, role)

    def check(self) -> None:
        """Raise BudgetExhausted if a limit is reached."""
        with self._lock:
            self._check(_Amount())
            for name, limit in self._whole.items():
                if name != "seconds" and getattr(self._total, name) >= limit:
                    raise BudgetExhausted(f"the budget is used up: {self._text(name)}", name)

    def _check(self, wanted: _Amount) -> None:
        if self._began is None:
            self._began = time.monotonic()
        for name, limit in self._whole.items():
            if name == "seconds":
                if self.elapsed >= limit:
                    raise BudgetExhausted(f"the budget is used up: {self._text(name)}", name)
                continue
            held = getattr(self._total, name) + getattr(self._reserved, name)
            more = getattr(wanted, name)
            if more and held + more > limit:
                what = f"{more / _NANO:.6f}" if name == "usd" else str(more)
                raise BudgetExhausted(
                    f"the budget does not allow for up to {what} more {name}: {self._text(name)}", name
                )

    def _text(self, name: str) -> str:
        if name == "seconds":
            return f"{self.elapsed:.1f} of {self.limits[name]:g} seconds"
        scale = _NANO if name == "usd" else 1
        spent, reserved = getattr(self._total, name) / scale, getattr(self._reserved, name) / scale
        held = f", {reserved:.6g} reserved" if reserved else ""
        return f"{spent:.6g} of {self.limits[name]:g} {name} spent{held}"

    def _settle(self, reserved: _Amount, actual: Cost | None, role: str) -> None:
        with self._lock:
            self._reserved = self._reserved.plus(reserved, -1)
            if actual is None:
                return
            self.unknown += actual.usd is None
            self._add(_amount(actual, reserved.usd), role)

    def _add(self, amount: _Amount, role: str) -> None:
        self._total = self._total.plus(amount)
        self._spent[role] = self._spent.get(role, _Amount()).plus(amount)

    # ---- looking

    @property
    def spent(self) -> Cost:
        """Everything settled."""
        return self._total.cost()

    @property
    def by_role(self) -> dict[str, Cost]:
        """Everything settled, by role."""
        with self._lock:
            return {role: amount.cost() for role, amount in sorted(self._spent.items())}

    @property
    def reserved(self) -> Cost:
        """What calls under way may still take."""
        return self._reserved.cost()

    @property
    def elapsed(self) -> float:
        """Seconds since the start, earlier parts of a resumed run included."""
        return self._before + (0.0 if self._began is None else time.monotonic() - self._began)

    @property
    def limits_answers(self) -> bool:
        """Whether a call's length matters, so that one without ``max_tokens`` needs a limit."""
        return "tokens" in self.limits or "usd" in self.limits

    def excess(self) -> dict[str, float]:
        """By how much limits were passed all the same, because a call took more than its estimate."""
        found = {}
        for name, limit in self._whole.items():
            over = (getattr(self._total, name) - limit) if name != "seconds" else 0
            if over > 0:
                found[name] = over / _NANO if name == "usd" else over
        return found

    def describe(self) -> str:
        """One line: each limit with what is spent of it."""
        with self._lock:
            return "; ".join(self._text(name) for name in self.limits) or "no limits"

    # ---- resuming

    def start(self, spent: Mapping[str, Cost] | None = None, seconds: float = 0.0) -> None:
        """Start the clock; with ``spent`` (by role) and ``seconds``, go on from what an earlier part has used."""
        with self._lock:
            self._began = time.monotonic()
            if spent is not None:
                self._before, self._total, self._spent = seconds, _Amount(), {}
                for role, cost in spent.items():
                    self._add(_amount(cost), role)


class Reservation:
    """A part of a budget set aside. The first of ``settle`` and ``release`` counts; as a context it is released."""

    __slots__ = ("_amount", "_budget", "_open", "role")

    def __init__(self, budget: Budget, amount: _Amount, role: str) -> None:
        self._budget, self._amount, self.role, self._open = budget, amount, role, True

    def settle(self, actual: Cost) -> None:
        """Replace the reservation by what was really spent; a cost of None counts as the estimate."""
        if self._take():
            self._budget._settle(self._amount, actual, self.role)

    def release(self) -> None:
        """Give the reservation back."""
        if self._take():
            self._budget._settle(self._amount, None, self.role)

    def _take(self) -> bool:
        was, self._open = self._open, False
        return was

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()
