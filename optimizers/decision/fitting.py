"""The surrogate of a learned run over time: one network, or from the moment a trace shows a structure, one per node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core.optimizers.decision.structured import StructuredSurrogate
from trace_core.optimizers.decision.surrogate import Surrogate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trace_core.nodes.decision.checks import Array
    from trace_core.optimizers.decision.executions import Executions
    from trace_core.optimizers.decision.problem import RobustProblem


class Fitting:
    """Fits what the executions so far allow.

    Attributes:
        surrogate: the present one.
        at: how many records there were at the last fit.
    """

    def __init__(self, problem: RobustProblem, executions: Executions, *, hidden: int, members: int, seed: int) -> None:
        self.problem, self.executions = problem, executions
        self._whole = {"hidden": hidden, "members": members, "seed": seed}
        self._small = {"hidden": min(hidden, 12), "members": min(members, 2), "seed": seed}
        self.surrogate: Surrogate = Surrogate(problem, **self._whole)
        self.at = 0
        self._saved: Mapping[str, Any] | None = None  # a structured surrogate, until a run shows the structure again

    def fit(self, epochs: int, near: Array | None) -> Surrogate:
        """Train on; executions near the decision ``near`` count more."""
        self.at = len(self.executions.records)
        program, binary = self.executions.program, self.problem.binary
        if program is not None and not program.trivial:
            if not isinstance(self.surrogate, StructuredSurrogate):
                self.surrogate = StructuredSurrogate(self.problem, program, **self._small)
            self.surrogate.program, self.surrogate.current = program, self.executions.keys
            self.surrogate.fit(self.executions.records, epochs=epochs, near=near, binary=binary)
            return self.surrogate
        if isinstance(self.surrogate, StructuredSurrogate):  # runs differed so much that nothing is left of it
            self.surrogate = Surrogate(self.problem, **self._whole)
            epochs = 300
        self.surrogate.fit(self.executions.current(), epochs=epochs, near=near, binary=binary)
        return self.surrogate

    def state(self) -> dict[str, Any]:
        """Plain data."""
        if self._saved is not None:
            return {"structured": True, "at": self.at, "surrogate": self._saved}
        structured = isinstance(self.surrogate, StructuredSurrogate)
        return {"structured": structured, "at": self.at, "surrogate": self.surrogate.state()}

    def restore(self, state: Mapping[str, Any]) -> Surrogate:
        """Go on from ``state``; a structured surrogate is there after ``revive``."""
        self.at = int(state["at"])
        self._saved = state["surrogate"] if state["structured"] else None
        self.surrogate = Surrogate(self.problem, **self._whole)
        if self._saved is None:
            self.surrogate.restore(state["surrogate"])
        return self.surrogate

    def revive(self) -> Surrogate:
        """The structured surrogate of ``restore``, once a run has shown the structure; else the present one."""
        saved, program = self._saved, self.executions.program
        if saved is not None and program is not None:
            self._saved = None
            if not program.trivial:
                surrogate = StructuredSurrogate(self.problem, program, **self._small)
                surrogate.current = self.executions.keys
                surrogate.restore(saved)
                self.surrogate = surrogate
        return self.surrogate
