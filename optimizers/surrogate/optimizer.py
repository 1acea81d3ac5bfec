"""SSO on a trace: one question to an expensive oracle, then as many cheap steps as one likes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from trace_core._lazy import require
from trace_core.context import current
from trace_core.nodes.tensor import TensorParameter
from trace_core.optimizers.base import Optimizer, OptimizerError, Parameters, Proposal
from trace_core.optimizers.surrogate.differences import Differences
from trace_core.optimizers.surrogate.eta import eta_rule
from trace_core.optimizers.surrogate.inner import inner_solver
from trace_core.optimizers.surrogate.oracles import Oracle
from trace_core.optimizers.surrogate.parts import Part, position, positive
from trace_core.optimizers.surrogate.problem import Surrogate, geometry_named
from trace_core.optimizers.surrogate.replaying import Replay, examples
from trace_core.optimizers.surrogate.targets import Choice, choose
from trace_core.optimizers.surrogate.text import TextTarget
from trace_core.optimizers.tensor.proposing import without_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trace_core.feedback import Feedback, FeedbackLike
    from trace_core.node import Node
    from trace_core.optimizers.surrogate.eta import EtaRule
    from trace_core.optimizers.surrogate.inner import Inner
    from trace_core.optimizers.surrogate.oracles import OracleCalls, Reply
    from trace_core.parameter import Parameter
    from trace_core.trace import Trace


class TargetSurrogate(Optimizer):
    """Improves tensor parameters through an interior tensor of the trace, the target.

    The expensive part, from the target to the feedback, is asked once for each output: for a gradient at the target,
    for losses at a few moved targets, or in words. The answer makes a model of the loss in target space, which is
    minimised over the parameters by running the cheap part, from the parameters to the target, again and again.
    The traces of one step are taken together; their losses are added.

    Args:
        parameters: TensorParameters, a ``module_node``, a Module; see ``Optimizer``.
        target: node, name of an operator or node, or bundle, or several of them; by default found on each trace.
            ``explain()`` tells how.
        inner: how the model is minimised: ``exact`` (least squares, Gauss-Newton), ``adam``, ``lbfgs``, ``armijo``,
            ``gd``, or an object with ``solve``.
        inner_steps, inner_lr: of the inner solver, where it has them.
        eta: how far the target moves: a number, ``bb``, ``line-search``, ``sqrt``, ``exponential``, ``adagrad-norm`` or
            a rule. For the sum of the examples' losses: a loss that is a mean is seen as one and scaled.
        curvature: ``diag`` scales each entry of the target by the loss's second derivative; eta is then a share of a
            Newton step.
        geometry: ``euclidean``, or ``kl`` for a target of probabilities.
        oracle: a function of the target (a tensor without history) that returns a loss, one loss for each row, or an
            ``Answer``. By default the rest of the trace is run again, or differentiated.
        llm: a model, or a ``TextTarget``, that turns a text into what the target should be.
        reduction: ``mean`` or ``sum`` over the rows of the target; ``auto`` reads it off the loss, and takes a given
            gradient as that of a sum.
        differences: how losses become a gradient: ``auto``, ``coordinates`` or ``spsa``.
        probe_size: how far a target's entries are moved for that; choose it above the noise of a simulator.
        probes: random directions of SPSA, two losses each.
        seed: of these directions.

    Source: "Target-based Surrogates for Stochastic Optimization" (Lavington et al., ICML 2023).
    """

    chained = True  # what eta rules remember is of the step before

    def __init__(
        self,
        parameters: Parameters,
        target: Any = None,
        *,
        inner: str | Inner = "exact",
        inner_steps: int | None = None,
        inner_lr: float | None = None,
        eta: float | str | EtaRule = 1.0,
        curvature: str | None = None,
        geometry: str = "euclidean",
        oracle: Callable[[Any], Any] | None = None,
        llm: Any = None,
        reduction: str = "auto",
        differences: str = "auto",
        probe_size: float | None = None,
        probes: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(parameters)
        others = [name for parameter, name in self.names.items() if not isinstance(parameter, TensorParameter)]
        if others:
            raise OptimizerError(
                f"expected tensor parameters, got others ({', '.join(others)}): "
                "make them with TensorParameter, or give them to an optimizer of their kind"
            )
        if curvature not in (None, "diag"):
            raise OptimizerError(f"curvature must be None or 'diag', got {curvature!r}")
        if reduction not in ("auto", "mean", "sum"):
            raise OptimizerError(f"reduction must be 'auto', 'mean' or 'sum', got {reduction!r}")
        self.target = target
        self.inner = inner_solver(inner, inner_steps, inner_lr)
        self.eta = eta_rule(eta, newton=curvature is not None)
        self.curvature = curvature
        self.geometry = geometry_named(geometry)
        if curvature is not None and geometry != "euclidean":
            raise OptimizerError(
                f"curvature='diag' replaces the metric of the geometry: it cannot go with {geometry!r}"
            )
        self.differences = Differences(differences, probe_size, probes, seed)
        text = llm if llm is None or isinstance(llm, TextTarget) else TextTarget(llm)
        self.oracle = Oracle(oracle, text, curvature is not None, reduction, self.differences)
        self.steps = 0
        self._replies: WeakKeyDictionary[Trace, tuple[Choice, Reply]] = WeakKeyDictionary()
        self._etas: WeakKeyDictionary[Trace, tuple[int, float]] = WeakKeyDictionary()
        self._found: tuple[tuple[Any, ...], tuple[int, ...], str] | None = None
        self._story = "nothing has been asked yet"

    @property
    def calls(self) -> OracleCalls:
        """How often the oracle was asked, by kind."""
        return self.oracle.calls

    def explain(self) -> str:
        """Which targets were looked at in the last trace, which was taken and why, and what the oracle said of it."""
        return self._story

    # ---- the loop

    def backward(self, output: Node, feedback: FeedbackLike | Feedback = "", *, curvature: Any = None) -> Trace:
        """Ask the oracle about one output.

        Args:
            output: a loss (to be minimised), a target with ``Feedback(gradient=...)`` or a text about it, or one loss
                for each row of the target.
            feedback: see ``Feedback``; a text counts where the optimizer has a language model, a gradient always.
            curvature: diagonal of the loss's second derivative at the target, with ``curvature="diag"``.

        Raises OptimizerError if the feedback says nothing about the target, or no target is found; the trace is then
        not kept.
        """
        trace = self._cut(output, feedback)
        self.ask(trace, curvature=curvature)
        return trace.deposit()

    def ask(self, trace: Trace, *, curvature: Any = None) -> None:
        """What ``backward`` does with a trace that others cut: ask the oracle, once.

        Gradients need autograd's graph, so this comes before another optimizer's backward pass that frees it.
        """
        if any(parameter in self.names for parameter in trace.parameters):
            self._ask(trace, curvature)

    def propose(self, traces: Sequence[Trace] | None = None, n: int = 1) -> list[Proposal]:
        """The minimum of the surrogate; of ``n``, each further one with half the step of the target of the one before.

        The oracle is asked about traces it was not asked about by ``backward``, and by a line search. Outputs that are
        errors are passed over; if all are, there is an empty proposal. Under ``using`` the step starts from the
        candidate that the traces were recorded with.

        Raises OptimizerError if no feedback has reached the parameters, or they changed since.
        """
        traces, failed = without_errors(traces)
        if failed is not None:
            return [failed]
        found = self._traces_or_raise(traces)
        for trace in found:
            self._check_current(trace)
        asked = [self._ask(trace) for trace in found]
        groups = [(self._parts(trace, *known), known[1]) for trace, known in zip(found, asked, strict=True)]
        known_eta = self._etas.get(found[-1])
        if known_eta is not None and known_eta[0] == len(found):
            eta = known_eta[1]
        else:
            self.steps += 1

            def data() -> list[Any]:
                return [examples(trace, choice.nodes) for trace, (choice, _) in zip(found, asked, strict=True)]

            eta = self.eta(position(self.steps, groups, self.geometry, data))
            self._etas[found[-1]] = (len(found), eta)
        return [self._solve(groups, eta / 2**index) for index in range(n)]

    # ---- asking

    def _ask(self, trace: Trace, curvature: Any = None) -> tuple[Choice, Reply]:
        known = self._replies.get(trace)
        if known is None:
            choice = self._choose(trace)
            reply = self.oracle.ask(trace, choice.nodes, curvature)
            for node in choice.nodes:
                self.geometry.check(node._value.detach())
            known = self._replies[trace] = (choice, reply)
            counts = ", ".join(f"mean of {count}" if count > 1 else "sum" for count in reply.counts)
            told = choice.explain(trace) if self._found is None else self._found[2]
            self._story = f"{told}\noracle: {reply.kind}; loss taken as {counts}"
        return known

    def _choose(self, trace: Trace) -> Choice:
        if self.target is not None:
            return choose(trace, self.parameters, self.target)
        # times vary from run to run: a workflow that has not changed keeps its target
        feedback = trace.feedback
        shape = (
            feedback.gradient is not None,
            bool(feedback.text),
            *(node.op and node.op.name for node in trace.nodes),
        )
        if self._found is not None and self._found[0] == shape:
            nodes = tuple(trace.nodes[index] for index in self._found[1])
            return Choice(nodes, (), "as before")  # told as it was found
        choice = choose(trace, self.parameters)
        places = {node: index for index, node in enumerate(trace.nodes)}
        self._found = (shape, tuple(places[node] for node in choice.nodes), choice.explain(trace))
        return choice

    def _check_current(self, trace: Trace) -> None:
        for version in trace.versions:
            name = self.names.get(version.parameter)
            if name is not None and version is not version.parameter._read(current.get()):
                raise OptimizerError(
                    f"the trace was recorded with an earlier value of {name}: call zero_feedback() after each step and "
                    "run the workflow again"
                )

    # ---- moving

    def _parts(self, trace: Trace, choice: Choice, reply: Reply) -> list[Part]:
        inside = set(trace.parameters)
        mine = [p for p in self._moving() if p in inside]
        start = {parameter: parameter.value.detach() for parameter in mine}
        parts = []
        for index, node in enumerate(choice.nodes):
            replay = Replay(trace, node, mine)
            parts.append(
                Part(
                    replay,
                    replay.here(start),
                    reply.gradients[index],
                    reply.counts[index],
                    positive(reply.curvatures[index]) if self.curvature and reply.curvatures is not None else None,
                    None if reply.goals is None else reply.goals[index],
                )
            )
        return parts

    def _moving(self) -> list[TensorParameter]:
        return [p for p in self.parameters if isinstance(p, TensorParameter) and p.value.requires_grad]

    def _solve(self, groups: Sequence[tuple[Sequence[Part], Reply]], eta: float) -> Proposal:
        torch = require("torch", extra="torch")
        parts, replies = [part for some, _ in groups for part in some], [reply for _, reply in groups]
        dropped = [item for reply in replies for item in reply.dropped]
        surrogate = Surrogate(self._moving(), [part.block(eta, self.geometry) for part in parts])
        values = self.inner.solve(surrogate)
        end = surrogate.value(values)
        kinds = ", ".join(dict.fromkeys(reply.kind for reply in replies))
        reason = f"step {self.steps}: {kinds}; eta {eta:.3g}; surrogate 0 -> {end:.3g} in {surrogate.replays} runs"
        changed: dict[Parameter, Any] = {
            parameter: value
            for parameter, value, before in zip(surrogate.parameters, values, surrogate.start, strict=True)
            if not torch.equal(value, before)
        }
        return Proposal(changed, reason=reason, dropped=dropped, step=True)

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """Steps, oracle calls, and what the eta rule remembers: numbers, lists and tensors."""
        calls = self.calls
        return {
            "steps": self.steps,
            "calls": {"gradients": calls.gradients, "losses": calls.losses, "texts": calls.texts},
            "directions": self.differences.drawn,
            "eta": self.eta.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.steps = int(state["steps"])
        calls = state["calls"]
        self.calls.gradients, self.calls.losses, self.calls.texts = (
            int(calls[kind]) for kind in ("gradients", "losses", "texts")
        )
        self.differences.drawn = int(state["directions"])
        self.eta.load_state_dict(state["eta"])
