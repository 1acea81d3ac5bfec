"""``Frugal``, a torch.optim.Optimizer: parameter groups, ``step``, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from trace_core.optimizers.tensor.frugal import geometry, memory, refreshing
from trace_core.optimizers.tensor.frugal._torch import OptimizerBase, torch
from trace_core.optimizers.tensor.frugal.checkpoint import place_states
from trace_core.optimizers.tensor.frugal.options import (
    COUNTERS,
    FrugalError,
    check_gap,
    check_group,
    check_parameter,
    dtype_name,
    gradient,
    label,
)
from trace_core.optimizers.tensor.frugal.rules import Workspace
from trace_core.optimizers.tensor.frugal.schedules import Density, Gap, LossMeter, Progress
from trace_core.optimizers.tensor.frugal.selection import ByModule, ByName, groups_of, split_by_name
from trace_core.optimizers.tensor.frugal.stepping import Work

_SCHEDULED = ("density", "gap")


class Frugal(OptimizerBase):  # type: ignore[misc]
    """Moments for a part of each projected weight, a rule without state for the rest.

    Args:
        params: tensors, ``(name, tensor)`` pairs or groups. A group says ``project``: True for tensors that are split,
            False for tensors that keep full state. Named tensors may leave it to ``project`` below.
        lr: learning rate of both parts; a number or a 0-dim tensor. One rate serves both, since the first AdamW steps
            after a refresh are about as long as sign steps.
        betas, eps: of AdamW and Lion (Lion is usually given (0.9, 0.99)).
        weight_decay: decoupled, ``p *= 1 - lr * weight_decay``, on every tensor.
        density: share of the projected elements that keeps state, 0 to 1, or a schedule ``Progress -> float``.
        gap: steps between two choices, None for one choice only, or a schedule ``Progress -> int``.
        split: ``block`` whole tensors; ``columns``, ``rows``, ``randk`` random ones of each tensor (entries, for
            ``randk``); ``svd`` the gradient's leading subspace; ``random`` a random one.
        order: of ``block``: ``random``, ``ascending``, ``descending``.
        full: rule with state: ``adamw``, ``lion``, ``sgdm`` (buffers start at zero).
        free: rule without: ``signsgd``, ``sgd``, ``none`` (then what is not chosen stands still).
        projected_scale: factor on ``lr`` for projected tensors; ``free_scale``: a further one on their stateless part.
        momentum, dampening: of ``sgdm``; ``dampening = momentum`` makes its buffer a mean.
        on_refresh: ``reset`` starts moments anew, ``reproject`` carries over what the new choice shares with the old;
            ``auto``: ``reproject`` for ``block`` (tensors that stay chosen keep theirs), ``reset`` otherwise.
        project: which named tensors are projected: True, False, ``(name, tensor) -> bool``, None for a default by name.
        seed: of all random choices. Equal seeds choose alike on every process and device.
        state_dtype: of the moments; None: float32 for half-precision parameters, else the parameter's.
        fused: False avoids torch's fused AdamW kernel.
        capturable: keep step counts on the device, so that ``step`` can be captured in a CUDA graph.
        process_group: over which observed losses are averaged for schedules that use them; False: not at all.

    Raises:
        FrugalError: options out of range; parameters or gradients that cannot be updated rightly.

    Step and refresh counts, seeds and active sets live in ``param_groups``; changing ``density`` or ``gap`` there takes
    effect at the next refresh.
    """

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        density: float | Density = 0.25,
        gap: int | Gap | None = 200,
        split: str = "block",
        order: str = "random",
        full: str = "adamw",
        free: str = "signsgd",
        projected_scale: float = 1.0,
        free_scale: float = 1.0,
        momentum: float = 0.9,
        dampening: float = 0.0,
        on_refresh: str = "auto",
        project: bool | ByName | None = None,
        seed: int = 0,
        state_dtype: Any = None,
        fused: bool | None = None,
        capturable: bool = False,
        process_group: Any = None,
    ) -> None:
        self._schedules: dict[tuple[int, str], Callable[[Progress], Any]] = {}
        self._meters: dict[int, LossMeter] = {}
        self._process_group = process_group
        self._parts: dict[Any, tuple[int, Any, Any]] = {}  # what `state` says, read once per refresh
        self._space = Workspace()
        self._project = project
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "density": density,
            "gap": gap,
            "split": split,
            "order": order,
            "full": full,
            "free": free,
            "projected_scale": projected_scale,
            "free_scale": free_scale,
            "momentum": momentum,
            "dampening": dampening,
            "on_refresh": on_refresh,
            "seed": seed,
            "state_dtype": dtype_name(state_dtype),
            "fused": fused,
            "capturable": capturable,
        }
        super().__init__(params, defaults)

    @classmethod
    def from_module(cls, model: Any, lr: Any = 1e-3, *, project: ByModule | None = None, **options: Any) -> Frugal:
        """Frugal over a module's trainable parameters, hidden weights projected.

        ``project(name, module, parameter) -> bool`` overrides what ``default_project`` finds; ``options`` as for the
        class. For settings per group start from ``groups_of(model)``.
        """
        return cls(groups_of(model, project), lr, **options)

    # ---- groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; one of named tensors that does not say ``project`` becomes two."""
        group = dict(param_group)
        params = group["params"]
        group["params"] = [params] if isinstance(params, torch.Tensor) else list(params)
        flag = group.pop("project", self._project)
        parts: Iterable[dict[str, Any]]
        parts = [{**group, "project": flag}] if isinstance(flag, bool) else split_by_name(group, flag)
        for part in parts:
            self._add_group(part)

    def _add_group(self, group: dict[str, Any]) -> None:
        if any(isinstance(item, tuple) for item in group["params"]):
            group["param_names"] = [name for name, _ in group["params"]]
            group["params"] = [tensor for _, tensor in group["params"]]
        index = len(self.param_groups)
        for key in _SCHEDULED:
            value = group.get(key, self.defaults[key])
            if callable(value):
                self._schedules[index, key] = value
                if getattr(value, "needs_loss", False):
                    self._meters[index] = LossMeter()
                value = value(Progress(step=0, refresh=0, density=1.0, gap=None))
            group[key] = value
        group = {**self.defaults, **COUNTERS, "active": [], "drawn": 0.0, **group}
        group["betas"] = tuple(group["betas"])
        group["state_dtype"] = dtype_name(group["state_dtype"])
        check_group(group)
        for position, param in enumerate(group["params"]):
            if isinstance(param, torch.Tensor):  # what is not, torch refuses below
                check_parameter(param, label(group, position), group)
        super().add_param_group(group)

    # ---- stepping

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient. ``closure`` recomputes the loss, with gradients enabled."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            if loss is not None:
                self.observe(loss)
        with torch.no_grad():
            self._step(capturing=self._capturing())
        return loss

    def _step(self, *, capturing: bool) -> None:
        first = 0
        for index, group in enumerate(self.param_groups):
            if group["project"] and refreshing.is_due(group):
                if capturing:
                    raise FrugalError("a refresh is due and cannot be captured; run one step outside the graph first")
                self._schedule(index, group)
                refreshing.refresh_group(group, self.state, first)
            self._work_of(group, first).run(group, self._space)
            if not capturing:  # capturing records the kernels and runs none of them
                group["steps"] += 1
            first += len(group["params"])
        self._space.trim()

    def _work_of(self, group: dict[str, Any], first: int) -> Work:
        work = Work()
        states = self.state
        project, block, refreshes = group["project"], group["split"] == "block", group["refreshes"]
        active = set(group["active"])
        for position, param in enumerate(group["params"]):
            if param.grad is None:
                continue
            grad, sharded = gradient(param, group, position)
            state: refreshing.State | None = None
            part: geometry.Coordinates | geometry.Subspace | None = None
            if not project or (block and position in active):
                state = refreshing.whole_state(states, param, group)
            elif not block:
                known = self._parts.get(param)
                if known is not None and known[0] == refreshes and known[1] is states.get(param):
                    _, state, part = known
                else:
                    state, part = refreshing.part_state(states, param, grad, group, first + position, position)
                    if state is not None:
                        self._parts[param] = (refreshes, state, part)
            work.add(param, grad, state, part, sharded=sharded)
        return work

    def _schedule(self, index: int, group: dict[str, Any]) -> None:
        meter = self._meters.get(index)
        mean = meter.mean(self._process_group) if meter else None
        progress = Progress(
            step=group["steps"],
            refresh=group["refreshes"],
            density=group["density"],
            gap=group["gap"],
            loss=mean,
            previous_loss=meter.last if meter else None,
        )
        for key in _SCHEDULED:
            if (index, key) in self._schedules:
                group[key] = self._schedules[index, key](progress)
        if meter:
            meter.close(mean)
        check_group(group)
        check_gap(group["gap"])

    def observe(self, loss: Any) -> None:
        """Tell schedules that depend on the loss about one; ``step(closure)`` does it by itself. No device sync."""
        for meter in self._meters.values():
            meter.add(loss)

    # ---- CUDA graphs

    def _capturing(self) -> bool:
        if not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
            return False
        if not all(group["capturable"] for group in self.param_groups):
            raise FrugalError("step() is being captured in a CUDA graph; make the optimizer with capturable=True")
        return True

    @property
    def refresh_due(self) -> bool:
        """Whether the next step chooses anew. It cannot be captured in a graph, and graphs are stale after it."""
        return any(group["project"] and refreshing.is_due(group) for group in self.param_groups)

    def count_replays(self, steps: int = 1) -> None:
        """Count steps that a CUDA graph replayed; the optimizer cannot see them."""
        for group in self.param_groups:
            group["steps"] += steps

    # ---- what is chosen, and what it weighs

    def chosen(self, parameter: Any) -> Any:
        """What of a tensor keeps state now.

        A boolean mask of its shape, or for a low-rank split the basis (n, rank): of the tensor's rows if the matrix is
        at least as tall as wide, else of its columns. None before its first gradient.
        """
        first = 0
        for group in self.param_groups:
            for position, param in enumerate(group["params"]):
                if param is parameter:
                    return self._chosen(group, position, first + position)
            first += len(group["params"])
        raise FrugalError("the tensor is not one of this optimizer's parameters")

    def _chosen(self, group: dict[str, Any], position: int, place: int) -> Any:
        param = group["params"][position]
        if not group["project"]:
            return torch.ones_like(param, dtype=torch.bool)
        if group["split"] == "block":
            return torch.full_like(param, position in group["active"], dtype=torch.bool) if group["refreshes"] else None
        kind = geometry.kind_for(param, group["split"])
        state = self.state.get(param)
        if not state:
            return torch.zeros_like(param, dtype=torch.bool) if group["refreshes"] else None
        part = geometry.of_state(state, param, kind, (group["seed"], state["refresh"], place))
        return geometry.mask_of(part, param, kind)

    def state_bytes(self) -> memory.StateBytes:
        """What the state weighs on this process."""
        return memory.state_bytes(self.state)

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings only. Schedules are not in it, as with torch's: give them to the constructor."""
        saved: dict[str, Any] = super().state_dict()
        for index, meter in self._meters.items():
            saved["param_groups"][index]["losses"] = meter.save()
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where ``state_dict`` left off, bit for bit; tensors go to their parameters' devices."""
        super().load_state_dict(state_dict)
        self._parts.clear()
        place_states(self.state, self.param_groups, state_dict)
        for index, group in enumerate(self.param_groups):
            losses = group.pop("losses", None)
            if losses is not None and index in self._meters:
                self._meters[index].restore(losses)

    def __getstate__(self) -> dict[str, Any]:
        own = {"_schedules": self._schedules, "_meters": self._meters, "_project": self._project}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_process_group", None)
        self.__dict__.setdefault("_parts", {})
        self.__dict__.setdefault("_space", Workspace())
