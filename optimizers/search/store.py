"""The run of a study in a ledger: opened for as long as the study runs."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from trace_core.integrations.store.drift import fingerprint
from trace_core.integrations.store.interrupts import interruptible
from trace_core.integrations.store.ledger import Ledger
from trace_core.integrations.store.run import Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from os import PathLike


class Store:
    """Where a study is kept.

    Args:
        place: path of a ledger, an open Ledger, or a Run.
        resume: a run to go on with; None for a new one.
        on_drift: see ``Run.resume``.
        name: of a new run.
    """

    def __init__(self, place: str | PathLike[str] | Ledger | Run, resume: str | None, on_drift: str, name: str) -> None:
        self.place, self.resume, self.on_drift, self.name = place, resume, on_drift, name
        self.run_id: str | None = place.id if isinstance(place, Run) else None

    @contextlib.contextmanager
    def opened(self, parts: Mapping[str, Any]) -> Iterator[Run]:
        """The run; its first opening makes it or takes it up, later ones go on with the same."""
        with contextlib.ExitStack() as open_:
            if isinstance(self.place, Run):
                run = self.place
            else:
                place = self.place
                ledger = place if isinstance(place, Ledger) else open_.enter_context(Ledger.open(place))
                run = self._run(ledger, parts)
                self.run_id = run.id
            open_.enter_context(interruptible(run.ledger))
            yield run

    def _run(self, ledger: Ledger, parts: Mapping[str, Any]) -> Run:
        if self.run_id is not None:
            return Run(ledger, self.run_id)
        found = fingerprint(code=parts["code"], data=parts["data"], config=parts["config"])
        if self.resume is not None:
            return ledger.resume(self.resume, fingerprint=found, on_drift=self.on_drift)
        return ledger.new_run(self.name, fingerprint=found, config={"kind": "study", **parts["config"]})


def name_of(workflow: Any) -> str:
    """A short name for what is optimized."""
    found = getattr(workflow, "__name__", None) or type(workflow).__name__
    return str(found)
