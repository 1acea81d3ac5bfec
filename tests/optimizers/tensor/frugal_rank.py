"""One process of a distributed test: ``frugal_rank.py RANK WORLD FOLDER SPLIT WRAPPER``; saves what it ended with.

Every rank disturbs its global generator differently and sees other data; what the ranks choose must agree all the same.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from trace_core.optimizers.tensor import Frugal
from trace_core.optimizers.tensor.frugal import GrowingGap


def build() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 8), nn.Linear(8, 4))


def main(rank: int, world: int, folder: Path, split: str, wrapper: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    net = build()
    if wrapper == "ddp":
        wrapped: Any = nn.parallel.DistributedDataParallel(net)
    elif wrapper == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        wrapped = fully_shard(net, mesh=init_device_mesh("cpu", (world,)))
    else:
        wrapped = net
    torch.manual_seed(100 + rank)
    torch.rand(17 * (rank + 1))
    gap: Any = 3 if wrapper == "fsdp" else GrowingGap(start=2, factor=2, limit=8, tolerance=0.05)
    optimizer = Frugal.from_module(net, lr=0.01, split=split, density=0.4, gap=gap, weight_decay=0.01)
    for step in range(14):
        made = torch.Generator().manual_seed(step)
        x, y = torch.randn(8 * 2, 12, generator=made), torch.randn(8 * 2, 4, generator=made)
        share = slice(rank * 16 // world, (rank + 1) * 16 // world)
        loss = (wrapped(x[share]) - y[share]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.observe(loss * (1 + rank))  # ranks see other losses, and must draw the same conclusion
        optimizer.step()
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in net.parameters()]
    counters = [(g["steps"], g["refreshes"], g["refreshed_at"], g["active"]) for g in optimizer.param_groups]
    state = [v for s in optimizer.state.values() for k, v in s.items() if k == "exp_avg"]
    local = sum(v.to_local().numel() if hasattr(v, "to_local") else v.numel() for v in state)
    result = {"params": [p.detach() for p in whole], "counters": counters, "moments": local}
    torch.save(result, folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5])
