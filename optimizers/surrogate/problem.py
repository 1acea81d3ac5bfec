"""The surrogate: a model of the loss around the targets, in which only the cheap part of the trace is run again.

Source: "Target-based Surrogates for Stochastic Optimization" (Lavington et al., ICML 2023), Algorithm 1:
``g(theta) = <g_t, f(theta) - z_t> + 1/(2 eta) * |f(theta) - z_t|^2``, without the constant. In KL geometry, Bregman's
divergence of the negative entropy stands for the square (section 6; the same step is "mirror descent policy
optimization", Tomar et al., 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from trace_core._lazy import require
from trace_core.optimizers.base import OptimizerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trace_core.nodes.tensor import TensorParameter


class Geometry(Protocol):
    """How far a target is from where it was, and how that depends on it."""

    def check(self, here: Any) -> None:
        """Raise OptimizerError if such a target has no place in this geometry."""
        ...

    def distance(self, there: Any, here: Any, weight: Any) -> Any:
        """A scalar, 0 where both are equal. ``weight`` is a tensor that broadcasts to their shape."""
        ...

    def derivatives(self, there: Any, here: Any, weight: Any) -> tuple[Any, Any]:
        """Gradient and diagonal curvature of ``distance`` with respect to ``there``."""
        ...

    def moved(self, here: Any, gradient: Any, step: Any) -> Any:
        """The target nearest to ``here - step * gradient`` in this geometry."""
        ...


class Euclidean:
    """Half the weighted squared distance."""

    def check(self, here: Any) -> None:
        """See Geometry."""

    def distance(self, there: Any, here: Any, weight: Any) -> Any:
        """See Geometry."""
        return 0.5 * (weight * (there - here).square()).sum()

    def derivatives(self, there: Any, here: Any, weight: Any) -> tuple[Any, Any]:
        """See Geometry."""
        return weight * (there - here), weight.expand_as(there)

    def moved(self, here: Any, gradient: Any, step: Any) -> Any:
        """See Geometry."""
        return here - step * gradient


class KullbackLeibler:
    """KL(there || here) of probabilities along the last dimension: a mirror step."""

    def check(self, here: Any) -> None:
        """See Geometry."""
        sums = here.sum(-1)
        if bool((here < 0).any()) or bool(((sums - 1).abs() > 1e-3).any()):
            raise OptimizerError(
                "geometry='kl' needs probabilities that sum to 1 along the target's last dimension, got sums from "
                f"{float(sums.min()):.4g} to {float(sums.max()):.4g}: name the node after the softmax, or use "
                "'euclidean'"
            )

    def distance(self, there: Any, here: Any, weight: Any) -> Any:
        """See Geometry."""
        ratio = _log(there) - _log(here)
        return (weight * (there * ratio - there + here)).sum()  # the last two terms cancel where both sum to one

    def derivatives(self, there: Any, here: Any, weight: Any) -> tuple[Any, Any]:
        """See Geometry."""
        tiny = require("torch", extra="torch").finfo(there.dtype).tiny
        return weight * (_log(there) - _log(here)), weight / there.clamp_min(tiny)

    def moved(self, here: Any, gradient: Any, step: Any) -> Any:
        """See Geometry."""
        return (_log(here) - step * gradient).softmax(-1)


def _log(probability: Any) -> Any:
    torch = require("torch", extra="torch")
    return probability.clamp_min(torch.finfo(probability.dtype).tiny).log()


GEOMETRIES: dict[str, type[Geometry]] = {"euclidean": Euclidean, "kl": KullbackLeibler}


def geometry_named(name: str) -> Geometry:
    """By name. Raises OptimizerError, listing the names."""
    if name not in GEOMETRIES:
        raise OptimizerError(f"geometry must be one of {', '.join(GEOMETRIES)}; got {name!r}")
    return GEOMETRIES[name]()


@dataclass(frozen=True)
class Block:
    """One target in one trace.

    Attributes:
        replay: parameters -> the target, differentiable.
        here: the target as it was.
        gradient: of the loss at ``here``.
        weight: 1/eta, or the curvature by the step; broadcasts to the target's shape.
        geometry: of this target.
    """

    replay: Callable[[Mapping[TensorParameter, Any]], Any]
    here: Any
    gradient: Any
    weight: Any
    geometry: Geometry


class Surrogate:
    """The sum of the blocks' models as a function of the parameters' tensors.

    Attributes:
        parameters: what may change.
        start: their values, detached.
        replays: how often the cheap part was run.
    """

    def __init__(self, parameters: Sequence[TensorParameter], blocks: Sequence[Block]) -> None:
        self.parameters = list(parameters)
        self.blocks = list(blocks)
        self.start = [parameter.value.detach() for parameter in parameters]
        self.replays = 0

    def fresh(self) -> list[Any]:
        """Copies of the parameters to work on; gradients reach them."""
        return [value.clone().requires_grad_() for value in self.start]

    def targets(self, values: Sequence[Any]) -> list[Any]:
        """The targets at these values, with history."""
        self.replays += 1
        given = dict(zip(self.parameters, values, strict=True))
        return [block.replay(given) for block in self.blocks]

    def of_targets(self, targets: Sequence[Any]) -> Any:
        """The model as a function of the targets: a scalar, 0 where they were."""
        return sum(
            (block.gradient * (there - block.here)).sum() + block.geometry.distance(there, block.here, block.weight)
            for block, there in zip(self.blocks, targets, strict=True)
        )

    def derivatives(self, targets: Sequence[Any]) -> tuple[Any, Any]:
        """Gradient and diagonal curvature with respect to the targets, both flat."""
        torch = require("torch", extra="torch")
        gradients, curvatures = [], []
        for block, there in zip(self.blocks, targets, strict=True):
            slope, curvature = block.geometry.derivatives(there, block.here, block.weight)
            gradients.append((block.gradient + slope).flatten())
            curvatures.append(curvature.flatten())
        return torch.cat(gradients), torch.cat(curvatures)

    def __call__(self, values: Sequence[Any]) -> Any:
        """The model as a function of the parameters: a scalar with history."""
        return self.of_targets(self.targets(values))

    def gradient(self, values: Sequence[Any]) -> tuple[Any, list[Any]]:
        """(value without history, gradient for each tensor)."""
        torch = require("torch", extra="torch")
        with torch.enable_grad():
            loss = self(values)
            found = torch.autograd.grad(loss, list(values), allow_unused=True)
        zeros = [torch.zeros_like(v) if g is None else g for v, g in zip(values, found, strict=True)]
        return loss.detach(), zeros

    def value(self, values: Sequence[Any]) -> float:
        """The model's value; no history is kept."""
        with require("torch", extra="torch").no_grad():
            return float(self(values))
