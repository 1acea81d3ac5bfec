"""A second stage with a MILP form: what reacting costs, and the rows a reaction must keep."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.checks import Array, array, mask, ordered, spread
from trace_core.nodes.decision.errors import Infeasible, InvalidProblem, SolverError
from trace_core.nodes.decision.milp import Model

if TYPE_CHECKING:
    from collections.abc import Callable

    from trace_core.nodes.decision.milp import Columns


class MilpStage:
    """The recourse problem ``V(x, xi)``: the best reaction ``y`` once the decision ``x`` is taken and ``xi`` has come.

    ``V = min (q + Q xi) . y + (P xi) . x`` subject to
    ``(T + sum_k xi_k T_xi[k]) x + (W + sum_k xi_k W_xi[k]) y <= h + H xi`` and ``low <= y <= high``, some of ``y``
    integer. With m rows and decisions, reactions and uncertainties of lengths nx, ny and nu:

    Args:
        q: (ny). W: (m, ny). h: (m).
        T: (m, nx), by default 0; needed if ``P`` and ``T_xi`` are not given, so that nx is known.
        Q: (ny, nu), P: (nx, nu), H: (m, nu), T_xi: (nu, m, nx), W_xi: (nu, m, ny): how ``xi`` enters; 0 by default.
        integer: which entries of ``y`` are integers.
        low, high: bounds of ``y``; by default 0 and none.
        sense: ``"min"``, or ``"max"`` for a revenue.
        reaction: a faster exact solver of one's own, ``(x, xi) -> y`` (or None if there is no reaction). What it gives
            is checked against bounds and rows, and by the solver where a worst case is reported; in between, that it is
            the best reaction is taken on trust.

    Calling it solves it. Raises InvalidProblem for what does not fit together.
    """

    def __init__(
        self,
        *,
        q: Any,
        W: Any,  # noqa: N803 - the letters of the field
        h: Any,
        T: Any = None,  # noqa: N803 - the letters of the field
        Q: Any = None,  # noqa: N803 - the letters of the field
        P: Any = None,  # noqa: N803 - the letters of the field
        H: Any = None,  # noqa: N803 - the letters of the field
        T_xi: Any = None,  # noqa: N803 - the letters of the field
        W_xi: Any = None,  # noqa: N803 - the letters of the field
        integer: Any = False,
        low: Any = 0.0,
        high: Any = math.inf,
        sense: Literal["min", "max"] = "min",
        reaction: Callable[[Array, Array], Any] | None = None,
    ) -> None:
        if sense not in ("min", "max"):
            raise InvalidProblem("recourse: sense", f"must be 'min' or 'max', got {sense!r}", value=sense)
        self.sense, self.reaction = sense, reaction
        self.sign = 1.0 if sense == "min" else -1.0
        self.q = array("recourse: q", q, (None,)) * self.sign  # from here on, everything is minimised
        self.ny = len(self.q)
        self.W = array("recourse: W", W, (None, self.ny))
        self.m = len(self.W)
        self.h = array("recourse: h", h, (self.m,))
        self.nx = _shared(("T", T, 1), ("P", P, 0), ("T_xi", T_xi, 2), what="decisions")
        self.nu = _shared(("Q", Q, 1), ("P", P, 1), ("H", H, 1), ("T_xi", T_xi, 0), ("W_xi", W_xi, 0), what="xi")
        self.T = self._optional("T", T, (self.m, self.nx))
        self.Q = self._optional("Q", Q, (self.ny, self.nu)) * self.sign
        self.P = self._optional("P", P, (self.nx, self.nu)) * self.sign
        self.H = self._optional("H", H, (self.m, self.nu))
        self.T_xi = self._optional("T_xi", T_xi, (self.nu, self.m, self.nx))
        self.W_xi = self._optional("W_xi", W_xi, (self.nu, self.m, self.ny))
        self.integer = mask("recourse: integer", integer, self.ny)
        self.low = spread("recourse: low", low, self.ny, infinite=True)
        self.high = spread("recourse: high", high, self.ny, infinite=True)
        ordered("recourse", self.low, self.high)
        moving = self.H.any(axis=1) | self.T_xi.any(axis=(0, 2)) | self.W_xi.any(axis=(0, 2))
        self.moving = np.asarray(moving, dtype=np.bool_)  # rows with xi
        self.uncertain_rows = bool(self.moving.any())

    @staticmethod
    def _optional(name: str, value: Any, shape: tuple[int, ...]) -> Array:
        return np.zeros(shape) if value is None else array(f"recourse: {name}", value, shape)

    def __call__(self, x: Any, xi: Any) -> float:
        """``V(x, xi)`` in the stage's own sense. Raises Infeasible if no reaction is possible."""
        value, _ = self.fixed(array("recourse: x", x, (self.nx,))).best(array("recourse: xi", xi, (self.nu,)))
        if math.isinf(value):
            raise Infeasible(f"no reaction is possible for x={x!r:.80}, xi={xi!r:.80}")
        return self.sign * value

    # ---- minimised, for solvers

    def costs(self, xi: Array) -> tuple[Array, Array]:
        """(cost of y, cost of x) under ``xi``."""
        return self.q + self.Q @ xi, self.P @ xi

    def rows(self, xi: Array) -> tuple[Array, Array, Array]:
        """(rows of x, rows of y, right-hand sides) under ``xi``."""
        if not self.uncertain_rows:
            return self.T, self.W, self.h
        return (
            self.T + np.tensordot(xi, self.T_xi, axes=1),
            self.W + np.tensordot(xi, self.W_xi, axes=1),
            self.h + self.H @ xi,
        )

    def allows(self, x: Array, y: Array, xi: Array, tolerance: float = 1e-7) -> bool:
        """Whether ``y`` is a reaction to ``x`` and ``xi``."""
        of_x, of_y, right = self.rows(xi)
        return bool((of_x @ x + of_y @ y <= right + tolerance * np.maximum(1.0, np.abs(right))).all())

    def add_copy(self, model: Model, x: Columns, xi: Array, theta: Columns) -> Columns:
        """A reaction of its own for one scenario in a model, and ``theta >= `` its cost. Returns the columns of y."""
        y = model.add_columns(self.ny, self.low, self.high, integer=self.integer)
        of_x, of_y, right = self.rows(xi)
        model.add_rows([(x, of_x), (y, of_y)], high=right)
        cost_y, cost_x = self.costs(xi)
        model.add_rows([(theta, [1.0]), (y, -cost_y), (x, -cost_x)], low=0.0)
        return y

    def fixed(self, x: Array) -> FixedStage:
        """The stage for one decision."""
        return FixedStage(self, x)


