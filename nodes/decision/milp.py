"""Mixed-integer linear models for HiGHS: built from numpy blocks, passed row-wise, solved on one thread.

A solution is read only from a status that has one. Everything is deterministic for a fixed seed, except where a time
limit ends the search.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trace_core._lazy import require
from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.errors import InvalidProblem, SolverError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trace_core.nodes.decision.checks import Array

    Columns = NDArray[np.int32]
    Term = tuple[Columns, Any]

Status = Literal["optimal", "feasible", "infeasible", "unbounded", "limit"]
_LIMITS = ("kTimeLimit", "kIterationLimit", "kSolutionLimit", "kObjectiveBound", "kObjectiveTarget", "kInterrupt")


@dataclass(frozen=True)
class Solution:
    """What a solve gave.

    Attributes:
        status: ``optimal`` (within the gap asked for), ``feasible`` (stopped at a limit with a solution), ``limit``
            (stopped without one), ``infeasible``, ``unbounded``.
        values: one per column; empty without a solution.
        objective: of ``values``; NaN without a solution.
        bound: proven bound on the optimum, below it (above it for maximisation); infinite where nothing is proven.
        seconds: wall time.
    """

    status: Status
    values: Array
    objective: float
    bound: float
    seconds: float

    def __bool__(self) -> bool:
        """Whether there is a solution to read."""
        return self.status in ("optimal", "feasible")

    def __getitem__(self, columns: Any) -> Array:
        """Values of columns. Raises SolverError if there is no solution."""
        if not self:
            raise SolverError("a solution was asked for", self.status)
        found: Array = self.values[columns]
        return found


class Model:
    """Columns, rows and costs; ``solve`` hands them to HiGHS. Rows and costs may change between solves.

    Args:
        maximise: the sense.
        seed: for HiGHS.
        small: few integers, which branching settles at once: no feasibility jump before, which takes longer than that.
    """

    def __init__(self, *, maximise: bool = False, seed: int = 0, small: bool = False) -> None:
        self.maximise, self.seed, self.small, self.offset = maximise, seed, small, 0.0
        self._low: list[Array] = []
        self._high: list[Array] = []
        self._cost: list[Array] = []
        self._integer: list[NDArray[np.bool_]] = []
        self._row_low: list[Array] = []
        self._row_high: list[Array] = []
        self._rows: list[tuple[NDArray[np.int32], NDArray[np.int32], Array]] = []
        self._highs: Any = None
        self._passed = self._given = 0  # blocks of rows, and rows, that HiGHS has
        self.columns = self.rows = 0

    def add_columns(
        self, count: int, low: Any = 0.0, high: Any = math.inf, *, integer: Any = False, cost: Any = 0.0
    ) -> Columns:
        """New columns; numbers stand for ``count`` equal ones. Returns their indices."""
        for store, value, kind in (
            (self._low, low, np.float64),
            (self._high, high, np.float64),
            (self._cost, cost, np.float64),
            (self._integer, integer, np.bool_),
        ):
            store.append(_known(np.broadcast_to(np.asarray(value, dtype=kind), (count,)).copy()))
        first, self.columns, self._highs = self.columns, self.columns + count, None
        return np.arange(first, self.columns, dtype=np.int32)

    def add_rows(self, terms: Sequence[Term], low: Any = -math.inf, high: Any = math.inf) -> Columns:
        """``low <= sum of matrix @ columns <= high``; a vector as matrix is one row. Terms must not share columns.

        Returns the indices of the rows.
        """
        blocks = [(columns, np.atleast_2d(np.asarray(matrix, dtype=np.float64))) for columns, matrix in terms]
        matrix = _known(np.concatenate([block for _, block in blocks], axis=1))
        columns = np.concatenate([np.asarray(c, dtype=np.int32) for c, _ in blocks])
        row, position = np.nonzero(matrix)
        starts = np.searchsorted(row, np.arange(len(matrix))).astype(np.int32)
        for store, bound in ((self._row_low, low), (self._row_high, high)):
            store.append(_known(np.broadcast_to(np.asarray(bound, dtype=np.float64), (len(matrix),)).copy()))
        self._rows.append((starts, columns[position], matrix[row, position]))
        first, self.rows = self.rows, self.rows + len(matrix)
        return np.arange(first, self.rows, dtype=np.int32)

    def set_costs(self, columns: Columns, cost: Any) -> None:
        """New costs for some columns."""
        every = self._flat(self._cost)
        every[columns] = _known(np.asarray(cost, dtype=np.float64))
        self._cost = [every]
        if self._highs is not None:
            self._highs.changeColsCost(self.columns, np.arange(self.columns, dtype=np.int32), every)

    def set_bounds(self, columns: Columns, low: Any, high: Any) -> None:
        """New bounds for some columns."""
        lows, highs = self._flat(self._low), self._flat(self._high)
        lows[columns], highs[columns] = low, high
        self._low, self._high = [lows], [highs]
        if self._highs is not None:
            chosen = np.ascontiguousarray(columns, dtype=np.int32)
            self._highs.changeColsBounds(len(chosen), chosen, lows[chosen], highs[chosen])

    def is_integer(self, column: int) -> bool:
        """Whether a column is integer."""
        return bool(self._flat(self._integer)[column])

    def set_row_bounds(self, rows: Columns, low: Any, high: Any) -> None:
        """New sides for some rows, by their indices."""
        if not len(rows):
            return
        lows, highs = self._flat(self._row_low), self._flat(self._row_high)
        lows[rows], highs[rows] = low, high
        self._row_low, self._row_high = [lows], [highs]
        if self._highs is not None:
            chosen = np.ascontiguousarray(rows[rows < self._given], dtype=np.int32)  # the others are not there yet
            self._highs.changeRowsBounds(len(chosen), chosen, lows[chosen], highs[chosen])

    @property
    def has_integers(self) -> bool:
        """Whether any column is integer."""
        return any(block.any() for block in self._integer)

    @property
    def integers(self) -> int:
        """How many columns are integer."""
        return sum(int(np.count_nonzero(block)) for block in self._integer)

    def relax(self) -> None:
        """All columns become continuous."""
        self._integer, self._highs = [np.zeros(self.columns, dtype=np.bool_)], None

    def solve(
        self,
        *,
        seconds: float = math.inf,
        gap: float = 1e-9,
        absolute_gap: float = 1e-9,
        start: tuple[Columns, Array] | None = None,
    ) -> Solution:
        """Solve.

        Args:
            seconds: wall time limit.
            gap, absolute_gap: the relative or absolute gap at which a solution counts as optimal.
            start: columns and values of a solution to begin with; the solver completes the others.

        Raises SolverError for a status without meaning (numerical trouble, errors of the solver).
        """
        began = time.monotonic()
        if self.columns == 0:
            return self._empty()
        highs = self._handle()
        # the solver's clock goes on over solves of one model
        limit = highs.getRunTime() + max(seconds, 1e-3) if math.isfinite(seconds) else math.inf
        for option, value in (
            ("time_limit", limit),
            ("mip_rel_gap", gap),
            ("mip_abs_gap", max(absolute_gap, 1e-9)),
            ("presolve", "choose"),
        ):
            highs.setOptionValue(option, value)
        if start is not None:
            chosen = np.ascontiguousarray(start[0], dtype=np.int32)
            highs.setSolution(len(chosen), chosen, np.ascontiguousarray(start[1], dtype=np.float64))
        highs.run()
        status = highs.getModelStatus().name
        if status in ("kUnboundedOrInfeasible", "kUnknown"):
            highs.setOptionValue("presolve", "off")
            highs.clearSolver()
            highs.run()
            status = highs.getModelStatus().name
        if status == "kUnboundedOrInfeasible":
            status = self._which(highs)
        return self._read(highs, status, time.monotonic() - began)

    # ---- inside

    @staticmethod
    def _flat(blocks: list[Any]) -> Any:
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def _empty(self) -> Solution:
        possible = all((low <= 1e-9).all() for low in self._row_low) and all(
            (high >= -1e-9).all() for high in self._row_high
        )
        if possible:
            return Solution("optimal", np.empty(0), self.offset, self.offset, 0.0)
        return Solution("infeasible", np.empty(0), math.nan, math.nan, 0.0)

    def _handle(self) -> Any:
        """HiGHS with the present model in it."""
        highspy = require("highspy", extra="milp")
        if self._highs is None:
            self._highs = _quiet(highspy, self.seed)
            if self.small:
                self._highs.setOptionValue("mip_heuristic_run_feasibility_jump", False)
            self._passed = self._given = 0
            self._highs.passModel(self._lp(highspy))
        if self._passed < len(self._rows):
            lows, highs = self._flat(self._row_low), self._flat(self._row_high)
            for starts, indices, values in self._rows[self._passed :]:
                mine = slice(self._given, self._given + len(starts))
                self._highs.addRows(len(starts), lows[mine], highs[mine], len(indices), starts, indices, values)
                self._given += len(starts)
            self._passed = len(self._rows)
        self._highs.changeObjectiveOffset(self.offset)
        return self._highs

    def _lp(self, highspy: Any) -> Any:
        lp = highspy.HighsLp()
        nothing = [np.empty(0, dtype=np.float64)]
        indices, values = (np.concatenate([block[k] for block in self._rows] or nothing) for k in (1, 2))
        low, high = (np.concatenate(blocks or nothing) for blocks in (self._row_low, self._row_high))
        lengths = np.concatenate(
            [np.diff(np.append(block[0], len(block[1]))) for block in self._rows] or [np.empty(0, dtype=np.int64)]
        )
        lp.num_col_, lp.num_row_ = self.columns, len(low)
        lp.col_cost_, lp.offset_ = self._flat(self._cost), self.offset
        lp.col_lower_, lp.col_upper_ = self._flat(self._low), self._flat(self._high)
        lp.row_lower_, lp.row_upper_ = low, high
        lp.sense_ = highspy.ObjSense.kMaximize if self.maximise else highspy.ObjSense.kMinimize
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.num_col_, lp.a_matrix_.num_row_ = self.columns, len(low)
        lp.a_matrix_.start_ = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        lp.a_matrix_.index_, lp.a_matrix_.value_ = indices.astype(np.int32), values
        integer = self._flat(self._integer)
        if integer.any():
            kinds = highspy.HighsVarType
            lp.integrality_ = [kinds.kInteger if each else kinds.kContinuous for each in integer]
        self._passed, self._given = len(self._rows), self.rows
        return lp

    def _which(self, highs: Any) -> str:
        """Unbounded or infeasible: without costs the first has an optimum."""
        nothing = np.zeros(self.columns)
        every = np.arange(self.columns, dtype=np.int32)
        highs.changeColsCost(self.columns, every, nothing)
        highs.run()
        status = str(highs.getModelStatus().name)
        highs.changeColsCost(self.columns, every, self._flat(self._cost))
        return "kUnbounded" if status == "kOptimal" else status

    def _read(self, highs: Any, status: str, seconds: float) -> Solution:
        nothing, worst = np.empty(0), math.inf if self.maximise else -math.inf
        if status == "kInfeasible":
            return Solution("infeasible", nothing, math.nan, math.nan, seconds)
        if status == "kUnbounded":
            return Solution("unbounded", nothing, math.nan, worst, seconds)
        if status != "kOptimal" and status not in _LIMITS:
            raise SolverError("a model could not be solved", status)
        info = highs.getInfo()
        mixed = self.has_integers
        bound = float(info.mip_dual_bound) if mixed else worst
        if math.isnan(bound) or abs(bound) >= 1e300:
            bound = worst
        if status != "kOptimal" and info.primal_solution_status != 2:  # 2: feasible
            return Solution("limit", nothing, math.nan, bound, seconds)
        if status != "kOptimal" and not mixed:
            return Solution("limit", nothing, math.nan, worst, seconds)
        objective = float(info.objective_function_value)
        values = np.array(highs.getSolution().col_value, dtype=np.float64)
        if status == "kOptimal":
            return Solution("optimal", values, objective, bound if mixed else objective, seconds)
        return Solution("feasible", values, objective, bound, seconds)


def _known(values: Any) -> Any:
    """The values; the solver would take a NaN in silence. Raises InvalidProblem."""
    if np.isnan(values).any():
        raise InvalidProblem("a model", "has a coefficient that is not a number", value=math.nan)
    return values


def _quiet(highspy: Any, seed: int) -> Any:
    highs = highspy.Highs()
    for option, value in (
        ("output_flag", False),
        ("threads", 1),
        ("parallel", "off"),
        ("random_seed", seed),
        ("mip_feasibility_tolerance", 1e-7),
    ):
        highs.setOptionValue(option, value)
    return highs
