"""A study whose candidates are evaluated by somebody else: ask for one, tell its scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from trace_core.optimizers.base import OptimizerError
from trace_core.optimizers.search.acceptance import Verdict
from trace_core.optimizers.search.choosing import choose
from trace_core.optimizers.search.working import forked

if TYPE_CHECKING:
    from collections.abc import Callable

    from trace_core.optimizers.search.candidate import Candidate
    from trace_core.optimizers.search.driver import Driver
    from trace_core.optimizers.search.pool import Pool
    from trace_core.optimizers.search.search import Search
    from trace_core.optimizers.search.ticket import Attempt, Work

Scores = Mapping[int, float] | Sequence[float] | float


class Asking:
    """The candidates that were asked for and not told of yet.

    Args:
        driver: of the study.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.open: dict[str, tuple[Work, Attempt]] = {}
        self._asked = 0

    def ask(self) -> Candidate:
        """The next candidate. See Study.ask."""
        driver = self.driver
        if self.open and not driver.optimizer.concurrent:
            raise OptimizerError(
                f"{type(driver.optimizer).__name__} works on one ticket at a time: tell the scores of "
                f"{', '.join(self.open)} first"
            )
        if not len(driver.pool):
            driver.seed_pool()
        why = ""
        for _ in range(driver.search.stalled):
            self._asked = max(self._asked, driver.decided) + 1
            ticket = choose(driver, self._asked)
            ticket.gated = False
            driver.tell_chosen(ticket)
            if ticket.merged is None:
                ticket.fork = forked(driver.optimizer, ticket.number, ticket.state)
            work = driver.worker.do(ticket)
            if work.error is not None:
                raise work.error
            driver.book(work)
            for attempt in work.attempts:
                if attempt.candidate is not None and not attempt.stage:
                    self.open[attempt.candidate.id] = work, attempt
                    return attempt.candidate
                driver.judge(ticket, attempt)
                why = attempt.why
            driver.learn(work, False)
        raise OptimizerError(f"no candidate could be had in {driver.search.stalled} tickets; the last reason: {why}")

    def tell(self, candidate: Candidate, scores: Scores) -> bool:
        """How it did. See Study.tell."""
        if candidate.id not in self.open:
            raise OptimizerError(f"candidate {candidate.id} was not asked for, or its scores were told already")
        told = _told(scores, len(self.driver.validation))
        work, attempt = self.open.pop(candidate.id)
        improved = self.driver.judge(work.ticket, attempt, _Told(told, self.driver.search))
        self.driver.learn(work, improved)
        return candidate.in_pool


class _Told:
    """Validation whose scores came from outside: the gate is held on them, against the parent on the same examples."""

    def __init__(self, scores: dict[int, float], search: Search) -> None:
        self.scores, self.search = scores, search

    def run(
        self, candidate: Candidate, pool: Pool, size: int, evaluate: Callable[[Sequence[int]], list[float]]
    ) -> Verdict:
        """See Validation."""
        candidate.add_scores(self.scores)
        before = pool[candidate.parents[0]].scores
        shared = [index for index in self.scores if index in before]
        if not shared:
            return Verdict(True, "told")
        return self.search.acceptance.judge([before[i] for i in shared], [self.scores[i] for i in shared])


def _told(scores: Scores, size: int) -> dict[int, float]:
    if isinstance(scores, int | float):
        found = dict.fromkeys(range(size), float(scores))
    elif isinstance(scores, Mapping):
        found = {index: float(score) for index, score in scores.items()}
    else:
        found = {index: float(score) for index, score in enumerate(scores)}
    wrong = [index for index, score in found.items() if index not in range(size) or not math.isfinite(score)]
    if wrong or not found:
        raise OptimizerError(
            f"expected finite scores of validation examples 0 to {size - 1}, as a list, by index, or one for all; "
            f"got {scores!r:.80}"
        )
    return found
