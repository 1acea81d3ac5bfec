"""Life with the optimizer: checkpoints, precisions, odd shapes, torch's own helpers, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from frugal_network import SPLITS, equal, make, network, run, through_a_file  # noqa: E402 - after the skip
from torch import nn  # noqa: E402 - after the skip

from trace_core.errors import StateError  # noqa: E402 - after the skip
from trace_core.optimizers.tensor import Frugal  # noqa: E402 - after the skip
from trace_core.optimizers.tensor.frugal import FrugalError, GrowingGap, LinearDensity  # noqa: E402 - after the skip

# ---- checkpoints


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("on_refresh", ["reset", "reproject"])
@pytest.mark.parametrize("capturable", [False, True])
def test_a_resumed_run_goes_on_bit_for_bit(split: str, on_refresh: str, capturable: bool) -> None:
    def started() -> tuple[Any, Any]:
        net = network()
        options = {"density": LinearDensity(0.6, 0.2, 12), "gap": GrowingGap(3, 1.5, 8, tolerance=0.5)}
        return net, make(net, split, on_refresh=on_refresh, capturable=capturable, **options)

    straight, straight_optimizer = started()
    run(straight, straight_optimizer, range(16))
    for cut in (5, 8):
        first, optimizer = started()
        run(first, optimizer, range(cut))
        saved = through_a_file({"net": first.state_dict(), "optimizer": optimizer.state_dict()})
        second, resumed = started()
        second.load_state_dict(saved["net"])
        resumed.load_state_dict(saved["optimizer"])
        torch.manual_seed(cut)  # the global generator has no say
        run(second, resumed, range(cut, 16))
        assert equal(straight, second)
        assert resumed.param_groups[0]["refreshes"] == straight_optimizer.param_groups[0]["refreshes"]


def test_checkpoints_are_plain_data() -> None:
    net = network()
    optimizer = make(net, "svd", density=lambda progress: 0.3)
    run(net, optimizer, range(3))

    def check(value: Any) -> None:
        if isinstance(value, dict):
            for item in value.values():
                check(item)
        elif isinstance(value, list | tuple):
            for item in value:
                check(item)
        else:
            assert value is None or isinstance(value, torch.Tensor | int | float | str | bool), type(value)

    check(optimizer.state_dict())


def test_a_copied_optimizer_and_one_with_other_groups() -> None:
    net = network()
    optimizer = make(net, "columns")
    run(net, optimizer, range(5))
    twin_net, twin = copy.deepcopy((net, optimizer))
    run(net, optimizer, range(5, 10))
    run(twin_net, twin, range(5, 10))
    assert equal(net, twin_net)
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(ValueError, match="group"):
        make(other, "columns").load_state_dict(optimizer.state_dict())
    wider = network()
    wider[6] = nn.Linear(32, 40)
    wider[8] = nn.Linear(40, 5)
    with pytest.raises(StateError, match="does not fit"):
        make(wider, "columns").load_state_dict(optimizer.state_dict())


# ---- precision and shape


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_parameters_have_float32_moments(split: str, dtype: str) -> None:
    """Every half-precision value is what float32 arithmetic on it gives, rounded once."""
    half = getattr(torch, dtype)
    low, high = [torch.randn(24, 16).to(half) for _ in range(3)], []
    optimizer = Frugal([{"params": low, "project": True}], lr=0.01, split=split, density=0.4, gap=2, weight_decay=0.1)
    for step in range(5):
        grads = [torch.randn(24, 16, generator=torch.Generator().manual_seed(step)).to(half) for _ in low]
        high = [p.float() for p in low]
        exact = Frugal([{"params": high, "project": True}], lr=0.01, split=split)
        if step:
            exact.load_state_dict(optimizer.state_dict())
        else:
            exact = Frugal(
                [{"params": high, "project": True}], lr=0.01, split=split, density=0.4, gap=2, weight_decay=0.1
            )
        for p, q, g in zip(low, high, grads, strict=True):
            p.grad, q.grad = g, g.float()
        optimizer.step()
        exact.step()
        for p, q in zip(low, high, strict=True):
            room = 3 * torch.finfo(half).eps * q.abs().max()
            assert (p.float() - q).abs().max() <= room
    moments = [v for s in optimizer.state.values() for k, v in s.items() if k.startswith("exp_avg")]
    assert moments
    assert all(m.dtype == torch.float32 for m in moments)
    loaded = Frugal([{"params": [p.clone() for p in low], "project": True}], split=split)
    loaded.load_state_dict(through_a_file(optimizer.state_dict()))
    assert all(v.dtype == torch.float32 for s in loaded.state.values() for k, v in s.items() if "exp_avg" in k)


def test_moments_of_a_wanted_type() -> None:
    weight = torch.randn(8, 8)
    optimizer = Frugal([{"params": [weight], "project": True}], density=1.0, state_dtype=torch.bfloat16)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert optimizer.state[weight]["exp_avg"].dtype == torch.bfloat16


@pytest.mark.parametrize("split", SPLITS)
def test_strides_do_not_matter(split: str) -> None:
    """Channels-last kernels, transposed weights and gradients laid out otherwise get the same update."""
    kernel, weight = torch.randn(6, 4, 3, 3), torch.randn(10, 8)
    usual = [kernel.clone(), weight.clone(), torch.randn(()), torch.zeros(0, 4)]
    odd = [
        kernel.to(memory_format=torch.channels_last),
        weight.t().contiguous().t(),
        usual[2].clone(),
        torch.zeros(0, 4),
    ]
    results = []
    for params in (usual, odd):
        optimizer = Frugal([{"params": params, "project": True}], lr=0.01, split=split, density=0.4, gap=2)
        for step in range(5):
            for p in params:
                grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
                p.grad = grad.t().contiguous().t() if step % 2 and p.dim() == 2 else grad
            optimizer.step()
        results.append(params)
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_momentum_starts_at_zero() -> None:
    """A buffer that starts as a copy of the parameter would move it without any gradient."""
    for split in SPLITS:
        weight = torch.full((4, 4), 10.0)
        optimizer = Frugal([{"params": [weight], "project": True}], lr=1.0, full="sgdm", split=split)
        for _ in range(3):
            weight.grad = torch.zeros_like(weight)
            optimizer.step()
        assert torch.equal(weight, torch.full((4, 4), 10.0))


def test_tensors_that_stay_chosen_keep_their_moments_and_the_others_start_anew() -> None:
    params = [torch.zeros(4, 4) for _ in range(6)]
    optimizer = Frugal([{"params": params, "project": True}], split="block", density=0.7, gap=5)
    before: set[int] = set()
    seen = []
    for step in range(26):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        if step % 5 == 0:  # a refresh was made
            active = set(optimizer.param_groups[0]["active"])
            assert {i for i in range(6) if params[i] in optimizer.state} == active
            ages = {i: optimizer.state[params[i]]["step"] for i in active}
            assert all((ages[i] > 1) is (i in before) for i in active)
            seen.append(active & before)
            before = active
    assert any(seen)


def test_generators_serve_as_lists() -> None:
    net = network()
    names = [name for name, _ in net.named_parameters()]
    assert len(Frugal(net.parameters(), project=True).param_groups[0]["params"]) == len(names)
    group = Frugal([{"params": (p for p in net.parameters()), "project": False}]).param_groups[0]
    assert all(p is q for p, q in zip(group["params"], net.parameters(), strict=True))
    named = Frugal(net.named_parameters(), project=lambda name, tensor: tensor.dim() > 1)
    assert sorted(n for g in named.param_groups for n in g["param_names"]) == sorted(names)


def test_frozen_and_unused_parameters_are_left_alone() -> None:
    used, unused = torch.randn(4, 4), torch.randn(4, 4)
    optimizer = Frugal([{"params": [used, unused], "project": True}], split="block", density=0.5, gap=1)
    before = unused.clone()
    for _ in range(6):
        used.grad = torch.ones_like(used)
        optimizer.step()
    assert torch.equal(unused, before)
    assert unused not in optimizer.state


# ---- with torch's own helpers


def test_learning_rate_schedulers_and_tensor_rates() -> None:
    for split in SPLITS:
        plain, tensor = network(torch.float64), network(torch.float64)
        first = make(plain, split)
        second = make(tensor, split, lr=torch.tensor(3e-3, dtype=torch.float64), weight_decay=0.01)
        first.param_groups[0]["weight_decay"] = first.param_groups[1]["weight_decay"] = 0.01
        run(plain, first, range(8), scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(first, 10))
        run(tensor, second, range(8), scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(second, 10))
        for a, b in zip(plain.parameters(), tensor.parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-7)


def test_gradient_scaler_skips_overflows() -> None:
    net = network()
    optimizer = make(net, "svd")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    before = copy.deepcopy(net)
    for factor in (float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(net(torch.ones(2, 3, 6, 6)).sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert equal(net, before) is (factor != 1.0)


@pytest.mark.parametrize("split", SPLITS)
def test_it_learns(split: str) -> None:
    net = network()
    x = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    y = torch.arange(64) % 5
    optimizer = make(net, split, gap=10)

    def loss() -> Any:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(net(x), y)
        value.backward()
        return value

    losses = [float(optimizer.step(loss).detach()) for _ in range(60)]
    assert losses[-1] < 0.2 * losses[0]


# ---- refusals


def _sparse() -> None:
    table = nn.Embedding(5, 4, sparse=True)
    optimizer = Frugal([("table", table.weight)], project=False)
    table(torch.tensor([1])).sum().backward()
    optimizer.step()


def _group(**options: Any) -> Callable[[], Any]:
    return lambda: Frugal([{"params": [torch.zeros(4, 4)], "project": True, **options}])


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (lambda: Frugal([torch.zeros(4, 4)]), "from_module"),
        (_sparse, "'table' has a sparse gradient"),
        (lambda: Frugal([torch.zeros(4, dtype=torch.complex64)], project=True), "complex"),
        (_group(split="diagonal"), "split: expected one of block, columns"),
        (_group(density=1.5), r"density: expected a number in \[0, 1\], got 1.5"),
        (_group(density=lambda progress: -1.0), "density"),
        (_group(gap=0), "gap: expected a number of steps"),
        (_group(lr=-1.0), "lr"),
        (_group(betas=(0.9, 1.0)), "betas"),
        (_group(full="adam"), "full"),
        (_group(free="sign"), "free"),
        (_group(order="mirror"), "order"),
        (_group(on_refresh="keep"), "on_refresh"),
        (_group(state_dtype=torch.int8), "state_dtype"),
        (lambda: GrowingGap(start=10, limit=5), "limit >= start"),
        (lambda: Frugal([torch.zeros(2, 2)], project=True).chosen(torch.zeros(2, 2)), "not one of"),
    ],
)
def test_what_cannot_work_is_refused_with_a_reason(attempt: Callable[[], Any], words: str) -> None:
    with pytest.raises(FrugalError, match=words):
        attempt()
