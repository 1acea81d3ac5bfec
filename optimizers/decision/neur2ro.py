"""Neur2RO: robust decisions as an optimizer, alone or beside others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from trace_core.errors import StateError
from trace_core.node import Node, unwrap
from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.checks import count
from trace_core.nodes.decision.errors import DecisionError, Infeasible, InvalidProblem, ModelMismatch
from trace_core.optimizers.base import Optimizer, Proposal
from trace_core.optimizers.decision.exact import EXACT, ExactSolver
from trace_core.optimizers.decision.problem import RobustProblem
from trace_core.optimizers.decision.program import topological
from trace_core.parameter import Version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from trace_core.feedback import Feedback, FeedbackLike
    from trace_core.optimizers.decision.learned import LearnedSolver
    from trace_core.optimizers.decision.result import RobustResult
    from trace_core.optimizers.decision.setnet import InstanceNetwork
    from trace_core.optimizers.decision.setsolver import SetSolver
    from trace_core.trace import Trace


class Neur2RO(Optimizer):
    """The decision whose worst case is best.

    Three modes. Exact, where ``problem.recourse`` is given: column-and-constraint generation, whose bounds are proven.
    Learned, where only ``problem.second_stage`` is: a network learns it from executions, proposes decisions and their
    worst scenarios, and these are executed; nothing is proven, and the certificate says so. Trained beforehand, where
    ``network`` is given: it proposes decisions, their worst cases are exact where there is a recourse, else executed.

    ``solve`` does all of it and sets the decisions. In steps: ``xi = next_scenario()``, run the workflow with the
    decisions' present values and ``xi``, ``backward(cost)``, ``step()``.

    In a ``Study`` a ticket is as many rounds as it takes to find a better decision; learned mode executes the second
    stage itself there. The candidate is the best decision so far, and the study's examples say how good it is: to have
    them speak of the worst case, too, make each a set of scenarios whose worst cost the workflow gives.

    Args:
        problem: what is decided, what may come, what reacting costs.
        seconds: wall time for all rounds.
        network: ``SetNetwork.load(path).on(features)``: a network trained beforehand, on this instance's items.
        gap: exact mode: relative gap at which a proven decision is good enough.
        executions: learned mode: how often the second stage may be executed.
        seed: makes runs equal, except where a time limit ends a search.
        hidden, members: learned mode: width of the hidden layer and number of networks in the ensemble.
        records: learned mode: executions of earlier runs, as in ``records()``.
        on_error, replicates: learned mode: see ``Executions``.

    Source: "Neur2RO: Neural Two-Stage Robust Optimization" (Dumouchelle et al., ICLR 2024), which is the third mode.
    """

    chained = True  # what is known after a round is what the next one begins with

    def __init__(
        self,
        problem: RobustProblem,
        *,
        network: InstanceNetwork | None = None,
        seconds: float = 60.0,
        gap: float = EXACT,
        executions: int = 1000,
        seed: int = 0,
        hidden: int = 32,
        members: int = 4,
        records: Iterable[Mapping[str, Any]] = (),
        on_error: Literal["raise", "infeasible"] = "raise",
        replicates: int = 1,
    ) -> None:
        if not isinstance(problem, RobustProblem):
            raise InvalidProblem("problem", f"must be a RobustProblem, got {type(problem).__name__}", value=problem)
        super().__init__(problem.decisions)
        count("executions", executions, None)
        for field, value, least in (("seed", seed, 0), ("hidden", hidden, 1), ("members", members, 1)):
            count(field, value, least)
        for field, limit in (("seconds", seconds), ("gap", gap)):
            if isinstance(limit, bool) or not isinstance(limit, int | float):
                raise InvalidProblem(field, f"must be a number, got {limit!r:.80}", value=limit)
        if not seconds > 0:
            raise InvalidProblem("seconds", f"must be positive, got {seconds!r}", value=seconds)
        if not 0 <= gap < 1:
            raise InvalidProblem("gap", f"must be from 0 to below 1, got {gap!r}", value=gap)
        self.problem = problem
        self._solver: ExactSolver | LearnedSolver | SetSolver
        self._stepwise: LearnedSolver | None = None  # the one solver whose executions a user may make
        self._asked: tuple[Any, Any, Node] | None = None
        self._searched = False  # whether a study holds this, which runs the workflow on examples of its own
        if network is not None:
            from trace_core.optimizers.decision.setsolver import SetSolver

            options: dict[str, Any] = {"on_error": on_error, "replicates": replicates}
            self._solver = SetSolver(
                problem, network, seconds=seconds, executions=executions, gap=gap, seed=seed, **options
            )
            self._solver.executions.load(records)
        elif problem.recourse is not None:
            self._solver = ExactSolver(problem, problem.recourse, gap=gap, seconds=seconds, seed=seed)
        else:
            from trace_core.optimizers.decision.learned import LearnedSolver

            learned = LearnedSolver(
                problem,
                executions=executions,
                seconds=seconds,
                seed=seed,
                hidden=hidden,
                members=members,
                on_error=on_error,
                replicates=replicates,
            )
            learned.learn(records)
            self._solver = self._stepwise = learned

    @property
    def done(self) -> bool:
        """Whether there is nothing more to do."""
        return self._solver.stop is not None

    def solve(self) -> RobustResult:
        """All rounds; sets the decisions to the best verified ones.

        Raises NoRobustDecision if every decision fails in some scenario, SolverError if none was found in time,
        ModelMismatch if ``second_stage`` and ``recourse`` differ, BadOutcome if the second stage gives what is no cost.
        """
        while not self.done:
            self._solver.round()
        result = self.result()
        for parameter, value in result.values.items():
            parameter.update(value)
        return result

    def result(self) -> RobustResult:
        """The best verified decision so far."""
        result = self._solver.result()
        self._compare(result)
        return result

    # ---- in steps

    def next_scenario(self) -> Node:
        """Learned mode: the scenario to execute next, for the decisions' values, which are set to what it belongs to.

        Raises DecisionError at the end (see ``done``), and in the other modes.
        """
        wanted = self._learned().wanted()
        if wanted is None:
            raise DecisionError(f"the search has ended ({self._solver.stop}): take result()")
        x, xi = wanted
        for parameter, value in self.problem.split(x).items():
            parameter.update(value)
        scenario = Node(xi.copy(), name=self.problem.uncertainty.name)
        self._asked = (x, xi, scenario)
        return scenario

    def backward(self, output: Node, feedback: FeedbackLike | Feedback = "") -> Trace:
        """The second stage's value is that of ``output`` (its cost or revenue, not a score); feedback is kept as words.

        Raises OptimizerError if ``output`` is no node, DecisionError without a ``next_scenario`` before, or if the
        workflow was run with other decisions than that had set.
        """
        trace = self._cut(output, feedback)
        if self._stepwise is not None:
            self._take(trace.output)
        return trace.deposit()

    def observe(self, trace: Trace) -> None:
        """Called by Mixed with each trace: as ``backward``, for outputs that depend on decisions or scenario."""
        if self._stepwise is None or self._searched:
            return
        nodes = topological(trace.output)
        mine = any(isinstance(node, Version) and node.parameter in self.problem.decisions for node in nodes)
        if mine or (self._asked is not None and self._asked[2] in nodes):
            self._take(trace.output)

    def _take(self, output: Node) -> None:
        """Count and remember an execution that a user made. Raises as ``backward``."""
        solver = self._learned()
        if self._asked is None:
            raise DecisionError("backward needs a scenario: call next_scenario() and run the workflow on it")
        x, xi, scenario = self._asked
        wanted = self.problem.split(x)
        for node in topological(output):
            if isinstance(node, Version) and not np.array_equal(node._value, wanted.get(node.parameter, node._value)):
                raise DecisionError(
                    f"the workflow was run with {node.parameter.name} = {node._value}, next_scenario() had set it to "
                    f"{wanted[node.parameter]}: run it before the decision is changed"
                )
        self._asked = None
        runs = solver.executions
        error = output.value if isinstance(output.value, BaseException) else None
        impossible = isinstance(error, Infeasible)
        value = float("inf") if impossible else runs.cost(output, x, xi)
        runs.observe(output, scenario)
        runs.count += 1
        runs.failed += impossible
        solver.took(runs.add(x, xi, value))

    def propose(self, traces: Sequence[Trace] | None = None, n: int = 1) -> list[Proposal]:
        """Learned mode: the next decision to try, at last the best. Else one round, and the best decision so far.

        For a study, in all modes: rounds until another decision than the present one is the best, which is proposed. If
        none is left, there is an empty proposal.
        """
        if self._searched:
            return [self._next_best()]
        if self._stepwise is None and not self.done:
            self._solver.round()
        wanted = None if self._stepwise is None else self._stepwise.wanted()
        x = self._solver.x if wanted is None else wanted[0]
        if x is None:
            return [Proposal({}, reason="no decision has been verified yet")]
        last = self._solver.history[-1].what if self._solver.history else "begun"
        return [Proposal(self.problem.split(x), reason=f"{last}; {self._solver.stop or 'goes on'}")]

    def fork(self, ticket: int) -> Optimizer:
        """Itself, and from now on what ``propose`` gives is for a study."""
        self._searched = True
        return self

    def _next_best(self) -> Proposal:
        """The best decision, after as many rounds as it takes for it to be another than the present one."""
        now = self.problem.current()
        while True:
            x = self._solver.x
            if x is not None and not np.array_equal(x, now):
                break
            if self.done:
                return Proposal({}, reason=f"no better decision: the search has ended ({self._solver.stop})", step=True)
            self._solver.round()
        last = self._solver.history[-1].what if self._solver.history else "begun"
        return Proposal(self.problem.split(x), reason=f"{last}; {self._solver.stop or 'goes on'}", step=True)

    def records(self) -> list[dict[str, Any]]:
        """Executions, where any are made, as plain data: for ``records=`` of a later run, or to train a set network."""
        if isinstance(self._solver, ExactSolver):
            raise DecisionError("the recourse is given as a MILP: nothing is executed, use solve() or step()")
        return [record.data() for record in self._solver.executions.records]

    def _learned(self) -> LearnedSolver:
        if self._stepwise is None:
            why = "the recourse is given as a MILP" if self.problem.recourse is not None else "a network is given"
            raise DecisionError(f"{why}: no scenario is asked for one by one, use solve() or step()")
        return self._stepwise

    def _compare(self, result: RobustResult) -> None:
        """Execute a second stage that is given beside the recourse, where it matters."""
        stage, function = self.problem.recourse, self.problem.second_stage
        if stage is None or function is None:
            return
        for xi in (result.worst_scenario, self.problem.uncertainty.center):
            expected = stage(result.x, xi)
            try:
                found = float(unwrap(function(*result.values.values(), xi.copy()))[0])
            except Infeasible as error:
                raise ModelMismatch("the second stage", result.x, xi, expected, float("inf")) from error
            if not abs(found - expected) <= EXACT * max(1.0, abs(expected)):
                raise ModelMismatch("the second stage", result.x, xi, expected, found)

    def state_dict(self) -> dict[str, Any]:
        """Plain data (lists and numbers): what is proven or was executed, and the scenarios collected."""
        return {"problem": self.problem.fingerprint(), "solver": self._solver.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken. Raises StateError for the state of another problem."""
        if state.get("problem") != self.problem.fingerprint():
            raise StateError("this state belongs to another problem: what is proven there need not hold here")
        self._solver.restore(state["solver"])
