"""How a candidate that passed its minibatch is run on the validation examples."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Protocol

from trace_core.optimizers.base import OptimizerError
from trace_core.optimizers.search.acceptance import Verdict, mean

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trace_core.optimizers.search.candidate import Candidate
    from trace_core.optimizers.search.pool import Pool


class Validation(Protocol):
    """Decides on which validation examples a candidate is run, and whether it joins the pool."""

    def run(
        self, candidate: Candidate, pool: Pool, size: int, evaluate: Callable[[Sequence[int]], list[float]]
    ) -> Verdict:
        """``evaluate(indices)`` gives scores in that order and notes them on the candidate; ``size`` examples exist."""
        ...


class Full:
    """All of them; the candidate joins."""

    def run(
        self, candidate: Candidate, pool: Pool, size: int, evaluate: Callable[[Sequence[int]], list[float]]
    ) -> Verdict:
        """See Validation."""
        evaluate(range(size))
        return Verdict(True, "validated")


class Racing:
    """Growing parts of them: a candidate that falls behind the best on the same examples goes early.

    It falls behind when its mean difference to the best plus ``slack`` standard errors is below 0, and it is nowhere
    better than every member of the pool: a specialist stays. The rounds grow by ``factor``, as in successive halving
    (Jamieson and Talwalkar, 2016). The order of the examples is the same for all candidates.

    Args:
        first: share of the examples in the first round.
        factor: by how much the next one is larger.
        slack: standard errors.
        seed: of the order.
    """

    def __init__(self, first: float = 0.125, factor: float = 2.0, slack: float = 1.0, seed: int = 0) -> None:
        if not 0 < first <= 1 or not factor > 1:
            raise OptimizerError(f"expected first in (0, 1] and factor above 1, got {first!r} and {factor!r}")
        self.first, self.factor, self.slack, self.seed = first, factor, slack, seed

    def run(
        self, candidate: Candidate, pool: Pool, size: int, evaluate: Callable[[Sequence[int]], list[float]]
    ) -> Verdict:
        """See Validation."""
        order = list(range(size))
        random.Random(f"{self.seed}/race").shuffle(order)
        done, until = 0, max(2.0, self.first * size)
        while done < size:
            upto = min(size, math.ceil(until))
            evaluate(order[done:upto])
            done, until = upto, until * self.factor
            if done < size and pool.best is not None and self._is_behind(candidate, pool):
                best = pool.best.scores
                seen = [i for i in candidate.scores if i in best]
                theirs, mine = mean([best[i] for i in seen]), mean([candidate.scores[i] for i in seen])
                return Verdict(
                    False, f"out of the race after {done} of {size} examples: {theirs:.3f}, with it {mine:.3f}"
                )
        return Verdict(True, "validated")

    def _is_behind(self, candidate: Candidate, pool: Pool) -> bool:
        best = pool.best.scores if pool.best is not None else {}
        gaps = [score - best[i] for i, score in candidate.scores.items() if i in best]
        if len(gaps) < 2:
            return False
        middle = mean(gaps)
        error = math.sqrt(math.fsum((gap - middle) ** 2 for gap in gaps) / (len(gaps) - 1) / len(gaps))
        if middle + self.slack * error >= 0:
            return False
        return not any(score > pool.fronts.best_on(i) for i, score in candidate.scores.items())
