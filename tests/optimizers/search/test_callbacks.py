"""What a study does with its callbacks when it ends."""

from __future__ import annotations

import pytest
from study_problems import Shift, closeness, offsets

from trace_core.optimizers import OptoPrime, Study
from trace_core.optimizers.search import Event


class Watching:
    def __init__(self, fails: bool = False) -> None:
        self.fails, self.open, self.closed = fails, False, 0

    def __call__(self, event: Event) -> None:
        self.open = True
        if self.fails and event.kind == "accepted":
            raise RuntimeError("a callback of mine")

    def close(self) -> None:
        self.open, self.closed = False, self.closed + 1


def study(*callbacks: Watching) -> Study:
    workflow = Shift()
    return Study(
        workflow, closeness, range(4), optimizer=OptoPrime(workflow, offsets(1, 2)), steps=2, callbacks=callbacks
    )


def test_callbacks_are_closed_when_the_run_ends() -> None:
    watching = Watching()
    heard: list[str] = []
    made = study(watching)
    made.callbacks.append(lambda event: heard.append(event.kind))  # one without close()
    made.run()
    assert (watching.open, watching.closed, heard[-1]) == (False, 1, "ended")


def test_callbacks_are_closed_when_an_error_escapes() -> None:
    other, failing = Watching(), Watching(fails=True)
    with pytest.raises(RuntimeError, match="a callback of mine"):
        study(other, failing).run()
    assert (other.open, other.closed, failing.closed) == (False, 1, 1)
