"""Progress of a study: what it says, that a terminal is left clean, that nothing a model wrote acts on it."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import sys
from pathlib import Path

import pytest
from rich.console import Console
from study_problems import Numbers, Shift, by_hash, closeness, nearness, offsets

from trace_core.integrations.budget import Budget
from trace_core.optimizers import OptoPrime, Search, Study
from trace_core.optimizers.live import StudyProgress
from trace_core.optimizers.search import Chosen, Ended, Evaluated, Rejected, Started

HERE = Path(__file__).parent


def test_without_a_terminal_there_is_a_line_for_each_decision() -> None:
    out = io.StringIO()
    workflow, budget = Shift(), Budget(metric_calls=100)
    progress = StudyProgress(Console(file=out, width=60), budget=budget)
    optimizer = OptoPrime(workflow, offsets(1, -4, 3))
    Study(workflow, closeness, list(range(8)), optimizer=optimizer, steps=5, budget=budget, callbacks=[progress]).run()
    assert out.getvalue().splitlines() == [
        "start: score 0.700",
        "accepted 1.0: score 0.800",
        "best so far 1.0: score 0.700 -> 0.800",
        "rejected 2.0 by the minibatch: minibatch 0.800 -> 0.300",
        "accepted 3.0: score 1.000",
        "best so far 3.0: score 0.800 -> 1.000",
        "ended: perfect, score 1.000",
    ]


def test_words_of_a_model_do_not_act_on_the_terminal() -> None:
    out = io.StringIO()
    with StudyProgress(Console(file=out, width=200, force_terminal=True)) as progress:
        progress(Started(0.5))
        progress(Rejected(1, "1.0", "guard", "\x1b]0;title\x07[bold]no[/bold]\x1b[2J\u202eevil\r\nthere", 0.5, 0.4))
        progress._live.refresh()  # type: ignore[union-attr]
    text = out.getvalue()
    assert "⟨U+001B⟩]0;title⟨U+0007⟩[bold]no[/bold]⟨U+001B⟩[2J⟨U+202E⟩evil" in text
    assert "\x1b]0;" not in text
    assert "\x1b[2J" not in text


def test_a_second_study_starts_from_nothing() -> None:
    out = io.StringIO()
    progress = StudyProgress(Console(file=out))
    for score in (0.5, 0.25):
        progress(Started(score))
        progress(Ended("steps", score))
    assert out.getvalue().splitlines()[2:] == ["start: score 0.250", "ended: steps, score 0.250"]


def test_something_is_shown_before_the_first_values_are_measured_and_when_a_run_goes_on() -> None:
    out = io.StringIO()
    with StudyProgress(Console(file=out, width=200, force_terminal=True), steps=9) as progress:
        progress(Evaluated("0", "val 0", 0.5))
        progress._live.refresh()  # type: ignore[union-attr]
        assert "measuring the first values: 1 evaluations" in _plain(out)
        progress.goes_on(0.5, "3.0", 0.75)
        progress(Chosen(4, ("3.0",), (0, 1)))
        progress._live.refresh()  # type: ignore[union-attr]
    assert "goes on: score 0.500 -> 0.750" in _plain(out)
    assert "step 4 of 9  score 0.750 (+0.250) by candidate 3.0" in _plain(out)


def _plain(out: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())


PROGRAM = """
import sys, threading
sys.path.insert(0, sys.argv[1])
from study_problems import Numbers, by_hash, nearness
from trace_core.integrations.budget import Budget
from trace_core.optimizers import OptoPrime, Study
from trace_core.optimizers.live import StudyProgress

workflow, budget = Numbers(), Budget(metric_calls=300)
progress = StudyProgress(budget=budget)

def hold(event):  # shows what there is, then waits to be interrupted
    if event.kind == "chosen" and event.ticket == 12:
        progress._live.refresh()
        threading.Event().wait()

optimizer = OptoPrime(workflow, by_hash())
study = Study(workflow, nearness, list(range(9)), optimizer=optimizer, budget=budget, callbacks=[progress, hold])
if sys.argv[2] == "error":
    study.callbacks[1] = lambda event: 1 / 0 if event.kind == "rejected" else None
result = study.run()
print("still here:", result.stopped)
"""


def _on_a_terminal(how: str) -> tuple[str, int]:
    """(everything on the terminal, exit status) of the program above; interrupted with Ctrl-C when it holds."""
    child, terminal = pty.fork()
    if child == 0:  # pragma: no cover - another process
        os.environ.update(TERM="xterm-256color", COLUMNS="110", LINES="30")
        os.execv(sys.executable, [sys.executable, "-c", PROGRAM, str(HERE / "search"), how])
    seen, sent = b"", False
    while True:
        assert select.select([terminal], [], [], 60)[0], f"the program is silent: {seen!r}"
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not data:
            break
        seen += data
        if not sent and b"in flight: 1  12" in seen:
            os.write(terminal, b"\x03")
            sent = True
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    return seen.decode(), os.waitstatus_to_exitcode(status)


@pytest.mark.slow
def test_on_a_terminal_it_shows_how_things_stand_and_ctrl_c_leaves_it_clean() -> None:
    seen, status = _on_a_terminal("interrupt")
    for part in (
        "score ",
        " by candidate ",
        "metric calls",
        " of 300",
        "workflow:",
        "in flight: 1  12",
        "last rejected:",
    ):
        assert part in seen, part
    assert status == 0
    assert "ended: interrupted, score" in seen
    assert seen.rstrip().endswith("still here: interrupted")
    assert seen.rfind("\x1b[?25h") > seen.rfind("\x1b[?25l") >= 0  # the cursor is shown again
    after = seen[seen.rfind("\x1b[?25h") :]
    assert "in flight" not in after
    assert "\x1b[2K" in seen  # the moving lines were taken away


@pytest.mark.slow
def test_an_error_of_the_program_gives_the_cursor_back() -> None:
    seen, status = _on_a_terminal("error")
    assert status == 1
    assert "ZeroDivisionError" in seen
    assert seen.rfind("\x1b[?25h") > seen.rfind("\x1b[?25l") >= 0


def test_many_tickets_in_flight_are_told_apart() -> None:
    out = io.StringIO()
    workflow, budget = Numbers(), Budget(metric_calls=120)
    progress = StudyProgress(Console(file=out, width=200, force_terminal=True), budget=budget)
    flights: list[int] = []
    study = Study(
        workflow,
        nearness,
        list(range(9)),
        optimizer=OptoPrime(workflow, by_hash()),
        search=Search(in_flight=4),
        budget=budget,
        callbacks=[progress, lambda event: flights.append(len(progress._flight))],
    )
    study.run()
    assert max(flights) == 4
    assert flights[-1] == 0
    assert "best so far" in out.getvalue()
