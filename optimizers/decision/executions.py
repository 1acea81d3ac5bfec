"""Running the second stage: counted, checked, remembered."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trace_core._values import is_tensor
from trace_core.context import using
from trace_core.node import ExceptionNode, Node, unwrap
from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.checks import count
from trace_core.nodes.decision.errors import BadOutcome, Infeasible, InvalidProblem, NoisySecondStage, RejectedRecords
from trace_core.optimizers.decision.program import Observation, Program, context_of, parameters_behind
from trace_core.optimizers.decision.recorded import value_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trace_core.nodes.decision.checks import Array
    from trace_core.optimizers.decision.problem import RobustProblem
    from trace_core.parameter import Parameter


@dataclass(frozen=True)
class Record:
    """One execution: ``value`` is minimised and infinite where no reaction was possible."""

    x: Array
    xi: Array
    value: float
    seconds: float = 0.0
    seen: Observation | None = None  # the nodes of a traced second stage
    context: str = ""  # keys of the trainable parameters that the run read, beside the decisions, with their values

    def data(self) -> dict[str, Any]:
        """Plain data."""
        value = self.value if math.isfinite(self.value) else None
        data = {"x": self.x.tolist(), "xi": self.xi.tolist(), "value": value, "seconds": self.seconds}
        return data | {"context": self.context} | ({} if self.seen is None else {"nodes": self.seen.data()})


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
        self.program: Program | None = None  # of a traced second stage, from its first run on
        self._seen: Observation | None = None
        self._read: str | None = None
        self._parameters: list[Parameter] = []  # that any run read
        self._before = ""  # context of an earlier process, until a run shows what is read
        self._diverged: list[str] = []  # in an earlier process

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
        self._seen = self._read = None
        values = [self._once(x, xi) for _ in range(self.replicates)]
        return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.inf

    def _once(self, x: Array, xi: Array) -> float:
        problem = self.problem
        function = problem.second_stage
        if function is None:
            raise InvalidProblem("second_stage", "is missing: there is nothing to execute")
        self.count += 1
        scenario = Node(xi.copy(), name=problem.uncertainty.name)
        try:
            with using(problem.split(x)):
                given = function(*problem.decisions, scenario)
            value = self.cost(given, x, xi)
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
        self.observe(given, scenario)
        return value

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

    def observe(self, given: Any, scenario: Node) -> None:
        """Look at the graph of a run that is to be remembered. Of a mean of several only what it read is of use."""
        self._seen = self._read = None
        if not isinstance(given, Node):
            return
        self._parameters += [p for p in parameters_behind(given, self.problem) if p not in self._parameters]
        self._read = " ".join(context_of(given, self.problem))
        if isinstance(given, ExceptionNode) or self.replicates > 1:
            return
        if self.program is None or self.program.stale():
            diverged = self._diverged if self.program is None else self.program.diverged
            self.program = Program(self.problem, given, scenario, diverged)
        self._seen = self.program.observe(given, scenario)

    @property
    def context(self) -> str:
        """Keys of all trainable parameters that the second stage is known to read, with their present values."""
        if not self._parameters:
            return self._before
        return " ".join(sorted(value_key(each, each.value) for each in self._parameters))

    def add(self, x: Array, xi: Array, value: float, seconds: float = 0.0) -> Record:
        """Remember what was executed."""
        context = self.context if self._read is None else self._read
        record = Record(x.copy(), xi.copy(), value, seconds, self._seen, context)
        self._seen = self._read = None
        self._keep(record)
        return record

    def _keep(self, record: Record) -> None:
        self.records.append(record)
        self._known[self.key(record.x, record.xi)] = record

    @property
    def keys(self) -> dict[str, str]:
        """The context key of each opaque node at its latest run."""
        return {name: key for r in self.records if r.seen is not None for name, key in r.seen.keys.items()}

    def current(self) -> list[Record]:
        """The records whose values hold for the workflow as it is now: all that they read has the same value."""
        context = self.context
        now = set(context.split())
        return [r for r in self.records if r.context == context or now.issuperset(r.context.split())]

    def renew(self) -> bool:
        """Look which records hold now; whether others did before. Old ones are no answers, but nodes learn of them."""
        known = {self.key(record.x, record.xi): record for record in self.current()}
        changed = known.keys() != self._known.keys() or any(known[key] is not self._known[key] for key in known)
        self._known = known
        return changed

    def check_noise(self) -> None:
        """Run three inputs again; warns with NoisySecondStage if a value differs."""
        for record in self.current()[:3]:
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
                seen = Observation.of(data["nodes"]) if "nodes" in data else None
                seconds = float(data.get("seconds", 0.0))
                self._keep(Record(self.problem.repaired(x), xi, value, seconds, seen, str(data.get("context", ""))))
            else:
                self.rejected += 1
        self.renew()
        if given and self.rejected == len(given):
            raise InvalidProblem("records", "holds no execution that lies within the decisions and the uncertainty set")
        if self.rejected > 0.1 * len(given):
            warnings.warn(
                f"{self.rejected} of {len(given)} records lie outside of the problem", RejectedRecords, stacklevel=3
            )

    def state(self) -> dict[str, Any]:
        """Plain data."""
        counts = {"count": self.count, "rejected": self.rejected, "failed": self.failed, "noisy": self.noisy}
        diverged = self._diverged if self.program is None else self.program.diverged
        records = [record.data() for record in self.records]
        return {"records": records, "context": self.context, "diverged": list(diverged)} | counts

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        self.records, self._known, self._before = [], {}, str(state["context"])
        self._parameters = []
        self.program, self._diverged = None, [str(name) for name in state["diverged"]]
        self.load(state["records"])
        self.count, self.rejected, self.failed = (int(state[name]) for name in ("count", "rejected", "failed"))
        self.noisy = bool(state["noisy"])

    def _belongs(self, x: Array, xi: Array) -> bool:
        if x.shape != (self.problem.size,) or xi.shape != (self.problem.uncertainty.size,):
            return False
        return self.problem.allows(x) and bool(np.isfinite(xi).all()) and self.problem.uncertainty.contains(xi)
