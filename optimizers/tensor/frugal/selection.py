"""Which parameters are projected: hidden weights are; embeddings, norms, vectors and the output head are not.

The head needs moments for every entry (the paper's finding); embeddings and norms do not strictly, but keep theirs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from trace_core.optimizers.tensor.frugal._torch import torch
from trace_core.optimizers.tensor.frugal.options import FrugalError

ByName = Callable[[str, Any], bool]
ByModule = Callable[[str, Any, Any], bool]

_EMBEDDING = re.compile(
    r"(?:^|[._])(?:\w*embed(?:ding)?s?|embd|wte|wpe|tok_emb|pos_emb|position)(?:$|[._])", re.IGNORECASE
)
_NORM = re.compile(r"(?:^|[._])(?:\w*norm\d*|ln(?:_?\w)?|bn\d*)(?:$|[._])", re.IGNORECASE)
_HEAD = re.compile(
    r"(?:^|\.)(?:\w*_head|head|heads|output|classifier|score|logits|unembed|embed_out|output_layer|fc_out|to_logits)"
    r"(?:\.\d+)?(?:\.\w+)?$",
    re.IGNORECASE,
)


def is_projected_name(name: str, parameter: Any) -> bool:
    """The default where only names are known: matrices and kernels that are not called embedding, norm or head."""
    if parameter.dim() < 2:
        return False
    head = _HEAD.search(name)
    if head and not re.search(r"(?:^|\.)\d+\.", name[: head.start() + 1]):  # `layers.3.output` is not the head
        return False
    return not (_EMBEDDING.search(name) or _NORM.search(name))


def default_project(model: Any) -> ByModule:
    """The default for a module: ``(name, module, parameter) -> bool``, by the kind of module that owns the parameter.

    The head is what ``get_output_embeddings()`` returns, what is tied to an embedding, what is called like one
    (``lm_head``, ``classifier``, ...), or, failing these, the last layer with a weight outside repeated blocks.
    """
    embedded = {id(p) for m in model.modules() if _is_embedding(m) for p in m.parameters(recurse=False)}
    head = _head_of(model)

    def project(name: str, module: Any, parameter: Any) -> bool:
        if parameter.dim() < 2 or id(parameter) in embedded or id(parameter) in head:
            return False
        if _is_embedding(module) or "norm" in type(module).__name__.lower():
            return False
        # A bare parameter may be a position table; a Linear called `position` inside attention is not one.
        return _has_layer_type(module) or not _EMBEDDING.search(name.rpartition(".")[2])

    return project


def _is_embedding(module: Any) -> bool:
    return isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag) or type(module).__name__.endswith("Embedding")


def _has_layer_type(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear | torch.nn.Bilinear | torch.nn.modules.conv._ConvNd)


def _head_of(model: Any) -> set[int]:
    """Identities of the head's parameters."""
    getter = getattr(model, "get_output_embeddings", None)
    layer = getter() if callable(getter) else None
    if layer is not None:
        return {id(p) for p in layer.parameters()}
    owners = [(name, module) for name, module in model.named_modules() if _owns_matrix(module)]
    named = [module for name, module in owners if _HEAD.search(name) and not _is_repeated(model, name)]
    if named:
        return {id(p) for module in named for p in module.parameters(recurse=False)}
    if len(owners) > 1 and not _is_repeated(model, owners[-1][0]):
        return {id(p) for p in owners[-1][1].parameters(recurse=False)}
    return set()


def _owns_matrix(module: Any) -> bool:
    return any(p.dim() >= 2 for p in module.parameters(recurse=False)) and not _is_embedding(module)


def _is_repeated(model: Any, name: str) -> bool:
    """Whether a layer lies in a block that has a sibling of the same class, as the layers of a transformer do."""
    path = name.split(".")
    parent = model
    for step in path[:-1]:
        child = getattr(parent, step)
        if isinstance(parent, torch.nn.ModuleList):
            return True
        twins = sum(type(other) is type(child) for other in parent.children())
        if twins > 1 and not isinstance(child, torch.nn.ModuleList | torch.nn.ModuleDict | torch.nn.Sequential):
            return True
        parent = child
    return False


def groups_of(model: Any, project: ByModule | None = None, **options: Any) -> list[dict[str, Any]]:
    """Two parameter groups for ``Frugal``: what ``project(name, module, parameter)`` picks, and the rest.

    ``options`` go to both; add keys to the returned dicts for settings of one. Frozen parameters are left out, shared
    ones appear once.
    """
    choose = project if project is not None else default_project(model)
    picked: list[tuple[str, Any]] = []
    rest: list[tuple[str, Any]] = []
    for name, module, parameter in _owned(model):
        if parameter.requires_grad:
            (picked if choose(name, module, parameter) else rest).append((name, parameter))
    both = [{"params": picked, "project": True, **options}, {"params": rest, "project": False, **options}]
    return [group for group in both if group["params"]]


def _owned(model: Any) -> Iterator[tuple[str, Any, Any]]:
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix=prefix, recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, module, parameter


def split_by_name(group: dict[str, Any], choose: ByName | None) -> Iterable[dict[str, Any]]:
    """A group of named parameters without ``project`` as one or two groups with it."""
    params = group["params"]
    if not all(isinstance(item, tuple) for item in params):
        raise FrugalError(
            "Frugal cannot tell hidden weights from embeddings and the output head by their tensors alone: use "
            "Frugal.from_module(model, ...), or pass model.named_parameters(), or say project=True or False per group"
        )
    choose = choose if choose is not None else is_projected_name
    picked = [item for item in params if choose(*item)]
    rest = [item for item in params if not choose(*item)]
    return [{**group, "params": part, "project": flag} for part, flag in ((picked, True), (rest, False)) if part]
