"""Decisions: vectors with bounds and linear constraints, as parameters that optimizers may change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trace_core.errors import ParameterError
from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.checks import Array, Mask, array, count, number, ordered, spread
from trace_core.nodes.decision.errors import DecisionError, InfeasibleFirstStage, InvalidProblem
from trace_core.nodes.decision.milp import Model
from trace_core.parameter import Parameter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trace_core.nodes.decision.milp import Columns

TOLERANCE = 1e-6  # how far a solver's solution may be off an integer, a bound, or (relative to its size) a row


@dataclass(frozen=True)
class Linear:
    """A linear constraint: ``weights . x  sense  right``.

    Attributes:
        weights: one finite number per entry of the decision.
        sense: ``"<="``, ``">="`` or ``"=="``.
        right: the right-hand side.
        name: how messages call it.
    """

    weights: Any
    sense: Literal["<=", ">=", "=="]
    right: float
    name: str | None = None

    def text(self) -> str:
        """For messages."""
        return self.name or f"weights . x {self.sense} {float(self.right):g}"


class DecisionRule:
    """What a decision may be: bounds, integrality, linear rows ``row_low <= matrix @ x <= row_high``."""

    def __init__(self, field: str, low: Array, high: Array, integer: Mask, constraints: Sequence[Linear]) -> None:
        self.field, self.low, self.high, self.integer = field, low, high, integer
        self.size = len(low)
        if isinstance(constraints, Linear):
            raise InvalidProblem(
                f"{field}: constraints", "must be a list of Linear, got a single one", value=constraints
            )
        self.constraints = tuple(constraints)
        self.matrix = np.zeros((len(self.constraints), self.size))
        self.row_low = np.full(len(self.constraints), -np.inf)
        self.row_high = np.full(len(self.constraints), np.inf)
        for k, each in enumerate(self.constraints):
            where = f"{field}: constraint {k}"
            if not isinstance(each, Linear):
                raise InvalidProblem(where, f"must be a Linear, got {type(each).__name__}", value=each)
            if each.sense not in ("<=", ">=", "=="):
                raise InvalidProblem(
                    f"{where}: sense", f"must be '<=', '>=' or '==', got {each.sense!r}", value=each.sense
                )
            self.matrix[k] = array(f"{where}: weights", each.weights, (self.size,))
            right = number(f"{where}: right", each.right)
            if each.sense != ">=":
                self.row_high[k] = right
            if each.sense != "<=":
                self.row_low[k] = right

    def check(self, value: Any) -> Any:
        """See Constraint. Integers come back as int64, anything else as float64."""
        try:
            given = np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
            numbers = given.astype(np.float64) if given.dtype.kind in "biuf" else None
        except (TypeError, ValueError):
            numbers = None
        if numbers is None or numbers.shape != (self.size,) or not np.isfinite(numbers).all():
            raise ParameterError(f"expected {self.describe()}, got {type(value).__name__}: {value!r:.120}")
        return self.stored(self._repaired(numbers))

    def _repaired(self, numbers: Array) -> Array:
        """Rounded and clipped by no more than the tolerance. Raises ParameterError naming the entry or the row."""
        repaired = np.where(self.integer, np.round(numbers), numbers)
        repaired = np.clip(repaired, self.low, self.high)
        off = np.abs(repaired - numbers) > TOLERANCE * np.maximum(1.0, np.abs(numbers))
        if off.any():
            index = int(np.argmax(off))
            raise ParameterError(
                f"expected {'an integer' if self.integer[index] else 'a number'} from {self.low[index]:g} to "
                f"{self.high[index]:g} at [{index}], got {float(numbers[index])!r}"
            )
        rows = self.matrix @ repaired
        slack = TOLERANCE * np.maximum(1.0, np.abs(self.matrix) @ np.abs(repaired))
        broken = (rows < self.row_low - slack) | (rows > self.row_high + slack)
        if broken.any():
            index = int(np.argmax(broken))
            raise ParameterError(f"expected {self.constraints[index].text()}, got weights . x = {rows[index]:g}")
        return repaired

    def allowed(self, rows: Array) -> Array:
        """Which rows ``check`` would accept, all of them at once."""
        repaired = np.clip(np.where(self.integer, np.round(rows), rows), self.low, self.high)
        near = (np.abs(repaired - rows) <= TOLERANCE * np.maximum(1.0, np.abs(rows))).all(axis=1)
        left = repaired @ self.matrix.T
        slack = TOLERANCE * np.maximum(1.0, np.abs(repaired) @ np.abs(self.matrix).T)
        kept: Array = near & ((left >= self.row_low - slack) & (left <= self.row_high + slack)).all(axis=1)
        return kept

    def stored(self, numbers: Array) -> Any:
        """In the type in which values are kept."""
        return np.round(numbers).astype(np.int64) if bool(self.integer.all()) else numbers

    def describe(self) -> str:
        """See Constraint."""
        kind = "integers" if bool(self.integer.all()) else "numbers"
        if (self.low == self.low[0]).all() and (self.high == self.high[0]).all():
            bounds = f"each from {self.low[0]:g} to {self.high[0]:g}"
        else:
            bounds = f"from {self.low.tolist()!r:.60} to {self.high.tolist()!r:.60}"
        rows = f", with {len(self.constraints)} linear constraints" if self.constraints else ""
        return f"a vector of {self.size} {kind}, {bounds}{rows}"

    def annotation(self) -> Any:
        """See Constraint."""
        return list[int] if bool(self.integer.all()) else list[float]

    # ---- as part of a model

    def add_to(self, model: Model, cost: Any = 0.0) -> Columns:
        """Columns and rows of this decision in a model."""
        columns = model.add_columns(self.size, self.low, self.high, integer=self.integer, cost=cost)
        if self.constraints:
            model.add_rows([(columns, self.matrix)], self.row_low, self.row_high)
        return columns

    def some_value(self) -> Array:
        """A decision that is allowed, the lower bounds if they are. Raises InfeasibleFirstStage naming a conflict."""
        first = self.low.copy()
        try:
            return self._repaired(first)
        except ParameterError:
            pass
        found = self._feasible(range(len(self.constraints)))
        if found is None:
            raise InfeasibleFirstStage([f"{self.field}: {self.constraints[k].text()}" for k in self._conflict()])
        return self._repaired(np.where(self.integer, np.round(found), found))

    def _feasible(self, kept: Any) -> Array | None:
        model = Model()
        columns = model.add_columns(self.size, self.low, self.high, integer=self.integer)
        rows = list(kept)
        if rows:
            model.add_rows([(columns, self.matrix[rows])], self.row_low[rows], self.row_high[rows])
        solution = model.solve()
        return solution[columns] if solution else None

    def _conflict(self) -> list[int]:
        """A minimal set of rows that contradict each other: drop each in turn and see (deletion filter)."""
        kept = list(range(len(self.constraints)))
        for row in list(kept):
            rest = [k for k in kept if k != row]
            if self._feasible(rest) is None:
                kept = rest
        return kept


class DecisionParameter(Parameter):
    """A decision vector: a trainable leaf whose values satisfy bounds, integrality and linear constraints.

    Made by ``decision``. ``rule`` holds what a model of it needs.
    """

    __slots__ = ()

    @property
    def kind(self) -> str:
        """``decision``."""
        return "decision"

    @property
    def rule(self) -> DecisionRule:
        """Bounds, integrality and rows."""
        rule = self.constraint
        if not isinstance(rule, DecisionRule):
            raise DecisionError(f"{self!r:.60} was not made by decision(...)")
        return rule

    @property
    def size(self) -> int:
        """The number of entries."""
        return self.rule.size


def decision(
    name: str,
    *,
    binary: int | None = None,
    integer: int | None = None,
    continuous: int | None = None,
    low: Any = None,
    high: Any = None,
    constraints: Sequence[Linear] = (),
    value: Any = None,
    description: str | None = None,
) -> DecisionParameter:
    """A decision to be taken: a vector of ``binary``, ``integer`` or ``continuous`` entries (give one, the length).

    Args:
        low, high: bounds, one number or one per entry; needed for integer and continuous entries, since a decision is
            embedded in a MILP. Not for binary ones.
        constraints: ``Linear`` ones that every value must satisfy.
        value: the first value; by default the lower bounds, or if these are not allowed, one found by the solver.

    Raises InvalidProblem naming the field, the index and the value; InfeasibleFirstStage if nothing is allowed;
    ParameterError if ``value`` is not.
    """
    field = f"decision {name!r}"
    given = {"binary": binary, "integer": integer, "continuous": continuous}
    chosen = [kind for kind, size in given.items() if size is not None]
    if len(chosen) != 1:
        raise InvalidProblem(field, f"needs exactly one of binary=, integer= and continuous=, got {chosen or 'none'}")
    kind = chosen[0]
    size = count(f"{field}: {kind}", given[kind])
    if kind == "binary":
        if low is not None or high is not None:
            raise InvalidProblem(field, "is binary: it takes no low= and high=", value=(low, high))
        low, high = 0.0, 1.0
    for side, bound in (("low", low), ("high", high)):
        if bound is None:
            raise InvalidProblem(
                f"{field}: {side}", "is missing: bounds are needed, since decisions are embedded in a MILP"
            )
    lower, upper = spread(f"{field}: low", low, size), spread(f"{field}: high", high, size)
    whole = kind != "continuous"
    if whole:
        lower, upper = np.ceil(lower - TOLERANCE) + 0.0, np.floor(upper + TOLERANCE) + 0.0  # no -0
    ordered(field, lower, upper)
    rule = DecisionRule(field, lower, upper, np.full(size, whole), constraints)
    first = rule.some_value() if value is None else value
    return DecisionParameter(first, name=name, description=description, constraint=rule)
