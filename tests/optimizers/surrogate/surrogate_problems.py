"""Small problems with known answers."""

from __future__ import annotations

from typing import Any

import torch

import trace_core as tc
from trace_core.nodes.tensor import TensorParameter


class Linear:
    """targets = X w, and a loss of the rows: half the squared error, or the logistic loss."""

    def __init__(
        self, rows: int = 12, columns: int = 4, seed: int = 0, kind: str = "squares", mean: bool = False
    ) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.x = torch.randn(rows, columns, generator=draw, dtype=torch.float64)
        self.y = torch.randn(rows, generator=draw, dtype=torch.float64)
        if kind == "logistic":
            self.y = (self.y > 0).double()
        self.w = TensorParameter(torch.randn(columns, generator=draw, dtype=torch.float64), name="w")
        self.kind, self.mean = kind, mean

    def losses(self, z: Any) -> Any:
        if self.kind == "logistic":
            return torch.nn.functional.binary_cross_entropy_with_logits(z, self.y, reduction="none")
        return 0.5 * (z - self.y).square()

    def reduced(self, z: Any) -> Any:
        return self.losses(z).mean() if self.mean else self.losses(z).sum()

    def predict(self) -> Any:
        return tc.bundle(lambda x, w: x @ w, name="predict")(self.x, self.w)

    def loss(self) -> Any:
        return tc.bundle(self.reduced, name="loss")(self.predict())

    def value(self) -> float:
        with torch.no_grad():
            return float(self.reduced(self.x @ self.w.value))


def step(optimizer: Any, output: Any, feedback: Any = "", **options: Any) -> Any:
    optimizer.zero_feedback()
    optimizer.backward(output, feedback, **options)
    return optimizer.step()
