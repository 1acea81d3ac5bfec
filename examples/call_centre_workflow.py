"""A day of a call centre, simulated with simpy: the workflow that the example ``call_centre`` optimizes.

A roster and a demand go in; what the day costs beyond the roster comes out. The centre reacts by its own rules: agents
are lent to other lines, people on call come in, some stay on after their shift, callers are asked to be called back.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import trace_core as tc
from trace_core._lazy import require

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LINES, SHIFTS = ("orders", "deliveries", "repairs"), ("morning", "evening")
#: Calls per hour on a usual day: three lines in the morning, three in the evening.
USUAL = (12.0, 9.0, 6.0, 8.0, 10.0, 5.0)
SURGE, BLOCKS = 3.0, 2.0  # a block can get this many times its usual calls: so many blocks in full, or more in part
HOURS, SEATS = 6.0, 14  # of a shift; in the room
MINUTES = (9.0, 9.0, 12.0)  # that a call takes on each line: lognormal, with a coefficient of variation of 1
PATIENCE = 10.0  # minutes until a caller hangs up, in the mean: exponential
SLOWER = 1.4  # times the minutes, where an agent is lent to a line that is not his own
#: Euros for an hour of an agent of one line, of one who knows all, of overtime or of one called in; for being on call.
AGENT, FLOATER, EXTRA, RETAINER = 22.0, 27.0, 40.0, 25.0
LOST, CALL_BACK = 20.0, 8.0  # euros that a caller who hangs up costs, and one who is called back the next day
#: The centre's rules: minutes between looks, callers that wait until somebody is lent or called in, minutes to come in,
#: callers on a line from which on others are called back.
LOOK, LEND_AT, CALL_IN_AT, COMES, FULL = 10.0, 3, 6, 30.0, 8
#: What a roster has for each shift, and the most of it.
POSTS = (*LINES, "all lines", "on call")
MOST = (6, 6, 6, 6, 4)
DAYS = range(3)  # chance: the days that one run simulates


class Call(NamedTuple):
    """One caller: when, on which line, how many minutes it takes, when he hangs up."""

    at: float
    line: int
    work: float
    leaves: float


@dataclass
class Outcome:
    """What one shift left: callers that still wait, and what it cost in euros beyond the roster."""

    waiting: list[Call]
    euros: float = 0.0
    lost: int = 0
    called_back: int = 0
    called_in: int = 0
    lent: int = 0
    present: int = 0


@lru_cache(maxsize=256)
def possible_calls(day: int, block: int) -> tuple[tuple[float, Call], ...]:
    """Calls of a block at its highest demand, each with the share of that demand from which on it is made.

    So chance is the same for every decision and every demand, and more demand adds callers to those there are.
    """
    draw, line, calls = random.Random(f"{day} {block}"), block % len(LINES), []
    at = draw.expovariate(SURGE * USUAL[block] / 60)
    while at < 60 * HOURS:
        spread = math.sqrt(math.log(2))
        work = MINUTES[line] * math.exp(draw.gauss(-spread * spread / 2, spread))
        calls.append((draw.random(), Call(at, line, work, at + draw.expovariate(1 / PATIENCE))))
        at += draw.expovariate(SURGE * USUAL[block] / 60)
    return tuple(calls)


def calls_of(day: int, block: int, demand: float) -> list[Call]:
    """The calls of a block on one day, for a demand in calls per hour."""
    share = demand / (SURGE * USUAL[block])
    return [call for needs, call in possible_calls(day, block) if needs < share]


@tc.bundle
def work_shift(roster: Any, demand: Any, before: Any, stay: Any, shift: int, days: Sequence[int]) -> list[Outcome]:
    """One shift of each day; ``before`` are the outcomes of the shift before, ``stay`` how many stayed on from it."""
    blocks = range(shift * len(LINES), (shift + 1) * len(LINES))
    *crew, floaters, on_call = (int(n) for n in roster[shift * len(POSTS) : (shift + 1) * len(POSTS)])
    found = []
    for k, day in enumerate(days):
        calls = sorted(call for block in blocks for call in calls_of(day, block, float(demand[block])))
        waiting, staying = ([], 0) if before is None else (before[k].waiting, stay[k])
        found.append(Floor(crew, floaters, on_call, staying).run(calls, waiting, 60 * HOURS))
    return found


@tc.bundle
def stay_on(outcomes: Any) -> list[int]:
    """How many are asked to stay for an hour, each day: one for two callers that wait, of those who are there."""
    return [min(outcome.present, (len(outcome.waiting) + 1) // 2) for outcome in outcomes]


@tc.bundle
def close(outcomes: Any, stay: Any) -> list[Outcome]:
    """The hour after closing time: those who stayed serve those who wait."""
    nobody = [0] * len(LINES)
    return [
        Floor(nobody, 0, 0, staying).run([], outcome.waiting, 60.0)
        for outcome, staying in zip(outcomes, stay, strict=True)
    ]


@tc.bundle
def bill(*shifts: Any) -> float:
    """Euros beyond the roster, the mean of the days. Who still waits after closing time is lost."""
    days = list(zip(*shifts, strict=True))
    return fmean(sum(outcome.euros for outcome in day) + LOST * len(day[-1].waiting) for day in days)


@dataclass
class CallCentre:
    """The second stage: from a roster and a demand to what the day costs beyond the roster.

    Attributes:
        days: chance of so many days; a run takes the mean over them, the same for every roster and demand.
        runs: how often it was run.
    """

    days: Sequence[int] = DAYS
    runs: int = 0

    def __call__(self, roster: Any, demand: Any) -> Any:
        """roster (10,): for each shift what POSTS says; demand (6,), calls per hour -> a node with euros."""
        self.runs += 1
        morning = work_shift(roster, demand, None, None, 0, self.days)
        evening = work_shift(roster, demand, morning, stay_on(morning), 1, self.days)
        return bill(morning, evening, close(evening, stay_on(evening)))

    def euros(self, roster: Sequence[float], demand: Sequence[float]) -> float:
        """What a day costs, the roster included."""
        return wages(roster) + float(self(roster, demand).value)


def wages(roster: Sequence[float]) -> float:
    """Euros for the roster itself: linear."""
    return sum(price * number for price, number in zip(prices(), roster, strict=True))


def prices() -> list[float]:
    """Euros for one of each entry of a roster."""
    return [*[HOURS * AGENT for _ in LINES], HOURS * FLOATER, RETAINER] * len(SHIFTS)


# ---- the simulation of one shift


@dataclass(eq=False)  # two people are never one
class Person:
    """An agent: the line he is trained for (None: all), where he works now, until when, the event that wakes him."""

    trained: int | None
    line: int | None
    until: float
    wake: Any = None


@dataclass
class Floor:
    """The room during one shift."""

    crew: Sequence[int]
    floaters: int
    reserve: int
    stay: int
    people: list[Person] = field(default_factory=list)

    def run(self, calls: Sequence[Call], earlier: Sequence[Call], minutes: float) -> Outcome:
        """Serve calls; ``earlier`` ones have waited since the shift before."""
        simpy = require("simpy", extra="examples")
        self.env = simpy.Environment()
        self.outcome = Outcome([], euros=EXTRA * self.stay)
        self.queues: list[deque[Call]] = [deque() for _ in LINES]
        for call in earlier:
            self.queues[call.line].append(Call(0.0, call.line, call.work, call.leaves - 60 * HOURS))
        for line, number in enumerate(self.crew):
            for _ in range(number):
                self.hire(line)
        for _ in range(self.floaters):
            self.hire(None)
        for _ in range(self.stay):
            self.hire(None, until=60.0)
        self.env.process(self.arrivals(calls))
        self.env.process(self.supervise(minutes))
        self.env.run(until=minutes)
        for line in range(len(LINES)):
            self.outcome.waiting += self.patient(line)
        self.outcome.present = sum(self.crew) + self.floaters
        return self.outcome

    def hire(self, line: int | None, until: float = math.inf) -> None:
        person = Person(line, line, until)
        self.people.append(person)
        self.env.process(self.agent(person))

    def arrivals(self, calls: Sequence[Call]) -> Iterator[Any]:
        for call in calls:
            yield self.env.timeout(call.at - self.env.now)
            if len(self.queues[call.line]) >= FULL and len(self.patient(call.line)) >= FULL:
                self.outcome.called_back += 1
                self.outcome.euros += CALL_BACK
                continue
            self.queues[call.line].append(call)
            for person in self.people:
                if person.wake is not None and person.line in (call.line, None) and self.env.now < person.until:
                    self.wake(person)
                    break

    def agent(self, person: Person) -> Iterator[Any]:
        while self.env.now < person.until:
            call = self.next_call(person)
            if call is None:
                person.wake = self.env.event()
                yield person.wake
            else:
                yield self.env.timeout(call.work * (1.0 if person.trained in (call.line, None) else SLOWER))
        self.people.remove(person)

    def next_call(self, person: Person) -> Call | None:
        line = person.line
        if line is None:  # knows all lines: takes who waited longest
            fronts = [(waiting[0].at, k) for k in range(len(LINES)) if (waiting := self.patient(k))]
            if not fronts:
                return None
            line = min(fronts)[1]
        return self.queues[line].popleft() if self.patient(line) else None

    def patient(self, line: int) -> deque[Call]:
        """Who waits on a line; those who have hung up are counted and leave the queue."""
        queue, now = self.queues[line], self.env.now
        gone = sum(call.leaves <= now for call in queue)
        if gone:
            self.outcome.lost += gone
            self.outcome.euros += LOST * gone
            self.queues[line] = queue = deque(call for call in queue if call.leaves > now)
        return queue

    def supervise(self, minutes: float) -> Iterator[Any]:
        """Every ten minutes: lend an agent, or call somebody in."""
        left = self.reserve
        while True:
            yield self.env.timeout(LOOK)
            waiting = [len(self.patient(line)) for line in range(len(LINES))]
            move = lending(waiting, [sum(p.line == line for p in self.people) for line in range(len(LINES))])
            if move is not None:
                self.lend(*move)
            if left and sum(waiting) >= CALL_IN_AT and self.env.now + COMES < minutes - 60:
                left -= 1
                self.outcome.called_in += 1
                self.outcome.euros += EXTRA * (minutes - self.env.now - COMES) / 60
                self.env.process(self.call_in())

    def call_in(self) -> Iterator[Any]:
        yield self.env.timeout(COMES)
        self.hire(None)

    def lend(self, giver: int, taker: int) -> None:
        """Somebody moves; first those who go back to their own line, then idle ones."""
        there = [p for p in self.people if p.line == giver]
        person = min(there, key=lambda p: (p.trained != taker, p.wake is None))
        person.line = taker
        self.outcome.lent += 1
        if person.wake is not None:
            self.wake(person)

    def wake(self, person: Person) -> None:
        person.wake.succeed()
        person.wake = None


def lending(waiting: Sequence[int], crew: Sequence[int]) -> tuple[int, int] | None:
    """The supervisor's rule: from which line to which an agent moves, or None.

    To the line where most wait, if that is enough; from one where nobody waits and an agent is left.
    """
    taker = max(range(len(waiting)), key=lambda line: waiting[line])
    if waiting[taker] < LEND_AT:
        return None
    givers = [line for line in range(len(waiting)) if not waiting[line] and crew[line] > 1]
    return (max(givers, key=lambda line: crew[line]), taker) if givers else None
