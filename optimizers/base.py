"""What every optimizer shares: parameters with unique names, feedback in, validated proposals out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from trace_core.context import using
from trace_core.errors import TraceCoreError
from trace_core.names import identifier, unique_names
from trace_core.node import Node
from trace_core.parameter import Parameter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from trace_core.feedback import Feedback, FeedbackLike
    from trace_core.trace import Trace


Parameters: TypeAlias = "HasParameters | Mapping[str, Parameter] | Iterable[Any]"


class HasParameters(Protocol):
    """A Module, or whatever else names its parameters."""

    def named_parameters(self) -> Iterable[tuple[str, Parameter]]:
        """(name, parameter) pairs."""
        ...


class OptimizerError(TraceCoreError):
    """An optimizer is used in a way that cannot work; the message says what to do."""


class Dropped:
    """A value that was proposed and refused.

    Attributes:
        name: the parameter's name as the optimizer uses it, or the unknown name that was proposed.
        value: what was proposed.
        reason: why it was refused.
    """

    __slots__ = ("name", "reason", "value")

    def __init__(self, name: str, value: Any, reason: str) -> None:
        self.name, self.value, self.reason = name, value, reason

    def __repr__(self) -> str:
        return f"Dropped({self.name}: {self.reason})"


class Proposal:
    """New values for some parameters, every one validated; possibly none, with the reason.

    Attributes:
        values: parameter -> new value.
        reason: why, in the optimizer's words.
        status: ``proposed``, ``applied``, ``rejected`` (no better where it was tried), ``empty`` (nothing valid).
        dropped: what was proposed and refused.
        attempts: requests made for it, repairs included.
        prompt_tokens, completion_tokens: tokens used; None where unknown.
        cost: US dollars; None where unknown.
        prompt: the text that was sent, for inspection.
        error: the error of the language model because of which there are no values; None otherwise.
        step: whether it is a step of a numeric optimizer, which goes on from the one before: worth taking even where
            the next score is lower.
    """

    __slots__ = (
        "attempts",
        "completion_tokens",
        "cost",
        "dropped",
        "error",
        "prompt",
        "prompt_tokens",
        "reason",
        "status",
        "step",
        "values",
    )

    def __init__(
        self,
        values: Mapping[Parameter, Any],
        *,
        reason: str = "",
        status: str = "proposed",
        dropped: Sequence[Dropped] = (),
        attempts: int = 1,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        cost: float | None = None,
        prompt: str = "",
        error: TraceCoreError | None = None,
        step: bool = False,
    ) -> None:
        self.values = dict(values)
        self.reason = reason
        self.status = status if self.values else "empty"
        self.dropped = tuple(dropped)
        self.attempts = attempts
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens
        self.cost = cost
        self.prompt = prompt
        self.error = error
        self.step = step

    def __bool__(self) -> bool:
        return bool(self.values)

    def __repr__(self) -> str:
        names = ", ".join(str(parameter.name or parameter.kind) for parameter in self.values)
        return f"Proposal({self.status}: {names or 'nothing'}; {self.reason!r:.60})"


class Optimizer:
    """Improves parameters from feedback on outputs that depend on them.

    ``optimizer.zero_feedback()``, run the workflow, ``optimizer.backward(output, feedback)`` for each output of the
    minibatch, ``optimizer.step()``. Subclasses implement ``propose``.

    Args:
        parameters: a Module, or parameters, or (name, parameter) pairs, or a mapping by name.

    Attributes:
        chained: whether each proposal goes on from the one before, as a gradient step does. A study then runs one
            ticket at a time and takes every step.
        concurrent: whether ``fork`` gives an optimizer of its own, so that several can propose at once.
        only: the parameters that the next proposals may change; None for all. Optimizers that move all of theirs
            together ignore it.

    Raises OptimizerError if there is none, or something else than a Parameter is among them.
    """

    chained = False
    concurrent = False
    only: frozenset[Parameter] | None = None

    @property
    def gated(self) -> bool:
        """Whether there are proposals among its own that must do better to be taken: not so if all are steps."""
        return not self.chained

    def __init__(self, parameters: Parameters) -> None:
        self.names: dict[Parameter, str] = _named(parameters)
        self.parameters: list[Parameter] = list(self.names)
        if not self.parameters:
            raise OptimizerError(
                "expected at least one parameter, got none: mark values with tc.node(value, trainable=True)"
            )

    def zero_feedback(self) -> None:
        """Forget the traces collected so far."""
        for parameter in self.parameters:
            parameter.zero_feedback()

    def backward(self, output: Node, feedback: FeedbackLike | Feedback = "") -> Trace:
        """Give feedback on an output; its trace is kept by every parameter it depends on. See ``Node.backward``."""
        return self._cut(output, feedback).deposit()

    def _cut(self, output: Node, feedback: FeedbackLike | Feedback) -> Trace:
        from trace_core.trace import Trace

        if not isinstance(output, Node):
            raise OptimizerError(
                f"backward needs the workflow's output Node, got {type(output).__name__}: "
                "return a node (the result of a bundle), not its .value"
            )
        return Trace.of(output, feedback)

    def traces(self) -> list[Trace]:
        """The traces that reached these parameters since ``zero_feedback``, each once, in order of arrival."""
        return list({id(trace): trace for parameter in self.parameters for trace in parameter.feedback}.values())

    def propose(self, traces: Sequence[Trace] | None = None, n: int = 1) -> list[Proposal]:
        """``n`` independent proposals from the traces (by default those collected). Changes no parameter."""
        raise NotImplementedError

    def proposals(self, traces: Sequence[Trace] | None = None, n: int = 1) -> Iterator[Proposal]:
        """``propose``, one at a time where the optimizer can make them so."""
        yield from self.propose(traces, n)

    def step(self, closure: Callable[[], float] | None = None) -> Proposal:
        """Propose from the collected traces and apply it.

        With ``closure`` (evaluates the workflow, returns a score, higher is better) the proposal is applied only if the
        score with it is higher than without; it is evaluated under an overlay, so nothing needs undoing.

        Raises OptimizerError if no feedback has reached the parameters.
        """
        proposal = self.propose()[0]
        if not proposal:
            return proposal
        if closure is not None:
            before = closure()
            with using(proposal.values):
                after = closure()
            self.remember(proposal.values, after)
            if not after > before:
                proposal.status = "rejected"
                return proposal
        self.apply(proposal)
        return proposal

    def apply(self, proposal: Proposal) -> None:
        """Update the parameters. All values were validated; if one is refused all the same, none is changed."""
        checked = {parameter: parameter.check(value) for parameter, value in proposal.values.items()}
        for parameter, value in checked.items():
            parameter.update(value)
        self.commit(proposal)
        proposal.status = "applied" if checked else "empty"

    def commit(self, proposal: Proposal) -> None:
        """Take over the state that belongs to a proposal that was accepted, without touching a parameter.

        ``apply`` is this and the values. Optimizers whose state does not depend on it do nothing here.
        """

    def fork(self, ticket: int) -> Optimizer:
        """An optimizer for one ticket of a search, whose proposals do not depend on other tickets at work meanwhile.

        Here it is the optimizer itself: only one ticket can be at work then, see ``concurrent``.
        """
        return self

    def join(self, fork: Optimizer, improved: bool = False) -> None:
        """Take over what a fork has learned. Called in the order of tickets; ``improved``: it gave the best so far."""

    def remember(self, values: Mapping[Parameter, Any], score: float | None, note: str = "") -> None:
        """Tell the optimizer how values did that were evaluated elsewhere; score None: they failed as ``note`` says.

        Optimizers without a memory ignore it.
        """

    def state_dict(self) -> dict[str, Any]:
        """Plain data from which ``load_state_dict`` goes on; the parameters' values are not part of it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` gave."""

    def _traces_or_raise(self, traces: Sequence[Trace] | None) -> list[Trace]:
        found = list(traces) if traces is not None else self.traces()
        mine = set(self.parameters)
        reached = [trace for trace in found if mine.intersection(trace.parameters)]
        if not reached:
            raise OptimizerError(
                "no feedback has reached these parameters: run the workflow, then optimizer.backward(output, feedback) "
                "on an output that depends on them (values taken out of nodes outside of a bundle lose their history)"
            )
        return reached


