"""On a CUDA device: what is chosen and done there is what is done on a CPU, in kernels and in graphs."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from frugal_network import SPLITS, make, network, run, through_a_file  # noqa: E402 - after the skip

from trace_core.optimizers.tensor import Frugal  # noqa: E402 - after the skip
from trace_core.optimizers.tensor.frugal import FrugalError  # noqa: E402 - after the skip

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("split", SPLITS)
def test_cuda_follows_the_cpu(split: str) -> None:
    here, there = network(torch.float64), network(torch.float64).cuda()
    options = {"density": 0.4, "lr": 1e-3, "free": "sgd", "weight_decay": 0.1}
    first, second = make(here, split, **options), make(there, split, **options)
    run(here, first, range(12))
    run(there, second, range(12))
    for a, b in zip(here.parameters(), there.parameters(), strict=True):
        assert torch.allclose(a, b.cpu(), atol=1e-9)
    for p, q in zip(here.parameters(), there.parameters(), strict=True):
        if first.chosen(p).dtype == torch.bool:
            assert torch.equal(first.chosen(p), second.chosen(q).cpu())


@pytest.mark.parametrize("split", SPLITS)
def test_checkpoints_move_between_devices(split: str) -> None:
    net = network()
    optimizer = make(net, split, gap=None)
    run(net, optimizer, range(5))
    moved = network().cuda()
    moved.load_state_dict(net.state_dict())
    there = make(moved, split, gap=None)
    there.load_state_dict(through_a_file(optimizer.state_dict()))
    for p, q in zip(net.parameters(), moved.parameters(), strict=True):
        assert all(v.is_cuda for v in there.state[q].values() if isinstance(v, torch.Tensor))
        assert torch.equal(optimizer.chosen(p), there.chosen(q).cpu())
    run(moved, there, range(5, 8))


@pytest.mark.parametrize("split", SPLITS)
def test_steps_in_a_cuda_graph(split: str) -> None:
    """A captured step replays as eager steps go; a refresh cannot be captured and says so."""
    results = []
    for captured in (False, True):
        torch.manual_seed(0)
        params = [torch.randn(32, 24, device="cuda") for _ in range(4)]
        for p in params:
            p.grad = torch.randn_like(p)
        rate = torch.tensor(0.01, device="cuda")
        optimizer = Frugal([{"params": params, "project": True}], lr=rate, split=split, gap=6, capturable=True)
        if captured:
            with pytest.raises(FrugalError, match="refresh"), torch.cuda.graph(torch.cuda.CUDAGraph()):
                optimizer.step()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            optimizer.step()
            optimizer.step()
        torch.cuda.synchronize()
        if captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                optimizer.step()
            for _ in range(4):
                graph.replay()
            optimizer.count_replays(4)
        else:
            for _ in range(4):
                optimizer.step()
        assert optimizer.refresh_due
        optimizer.step()
        results.append(params)
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("split", SPLITS)
def test_an_ordinary_step_does_not_synchronise(split: str) -> None:
    net = network().cuda()
    optimizer = make(net, split, gap=100)
    run(net, optimizer, range(2))
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_one_launch_for_all_signs_does_what_many_do(dtype: str) -> None:
    made = torch.Generator().manual_seed(0)
    shapes = [(300, 70), (5000,), (64, 3, 3, 3), (), (0, 4), (1025, 1025)]
    start = [torch.randn(s, generator=made).to(getattr(torch, dtype)).cuda() for s in shapes]
    grads = [torch.randn(s, generator=made).to(getattr(torch, dtype)).cuda() for s in shapes]
    grads[1][::3] = 0.0
    results = []
    for fused in (None, False):
        params = [p.clone() for p in start]
        params.append(torch.ones(6, 4, device="cuda", dtype=params[0].dtype).t())  # strided: takes the long way
        options = {"lr": 0.01, "weight_decay": 0.5, "density": 0.0, "fused": fused}
        optimizer = Frugal([{"params": params, "project": True}], **options)
        for _ in range(3):
            for p, g in zip(params, [*grads, torch.ones_like(params[-1])], strict=True):
                p.grad = g.clone()
            optimizer.step()
        results.append(params)
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=4 * torch.finfo(a.dtype).eps, atol=0.03 * torch.finfo(a.dtype).eps)


def furthest_apart(p: Any, q: Any, lr: float) -> tuple[float, Any]:
    """The largest difference in units of |q| + lr, the size of a value before its change, and its place."""
    if not p.numel():
        return 0.0, ()
    off = ((p.float() - q.float()).abs() / (q.float().abs() + lr)).flatten()
    place = int(off.argmax())
    return float(off[place]), [int(i) for i in torch.unravel_index(torch.tensor(place), p.shape)]


@pytest.mark.parametrize("split", ["columns", "rows", "randk"])
@pytest.mark.parametrize("free", ["signsgd", "sgd", "none"])
@pytest.mark.parametrize("density", [0.25, 0.3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_one_pass_does_what_many_do(split: str, free: str, density: float, dtype: str) -> None:
    """The kernel for chosen columns, rows and entries beside torch's own operators, with tensors of different ages.

    A step is about eight roundings to float32, some of the value and some of its change, in another order on each way
    (with exact square roots and divisions the largest difference among a million values is 3.4 roundings); half
    precision is rounded twice on one of the ways.
    """
    half = getattr(torch, dtype)
    room = max(8 * torch.finfo(torch.float32).eps, 2 * torch.finfo(half).eps)
    made = torch.Generator().manual_seed(0)
    shapes = [(300, 70), (512, 256), (256, 512), (5000,), (64, 3, 3, 3), (), (0, 4), (1025, 1023)]
    start = [torch.randn(s, generator=made).to(half).cuda() for s in shapes]
    start.append(torch.ones(64, 48, device="cuda", dtype=half).t())  # strided: takes the long way
    one, many = ([p.clone() for p in start] for _ in range(2))
    options = {
        "lr": 0.01, "split": split, "free": free, "density": density, "gap": 4, "on_refresh": "reproject",
        "weight_decay": 0.5, "free_scale": 0.5, "projected_scale": 0.7,
    }  # fmt: skip
    first = Frugal([{"params": one, "project": True}], **options)
    second = Frugal([{"params": many, "project": True}], fused=False, **options)
    for step in range(6):
        for i, (p, q) in enumerate(zip(one, many, strict=True)):
            grad = torch.randn(p.shape, generator=made).to(half).cuda()
            p.grad = q.grad = None if step == 2 and i == 1 else grad
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # it says that Triton failed
            first.step()
        second.step()
        for p, q in zip(one, many, strict=True):
            off, where = furthest_apart(p, q, 0.01)
            assert off <= room, f"step {step}, {tuple(p.shape)}: {off:.3g} > {room:.3g} at {where}"
            q.copy_(p)
            left, right = first.state.get(p, {}), second.state.get(q, {})
            assert left.get("step") == right.get("step")
            assert torch.equal(first.chosen(p), second.chosen(q))
            for slot in ("exp_avg", "exp_avg_sq"):
                if slot in left:
                    assert torch.allclose(left[slot], right[slot], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("split", ["svd", "random"])
@pytest.mark.parametrize("free", ["signsgd", "none"])
def test_stacked_tensors_go_their_own_ways(split: str, free: str) -> None:
    """Matrices of one shape share their kernel launches and nothing else."""
    made = torch.Generator().manual_seed(0)
    start = [torch.randn(96, 64, generator=made, dtype=torch.float64) for _ in range(5)]
    grads = [[torch.randn(96, 64, generator=made, dtype=torch.float64) for _ in start] for _ in range(5)]
    results = []
    for device in ("cuda", "cpu"):
        params = [p.to(device, copy=True) for p in start]
        optimizer = Frugal([{"params": params, "project": True}], lr=0.01, split=split, free=free, gap=3)
        for slopes in grads:
            for p, g in zip(params, slopes, strict=True):
                p.grad = g.to(device)
            optimizer.step()
        results.append([p.cpu() for p in params])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("copies", [1, 3])
def test_coarse_products_do_not_turn_noise_into_steps(precision: str, copies: int) -> None:
    """With TF32 products the residual of a gradient that lies in the subspace is a thousand times noisier."""
    made = torch.Generator().manual_seed(0)
    weights = [torch.zeros(400, 240, device="cuda") for _ in range(copies)]
    optimizer = Frugal([{"params": weights, "project": True}], lr=1.0, split="svd", density=0.25, free_scale=1e6)
    for weight in weights:
        weight.grad = (torch.randn(400, 3, generator=made) @ torch.randn(3, 240, generator=made)).cuda()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        optimizer.step()
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(weight.abs().max() < 10 for weight in weights)