class FixedStage:
    """The recourse of one decision; keeps its model where only costs depend on ``xi``."""

    def __init__(self, stage: MilpStage, x: Array) -> None:
        self.stage, self.x = stage, x
        self._kept: tuple[Model, Columns] | None = None

    def best(self, xi: Array, within: float = 0.0, seconds: float = math.inf) -> tuple[float, Array | None]:
        """(proven lower bound on the least cost, a reaction), (inf, None) if there is no reaction.

        Args:
            within: how far above the bound the reaction's cost may be.
            seconds: wall time; at its end, the reaction may be None beside a finite bound, or further above it.

        Raises InvalidProblem if costs have no lower bound; SolverError if the solver fails.
        """
        if self.stage.reaction is not None:
            return self._trusted(self.stage.reaction, xi)
        return self.solved(xi, within, seconds)

    def solved(self, xi: Array, within: float = 0.0, seconds: float = math.inf) -> tuple[float, Array | None]:
        """``best``, always by the MILP solver."""
        model, y = self._model(xi)
        cost_y, cost_x = self.stage.costs(xi)
        model.set_costs(y, cost_y)
        solution = model.solve(absolute_gap=within, seconds=seconds)
        if solution.status == "infeasible":
            return math.inf, None
        if solution.status == "unbounded":
            raise InvalidProblem("recourse", f"has no bound on its value for x={self.x!r:.80}, xi={xi!r:.80}")
        if not solution and math.isfinite(seconds):
            return float(solution.bound + cost_x @ self.x), None
        if not solution:
            raise SolverError("a recourse problem", solution.status)
        values = solution[y]
        values = np.where(self.stage.integer, np.round(values), values)
        return float(min(solution.bound, float(cost_y @ values)) + cost_x @ self.x), values

    def _trusted(self, reaction: Callable[[Array, Array], Any], xi: Array) -> tuple[float, Array | None]:
        stage, given = self.stage, reaction(self.x.copy(), xi.copy())
        if given is None:
            return math.inf, None
        y = array("recourse: reaction", given, (stage.ny,))
        whole = np.where(stage.integer, np.round(y), y)
        if np.abs(whole - y).max() > 1e-6 or (y < stage.low - 1e-6).any() or (y > stage.high + 1e-6).any():
            raise InvalidProblem("recourse: reaction", "gave what lies outside of the bounds of y", value=y)
        if not stage.allows(self.x, whole, xi, 1e-6):
            raise InvalidProblem("recourse: reaction", "gave what breaks a row", value=y)
        cost_y, cost_x = stage.costs(xi)
        return float(cost_y @ whole + cost_x @ self.x), whole

    def _model(self, xi: Array) -> tuple[Model, Columns]:
        if self._kept is not None and not self.stage.uncertain_rows:
            return self._kept
        stage, model = self.stage, Model(small=True)
        of_x, of_y, right = stage.rows(xi)
        y = model.add_columns(stage.ny, stage.low, stage.high, integer=stage.integer)
        if stage.m:
            model.add_rows([(y, of_y)], high=right - of_x @ self.x)
        self._kept = (model, y)
        return self._kept


def _shared(*given: tuple[str, Any, int], what: str) -> int:
    """The length that all given fields have along their axis."""
    found = [
        (name, np.shape(value)[axis]) for name, value, axis in given if value is not None and np.ndim(value) > axis
    ]
    if not found:
        names = ", ".join(name for name, _, _ in given)
        raise InvalidProblem("recourse", f"does not depend on {what}: give at least one of {names}")
    return int(found[0][1])
