"""Random expressions of torch operators, to be applied to tensors and to nodes of them alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch.nn import functional

#: name -> a differentiable function of two tensors of shape (3, 3)
STEPS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "radd": lambda a, b: 1.5 + a,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / (b * b + 1),
    "matmul": lambda a, b: a @ b / 3,
    "neg": lambda a, b: -a,
    "power": lambda a, b: torch.tanh(a) ** 2,
    "relu": lambda a, b: torch.relu(a),
    "method": lambda a, b: a.sigmoid().add(b, alpha=0.5),
    "transposed": lambda a, b: a.T + b.mT,
    "index": lambda a, b: a[:, [2, 0, 1]] + b[0],
    "slices": lambda a, b: a[1:, :2].sum() + b,
    "cat": lambda a, b: torch.cat([a, b], dim=0)[1:4],
    "stack": lambda a, b: torch.stack([a, b, a]).mean(dim=0),
    "split": lambda a, b: torch.cat([*a.split(2, dim=1)][::-1], dim=1),
    "chunk": lambda a, b: sum(b.chunk(3)) + a,
    "unbind": lambda a, b: torch.stack(list(a.unbind(dim=1))),
    "topk": lambda a, b: a.topk(3, dim=1).values * b,
    "largest": lambda a, b: a.max(dim=0)[0] + b,
    "where": lambda a, b: torch.where(a > b, a, 2 * b),
    "einsum": lambda a, b: torch.einsum("ij,kj->ik", a, b) / 3,
    "linear": lambda a, b: functional.linear(a, b) / 3,
    "norm": lambda a, b: functional.layer_norm(a, (3,)) + b,
    "softmax": lambda a, b: functional.softmax(a, dim=-1) * b,
    "size": lambda a, b: a.view(a.size(1), -1) / a.numel() + b.reshape(b.shape),
    "zeros": lambda a, b: a + torch.zeros(b.shape, dtype=a.dtype),
    "cast": lambda a, b: a.double() + b,
    "rows": lambda a, b: torch.stack([row.cumsum(0) for row in a]),
}

Plan = list[tuple[str, int, int]]
PLANS = st.lists(
    st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=7
)


def evaluate(leaves: list[Any], plan: Plan) -> Any:
    """A scalar: the mean of the last value, after each step of the plan was applied to two of the values so far."""
    values = list(leaves)
    for name, first, second in plan:
        values.append(STEPS[name](values[first % len(values)], values[second % len(values)]).float())
    return (values[-1] * values[-1]).mean() + values[0].mean()