def parameter_pairs(parameters: Any) -> list[tuple[str | None, Parameter]]:
    """(name as given, parameter) for each parameter once. Raises OptimizerError for what is no Parameter."""
    if hasattr(parameters, "named_parameters"):
        parameters = parameters.named_parameters()
    given: dict[Parameter, str | None] = {}
    for item in parameters.items() if hasattr(parameters, "items") else parameters:
        name, parameter = item if isinstance(item, tuple) else (None, item)
        if not isinstance(parameter, Parameter):
            raise OptimizerError(
                f"expected Parameters, got {type(parameter).__name__}: "
                "use tc.node(value, trainable=True) or module.parameters()"
            )
        given.setdefault(parameter, name)
    return [(name, parameter) for parameter, name in given.items()]


def _named(parameters: Any) -> dict[Parameter, str]:
    given = {parameter: name for name, parameter in parameter_pairs(parameters)}
    unnamed = unique_names(given)
    names: dict[Parameter, str] = {}
    taken: set[str] = set()
    for parameter, name in given.items():
        wanted = identifier(name) if name is not None else unnamed[parameter]
        candidate, count = wanted, 1
        while candidate in taken:
            count += 1
            candidate = f"{wanted}_{count}"
        taken.add(candidate)
        names[parameter] = candidate
    return names
