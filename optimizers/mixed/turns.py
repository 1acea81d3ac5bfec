"""Whose turn it is, and what becomes of a proposal: the steps of ``Mixed``."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from trace_core.errors import ExecutionError
from trace_core.feedback import Feedback
from trace_core.optimizers.base import OptimizerError, Proposal
from trace_core.optimizers.mixed.light import light
from trace_core.optimizers.mixed.trial import Event, Trial, checkpoint, finite_score, restore
from trace_core.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trace_core.optimizers.mixed.part import Member
    from trace_core.parameter import Parameter

_A_LOSS = Feedback(text="The output is a loss: lower is better.")


class Turns:
    """The parts at work, step by step.

    Attributes:
        members: the parts; ``on_change`` as for ``Mixed``.
        steps: steps done.
        trial: the proposal on trial, or None.
        log: the latest events.
        fresh: the traces that came since the last step.
        no_gradient: why the latest output without a gradient had none.
    """

    def __init__(self, members: Sequence[Member], on_change: str, log: int) -> None:
        self.members = list(members)
        self.on_change = on_change
        self.steps = 0
        self.trial: Trial | None = None
        self.log: deque[Event] = deque(maxlen=log)
        self.fresh: list[Trace] = []
        self.no_gradient = ""

    def step(self, closure: Callable[[], float] | None) -> Proposal:
        """See ``Mixed.step``."""
        if not self.fresh and not any(_has_gradient(member) for member in self.members):
            raise OptimizerError(
                "no feedback has come since the last step: run the workflow, then optimizer.backward(output, feedback)"
            )
        if self.trial is not None and self.trial.left <= 1 and not self.trial.failed and closure is None:
            raise OptimizerError(
                f"the proposal of part {self.trial.part!r} from step {self.trial.since} is to be judged: "
                "give step() the closure it was tried with"
            )
        self.steps += 1
        changed: dict[Parameter, Any] = {}
        for member in sorted(self.members, key=lambda m: not m.asks):  # they run the trace again, as it was recorded
            member.waited += 1
            if member.numeric:
                changed.update(self._numeric_step(member))
        score = None if self.trial is None else self._go_on(self.trial, closure, changed)
        if self.trial is None:
            self._next_turn(closure, score, changed)
        self._keep_traces()
        self.fresh = []
        events = [event for event in self.log if event.step == self.steps]
        said = "; ".join(f"{e.part} {e.kind}" + (f": {e.reason}" if e.reason else "") for e in events)
        proposal = Proposal(changed, reason=said)
        if changed:
            proposal.status = "applied"
        elif any(event.kind == "undone" for event in events):
            proposal.status = "rejected"
        return proposal

    def _numeric_step(self, member: Member) -> dict[Parameter, Any]:
        if not member.due:
            return {}
        if member.takes_gradients and not _has_gradient(member):
            self._say(member, "skipped", f"no gradient came: {self.no_gradient or 'no output reached it'}")
            return {}
        if not member.takes_gradients and not member.reached(self.fresh):
            self._say(member, "skipped", "no output reached it")
            return {}
        proposal = member.optimizer.step()
        self.took_turn(member)
        return proposal.values

    def took_turn(self, member: Member) -> None:
        member.took_turn()
        if not member.numeric:
            member.since = {m.name: getattr(m.optimizer, "steps", 0) for m in self.members if m.takes_gradients}
        if member.exhausted:
            self._say(member, "exhausted", f"it has used its budget of {member.part.budget}")

    def _next_turn(
        self, closure: Callable[[], float] | None, score: float | None, changed: dict[Parameter, Any]
    ) -> None:
        """Let the part propose that has been due longest."""
        due = [m for m in self.members if not m.numeric and m.due]
        waiting = [m for m in due if m.traces or m.reached(self.fresh)]
        for member in due:
            if member not in waiting and member.waited == member.part.every:
                self._say(member, "skipped", "no output reached it")
        if not waiting:
            return
        member = max(waiting, key=lambda m: m.waited - m.part.every)
        made = self.ask(member, 1)
        proposal = made[0] if made else Proposal({}, reason="it proposed nothing")
        told = dict(member.since)
        self.took_turn(member)
        if not proposal:
            self._say(member, "empty", proposal.reason)
            return
        if closure is None:
            member.traces.clear()
            self.change(member, proposal)
            changed.update(proposal.values)
            self._say(member, "applied", proposal.reason)
            return
        self._try(member, proposal, closure, score, changed, told)

    def ask(self, member: Member, n: int, traces: Sequence[Trace] | None = None) -> list[Proposal]:
        """Proposals from the kept traces and the present ones, the numeric parts' doings beside them."""
        shown = member.reached([*member.traces, *self.fresh] if traces is None else traces)[-member.part.window :]
        if hasattr(member.optimizer, "notes"):  # it reads traces; how the tensors stand is in the notes
            member.optimizer.notes = self.notes(member)
            shown = [light(trace) for trace in shown]
        return list(member.optimizer.propose([_with_words(trace) for trace in shown], n))

    def notes(self, member: Member) -> str:
        """What the numeric parts did since the part's last turn, as a section for a language model; '' if nothing."""
        lines = []
        for other in self.members:
            if other.takes_gradients and hasattr(other.optimizer, "summary"):
                since = min(member.since.get(other.name, 0), other.optimizer.steps)  # type: ignore[attr-defined]
                lines.append(f"{other.name}: {other.optimizer.summary(since)}")
        head = "# Numeric training since the last change of the other variables"
        return "\n".join([head, *lines]) if lines else ""

    def change(self, member: Member, proposal: Proposal) -> None:
        member.optimizer.apply(proposal)
        self.changed()

    def changed(self) -> None:
        """A part that proposes has changed something: see ``on_change`` of ``Mixed``."""
        if self.on_change == "reset":
            for other in self.members:
                if other.numeric:
                    other.optimizer.reset()  # type: ignore[attr-defined]

    # ---- trials

    def settle(self, closure: Callable[[], float] | None) -> None:
        """See ``Mixed.settle``."""
        if self.trial is None:
            return
        self.trial.left = 1
        if closure is None:
            self.trial.failed = self.trial.failed or "ended before it was judged"
        self._go_on(self.trial, closure, {})

    def _try(
        self,
        member: Member,
        proposal: Proposal,
        closure: Callable[[], float],
        score: float | None,
        changed: dict[Parameter, Any],
        told: dict[str, int],
    ) -> None:
        before = finite_score(closure()) if score is None else score
        saved = checkpoint(self.members)
        steps = member.part.trial if any(m.numeric and not m.exhausted for m in self.members) else 0
        trial = Trial(
            part=member.name,
            values=dict(proposal.values),
            reason=proposal.reason,
            before=before,
            left=steps,
            since=self.steps,
            saved=saved,
            told=told,
            traces=[*member.traces, *map(light, member.reached(self.fresh))][-member.part.window :],
        )
        self.change(member, proposal)
        member.traces.clear()
        self.fresh = []  # they show the values before
        self.trial = trial
        changed.update(proposal.values)
        after = self._score(trial, closure)
        if after > before:
            self._keep(trial, after, "at once")
        elif steps == 0 or trial.failed:
            self._undo(trial, after, "at once", changed)
        else:
            self._say(member, "tried", f"on trial for {steps} steps: {proposal.reason}", after)

    def _go_on(self, trial: Trial, closure: Callable[[], float] | None, changed: dict[Parameter, Any]) -> float | None:
        """Count a step of the trial and judge it at its end; then the score of what is in force, else None."""
        trial.left -= 1
        if not trial.failed and (closure is None or trial.left > 0):
            return None
        how = f"after {self.steps - trial.since} steps"
        after = float("-inf") if trial.failed or closure is None else self._score(trial, closure)
        if after > trial.before:
            self._keep(trial, after, how)
            return after
        self._undo(trial, after, how, changed)
        return trial.before

    def _score(self, trial: Trial, closure: Callable[[], float]) -> float:
        """The closure's score; of one that fails in the workflow, the worst. Any other error undoes the trial first."""
        try:
            return finite_score(closure())
        except ExecutionError as error:
            trial.failed = str(error).splitlines()[0]
            return float("-inf")
        except BaseException as error:
            self._say(self._member(trial.part), "undone", f"the closure raised {type(error).__name__}: {error}")
            restore(self.members, trial.saved)
            self.trial = None
            raise

    def _keep(self, trial: Trial, after: float, how: str) -> None:
        member = self._member(trial.part)
        self.trial = None
        member.optimizer.remember(trial.values, after, f"kept {how}")
        self._say(member, "kept", f"{how}, score {trial.before:.4g} -> {after:.4g}: {trial.reason}", after)

    def _undo(self, trial: Trial, after: float, how: str, changed: dict[Parameter, Any]) -> None:
        member = self._member(trial.part)
        trained = "; ".join(
            m.optimizer.summary(trial.saved[m.name]["state"]["steps"])
            for m in self.members
            if m.takes_gradients and self.steps > trial.since and hasattr(m.optimizer, "summary")
        )
        restore(self.members, trial.saved)
        self.trial = None
        self.fresh = []  # they show what was undone
        for other in self.members:
            other.traces.clear()
        member.traces.extend(trial.traces)
        member.since = trial.told  # what it is told next is again how the restored values were trained
        changed.clear()
        why = trial.failed or f"score {trial.before:.4g}, with it {after:.4g}"
        note = "; ".join(part for part in (f"no better {how}", trial.failed, trained) if part)
        member.optimizer.remember(trial.values, after if after > float("-inf") else None, note)
        self._say(member, "undone", f"{how}, {why}{f'; {trained}' if trained else ''}: {trial.reason}", after)

    def _member(self, name: str) -> Member:
        return next(member for member in self.members if member.name == name)

    def _say(self, member: Member, kind: str, reason: str, score: float | None = None) -> None:
        self.log.append(Event(self.steps, member.name, kind, reason, score))

    def _keep_traces(self) -> None:
        for member in self.members:
            if not member.numeric:
                wait = max(member.part.every - member.waited, self.trial.left if self.trial else 0)
                member.keep(self.fresh, max(0, wait - 1))


def _has_gradient(member: Member) -> bool:
    return member.numeric and any(getattr(p, "grad", None) is not None for p in member.optimizer.parameters)


def _with_words(trace: Trace) -> Trace:
    """The trace; where nothing was said of a loss, with what a loss is."""
    said = trace.feedback
    if said.text or said.score is not None or said.scores or trace.error is not None:
        return trace
    return Trace(trace.output, _A_LOSS, trace.nodes, trace.unfolded)
