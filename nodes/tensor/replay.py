"""A function of parameters cut out of a trace, to be evaluated many times: surrogates and solvers live on it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

from trace_core._lazy import require
from trace_core._torch import PLAIN, as_recorded, autocast_now
from trace_core.errors import ReplayError
from trace_core.graph import dependencies
from trace_core.guards import check_answers, check_conditions, check_watchers
from trace_core.node import Node
from trace_core.nodes.tensor.compiled import compiled, graphed
from trace_core.nodes.tensor.parameter import TensorParameter
from trace_core.nodes.tensor.program import TensorProgram, leaf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from trace_core.trace import Trace

Mode = Literal["eager", "compile", "cuda-graph"]


class TensorReplay:
    """The target's value as a pure, repeatable function of tensor parameters.

    ``replay({parameter: tensor})`` gives the raw tensor, differentiable by autograd and by ``torch.func`` (grad, vjp,
    jvp, vmap). Everything else is as recorded: inputs, other parameters, buffers (the statistics that batch norms in
    training note are not noted), random numbers (dropout gives the recorded mask), train and eval modes, autocast.

    Args:
        trace: of the output.
        parameters: which tensor parameters may change; by default all that the target depends on.
        until: the target; by default the output. Its value must be a tensor.
        mode: ``eager``; ``compile`` (torch.compile); ``cuda-graph`` (one launch for each evaluation and each backward
            pass; autograd only, first derivatives).
        backend: of torch.compile.

    Attributes:
        parameters: in the order of ``function``'s arguments.
        target: the node that is computed.

    Raises ReplayError if the target depends on none of the parameters or is no tensor, if a value that is used as
    recorded was changed in place since (also at each call), and, where truth values or lengths that left the graph
    depend on the parameters: in ``eager`` mode if one would now be another, in the other modes and for ``batched`` in
    any case, as it cannot be checked there.

    Source of the need: "Target-based Surrogates for Stochastic Optimization" (Lavington et al., 2023), Algorithm 1.
    """

    def __init__(
        self,
        trace: Trace,
        parameters: Iterable[TensorParameter] | None = None,
        until: Node | None = None,
        mode: Mode = "eager",
        *,
        backend: str = "inductor",
    ) -> None:
        torch = require("torch", extra="torch")
        if mode not in ("eager", "compile", "cuda-graph"):
            raise ReplayError(f"mode must be 'eager', 'compile' or 'cuda-graph', got {mode!r}")
        target = trace.output if until is None else until
        if target not in set(trace.nodes):
            raise ReplayError("until= is not a node of this trace: take one that lies between parameters and output")
        self.parameters = _chosen(trace, parameters, target)
        self.program = TensorProgram(trace, self.parameters, until)
        self.target = target
        self.mode = mode
        self._guarded = [node for node in self.program.nodes if _is_tested(node, target)]
        if mode != "eager":
            self._refuse_tests(f"mode {mode!r}")
        self._versions = {version.parameter: version for version in self.program.changed}
        self._batched: Any = None
        self._run: Callable[..., Any] = self._eager
        if mode == "compile":
            self._run = compiled(self.program, backend)
        elif mode == "cuda-graph":
            self._run = graphed(self.program, [version._value for version in self._versions.values()])
        self._checked = mode == "eager" or not self._draws()
        if not isinstance(_value_of(target), torch.Tensor | type(None)):
            raise ReplayError(
                f"the target must be a tensor, got {type(target._value).__name__}: take until= at a tensor"
            )

    def __call__(self, values: Mapping[TensorParameter, Any] | None = None) -> Any:
        """The target's tensor for ``{parameter: tensor}``; parameters that are not given have their recorded values.

        Raises ReplayError for an unknown parameter, and as said above; ParameterError for a wrong shape.
        """
        return self.function(*self._tensors(values or {}))

    def function(self, *tensors: Any) -> Any:
        """The same with one tensor for each of ``parameters``, in order: what ``torch.func`` transforms take."""
        if len(tensors) != len(self.parameters):
            raise ReplayError(f"expected {len(self.parameters)} tensors, one for each parameter, got {len(tensors)}")
        self.program.check_kept()
        with as_recorded(PLAIN) if autocast_now() else nullcontext():
            if self.mode != "eager" and _transformed():
                return self._eager(*tensors)
            result = self._run(*tensors)
            if not self._checked:
                self._check_draws(tensors, result)
            return result

    def batched(self, values: Mapping[TensorParameter, Any]) -> Any:
        """The target for a batch of parameters: (B, *shape of the target), from tensors of shape (B, *its shape).

        Parameters that are not given have their recorded values, the same for the whole batch. One vmap: random numbers
        are the same in each row. Raises ReplayError as calling does.
        """
        torch = require("torch", extra="torch")
        self._refuse_tests("batched()")
        for parameter in values:
            if parameter not in self._versions:
                raise _unknown(parameter)
        self.program.check_kept()
        tensors: list[Any] = []
        dims: list[int | None] = []
        for parameter in self.parameters:
            given = values.get(parameter)
            if given is None:
                tensors.append(self._recorded(parameter))
                dims.append(None)
            else:
                own = parameter.tensor
                if given.shape[1:] != own.shape:
                    raise ReplayError(
                        f"parameter {parameter.name!r}: expected (batch, *{tuple(own.shape)}), got {tuple(given.shape)}"
                    )
                tensors.append(given.to(device=own.device, dtype=own.dtype))
                dims.append(0)
        vmapped = torch.vmap(lambda *each: self.program.run(each), in_dims=tuple(dims), randomness="same")
        with as_recorded(PLAIN) if autocast_now() else nullcontext():
            result = vmapped(*tensors)
            if self._draws() and self._batched is None:
                first = [t if d is None else t[0] for t, d in zip(tensors, dims, strict=True)]
                self._batched = _agree(result[0], self.program.run(first))
            if self._batched is False:
                raise ReplayError(
                    "torch.vmap draws other random numbers here than the recorded ones: evaluate the rows one by one"
                )
        return result

    def profile(self, values: Mapping[TensorParameter, Any] | None = None, repeats: int = 3) -> dict[Node, float]:
        """Seconds (wall time) that each step of the replay takes, from parameters to target.

        Measured by replaying eagerly without gradients, ``repeats`` times; the fastest counts. Waits for the device
        around each step, so that its work counts where it is done.
        """
        return self.program.profile(self._tensors(values or {}), repeats)

    # ---- inside

    def _tensors(self, values: Mapping[TensorParameter, Any]) -> list[Any]:
        for parameter in values:
            if parameter not in self._versions:
                raise _unknown(parameter)
        return [
            _fitting(parameter, values[parameter]) if parameter in values else self._recorded(parameter)
            for parameter in self.parameters
        ]

    def _recorded(self, parameter: TensorParameter) -> Any:
        version = self._versions[parameter]
        if version._snap.changed(version._value):
            raise ReplayError(
                f"parameter {parameter.name!r} was changed in place after this trace was recorded, and what it was is "
                "lost: give it a value"
            )
        return version._value

    def _eager(self, *tensors: Any) -> Any:
        if not self._guarded:
            return self.program.run(tensors)
        known = self.program.run_all(tensors)
        new: dict[Node, Node] = {}
        for node, value in known.items():
            stand_in = new[node] = leaf(value)
            if node in self._versions.values():
                check_conditions(node, stand_in)
            elif node is not self.target:
                check_answers(node, stand_in)
        check_watchers(list(known), new, self.target, inner=True)
        return known[self.target]

    def _draws(self) -> bool:
        return any(step.draws is not None for step in self.program.steps)

    def _check_draws(self, tensors: Sequence[Any], result: Any) -> None:
        torch = require("torch", extra="torch")
        with torch.no_grad():
            expected = self._eager(*[tensor.detach() for tensor in tensors])
            if not _agree(result.detach(), expected):
                raise ReplayError(
                    f"mode {self.mode!r} draws other random numbers here than the recorded ones: use mode='eager'"
                )
        self._checked = True

    def _refuse_tests(self, what: str) -> None:
        if self._guarded:
            names = ", ".join(sorted({n.op.name if n.op is not None else str(n._label()) for n in self._guarded}))
            raise ReplayError(
                f"truth values, lengths or numbers that left the graph depend on the parameters (at {names:.80}), and "
                f"{what} cannot check that they stay as they were: use mode='eager'"
            )


def _chosen(trace: Trace, parameters: Iterable[TensorParameter] | None, target: Node) -> list[TensorParameter]:
    upstream = {target}
    for node in reversed(trace.nodes):
        if node in upstream:
            upstream.update(dependencies(node))
    present = dict.fromkeys(version.parameter for version in trace.versions if version in upstream)
    if parameters is None:
        found = [p for p in present if isinstance(p, TensorParameter)]
        if not found:
            raise ReplayError("the target depends on no tensor parameter")
        return found
    chosen = list(dict.fromkeys(parameters))
    for parameter in chosen:
        if not isinstance(parameter, TensorParameter):
            raise ReplayError(
                f"TensorReplay takes TensorParameters, got {type(parameter).__name__}: use trace.replay for others"
            )
    found = [parameter for parameter in chosen if parameter in present]
    if not found:
        raise ReplayError("the target depends on none of the parameters")
    return found


def _unknown(parameter: Any) -> ReplayError:
    title = parameter._title() if hasattr(parameter, "_title") else repr(parameter)[:80]
    return ReplayError(f"parameter {title} is not among those of this replay")


def _fitting(parameter: TensorParameter, value: Any) -> Any:
    own = parameter.tensor
    if getattr(value, "shape", None) == own.shape and value.dtype == own.dtype and value.device == own.device:
        return value
    return parameter.check(value)


def _value_of(node: Node) -> Any:
    from trace_core._values import Released

    return None if isinstance(node._value, Released) else node._value


def _is_tested(node: Node, target: Node) -> bool:
    """Whether the workflow looked at the value of a node, or at what was made of it on the way to the target.

    Shapes do not count: those that depend on data are among the tests of what they were made of.
    """
    extra = node._extra
    if extra is None:
        return False
    later = (target._extra.watchers if target._extra is not None else None) or ()
    if any(tested not in later for tested in extra.watchers or ()):
        return True
    return node is not target and any(how != "shape" for how in extra.guards or ())


def _transformed() -> bool:
    """Whether a torch.func transform or forward-mode differentiation is running."""
    torch = require("torch", extra="torch")
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0


def _agree(one: Any, other: Any) -> bool:
    torch = require("torch", extra="torch")
    rough = one.dtype.itemsize < 4
    return bool(torch.allclose(one, other, rtol=0.05 if rough else 1e-3, atol=0.05 if rough else 1e-4, equal_nan=True))


__all__ = ["TensorReplay"]
