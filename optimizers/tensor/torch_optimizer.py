"""Any torch optimizer, with the interface every optimizer of this library has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import ref

from trace_core._lazy import require
from trace_core.nodes.tensor import send_gradients
from trace_core.optimizers.base import Optimizer, OptimizerError, Proposal
from trace_core.optimizers.tensor.exact import load_exactly, saved_state, twin_of
from trace_core.optimizers.tensor.groups import groups_from, made_over
from trace_core.optimizers.tensor.history import History, describe
from trace_core.optimizers.tensor.proposing import Stepped, StepProposal, fresh_gradients, without_errors
from trace_core.optimizers.tensor.schedule import Schedule, must_be_given
from trace_core.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from trace_core.feedback import Feedback, FeedbackLike
    from trace_core.node import Node
    from trace_core.nodes.tensor import Gradients, TensorParameter
    from trace_core.parameter import Parameter


class TorchOptimizer(Optimizer):
    """A ``torch.optim.Optimizer`` on the tensor parameters of a traced workflow.

    Args:
        parameters: TensorParameters, a ``module_node``, a Module, or a list of these; dicts ``{"params": ..., "lr":
            ...}`` in a list are groups with options of their own. Frozen ones (``requires_grad=False``) are left out.
        optimizer: a class such as ``torch.optim.AdamW`` or ``Frugal``, or a function that makes an optimizer of named
            tensors (``(name, tensor)`` pairs, or groups of them). FRUGAL projects what ``Frugal.from_module`` would,
            unless ``project=`` is among the options.
        scheduler: a function of the torch optimizer that makes a learning rate scheduler, such as
            ``functools.partial(torch.optim.lr_scheduler.StepLR, step_size=10)``. It advances with each ``step()``; one
            that watches a loss, ``ReduceLROnPlateau``, gets the mean loss of the step and waits for it.
        clip_norm: gradients are scaled so that their common 2-norm is at most this.
        clip_value: each entry of a gradient is cut off at plus and minus this; before ``clip_norm``.
        history: how many of the last steps are remembered, see ``history``. 0 for none.
        options: handed to ``optimizer``.

    ``backward(loss)`` sends gradients. As in torch, those of several outputs add up until ``zero_feedback``: for the
    mean over a minibatch, divide each loss by the batch size or take the mean in the workflow. ``step()`` updates the
    tensors in place.

    Attributes:
        torch_optimizer: torch's object; ``scheduler`` is the other one.
        steps: steps done.
        history: what the steps did, a ``StepRecord`` each; reading it may wait for the device, recording does not.

    Raises OptimizerError for parameters that are no tensors, are all frozen, or share a tensor.
    """

    chained = True

    def __init__(
        self,
        parameters: Any,
        optimizer: Callable[..., Any],
        *,
        scheduler: Callable[[Any], Any] | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        history: int = 256,
        **options: Any,
    ) -> None:
        require("torch", extra="torch")
        given = parameters if hasattr(parameters, "named_parameters") or hasattr(parameters, "items") else [*parameters]
        self.paths, groups = groups_from(given)
        super().__init__([(path, parameter) for parameter, path in self.paths.items()])
        for name, limit in (("clip_norm", clip_norm), ("clip_value", clip_value)):
            if limit is not None and not limit > 0:
                raise OptimizerError(f"{name} must be above 0, got {limit!r}")
        self.clip_norm, self.clip_value = clip_norm, clip_value
        self.torch_optimizer = made_over(given, self.paths, groups, optimizer, options)
        self._schedule = Schedule(scheduler, self.torch_optimizer)
        self._trained = {id(t) for group in self.torch_optimizer.param_groups for t in group["params"]}
        self._needs_closure = must_be_given(self.torch_optimizer.step, "closure")
        self._fresh = saved_state(self.torch_optimizer)
        self.steps = 0
        self.history = History(history)
        self._losses: list[Any] = []
        self._sent: list[ref[Trace]] = []  # not the traces themselves: they keep what autograd kept

    @property
    def scheduler(self) -> Any:
        """The learning rate scheduler; None if there is none."""
        return self._schedule.scheduler

    @property
    def label(self) -> str:
        """The class of the torch optimizer."""
        return type(self.torch_optimizer).__name__

    @property
    def lr(self) -> float:
        """The learning rate of the first group; waits for the device where it is kept there."""
        return float(self.torch_optimizer.param_groups[0]["lr"])

    # ---- feedback

    def zero_feedback(self) -> None:
        """Forget traces, gradients and losses."""
        super().zero_feedback()
        self._losses.clear()
        self._sent.clear()

    def backward(self, output: Node, feedback: FeedbackLike | Feedback = "") -> Trace:
        """Add the gradient of ``output`` to the parameters' and leave the trace with them.

        ``output`` is a scalar loss, to be minimised, or ``Feedback(gradient=...)`` is given at any tensor. A score is
        no gradient. Raises GradientError and NonFiniteError as ``send_gradients`` does; then no trace is left.
        """
        trace = self._cut(output, feedback)
        self.receive(trace, send_gradients(trace, self.parameters))  # type: ignore[arg-type]
        return trace.deposit()

    def receive(self, trace: Trace, gradients: Gradients) -> None:
        """Note a trace whose gradients were sent, by ``backward`` or by whoever did it for several optimizers."""
        self._sent.append(ref(trace))
        if gradients.loss is not None:
            self._losses.append(gradients.loss)

    # ---- stepping

    def step(
        self,
        closure: Callable[[], float] | None = None,
        *,
        recompute: Callable[[], Node | Iterable[Node]] | None = None,
    ) -> Proposal:
        """Update the tensors from their gradients.

        Args:
            closure: evaluates the workflow and returns a score, higher is better. The step is kept only if the score
                after it is higher than before; else parameters, optimizer and scheduler are put back as they were, bit
                for bit, and the proposal's status is ``rejected``.
            recompute: runs the workflow again and returns its loss node, or several whose gradients add up: what
                torch's own closures do, for optimizers that evaluate the loss more than once in a step (``LBFGS``).
                Gradients sent before are forgotten.

        The proposal's values are the live tensors, not copies. If ``closure`` or ``recompute`` raises, all is put back,
        too. Raises OptimizerError if no gradient has come, if the optimizer needs ``recompute`` and there is none, if a
        scheduler watches a loss and there was none.
        """
        if self._needs_closure and recompute is None:
            raise OptimizerError(
                f"{self.label} evaluates the loss several times in a step: optimizer.step(recompute=lambda: "
                "workflow(example)), a function that returns the loss node"
            )
        if recompute is None:
            self._check_gradients()
        if closure is None and recompute is None:
            self._step()
            return self._done("applied")
        before = None if closure is None else closure()
        saved = self.checkpoint()
        gradients = {p: None if p.grad is None else p.grad.clone() for p in self.paths}
        try:
            self._step(recompute)
            after = None if closure is None else closure()
        except BaseException:
            self._undo(saved, gradients)
            raise
        if before is None or after is None or after > before:
            return self._done("applied")
        undone = self._done("rejected", f"; undone: the score was {before:.6g} before and {after:.6g} after")
        self._undo(saved, gradients)
        return undone

    def _done(self, status: str, note: str = "") -> Proposal:
        values: dict[Parameter, Any] = {p: p.tensor for p in self._updated()} if status == "applied" else {}
        proposal = Proposal(values, reason=f"{self.label} step {self.steps}{note}")
        proposal.status = status
        return proposal

    def _undo(self, saved: Mapping[str, Any], gradients: Mapping[TensorParameter, Any]) -> None:
        self.restore(saved)
        for parameter, gradient in gradients.items():
            parameter.tensor.grad = gradient

    def _step(self, recompute: Callable[[], Node | Iterable[Node]] | None = None) -> None:
        rate = self._rate()
        if recompute is None:
            norm = self._clip(self._gradients())
            self.torch_optimizer.step()
        else:
            norms: list[Any] = []
            self._sent.clear()
            self.torch_optimizer.step(lambda: self._recomputed(recompute, norms))
            norm = norms[0]
        self.steps += 1
        for parameter in self._updated():
            parameter.touch()
        self.history.add(self.steps, self._losses, max(len(self._sent), len(self._losses)), norm, rate)
        self._schedule.advance(self._losses)

    def _recomputed(self, recompute: Callable[[], Node | Iterable[Node]], norms: list[Any]) -> Any:
        """torch's closure: gradients of the loss as it is now, and the loss."""
        from trace_core.node import Node

        for parameter in self.paths:
            parameter.tensor.grad = None
        found = recompute()
        losses = []
        for output in [found] if isinstance(found, Node) else found:
            trace = self._cut(output, "")
            sent = send_gradients(trace, self.paths)
            if sent.loss is None:
                raise OptimizerError(f"recompute must return scalar loss nodes, got one of {output.value!r:.80}")
            losses.append(sent.loss)
        if not losses:
            raise OptimizerError("recompute returned no loss node")
        norm = self._clip(self._gradients())
        if not norms:  # the first evaluation is the one at the old values
            norms.append(norm)
            self._losses = losses
        return sum(losses[1:], losses[0])

    def _check_gradients(self) -> None:
        late = [self.paths[p] for p in self.paths if not self._trains(p) and p.grad is not None]
        if late:
            raise OptimizerError(
                f"{', '.join(late)} was frozen when the optimizer was made and is now trained: make a new optimizer"
            )
        if not self._gradients():
            raise OptimizerError(
                "no gradient to step with: run the workflow and give optimizer.backward(loss) its loss node; "
                "zero_feedback() forgets gradients"
            )
        self._schedule.check(self._losses)

    def _gradients(self) -> list[Any]:
        """The tensors that have a gradient."""
        tensors = (t for group in self.torch_optimizer.param_groups for t in group["params"])
        return [tensor for tensor in tensors if tensor.grad is not None]

    def _updated(self) -> Iterator[TensorParameter]:
        return (p for p in self.paths if self._trains(p) and p.grad is not None)

    def _trains(self, parameter: TensorParameter) -> bool:
        return id(parameter.tensor) in self._trained

    def _clip(self, tensors: Sequence[Any]) -> Any:
        """Clip, and give the norm before clipping, on its device; None if nobody needs it."""
        torch = require("torch", extra="torch")
        norm = _total_norm([tensor.grad for tensor in tensors]) if self.history.size else None
        if self.clip_value is not None:
            torch.nn.utils.clip_grad_value_(tensors, self.clip_value)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(tensors, self.clip_norm)
        return norm

    def _rate(self) -> Any:
        """The learning rate before the step, not read from its device."""
        rate = self.torch_optimizer.param_groups[0]["lr"]
        return rate.detach().clone() if hasattr(rate, "detach") else rate

    # ---- proposing

    def propose(self, traces: Sequence[Trace] | None = None, n: int = 1) -> list[Proposal]:
        """The next step as one proposal, whatever ``n``: gradients give one direction. Changes nothing.

        The values are tensors of their own. ``apply`` of the proposal is then the same as ``step()`` would have been,
        optimizer state included, unless there was another step in between; then it sets the values only.

        ``traces`` other than those that came through ``backward`` are sent backward here: they may have been recorded
        with candidate values, from which the step then starts, with the optimizer's state as it is.

        Outputs that are errors have no gradient and are passed over; if all are, there is an empty proposal.

        Raises OptimizerError without gradients, and for an optimizer that evaluates the loss several times in a step.
        """
        if self._needs_closure:
            raise OptimizerError(f"{self.label} cannot propose: it evaluates the loss several times in a step")
        traces, failed = without_errors(traces)
        if failed is not None:
            return [failed]
        if traces is None or _same(traces, self._sent):
            self._check_gradients()
            starts = {p: p.tensor for p in self._updated()}
            gradients = {p: p.tensor.grad for p in starts}
            losses = self._losses
        else:
            found = self._traces_or_raise(traces)
            starts, gradients, losses = fresh_gradients(found, {p for p in self.paths if self._trains(p)})
        twins = {}
        for parameter in self.paths:
            tensor = parameter.tensor
            twin = starts.get(parameter, tensor).detach().clone().requires_grad_(tensor.requires_grad)
            if parameter in gradients:
                twin.grad = gradients[parameter].clone()
            twins[parameter] = twin
        twin_optimizer = twin_of(self.torch_optimizer, {p.tensor: twin for p, twin in twins.items()})
        norm = self._clip([twins[p] for p in gradients])
        twin_optimizer.step()
        outputs = len(self._sent) if traces is None else len(traces)
        after = Stepped(self, self.steps, twin_optimizer, tuple(losses), outputs, norm)
        values = {p: twins[p].detach() for p in gradients}
        return [StepProposal(values, after, reason=f"{self.label} step {self.steps + 1}")]

    def commit(self, proposal: Proposal) -> None:
        """For the proposal of the next step, take over the optimizer's state after it. The tensors stay as they are."""
        if not isinstance(proposal, StepProposal):
            return
        after = proposal.after
        if after.owner is not self or after.steps != self.steps:
            return
        rate = self._rate()
        load_exactly(self.torch_optimizer, after.optimizer.state_dict())
        self.torch_optimizer._opt_called = True  # what a scheduler looks at to see that there was a step
        self.steps += 1
        self.history.add(self.steps, after.losses, after.outputs, after.norm, rate)
        self._schedule.advance(after.losses)

    # ---- state

    def summary(self, since: int = 0) -> str:
        """The steps after step ``since`` in a line: loss, gradient norm, learning rate. For people and LLMs."""
        return describe(self.history.read(since), self.label)

    def reset(self) -> None:
        """Forget what the torch optimizer has gathered: moments, counts. Rates and the scheduler stay as they are."""
        fresh = saved_state(self.torch_optimizer)
        kept = self.torch_optimizer.defaults
        for now, first in zip(fresh["param_groups"], self._fresh["param_groups"], strict=True):
            now_kept = {key: value for key, value in now.items() if key in kept}
            now.clear()
            now.update({**first, **now_kept})
        fresh["state"] = {}
        load_exactly(self.torch_optimizer, fresh)

    def checkpoint(self) -> dict[str, Any]:
        """Values and state as plain data, with tensors of their own: what ``restore`` goes back to, bit for bit."""
        values = {path: p.tensor.detach().clone() for p, path in self.paths.items()}
        return {"values": values, "state": self.state_dict()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Put values and state back as they were at the ``checkpoint``. Gradients and traces stay as they are."""
        torch = require("torch", extra="torch")
        with torch.no_grad():
            for parameter, path in self.paths.items():
                parameter.tensor.copy_(saved["values"][path])
                parameter.touch()
        self.load_state_dict(saved["state"])

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors of their own: loads with ``torch.load(..., weights_only=True)``."""
        return {
            "names": list(self.paths.values()),
            "torch": saved_state(self.torch_optimizer),
            "scheduler": self._schedule.state(),
            "steps": self.steps,
            "history": self.history.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken, bit for bit.

        Raises OptimizerError if it is that of other parameters, or has a scheduler where this one has none or vice
        versa.
        """
        if list(state["names"]) != list(self.paths.values()):
            raise OptimizerError(
                f"the state belongs to other parameters: it names {', '.join(state['names'])}; "
                f"these are {', '.join(self.paths.values())}"
            )
        self._schedule.load(state["scheduler"])
        load_exactly(self.torch_optimizer, state["torch"])
        self.steps = int(state["steps"])
        self.history.load(state["history"])


def _same(traces: Sequence[Trace], sent: Sequence[ref[Trace]]) -> bool:
    return len(traces) == len(sent) and {id(trace) for trace in traces} == {id(link()) for link in sent}


def _total_norm(gradients: Sequence[Any]) -> Any:
    torch = require("torch", extra="torch")
    dense = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]
    return torch.nn.utils.get_total_norm(dense)
