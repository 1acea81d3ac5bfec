"""The ledger: one SQLite file from which a run that was killed goes on. Loaded lazily."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trace_core.integrations.store.drift import fingerprint as fingerprint
    from trace_core.integrations.store.errors import Drift as Drift
    from trace_core.integrations.store.errors import LedgerBusy as LedgerBusy
    from trace_core.integrations.store.errors import LedgerDamaged as LedgerDamaged
    from trace_core.integrations.store.errors import LedgerFull as LedgerFull
    from trace_core.integrations.store.errors import LedgerReadOnly as LedgerReadOnly
    from trace_core.integrations.store.errors import RunNotFound as RunNotFound
    from trace_core.integrations.store.errors import SchemaTooNew as SchemaTooNew
    from trace_core.integrations.store.errors import StoreError as StoreError
    from trace_core.integrations.store.interrupts import Interrupted as Interrupted
    from trace_core.integrations.store.interrupts import interruptible as interruptible
    from trace_core.integrations.store.ledger import CallRow as CallRow
    from trace_core.integrations.store.ledger import Ledger as Ledger
    from trace_core.integrations.store.rows import CandidateRow as CandidateRow
    from trace_core.integrations.store.rows import EvaluationRow as EvaluationRow
    from trace_core.integrations.store.rows import EventRow as EventRow
    from trace_core.integrations.store.rows import RunRow as RunRow
    from trace_core.integrations.store.rows import StepRow as StepRow
    from trace_core.integrations.store.run import Run as Run
    from trace_core.integrations.store.run import all_runs as all_runs

_HOME = {
    "errors": (
        "Drift",
        "LedgerBusy",
        "LedgerDamaged",
        "LedgerFull",
        "LedgerReadOnly",
        "RunNotFound",
        "SchemaTooNew",
        "StoreError",
    ),
    "drift": ("fingerprint",),
    "interrupts": ("Interrupted", "interruptible"),
    "ledger": ("CallRow", "Ledger"),
    "rows": ("CandidateRow", "EvaluationRow", "EventRow", "RunRow", "StepRow"),
    "run": ("Run", "all_runs"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
