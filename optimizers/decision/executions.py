"""Running the second stage: counted, checked, remembered."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trace_core._values import is_tensor
from trace_core.context import using
from trace_core.node import Node, unwrap
from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.checks import count
from trace_core.nodes.decision.errors import BadOutcome, Infeasible, InvalidProblem, NoisySecondStage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trace_core.nodes.decision.checks import Array
    from trace_core.optimizers.decision.problem import RobustProblem


@dataclass(frozen=True)
class Record:
    """One execution: ``value`` is minimised and infinite where no reaction was possible."""

    x: Array
    xi: Array
    value: float
    seconds: float = 0.0

    def data(self) -> dict[str, Any]:
        """Plain data."""
        value = self.value if math.isfinite(self.value) else None
        return {"x": self.x.tolist(), "xi": self.xi.tolist(), "value": value, "seconds": self.seconds}


class Executions:
    """The second stage as a table of executions.

    Args:
        on_error: ``"raise"``: an exception of the second stage ends the run as BadOutcome; ``"infeasible"``: it counts
            as no possible reaction. ``Infeasible`` and an infinite cost always do.
        replicates: how often each input is run; the mean counts. For a second stage with noise.
    """

    def __init__(
        self, problem: RobustProblem, *, on_error: Literal["raise", "infeasible"] = "raise", replicates: int = 1
    ) -> None:
        if on_error not in ("raise", "infeasible"):
            raise InvalidProblem("on_error", f"must be 'raise' or 'infeasible', got {on_error!r}", value=on_error)
        self.problem, self.on_error, self.replicates = problem, on_error, count("replicates", replicates)
        self.records: list[Record] = []
        self.count = self.rejected = self.failed = 0
        self.noisy = False
        self._known: dict[bytes, Record] = {}

    @staticmethod
    def key(x: Array, xi: Array) -> bytes:
        """What is one input."""
        return x.tobytes() + xi.tobytes()

    def known(self, x: Array, xi: Array) -> Record | None:
        """The record of an input that was run."""
        return self._known.get(self.key(x, xi))

    def run(self, x: Array, xi: Array) -> Record:
        """Execute (or look up) one input. Raises BadOutcome."""
        found = self.known(x, xi)
        return found if found is not None else self.add(x, xi, self.execute(x, xi))

    def execute(self, x: Array, xi: Array) -> float:
        """The cost, minimised; infinite if no reaction is possible. Counts; not remembered. Raises BadOutcome."""
        values = [self._once(x, xi) for _ in range(self.replicates)]
        return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.inf

    def _once(self, x: Array, xi: Array) -> float:
        problem = self.problem
        function = problem.second_stage
        if function is None:
            raise InvalidProblem("second_stage", "is missing: there is nothing to execute")
        self.count += 1
        try:
            with using(problem.split(x)):
                given = function(*problem.decisions, Node(xi.copy(), name=problem.uncertainty.name))
            return self.cost(given, x, xi)
        except Infeasible:
            self.failed += 1
            return math.inf
        except BadOutcome:
            raise
        except Exception as error:
            if self.on_error == "infeasible":
                self.failed += 1
                return math.inf
            raise BadOutcome(f"raised {type(error).__name__}: {error}", x, xi, error) from error

    def cost(self, given: Any, x: Array, xi: Array) -> float:
        """A result of the second stage as a number to be minimised. Raises BadOutcome."""
        plain = unwrap(given)[0]
        if is_tensor(plain):
            plain = plain.detach().cpu().numpy()
        try:
            number = np.asarray(plain)
        except (TypeError, ValueError) as error:
            raise BadOutcome(f"gave {plain!r:.60}, expected one number", x, xi, plain) from error
        if number.dtype.kind not in "iuf" or number.size != 1:
            raise BadOutcome(f"gave {plain!r:.60}, expected one number", x, xi, plain)
        value = float(number.reshape(())) * self.problem.sign
        if math.isnan(value) or value == -math.inf:
            raise BadOutcome(f"gave {float(number.reshape(()))}, expected a finite number", x, xi, plain)
        if value == math.inf:
            self.failed += 1
        return value

    def add(self, x: Array, xi: Array, value: float, seconds: float = 0.0) -> Record:
        """Remember what was executed."""
        record = Record(x.copy(), xi.copy(), value, seconds)
        self.records.append(record)
        self._known[self.key(x, xi)] = record
        return record

    def check_noise(self) -> None:
        """Run three inputs again; warns with NoisySecondStage if a value differs."""
        for record in self.records[:3]:
            again = self.execute(record.x, record.xi)
            same = again == record.value or abs(again - record.value) <= 1e-9 * max(1.0, abs(record.value))
            if not same and not self.noisy:
                self.noisy = True
                warnings.warn(
                    f"the second stage gave {record.value * self.problem.sign:g} and {again * self.problem.sign:g} for "
                    "the same input; replicates=k takes the mean of k runs",
                    NoisySecondStage,
                    stacklevel=4,
                )

    def load(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take over records of earlier runs (see ``Record.data``), minimised values.

        Those outside of the decisions or the uncertainty set are rejected and counted; more than a tenth warns. Raises
        InvalidProblem if none fits, or one is damaged.
        """
        if isinstance(records, str | bytes) or not hasattr(records, "__iter__"):
            raise InvalidProblem("records", f"must be a list of executions, got {records!r:.80}", value=records)
        given = list(records)
        for data in given:
            try:
                x, xi = np.array(data["x"], dtype=np.float64), np.array(data["xi"], dtype=np.float64)
                value = math.inf if data["value"] is None else float(data["value"])
            except (KeyError, TypeError, ValueError) as error:
                raise InvalidProblem("records", f"holds what is no execution: {data!r:.120}", value=data) from error
            if self._belongs(x, xi) and not math.isnan(value):
                self.add(self.problem.repaired(x), xi, value, float(data.get("seconds", 0.0)))
            else:
                self.rejected += 1
        if given and self.rejected == len(given):
            raise InvalidProblem("records", "holds no execution that lies within the decisions and the uncertainty set")
        if self.rejected > 0.1 * len(given):
            warnings.warn(f"{self.rejected} of {len(given)} records lie outside of the problem", stacklevel=3)

    def _belongs(self, x: Array, xi: Array) -> bool:
        if x.shape != (self.problem.size,) or xi.shape != (self.problem.uncertainty.size,):
            return False
        return self.problem.allows(x) and bool(np.isfinite(xi).all()) and self.problem.uncertainty.contains(xi)
