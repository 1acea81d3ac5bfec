"""Parts by kind of parameter: prompts and code to a language model, tensors to a numeric optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core.optimizers.base import Optimizer, OptimizerError, parameter_pairs
from trace_core.optimizers.mixed.part import Part, without_gradient

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from trace_core.parameter import Parameter

    Pairs = list[tuple[str | None, Parameter]]

#: Steps of Mixed between two turns of a language model, unless a Part says otherwise.
LLM_EVERY = 10
_LLM_KINDS = ("text", "code", "number", "data")


def parts_by_kind(
    parameters: Any, frozen: Collection[Parameter], llm: Any, tensor: Any, own: Mapping[str, Any]
) -> dict[str, Part]:
    """See ``Mixed.by_kind``."""
    unknown = sorted(set(own) - set(_LLM_KINDS))
    if unknown:
        raise OptimizerError(f"unknown kind {unknown[0]!r}: parameters are of kind tensor, {', '.join(_LLM_KINDS)}")
    groups: dict[str, Pairs] = {}
    for name, parameter in parameter_pairs(parameters):
        if parameter not in frozen and not without_gradient(parameter):
            kind = parameter.kind
            place = "tensor" if kind == "tensor" else kind if own.get(kind) is not None else "llm"
            groups.setdefault(place, []).append((name, parameter))
    if not groups:
        raise OptimizerError("expected at least one parameter that is not frozen, got none")
    chosen = {"llm": llm, "tensor": tensor, **own}
    return {place: _made(place, chosen[place], named, parameters) for place, named in groups.items()}


def _made(place: str, how: Any, named: Pairs, parameters: Any) -> Part:
    """The Part for some parameters: from a function of pairs, a model, a torch optimizer, or a Part of such."""
    part = how if isinstance(how, Part) else Part(how, every=LLM_EVERY if place == "llm" else 1)
    make: Any = part.optimizer
    if isinstance(make, Optimizer):
        made: Any = make
    elif place == "tensor":
        made = _tensor_optimizer(make, named, parameters)
    elif make is None or isinstance(make, str) or hasattr(make, "complete"):
        from trace_core.optimizers.llm.optoprime import OptoPrime

        made = OptoPrime(named, llm=make)
    else:
        made = make(named)
    if not isinstance(made, Optimizer):
        raise OptimizerError(f"{place}= must make an Optimizer of named parameters, it made {type(made).__name__}")
    return Part(made, every=part.every, budget=part.budget, trial=part.trial, window=part.window)


def _tensor_optimizer(make: Any, named: Pairs, parameters: Any) -> Any:
    from trace_core._lazy import require
    from trace_core.optimizers.tensor import Frugal, TorchOptimizer
    from trace_core.optimizers.tensor.groups import hidden_weights

    torch = require("torch", extra="torch")
    make = Frugal if make is None else make
    bare = getattr(make, "func", make)  # under a functools.partial
    if not isinstance(bare, type) or not issubclass(bare, torch.optim.Optimizer):
        return make(named)
    if issubclass(bare, Frugal) and "project" not in getattr(make, "keywords", {}):
        return TorchOptimizer(named, make, project=hidden_weights(parameters))
    return TorchOptimizer(named, make)
