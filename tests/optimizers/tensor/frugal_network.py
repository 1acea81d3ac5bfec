"""A small network of convolutions and layers, how it is trained, and what is compared afterwards."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import nn

from trace_core.optimizers.tensor import Frugal

SPLITS = ["block", "columns", "rows", "randk", "svd", "random"]


def network(dtype: Any = torch.float32) -> Any:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 12, 3), nn.Flatten(), nn.Linear(48, 32), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 5)).to(dtype)


def run(net: Any, optimizer: Any, steps: range, *, scheduler: Any = None) -> list[float]:
    losses: list[Any] = []
    where = next(net.parameters())
    for step in steps:
        made = torch.Generator().manual_seed(step)
        x = torch.randn(16, 3, 6, 6, generator=made).to(where)
        y = torch.randint(0, 5, (16,), generator=made).to(where.device)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.observe(loss)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.detach())
    return [float(loss) for loss in losses]


def make(net: Any, split: str, **options: Any) -> Any:
    settings: dict[str, Any] = {"lr": 3e-3, "split": split, "gap": 4, "density": 0.3, "seed": 7}
    return Frugal.from_module(net, **{**settings, **options})


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def equal(a: Any, b: Any) -> bool:
    return all(torch.equal(x.cpu(), y.cpu()) for x, y in zip(a.parameters(), b.parameters(), strict=True))
