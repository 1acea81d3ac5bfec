"""What a study found."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trace_core.optimizers.search.candidate import Candidate
    from trace_core.optimizers.search.events import Event


class StudyResult:
    """What a study found so far.

    Attributes:
        best: the best candidate; None if not even the seed was validated.
        seed: the candidate it began with.
        candidates: all that were tried, in order.
        steps: tickets decided.
        evaluations: examples run for decided tickets and the first validation.
        stopped: why it ended: ``steps``, ``seconds``, ``patience``, ``perfect``, ``budget``, ``stalled`` (nothing was
            left to evaluate), ``stopped``, ``interrupted`` or ``error``; ``why`` says more where there is more to say.
        error: the error that ended it, if one did.
        failures: error text -> how many outputs failed with it.
        test_score, test_start: of the best candidate and of the seed on the test examples; None without any.
        seconds: of work.
    """

    def __init__(self) -> None:
        self.best: Candidate | None = None
        self.seed: Candidate | None = None
        self.candidates: list[Candidate] = []
        self.steps = self.evaluations = 0
        self.stopped, self.why = "", ""
        self.error: BaseException | None = None
        self.failures: dict[str, int] = {}
        self.test_score: float | None = None
        self.test_start: float | None = None
        self._events: list[tuple[float, Event]] = []
        self.seconds = 0.0

    @property
    def history(self) -> list[Event]:
        """Every event except those of single examples, ticket by ticket."""
        return [event for _, event in sorted(self._events, key=itemgetter(0))]

    def note(self, *events: Event) -> None:
        """Append to the history."""
        self._events += [(step_of(event), event) for event in events]

    def forget(self, decided: int) -> None:
        """Drop what was said of tickets that are not decided: it will be said again."""
        self._events = [item for item in self._events if item[0] <= decided]

    @property
    def score(self) -> float | None:
        """Mean of the best on the validation examples."""
        return self.best.score if self.best is not None else None

    @property
    def start_score(self) -> float | None:
        """Mean of the seed on the validation examples."""
        return self.seed.score if self.seed is not None else None

    @property
    def changed(self) -> dict[str, tuple[Any, Any]]:
        """name -> (first value, best value), for those that differ."""
        from trace_core.values import same_value

        if self.best is None or self.seed is None:
            return {}
        first = self.seed.values
        return {n: (first[n], value) for n, value in self.best.values.items() if not same_value(first[n], value)}

    def __repr__(self) -> str:
        scores = "" if self.score is None else f"{self.start_score:.3f} -> {self.score:.3f}, "
        return f"StudyResult({scores}{self.steps} tickets, {self.evaluations} evaluations, stopped: {self.stopped})"


def step_of(event: Event) -> float:
    """The ticket that an event is about; 0 for the start, infinity for the end."""
    return float(getattr(event, "ticket", 0 if event.kind == "started" else "inf"))
