"""Two processes over gloo: replicas stay equal to the bit, and sharded parameters do what whole ones do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from trace_core.optimizers.tensor import Frugal  # noqa: E402 - after the skip
from trace_core.optimizers.tensor.frugal import FrugalError  # noqa: E402 - after the skip

RANK = Path(__file__).with_name("frugal_rank.py")

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="needs gloo"
)


def ranks(folder: Path, split: str, wrapper: str, world: int = 2) -> list[Any]:
    folder.mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, str(RANK), str(rank), str(world), str(folder), split, wrapper],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    said = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * world, "\n".join(said)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.mark.slow
@pytest.mark.parametrize("split", ["block", "columns", "randk", "svd"])
def test_replicas_stay_equal(split: str, tmp_path: Path) -> None:
    first, second = ranks(tmp_path / "ddp", split, "ddp")
    assert first["counters"] == second["counters"]
    assert first["counters"][0][1] > 2
    assert all(torch.equal(a, b) for a, b in zip(first["params"], second["params"], strict=True))


@pytest.mark.slow
def test_sharded_parameters_follow_whole_ones(tmp_path: Path) -> None:
    """FSDP2: half of the state on each process, the same trajectory as on one."""
    first, second = ranks(tmp_path / "two", "block", "fsdp")
    (alone,) = ranks(tmp_path / "one", "block", "fsdp", world=1)
    assert first["counters"] == second["counters"] == alone["counters"]
    assert first["moments"] + second["moments"] == alone["moments"]
    for a, b, c in zip(first["params"], second["params"], alone["params"], strict=True):
        assert torch.equal(a, b)
        assert torch.allclose(a, c, atol=1e-5)


def test_sharded_parameters_are_refused_where_the_whole_is_needed(tmp_path: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        weight = torch.nn.Parameter(distribute_tensor(torch.randn(8, 8), init_device_mesh("cpu", (1,)), [Shard(0)]))
        with pytest.raises(FrugalError, match=r"is a DTensor, and split='svd' needs the whole.*split='block'"):
            Frugal([("w", weight)], project=True, split="svd")
        optimizer = Frugal([("w", weight)], project=True, split="block", density=1.0, lr=0.1)
        before = weight.full_tensor().clone()
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        assert torch.allclose(weight.full_tensor(), before - 0.1, atol=1e-6)
        saved = optimizer.state_dict()
        optimizer.load_state_dict(saved)
        optimizer.step()
        assert torch.allclose(weight.full_tensor(), before - 0.2, atol=1e-6)
    finally:
        torch.distributed.destroy_process_group()
