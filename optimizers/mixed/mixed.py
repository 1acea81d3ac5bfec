"""``Mixed``: language-model and numeric optimizers on one trace, each on its own schedule."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from trace_core.feedback import Feedback
from trace_core.optimizers.base import Optimizer, OptimizerError, Proposal
from trace_core.optimizers.mixed import storing
from trace_core.optimizers.mixed.part import Member, Part, without_gradient
from trace_core.optimizers.mixed.trial import Event, Trial
from trace_core.optimizers.mixed.turns import Turns
from trace_core.parameter import Parameter
from trace_core.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from trace_core.feedback import FeedbackLike
    from trace_core.node import Node

_A_LOSS = Feedback(text="The output is a loss: lower is better.")


class GradientSkipped(UserWarning):
    """An output gave no gradient: the numeric parts learn nothing from it. The message says where gradients stop."""


class Mixed(Optimizer):
    """Several optimizers as one: each parameter belongs to one part, each part has its own schedule.

    Args:
        parts: name -> Optimizer, or Part with its schedule. See ``by_kind`` for parts made by kind of parameter.
        frozen: parameters that stay as they are. Any other parameter an output depends on must belong to a part.
        on_change: what becomes of the numeric optimizers' state (moments, step counts) when a proposal changes what
            they train on: ``keep`` or ``reset``.
        log: how many events are remembered.

    ``backward(output, feedback)`` serves all parts: the gradient of a loss goes to tensors, the trace with the words
    and scores to the others. ``step()`` lets every part take its turn whose time has come. Parts of tensors step.
    The others propose; with a score as ``closure`` a proposal is on trial until the numeric parts have trained with it
    for ``Part.trial`` steps, and is undone together with what they did if the score is then not higher than before.

    Raises OptimizerError for a parameter in two parts, an unknown ``on_change``, ``reset`` for an optimizer that cannot
    be reset.
    """

    def __init__(
        self,
        parts: Mapping[str, Part | Optimizer],
        *,
        frozen: Iterable[Parameter] = (),
        on_change: str = "keep",
        log: int = 256,
    ) -> None:
        self._members = [Member(name, p if isinstance(p, Part) else Part(p)) for name, p in parts.items()]
        self._owner: dict[Parameter, Member] = {}
        self.frozen = set(frozen)
        pairs: list[tuple[str | None, Parameter]] = []
        for member in self._members:
            for parameter, name in member.optimizer.names.items():
                other = self._owner.setdefault(parameter, member)
                if other is not member:
                    raise OptimizerError(
                        f"parameter {name!r} is in two parts, {other.name!r} and {member.name!r}: it belongs to one"
                    )
                if parameter in self.frozen:
                    raise OptimizerError(f"parameter {name!r} is frozen and in part {member.name!r}: decide")
                pairs.append((name, parameter))
        super().__init__(pairs)
        if on_change not in ("keep", "reset"):
            raise OptimizerError(f"on_change must be 'keep' or 'reset', got {on_change!r}")
        for member in self._members:
            if on_change == "reset" and member.numeric and not hasattr(member.optimizer, "reset"):
                raise OptimizerError(
                    f"on_change='reset' needs optimizers with a reset(); {type(member.optimizer).__name__} of part "
                    f"{member.name!r} has none"
                )
        self._turns = Turns(self._members, on_change, log)
        self.chained = any(member.optimizer.chained for member in self._members)

    @property
    def gated(self) -> bool:
        """Whether a part makes proposals that must do better to be taken."""
        return any(member.optimizer.gated for member in self._members)

    @classmethod
    def by_kind(
        cls,
        parameters: Any,
        *,
        llm: Any = None,
        tensor: Any = None,
        text: Any = None,
        code: Any = None,
        number: Any = None,
        data: Any = None,
        frozen: Iterable[Parameter] = (),
        on_change: str = "keep",
    ) -> Mixed:
        """Parts by kind of parameter, for a Module or whatever else ``Optimizer`` takes.

        Args:
            parameters: what may change. Tensors that are frozen in torch's way are left out.
            llm: for prompts, code, numbers and other data: a model by name or object for OptoPrime (by default as
                ``OptoPrime`` chooses), or a function of (name, parameter) pairs such as
                ``functools.partial(OptoPrime, llm="local", objective=...)``. Every 10 steps, unless in a ``Part``.
            tensor: for tensors: a torch optimizer class such as ``torch.optim.AdamW``, a ``functools.partial`` of one,
                or a function of (name, parameter) pairs that makes an Optimizer. By default FRUGAL.
            text, code, number, data: for parameters of that kind, a part of their own: a function of pairs, such as an
                Optimizer class.
            frozen, on_change: see the class.

        Each may be a ``Part`` of the same, with its schedule. Parts are named like the arguments.
        """
        from trace_core.optimizers.mixed.kinds import parts_by_kind

        left = set(frozen)
        own = {"text": text, "code": code, "number": number, "data": data}
        parts = parts_by_kind(
            parameters, left, llm, tensor, {kind: how for kind, how in own.items() if how is not None}
        )
        return cls(parts, frozen=left, on_change=on_change)

    @property
    def parts(self) -> dict[str, Optimizer]:
        """name -> the part's optimizer."""
        return {member.name: member.optimizer for member in self._members}

    @property
    def exhausted(self) -> bool:
        """Whether every part has used its budget and nothing is on trial."""
        return self.trial is None and all(member.exhausted for member in self._members)

    @property
    def steps(self) -> int:
        """Steps done."""
        return self._turns.steps

    @property
    def trial(self) -> Trial | None:
        """The proposal on trial, or None."""
        return self._turns.trial

    @property
    def log(self) -> list[Event]:
        """The latest events."""
        return list(self._turns.log)

    # ---- feedback

    def zero_feedback(self) -> None:
        """Forget gradients and traces, except those of parts that still wait for their turn: theirs add up."""
        self._turns.fresh.clear()
        for member in self._members:
            if member.numeric and 0 < member.waited < member.part.every and not member.exhausted:
                for parameter in member.optimizer.parameters:
                    parameter.feedback.clear()
            else:
                member.optimizer.zero_feedback()

    def backward(self, output: Node, feedback: FeedbackLike | Feedback = "") -> Trace:
        """Give feedback on an output: its gradient, if it is a loss, to tensors, the trace to the other parts.

        An output that no gradient can flow from (a text, say) teaches the other parts only; that is written to ``log``,
        and where it depends on tensors, a GradientSkipped warning says where gradients stop. Raises OptimizerError if
        the output depends on a parameter of no part, NonFiniteError if a loss is not finite; while a proposal is on
        trial, such a loss ends the trial instead.
        """
        trace = self._cut(output, feedback)
        self._check_owned(trace)
        for member in self._members:
            if member.asks and not member.exhausted:
                member.optimizer.ask(trace)  # type: ignore[attr-defined]
            elif member.observes and not member.exhausted:
                member.optimizer.observe(trace)  # type: ignore[attr-defined]
        self._send(trace)
        self._turns.fresh.append(trace)
        return trace.deposit()

    def _check_owned(self, trace: Trace) -> None:
        for parameter in trace.parameters:
            if parameter in self._owner or parameter in self.frozen or without_gradient(parameter):
                continue
            raise OptimizerError(
                f"the output depends on parameter {parameter.name!r} ({parameter.kind}), which belongs to no part: "
                "give it to one, or name it in frozen="
            )

    def _send(self, trace: Trace) -> None:
        """One pass of autograd for all parts."""
        members = [m for m in self._members if m.takes_gradients and not m.exhausted]
        if not members:
            return
        from trace_core.nodes.tensor import GradientError, NonFiniteError, TensorParameter, send_gradients

        mine = {p for m in members for p in m.optimizer.parameters if isinstance(p, TensorParameter)}
        if mine.isdisjoint(trace.parameters):
            self._turns.no_gradient = "the outputs depend on none of its tensors"
            return
        try:
            gradients = send_gradients(trace, mine)
        except GradientError as error:
            self._turns.no_gradient = str(error)
            if trace.error is None:  # what failed has no gradient, and its feedback says so
                warnings.warn(
                    f"the numeric parts learn nothing from this output: {error}", GradientSkipped, stacklevel=3
                )
            return
        except NonFiniteError as error:
            if self.trial is None:
                raise
            self._turns.no_gradient = self.trial.failed = str(error).splitlines()[0]
            return
        for member in members:
            if not set(gradients.reached).isdisjoint(member.optimizer.parameters):
                member.optimizer.receive(trace, gradients)  # type: ignore[attr-defined]

    # ---- stepping

    def step(self, closure: Callable[[], float] | None = None) -> Proposal:
        """One turn of every part that is due.

        Args:
            closure: evaluates the workflow and returns a score, higher is better. With it, proposals are on trial; it
                is evaluated when a trial begins and when it ends. Without, they are applied.

        Numeric parts step first; then a trial that has come to its end is judged; then, with none going on, the part
        that has waited longest proposes. A proposal is kept at once if it is better at once, undone at once if the
        closure fails with it (ExecutionError), else it is on trial. Returns what was changed: parameter -> value, and
        the events in words as ``reason``; its status is ``rejected`` if a trial ended with the proposal undone.

        Raises OptimizerError if no feedback came since the last step, or if a trial must be judged without a closure.
        """
        return self._turns.step(closure)

    def settle(self, closure: Callable[[], float] | None = None) -> None:
        """End a trial that is going on, as at the end of training: by its score now, or undone without a closure."""
        self._turns.settle(closure)

    # ---- proposing, for whoever holds this as any Optimizer

    def propose(self, traces: Sequence[Trace] | None = None, n: int = 1) -> list[Proposal]:
        """Proposals of one part: of those the traces reach, the one whose turn is nearest. Changes no parameter.

        A turn is counted for it, so that the parts take turns by their periods. Raises OptimizerError if no trace
        reaches a part with budget left, or while a proposal is on trial.
        """
        if self.trial is not None:
            raise OptimizerError("a proposal is on trial: go on with step() until it is judged")
        found = self._turns.fresh if traces is None else list(traces)
        able = [m for m in self._members if not m.exhausted and (m.reached(found) or (traces is None and m.traces))]
        if not able:
            self._traces_or_raise(found)
            raise OptimizerError("every part that the outputs depend on has used its budget")
        for member in self._members:
            member.waited += 1
        member = max(able, key=lambda m: m.waited - m.part.every)
        member.optimizer.only = self.only
        if member.numeric:
            made = member.optimizer.propose(member.reached(found), n)
        else:
            made = self._turns.ask(member, n, None if traces is None else found)
        self._turns.took_turn(member)
        return made

    def apply(self, proposal: Proposal) -> None:
        """Apply a proposal of ``propose``: its part does it, and ``on_change`` holds."""
        member = self._member_of(proposal)
        if member is None:
            super().apply(proposal)
        elif member.numeric:
            member.optimizer.apply(proposal)
        else:
            self._turns.change(member, proposal)

    def commit(self, proposal: Proposal) -> None:
        """See Optimizer: its part does it, and ``on_change`` holds."""
        member = self._member_of(proposal)
        if member is not None:
            member.optimizer.commit(proposal)
            if not member.numeric:
                self._turns.changed()

    def _member_of(self, proposal: Proposal) -> Member | None:
        """The part that all of a proposal's parameters belong to; None if they belong to several."""
        members = {id(m): m for p in proposal.values if (m := self._owner.get(p)) is not None}
        return next(iter(members.values())) if len(members) == 1 else None

    def fork(self, ticket: int) -> Optimizer:
        """Itself: parts take turns, so a study works on one ticket at a time."""
        for member in self._members:
            if not member.optimizer.concurrent:
                member.optimizer.fork(ticket)
        return self

    def remember(self, values: Mapping[Parameter, Any], score: float | None, note: str = "") -> None:
        """Tell the parts whose values these are."""
        for member in self._members:
            mine = {p: value for p, value in values.items() if self._owner.get(p) is member}
            if mine:
                member.optimizer.remember(mine, score, note)

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors, in the middle of a trial, too; loads with ``torch.load(..., weights_only=True)``.

        The parameters' values are not part of it, but for those a trial would go back to.
        """
        return {
            "steps": self.steps,
            "parts": {m.name: self._member_state(m) for m in self._members},
            "trial": storing.store_trial(self.trial, self.names),
            "log": [list(event) for event in self.log],
        }

    def _member_state(self, member: Member) -> dict[str, Any]:
        return {
            "optimizer": member.optimizer.state_dict(),
            "waited": member.waited,
            "turns": member.turns,
            "since": dict(member.since),
            "traces": storing.store_traces(member.traces, self.names),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken. Raises OptimizerError if it has other parts."""
        if set(state["parts"]) != set(self.parts):
            raise OptimizerError(
                f"the state has the parts {', '.join(state['parts'])}; these are {', '.join(self.parts)}"
            )
        by_name = {name: parameter for parameter, name in self.names.items()}
        for member in self._members:
            then = state["parts"][member.name]
            member.optimizer.load_state_dict(then["optimizer"])
            member.waited, member.turns = int(then["waited"]), int(then["turns"])
            member.since = {name: int(steps) for name, steps in then["since"].items()}
            member.traces.clear()
            member.traces.extend(storing.load_traces(then["traces"], by_name))
        turns = self._turns
        turns.steps = int(state["steps"])
        turns.trial = storing.load_trial(state["trial"], by_name)
        turns.log.clear()
        turns.log.extend(Event(*event) for event in state["log"])
        turns.fresh = []
