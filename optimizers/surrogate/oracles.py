"""Asking the expensive part what it thinks of the targets: by autograd, by a function of the user's, by differences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import ref

from trace_core._lazy import require
from trace_core.context import no_trace
from trace_core.errors import FeedbackError
from trace_core.optimizers.base import OptimizerError
from trace_core.optimizers.surrogate.curvature import diagonal
from trace_core.optimizers.surrogate.differences import Differences
from trace_core.optimizers.surrogate.frozen import frozen
from trace_core.optimizers.surrogate.reductions import averaged_over

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trace_core.node import Node
    from trace_core.optimizers.base import Dropped
    from trace_core.optimizers.surrogate.text import TextTarget
    from trace_core.trace import Trace


@dataclass
class OracleCalls:
    """How often the expensive part was asked.

    Attributes:
        gradients: runs with a derivative, the workflow's own included.
        losses: runs without: line searches and differences, and the workflow's own where it gave a number only.
        texts: requests to a language model.
    """

    gradients: int = 0
    losses: int = 0
    texts: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.gradients + self.losses + self.texts


@dataclass(frozen=True)
class Answer:
    """What a user's oracle may return for a target.

    Attributes:
        loss: a number.
        gradient: of the loss at the target, of its shape; None to have it found by differences.
        curvature: diagonal of the second derivative, of its shape; only for ``curvature="diag"``.
        losses: one loss per example (row of the target), whose sum is the loss.
    """

    loss: Any = None
    gradient: Any = None
    curvature: Any = None
    losses: Any = None


@dataclass
class Reply:
    """What is known about the targets of one trace.

    Attributes:
        kind: in words, where it comes from.
        gradients: of the loss, one for each target.
        counts: over how many terms the loss is averaged, for each target.
        curvatures: diagonal second derivatives, for each target.
        goals: where the targets should be, instead of a gradient.
        base: the loss at the targets; None if it is not known.
        loss: the loss at other targets, if it can be had.
        dropped: what a language model proposed and was refused.
    """

    kind: str
    gradients: list[Any]
    counts: list[int]
    curvatures: list[Any] | None = None
    goals: list[Any] | None = None
    base: float | None = None
    loss: Callable[[Sequence[Any]], float] | None = None
    dropped: list[Dropped] = field(default_factory=list)


class Oracle:
    """Finds out, for one trace at a time, how the loss depends on the targets.

    Args:
        function: of one target, without history; returns a loss, one loss per row, or an Answer.
        text: turns words into goals.
        curvature: whether second derivatives are wanted.
        reduction: ``mean``, ``sum`` or ``auto``.
        differences: how a gradient is made of losses.
    """

    def __init__(
        self,
        function: Callable[[Any], Any] | None,
        text: TextTarget | None,
        curvature: bool,
        reduction: str,
        differences: Differences,
    ) -> None:
        self.function = function
        self.text = text
        self.curvature = curvature
        self.reduction = reduction
        self.differences = differences
        self.calls = OracleCalls()

    def ask(self, trace: Trace, targets: Sequence[Node], curvature: Any = None) -> Reply:
        """The reply for one trace. Raises OptimizerError or FeedbackError where none can be had."""
        feedback = trace.feedback
        if feedback.gradient is not None:
            reply = self._given(trace, targets)
        elif feedback.text and self.text is not None:
            reply = self._from_text(trace, targets)
        elif self.function is not None:
            reply = self._from_function(targets)
        elif trace.output in targets:
            raise OptimizerError(
                "the feedback is on the target itself and says neither how its loss changes nor what should be: give "
                "Feedback(gradient=...), oracle=..., llm=... with a text, or go backward from the loss"
            )
        elif _differentiable(trace.output._value):
            reply = self._by_autograd(trace, targets)
        else:
            reply = self._by_differences(trace, targets)
        if curvature is not None:
            reply.curvatures = [_like(curvature, targets[0]._value, "curvature")]
        if self.curvature and reply.curvatures is None and reply.goals is None:
            raise OptimizerError(
                "curvature='diag' needs second derivatives at the target, and this feedback gives none: "
                "backward(..., curvature=...), an oracle that returns Answer(curvature=...), or a differentiable loss"
            )
        for part in [*reply.gradients, *(reply.curvatures or ())]:
            if not bool(require("torch", extra="torch").isfinite(part).all()):
                raise FeedbackError(
                    f"the answer about the target is not finite ({reply.kind}): expected finite numbers"
                )
        return reply

    # ---- kinds of feedback

    def _given(self, trace: Trace, targets: Sequence[Node]) -> Reply:
        torch = require("torch", extra="torch")
        output, given = trace.output, trace.feedback.gradient
        seed = _like(given, output._value, "gradient")
        self.calls.gradients += 1
        values = [target._value for target in targets]
        if len(targets) == 1 and targets[0] is output:
            gradients = [seed]
        else:
            gradients = torch.autograd.grad(output._value, values, seed, retain_graph=True, materialize_grads=True)
        return Reply("gradient given", list(gradients), [self._count(value) for value in values])

    def _by_autograd(self, trace: Trace, targets: Sequence[Node]) -> Reply:
        torch = require("torch", extra="torch")
        self.calls.gradients += 1
        values = [target._value for target in targets]
        loss = trace.output._value.sum()
        gradients = torch.autograd.grad(
            loss, values, retain_graph=True, create_graph=self.curvature, materialize_grads=True
        )
        single = trace.output._value.numel() == 1
        counts = [self._count(v, averaged_over(trace.output._value, v) if single else 1) for v in values]
        detached, base = [gradient.detach() for gradient in gradients], float(loss.detach())
        reply = Reply("autograd", detached, counts, base=base, loss=self._later(trace, targets))
        if self.curvature:
            reply.curvatures = [diagonal(g, v) for g, v in zip(gradients, values, strict=True)]
        return reply

    def _from_function(self, targets: Sequence[Node]) -> Reply:
        if len(targets) != 1:
            raise OptimizerError(f"oracle= is a function of one target, and there are {len(targets)}: name one of them")
        here = targets[0]._value.detach()
        answer = self._call(here)
        count = self._count(here)

        def loss(moved: Sequence[Any]) -> float:
            self.calls.losses += 1
            return _total(self._call(moved[0]))

        if answer.gradient is not None:
            self.calls.gradients += 1
            curvatures = None if answer.curvature is None else [_like(answer.curvature, here, "curvature")]
            known = None if answer.loss is None and answer.losses is None else _total(answer)
            return Reply("oracle", [_like(answer.gradient, here, "gradient")], [count], curvatures, None, known, loss)
        self.calls.losses += 1

        def losses(moved: Sequence[Any]) -> Any:
            self.calls.losses += 1
            found = self._call(moved[0])
            return found.loss if found.losses is None else found.losses

        base = answer.loss if answer.losses is None else answer.losses
        kind, gradients = self.differences(losses, [here], base)
        counts = [count if answer.losses is None else 1]
        return Reply(f"oracle, {kind}", gradients, counts, None, None, _total(answer), loss)

    def _by_differences(self, trace: Trace, targets: Sequence[Node]) -> Reply:
        torch = require("torch", extra="torch")
        base = trace.output._value
        if not _numeric(base):
            raise OptimizerError(
                f"nothing can be learned from an output of type {type(base).__name__} with this feedback: expected a "
                "loss (a number or a tensor), Feedback(gradient=...), oracle=..., or llm=... with a text"
            )
        if trace.feedback.score is not None:
            raise OptimizerError(
                "a score alone does not say how it depends on the target: go backward from a loss without a score, or "
                "give oracle=..., a function of the target that returns losses (lower is better)"
            )
        self.calls.losses += 1
        here = [target._value.detach() for target in targets]
        kind, gradients = self.differences(lambda moved: self._replayed_output(trace, targets, moved), here, base)
        counts = [self._count(value) for value in here]
        total = float(torch.as_tensor(base).sum())
        return Reply(kind, gradients, counts, None, None, total, self._later(trace, targets))

    def _from_text(self, trace: Trace, targets: Sequence[Node]) -> Reply:
        torch = require("torch", extra="torch")
        if self.text is None or len(targets) != 1:
            raise OptimizerError(f"a text can be about one target, and there are {len(targets)}: name one of them")
        here = targets[0]._value.detach()
        goal, dropped, requests = self.text.goal(trace, targets[0], here)
        self.calls.texts += requests
        return Reply("text", [torch.zeros_like(here)], [1], goals=[goal], dropped=dropped)

    # ---- the oracle itself

    def _call(self, target: Any) -> Answer:
        if self.function is None:
            raise OptimizerError("there is no oracle function")
        torch = require("torch", extra="torch")
        with torch.no_grad(), frozen():
            found = self.function(target.clone())
        if isinstance(found, Answer):
            return found
        if not _numeric(found):
            raise OptimizerError(
                f"oracle must return a loss, one loss per row, or an Answer; got {type(found).__name__}: {found!r:.60}"
            )
        per_row = getattr(found, "ndim", 0) > 0
        return Answer(losses=torch.as_tensor(found)) if per_row else Answer(loss=found)

    def _replayed_output(self, trace: Trace, targets: Sequence[Node], moved: Sequence[Any]) -> Any:
        self.calls.losses += 1
        with require("torch", extra="torch").no_grad(), no_trace(), frozen():
            return trace.replay(dict(zip(targets, moved, strict=True)))._value

    def _later(self, trace: Trace, targets: Sequence[Node]) -> Callable[[Sequence[Any]], float]:
        """The loss at other targets; does not keep the trace alive, as replies are kept for as long as it lives."""
        known = ref(trace)

        def loss(moved: Sequence[Any]) -> float:
            found = known()
            if found is None:
                raise OptimizerError("the trace is gone: keep it until the step is done")
            output = self._replayed_output(found, targets, moved)
            return float(require("torch", extra="torch").as_tensor(output).sum())

        return loss

    def _count(self, target: Any, found: int = 1) -> int:
        if self.reduction == "auto":
            return found
        return int(target.shape[0]) if self.reduction == "mean" and target.ndim else 1


def _total(answer: Answer) -> float:
    if answer.losses is not None:
        return float(answer.losses.sum())
    if answer.loss is None:
        raise OptimizerError("the oracle's Answer has neither loss nor losses, and the eta rule asks for the loss")
    return float(answer.loss)


def _like(given: Any, example: Any, what: str) -> Any:
    torch = require("torch", extra="torch")
    value = torch.as_tensor(given, dtype=example.dtype, device=example.device).detach()
    if value.shape != example.shape:
        raise FeedbackError(f"expected a {what} of the shape {tuple(example.shape)}, got {tuple(value.shape)}")
    return value


def _differentiable(value: Any) -> bool:
    return bool(getattr(value, "requires_grad", False))


def _numeric(value: Any) -> bool:
    torch = require("torch", extra="torch")
    if isinstance(value, torch.Tensor):
        return bool(value.is_floating_point())
    return (isinstance(value, int | float) and not isinstance(value, bool)) or hasattr(value, "__array__")
