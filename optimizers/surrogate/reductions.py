"""Over how many examples a loss is averaged: the factor between its gradient and that of the sum.

A step size of 1/L, L being the smoothness of one example's loss, is right for the sum of the examples' losses. Most
losses are means. torch's own graph tells which: it is read from the loss inward, as far as it is linear.
"""

from __future__ import annotations

from math import prod
from typing import Any

_LINEAR = (
    "Add",
    "Sub",
    "Rsub",
    "Neg",
    "Mul",
    "Div",
    "Sum",
    "Mean",
    "View",
    "UnsafeView",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Alias",
    "Clone",
    "ToCopy",
    "Stack",
    "Cat",
    "Select",
    "Expand",
)


def averaged_over(loss: Any, target: Any) -> int:
    """How many terms the loss is a mean of, seen from ``target``; 1 for a sum, or where nothing tells.

    Args:
        loss: scalar tensor with history.
        target: interior tensor of that history.

    A loss of several means counts with the smallest: a step that is too short costs time, one too long may diverge.
    """
    goal = target.grad_fn
    leading = _leading_way(loss.grad_fn, goal)
    found: set[int] = set()
    stack: list[tuple[Any, int]] = [(loss.grad_fn, 1)]
    seen: set[tuple[Any, int]] = set()
    while stack:
        step, count = stack.pop()
        if step not in leading or (step, count) in seen:
            continue
        seen.add((step, count))
        if step is goal:
            found.add(count)
            continue
        name = step.name()
        count *= _terms(step, name, target)
        if name.startswith(_LINEAR):
            stack.extend([(source, count) for source, _ in step.next_functions])
        else:
            found.add(count)
    return min(found, default=1)


def _leading_way(start: Any, goal: Any) -> set[Any]:
    """The steps of autograd's graph between ``start`` and ``goal``: those from which the goal is reached."""
    sources: dict[Any, list[Any]] = {}
    order: list[Any] = []
    stack: list[tuple[Any, bool]] = [(start, False)]
    while stack:
        step, expanded = stack.pop()
        if expanded:
            order.append(step)
        elif step is not None and step not in sources:
            sources[step] = [] if step is goal else [source for source, _ in step.next_functions if source is not None]
            stack.append((step, True))
            stack.extend([(source, False) for source in sources[step]])
    leading = {goal}
    for step in order:
        if any(source in leading for source in sources[step]):
            leading.add(step)
    return leading


def _terms(step: Any, name: str, target: Any) -> int:
    if name.startswith("Mean"):
        sizes = list(step._saved_self_sym_sizes)
        dims = getattr(step, "_saved_dim", None)
        # dimensions are kept as unsigned numbers: a negative one comes back as a huge one
        return prod(sizes[_signed(dim)] for dim in dims) if dims else prod(sizes)
    if getattr(step, "_saved_reduction", None) == 1:  # 0 none, 1 mean, 2 sum
        weight = getattr(step, "_saved_total_weight", None)
        return max(1, round(float(weight)) if weight is not None else step._saved_self.numel())
    if name.startswith("Div"):
        divisor = getattr(step, "_saved_other", None)
        value = float(divisor) if divisor is not None and getattr(divisor, "numel", lambda: 1)() == 1 else 0.0
        if value > 1 and value in (target.shape[0] if target.ndim else 1, target.numel()):
            return int(value)
    return 1


def _signed(dim: int) -> int:
    return dim - 2**64 if dim >= 2**63 else dim
