"""A two-stage robust problem: what is decided, what may come, what reacting costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from trace_core.errors import ParameterError
from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.checks import Array, array
from trace_core.nodes.decision.errors import InvalidProblem
from trace_core.nodes.decision.parameter import DecisionParameter
from trace_core.nodes.decision.stage import MilpStage
from trace_core.nodes.decision.uncertainty import UncertaintySet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trace_core.nodes.decision.milp import Columns, Model
    from trace_core.parameter import Parameter


class RobustProblem:
    """``min over x of [ first_stage . x + max over xi of V(x, xi) ]``; with ``sense="max"`` min and max change places.

    Args:
        decisions: one DecisionParameter, or several, whose entries stand one after the other in ``x``.
        uncertainty: what may come.
        first_stage: cost of the decision: a vector of the length of ``x``, or an affine function of the values of the
            decisions; 0 by default.
        recourse: V as a MILP: solved exactly, with a certificate.
        second_stage: V as a function ``(*decisions, xi) -> cost``, such as a bundle: learned from executions. Given
            beside ``recourse``, it is executed to check it.
        sense: ``"min"`` for costs, ``"max"`` for revenues.

    Raises InvalidProblem.
    """

    def __init__(
        self,
        decisions: DecisionParameter | Sequence[DecisionParameter],
        uncertainty: UncertaintySet,
        *,
        first_stage: Any = None,
        recourse: MilpStage | None = None,
        second_stage: Callable[..., Any] | None = None,
        sense: Literal["min", "max"] = "min",
    ) -> None:
        single = isinstance(decisions, DecisionParameter) or not isinstance(decisions, list | tuple)
        given: list[Any] = [decisions] if single else list(decisions)
        if not given or not all(isinstance(each, DecisionParameter) for each in given):
            raise InvalidProblem(
                "decisions", f"must be made by decision(...), at least one; got {decisions!r:.80}", value=decisions
            )
        if len(set(given)) != len(given):
            raise InvalidProblem("decisions", "names one decision twice", value=decisions)
        if not isinstance(uncertainty, UncertaintySet):
            raise InvalidProblem("uncertainty", f"must be an uncertainty set, got {type(uncertainty).__name__}")
        if sense not in ("min", "max"):
            raise InvalidProblem("sense", f"must be 'min' or 'max', got {sense!r}", value=sense)
        if recourse is None and second_stage is None:
            raise InvalidProblem("recourse", "is missing, and so is second_stage: one of them is needed")
        if recourse is not None and not isinstance(recourse, MilpStage):
            raise InvalidProblem("recourse", f"must be a MilpStage, got {type(recourse).__name__}", value=recourse)
        if second_stage is not None and not callable(second_stage):
            raise InvalidProblem("second_stage", "must be callable", value=second_stage)
        self.decisions = given
        self.uncertainty = uncertainty
        self.recourse = recourse
        self.second_stage = second_stage
        self.sense = sense
        self.sign = 1.0 if sense == "min" else -1.0
        rules = [each.rule for each in given]
        self.size = sum(rule.size for rule in rules)
        self.low = np.concatenate([rule.low for rule in rules])
        self.high = np.concatenate([rule.high for rule in rules])
        self.integer = np.concatenate([rule.integer for rule in rules])
        self.cost, self.constant = self._first_stage(first_stage)  # minimised
        if recourse is not None:
            self._fits(recourse)

    @property
    def binary(self) -> bool:
        """Whether every entry of x is 0 or 1: then single decisions can be cut off."""
        return bool((self.integer & (self.low >= 0) & (self.high <= 1)).all())

    def split(self, x: Array) -> dict[Parameter, Any]:
        """The decisions' own values, checked. Raises ParameterError if one is not allowed."""
        values: dict[Parameter, Any] = {}
        first = 0
        for each in self.decisions:
            values[each] = each.check(x[first : first + each.size])
            first += each.size
        return values

    def repaired(self, x: Array) -> Array:
        """A solver's x with integers rounded and bounds kept. Raises ParameterError if it is not allowed."""
        return np.concatenate([np.asarray(value, dtype=np.float64) for value in self.split(x).values()])

    def allows(self, x: Array) -> bool:
        """Whether x satisfies every bound and constraint."""
        try:
            self.split(x)
        except ParameterError:
            return False
        return True

    def allowed(self, rows: Array) -> Array:
        """Which rows satisfy every bound and constraint."""
        ends = np.cumsum([each.size for each in self.decisions])
        parts = np.split(rows, ends[:-1], axis=1)
        found: Array = np.all(
            [each.rule.allowed(part) for each, part in zip(self.decisions, parts, strict=True)], axis=0
        )
        return found

    def current(self) -> Array:
        """The decisions' present values as one vector."""
        return np.concatenate([np.asarray(each.value, dtype=np.float64) for each in self.decisions])

    def add_to(self, model: Model) -> Columns:
        """Columns of x, with bounds, integrality, rows and cost, in a model."""
        columns = np.concatenate([each.rule.add_to(model) for each in self.decisions])
        model.set_costs(columns, self.cost)
        model.offset += self.constant
        return columns

    def value_of(self, x: Array) -> float:
        """The first stage's cost, minimised."""
        return float(self.cost @ x) + self.constant

    def fingerprint(self) -> str:
        """A hash of all numbers of the problem (not of a second stage that is a function)."""
        from hashlib import sha256

        digest = sha256()
        xi, stage = self.uncertainty, self.recourse
        parts = [self.low, self.high, self.integer, self.cost, np.array([self.constant, self.sign])]
        for each in self.decisions:
            parts += [each.rule.matrix, each.rule.row_low, each.rule.row_high]
        parts += [xi.low, xi.high, xi.matrix, xi.right, getattr(xi, "vectors", np.empty(0))]
        if stage is not None:
            parts += [stage.q, stage.Q, stage.P, stage.T, stage.W, stage.h, stage.H, stage.T_xi, stage.W_xi]
            parts += [stage.low, stage.high, stage.integer]
        for part in parts:
            digest.update(f"{part.shape}{part.dtype}".encode() + np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    def _first_stage(self, given: Any) -> tuple[Array, float]:
        if given is None:
            return np.zeros(self.size), 0.0
        if not callable(given):
            return array("first_stage", given, (self.size,)) * self.sign, 0.0
        return self._affine(given)

    def _affine(self, function: Callable[..., Any]) -> tuple[Array, float]:
        """Cost vector and constant of an affine function. Raises InvalidProblem if it is not affine."""

        def at(x: Array) -> float:
            parts = np.split(x, np.cumsum([each.size for each in self.decisions])[:-1])
            try:
                found = function(*parts)
            except Exception as error:
                lengths = ", ".join(str(each.size) for each in self.decisions)
                raise InvalidProblem(
                    "first_stage",
                    f"raised {type(error).__name__}: {error}; it is called with an array for each decision, of length "
                    f"{lengths}",
                    value=x.tolist(),
                ) from error
            return float(array("first_stage", found, ())) * self.sign

        base = at(self.low)
        steps = np.where(self.high > self.low, self.high - self.low, 1.0)
        slopes = np.array(
            [(at(self.low + step * unit) - base) / step for step, unit in zip(steps, np.eye(self.size), strict=True)]
        )
        constant = base - float(slopes @ self.low)
        generator = np.random.default_rng(0)
        for _ in range(8):
            part = generator.uniform(size=self.size)
            x = self.low + np.where(self.integer, np.round(part * steps), part * steps)
            expected, found = float(slopes @ x) + constant, at(x)
            scale = max(1.0, abs(expected), float(np.abs(slopes) @ np.abs(x)))
            if abs(expected - found) > 1e-6 * scale:
                raise InvalidProblem(
                    "first_stage",
                    f"is not affine: {found:g} where its slopes say {expected:g}; put it into the second stage",
                    value=x.tolist(),
                )
        return slopes, constant

    def _fits(self, recourse: MilpStage) -> None:
        for what, have, want in (
            ("decisions", recourse.nx, self.size),
            ("uncertainties", recourse.nu, self.uncertainty.size),
        ):
            if have != want:
                raise InvalidProblem("recourse", f"is made for {have} {what}, the problem has {want}", value=have)
        if recourse.sense != self.sense:
            raise InvalidProblem(
                "recourse: sense", f"is {recourse.sense!r}, the problem's is {self.sense!r}", value=recourse.sense
            )
