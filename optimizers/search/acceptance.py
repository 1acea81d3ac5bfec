"""Whether a candidate is good enough on its minibatch to be validated."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple, Protocol

from trace_core.optimizers.base import OptimizerError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Verdict(NamedTuple):
    """Whether to go on with a candidate, and why or why not."""

    accept: bool
    why: str


class Acceptance(Protocol):
    """Compares the scores of parent and candidate on the same minibatch.

    Attributes:
        repeats: how often each example is run for it, before and after.
        gated: whether it needs the candidate's scores at all.
    """

    repeats: int
    gated: bool

    def judge(self, before: Sequence[float], after: Sequence[float]) -> Verdict:
        """``before`` and ``after`` have one score for each example, the mean over repeats, in the same order."""
        ...


class Strict:
    """Accepts a higher sum. Right where the same input always gets the same score."""

    repeats, gated = 1, True

    def judge(self, before: Sequence[float], after: Sequence[float]) -> Verdict:
        """See Acceptance."""
        return Verdict(math.fsum(after) > math.fsum(before), _change(before, after))


class PairedTest:
    """Accepts if chance alone would give such a gain with probability ``level`` at most.

    The exact one-sided sign-flip test on the differences (Fisher, "The Design of Experiments", 1935, section 21):
    without an effect, each difference is as likely to be of either sign. Up to 24 differences that are not 0 all sign
    patterns count; beyond, the distribution of their sum is taken as normal. Three examples cannot reach a level below
    1/8: use it with minibatches of five or more, or with ``Repeats``.
    """

    repeats, gated = 1, True

    def __init__(self, level: float = 0.1) -> None:
        if not 0 < level < 1:
            raise OptimizerError(f"level must be between 0 and 1, got {level!r}")
        self.level = level

    def judge(self, before: Sequence[float], after: Sequence[float]) -> Verdict:
        """See Acceptance."""
        chance = sign_flip([b - a for a, b in zip(before, after, strict=True)])
        return Verdict(chance <= self.level, f"{_change(before, after)}, p = {chance:.3f}, level {self.level:g}")


class Repeats:
    """Runs every example ``repeats`` times and judges the means: for scores that differ from run to run."""

    gated = True

    def __init__(self, repeats: int = 3, judge: Acceptance | None = None) -> None:
        if repeats < 1:
            raise OptimizerError(f"repeats must be at least 1, got {repeats}")
        self.repeats = repeats
        self._judge: Acceptance = judge or Strict()

    def judge(self, before: Sequence[float], after: Sequence[float]) -> Verdict:
        """See Acceptance."""
        accept, why = self._judge.judge(before, after)
        return Verdict(accept, f"{why}, means of {self.repeats} runs")


class StepsPass:
    """Takes the steps of numeric optimizers unseen and gates all else by ``judge``: for a ``Mixed`` of both."""

    gated, steps_pass = True, True

    def __init__(self, judge: Acceptance | None = None) -> None:
        self._judge: Acceptance = judge or Strict()
        self.repeats = self._judge.repeats

    def judge(self, before: Sequence[float], after: Sequence[float]) -> Verdict:
        """See Acceptance."""
        return self._judge.judge(before, after)


class Always:
    """Accepts everything unseen: what numeric optimizers need, whose steps go on from each other."""

    repeats, gated = 1, False

    def judge(self, before: Sequence[float], after: Sequence[float]) -> Verdict:
        """See Acceptance."""
        return Verdict(True, "not gated")


def sign_flip(differences: Sequence[float]) -> float:
    """Probability that random signs give a sum at least as high as that of ``differences``."""
    found = [abs(d) for d in differences if d]
    total = math.fsum(differences)
    if not found:
        return 1.0
    if len(found) > 24:
        return 0.5 * math.erfc(total / math.sqrt(2 * math.fsum(d * d for d in found)))
    slack = 1e-9 * math.fsum(found)  # sums in another order differ in the last digits
    low, high = _sums(found[: len(found) // 2]), sorted(_sums(found[len(found) // 2 :]))
    count = sum(len(high) - bisect_left(high, total - slack - value) for value in low)
    return count / float(2 ** len(found))


def _sums(values: Sequence[float]) -> list[float]:
    sums = [0.0]
    for value in values:
        sums = [s + value for s in sums] + [s - value for s in sums]
    return sums


def _change(before: Sequence[float], after: Sequence[float]) -> str:
    return f"minibatch {mean(before):.3f} -> {mean(after):.3f}"


def mean(scores: Sequence[float]) -> float:
    """The mean; 0 for none."""
    return math.fsum(scores) / len(scores) if scores else 0.0
