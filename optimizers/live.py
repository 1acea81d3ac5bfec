"""A Study on the terminal while it runs: scores, budget by role, candidates in flight, why the last was rejected."""

from __future__ import annotations

import atexit
import time
from typing import TYPE_CHECKING, Any

from trace_core.optimizers.report.text import visible
from trace_core.values import elide

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    from trace_core.integrations.budget import Budget

_BAR = 24  # characters
_REASON = 300
_STAGES = {
    "gate": "by the minibatch",
    "validation": "by the validation examples",
    "guard": "by a guard",
    "empty": "without a usable proposal",
    "error": "by an error",
}


class StudyProgress:
    """Shows a Study while it runs. One of its callbacks: ``Study(..., callbacks=[StudyProgress(budget=budget)])``.

    On a terminal a few lines are kept up to date, and every new best stays above them. On anything else there is a line
    for each decision. The terminal is left clean when the run ends, also by Ctrl-C; ``with StudyProgress() as show``
    holds that for errors too, and shows from the beginning that something happens.

    Args:
        console: of rich; by default standard output.
        budget: shown by limit and by role.
        steps: tickets at most, if the study has such a limit.
    """

    def __init__(
        self, console: Console | None = None, *, budget: Budget | None = None, steps: int | None = None
    ) -> None:
        if console is None:
            from rich.console import Console

            console = Console()
        self.console, self.budget, self.steps = console, budget, steps
        self._live: Live | None = None
        self._began = time.monotonic()
        self._reset()

    def _reset(self) -> None:
        self._first: float | None = None
        self._best: tuple[str, float] | None = None
        self._kept = self._rejected = self._evaluated = self._failed = 0
        self._flight: dict[int, str] = {}  # ticket -> its parents
        self._last = ""
        self._ticket = 0

    def goes_on(self, first: float, best: str, score: float) -> None:
        """Say where a run that is resumed stands: the score of its first values; id and score of its best."""
        self._first, self._best = first, (best, score)
        self._say(f"goes on: score {first:.3f} -> {score:.3f}")

    # ---- taking events in

    def __call__(self, event: Any) -> None:
        """Take an event in."""
        take = getattr(self, f"_take_{type(event).__name__.lower()}", None)
        if take is not None:
            take(event)

    def _take_started(self, event: Any) -> None:
        self._first, self._best = event.score, ("0", event.score)
        self._start()
        self._say(f"start: score {event.score:.3f}")

    def _take_chosen(self, event: Any) -> None:
        self._start()
        self._flight[event.ticket] = " and ".join(event.parents)
        self._ticket = max(self._ticket, event.ticket)

    def _take_evaluated(self, event: Any) -> None:
        self._start()
        self._evaluated += 1
        self._failed += event.error is not None

    def _take_rejected(self, event: Any) -> None:
        self._rejected += 1
        self._flight.pop(event.ticket, None)
        name = event.candidate or f"ticket {event.ticket}"
        self._last = f"{name} {_STAGES.get(event.stage, event.stage)}: {_line(event.reason)}"
        self._say(f"rejected {self._last}", passing=True)

    def _take_accepted(self, event: Any) -> None:
        self._kept += 1
        self._flight.pop(event.ticket, None)
        self._say(f"accepted {event.candidate}: score {event.score:.3f}", passing=True)

    def _take_newbest(self, event: Any) -> None:
        self._best = event.candidate, event.score
        self._say(f"best so far {event.candidate}: score {event.before:.3f} -> {event.score:.3f}")

    def _take_ended(self, event: Any) -> None:
        self._flight.clear()
        self.close()
        score = "" if event.score is None else f", score {event.score:.3f}"
        self._say(f"ended: {_line(event.why)}{score}")
        self._reset()

    # ---- showing

    def _say(self, text: str, *, passing: bool = False) -> None:
        """A line that stays; what is ``passing`` only where nothing is kept up to date."""
        from rich.text import Text

        if not passing or not self.console.is_terminal:
            self.console.print(Text(text), soft_wrap=True)

    def _start(self) -> None:
        if self._live is not None or not self.console.is_terminal:
            return
        from rich.live import Live

        self._began = time.monotonic()
        self._live = Live(get_renderable=self._view, console=self.console, refresh_per_second=8, transient=True)
        self._live.start()
        atexit.register(self.close)  # a program that ends by an error shows its cursor again

    def close(self) -> None:
        """Take the moving lines away and give the cursor back. May be called at any time, and twice."""
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()
            atexit.unregister(self.close)

    def __enter__(self) -> StudyProgress:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _view(self) -> Group:
        from rich.console import Group

        return Group(*(part for part in (self._scores(), *self._limits(), self._roles(), self._tickets()) if part))

    def _scores(self) -> Text:
        from rich.text import Text

        seconds = int(time.monotonic() - self._began)
        text = Text(no_wrap=True, overflow="ellipsis").append(f"{seconds // 60}:{seconds % 60:02}  ", "dim")
        if self._best is None and not self._ticket:
            return text.append(f"measuring the first values: {self._evaluated:,} evaluations")
        if self._ticket:
            of = f" of {self.steps:,}" if self.steps is not None else ""
            text.append(f"step {self._ticket:,}{of}  ")
        if self._best is not None and self._first is not None:
            text.append("score ").append(f"{self._best[1]:.3f}", "bold green")
            text.append(f" ({self._best[1] - self._first:+.3f}) by candidate {self._best[0]}")
        failed = f", {self._failed} failed" if self._failed else ""
        text.append(f"  {self._kept} kept, {self._rejected} rejected, {self._evaluated:,} evaluations{failed}", "dim")
        return text

    def _limits(self) -> list[Text]:
        """A bar for each limit of the budget."""
        from rich.text import Text

        found = []
        for name, limit in self.budget.limits.items() if self.budget is not None else ():
            used = self.budget.elapsed if name == "seconds" else getattr(self.budget.spent, name)  # type: ignore[union-attr]
            share = min(1.0, used / limit) if limit else 1.0
            full = round(share * _BAR)
            text = Text(f"{name.replace('_', ' '):<13}", no_wrap=True, overflow="ellipsis")
            text.append("━" * full, "cyan")
            text.append("━" * (_BAR - full), "dim")
            text.append(f" {used:,.6g} of {limit:,.6g}")
            found.append(text)
        return found

    def _roles(self) -> Text | None:
        from rich.text import Text

        if self.budget is None or not self.budget.by_role:
            return None
        parts = []
        for role, cost in self.budget.by_role.items():
            usd = f" ${cost.usd:.4f}" if cost.usd else ""
            calls = f" {cost.calls} calls, {cost.tokens:,} tokens" if cost.calls else ""
            metric = f" {cost.metric_calls:,} metric calls" if cost.metric_calls else ""
            parts.append(f"{role or 'other'}:{calls}{',' if calls and metric else ''}{metric}{usd}")
        return Text("  ".join(parts), style="dim", no_wrap=True, overflow="ellipsis")

    def _tickets(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        if not self._ticket and not self._last:
            return Group()
        flight = "; ".join(f"{ticket} from {_line(parents)}" for ticket, parents in self._flight.items())
        lines = [Text(f"in flight: {len(self._flight)}  {flight}", no_wrap=True, overflow="ellipsis")]
        if self._last:
            lines.append(Text(f"last rejected: {self._last}", style="yellow", no_wrap=True, overflow="ellipsis"))
        return Group(*lines)


def _line(text: str) -> str:
    """On one line, without anything that a terminal would act on: the words are a language model's."""
    return visible(elide(" ".join(str(text).split()), _REASON))
