"""What is chosen: sizes, memory, seeds, orders, schedules, and which parameters are projected at all."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402 - after the skip
from hypothesis import strategies as st  # noqa: E402 - after the skip
from torch import nn  # noqa: E402 - after the skip

from trace_core.optimizers.tensor import Frugal  # noqa: E402 - after the skip
from trace_core.optimizers.tensor.frugal import (  # noqa: E402 - after the skip
    FrugalError,
    GrowingGap,
    LinearDensity,
    Progress,
    groups_of,
    is_projected_name,
)
from trace_core.optimizers.tensor.frugal.blocks import choose_tensors  # noqa: E402 - after the skip
from trace_core.optimizers.tensor.frugal.lowrank import leading_basis  # noqa: E402 - after the skip
from trace_core.optimizers.tensor.frugal.seeding import scatter_keys, scattered  # noqa: E402 - after the skip


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Any) -> Any:
        return x + self.mlp(self.output(self.qkv(self.attn_norm(x))[..., : x.shape[-1]]))


class Model(nn.Module):
    def __init__(self, width: int = 16, depth: int = 3, head: str = "lm_head") -> None:
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, 8, width))
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        setattr(self, head, nn.Linear(width, 50))
        self.head_name = head

    def forward(self, x: Any) -> Any:
        h = self.embed(x)
        for layer in self.layers:
            h = layer(h)
        return getattr(self, self.head_name)(self.norm(h))


def train(model: Any, optimizer: Any, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        x = torch.randint(0, 50, (4, 8), generator=torch.Generator().manual_seed(step))
        nn.functional.cross_entropy(model(x).flatten(0, 1), x.flatten()).backward()
        optimizer.step()


# ---- memory


@pytest.mark.parametrize("split", ["block", "columns", "rows", "randk", "svd", "random"])
@pytest.mark.parametrize("density", [0.0, 0.25, 0.5, 1.0])
def test_state_weighs_eight_bytes_per_element_that_keeps_state(split: str, density: float) -> None:
    model = Model(width=32, depth=4)
    optimizer = Frugal.from_module(model, density=density, split=split, gap=2)
    groups = {group["project"]: [p.numel() for p in group["params"] if p.numel()] for group in optimizer.param_groups}
    projected, other = groups[True], sum(groups[False])
    other -= model.pos_embed.numel()  # takes no part in the forward pass: no gradient, no state
    for _ in range(3):
        train(model, optimizer, 3)
        expected = 8 * (other + density * sum(projected))
        slack = 8 * max(projected) if split == "block" else 0.01 * expected
        assert abs(optimizer.state_bytes().moments - expected) <= slack
    if split in ("block", "randk"):
        assert optimizer.state_bytes().subspaces == 0
    if split in ("svd", "random") and 0 < density < 1:
        bases = sum(min(p.shape) * round(min(p.shape) * density) for p in optimizer.param_groups[0]["params"])
        assert optimizer.state_bytes().subspaces == 4 * bases


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=30),
    density=st.floats(0, 1),
    order=st.sampled_from(["random", "ascending", "descending"]),
    cursor=st.integers(0, 40),
)
def test_blocks_fill_the_budget_of_elements_to_half_a_tensor(
    sizes: list[int], density: float, order: str, cursor: int
) -> None:
    chosen, _ = choose_tensors(sizes, density, order, cursor, seed=1, refresh=1, tensor=0)
    taken, budget = sum(sizes[i] for i in chosen), density * sum(sizes)
    assert len(set(chosen)) == len(chosen)
    assert taken <= budget + max(sizes) / 2
    if order == "random":
        left = [sizes[i] for i in range(len(sizes)) if i not in chosen]
        assert not left or taken + min(left) / 2 > budget  # nothing that is left would have brought it nearer


def test_orders_walk_round_the_list() -> None:
    sizes = [10] * 8
    for order, rounds in {
        "ascending": [[0, 1, 2], [3, 4, 5], [0, 6, 7], [1, 2, 3]],
        "descending": [[5, 6, 7], [2, 3, 4], [0, 1, 7], [4, 5, 6]],
    }.items():
        cursor = 0
        for expected in rounds:
            chosen, cursor = choose_tensors(sizes, 3 / 8, order, cursor, seed=0, refresh=0, tensor=0)
            assert chosen == expected, order


def test_random_blocks_are_all_chosen_in_time() -> None:
    sizes = [10, 20, 30, 40] * 3
    seen: Counter[int] = Counter()
    for refresh in range(200):
        seen.update(choose_tensors(sizes, 0.25, "random", 0, seed=3, refresh=refresh, tensor=0)[0])
    assert set(seen) == set(range(12))


# ---- seeds


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 5000), share=st.floats(0.001, 1.0), seed=st.integers(0, 2**40))
def test_scattered_indices_are_different_and_in_range(n: int, share: float, seed: int) -> None:
    count = max(1, int(n * share))
    index = scattered(n, count, scatter_keys(n, seed, 1, 2), torch.device("cpu"))
    assert index.shape == (count,)
    assert len(set(index.tolist())) == count
    assert 0 <= int(index.min()) <= int(index.max()) < n


@pytest.mark.parametrize(("n", "count"), [(64, 16), (60, 35), (50, 7)])
def test_scattered_indices_are_equally_likely(n: int, count: int) -> None:
    rounds = 4000
    hits = torch.zeros(n)
    for seed in range(rounds):
        hits[scattered(n, count, scatter_keys(n, seed, 0, 0), torch.device("cpu"))] += 1
    share = count / n
    spread = math.sqrt(rounds * share * (1 - share))
    assert (hits - rounds * share).abs().max() < 5 * spread


def test_choices_depend_on_seed_refresh_and_place_only() -> None:
    def masks(seed: int, noise: int) -> list[Any]:
        torch.manual_seed(noise)
        torch.rand(noise)
        params = [torch.zeros(16, 16) for _ in range(2)]
        optimizer = Frugal([{"params": params, "project": True}], split="randk", gap=1, seed=seed)
        found = []
        for _ in range(2):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
            found += [optimizer.chosen(p) for p in params]
        return found

    first, again, other = masks(1, 10), masks(1, 20), masks(2, 10)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert len({tuple(m.flatten().tolist()) for m in first}) == 4


# ---- subspaces


def test_the_leading_subspace_holds_nearly_what_the_best_one_holds() -> None:
    made = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(200, 80, generator=made)).Q
    right = torch.linalg.qr(torch.randn(80, 80, generator=made)).Q
    tall = left * (0.93 ** torch.arange(80)) @ right.T
    basis = leading_basis(tall, 16, (0, 1, 2))
    assert basis.is_contiguous()
    assert basis.shape == (80, 16)
    assert torch.allclose(basis.T @ basis, torch.eye(16), atol=1e-5)
    best = torch.linalg.svdvals(tall)[:16].square().sum()
    assert (tall @ basis).square().sum() >= 0.99 * best


def test_a_gradient_inside_the_subspace_leaves_nothing_to_the_sign() -> None:
    """Rounding noise of a residual that should be zero must not become full steps."""
    made = torch.Generator().manual_seed(0)
    weight = torch.zeros(40, 24)
    optimizer = Frugal([{"params": [weight], "project": True}], lr=1.0, split="svd", density=0.25, free_scale=1e6)
    weight.grad = torch.randn(40, 3, generator=made) @ torch.randn(3, 24, generator=made)
    optimizer.step()
    assert weight.abs().max() < 10


@pytest.mark.parametrize("tall", [True, False])
def test_what_counts_as_noise_follows_the_precision_of_products(tall: bool) -> None:
    """A residual of 1e-4 of the gradient is real with exact products and noise where products are coarse."""
    moved = {}
    for precision in ("highest", "medium"):
        weight = torch.zeros(40, 24) if tall else torch.zeros(24, 40)
        grad = torch.zeros_like(weight)
        grad[:6, :6] = torch.eye(6)
        grad[7, 8] = 1e-4  # outside the six leading directions
        optimizer = Frugal([{"params": [weight], "project": True}], lr=1.0, split="svd", density=0.25)
        weight.grad = grad
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            optimizer.step()
        finally:
            torch.set_float32_matmul_precision(before)
        moved[precision] = float(weight[7, 8])
    assert moved == pytest.approx({"highest": -1.0, "medium": 0.0}, abs=1e-3)


def test_a_gradient_that_is_not_finite_is_named_at_a_refresh() -> None:
    weight = torch.zeros(40, 24)
    optimizer = Frugal([("w", weight)], split="svd", project=True)
    weight.grad = torch.full_like(weight, float("nan"))
    with pytest.raises(FrugalError, match=r"parameter 'w'.*NaN"):
        optimizer.step()


# ---- schedules


def test_density_follows_its_schedule_at_refreshes() -> None:
    model = Model(width=32)
    optimizer = Frugal.from_module(model, split="columns", gap=5, density=LinearDensity(0.5, 0.0, 10))
    weights = []
    for _ in range(3):
        train(model, optimizer, 5)
        projected = optimizer.param_groups[0]["params"]
        weights.append(sum(t.numel() for p in projected for k, t in optimizer.state[p].items() if k == "exp_avg"))
    full = sum(p.numel() for p in projected)
    assert weights == [full // 2, full // 4, 0]


def test_the_gap_grows_when_the_loss_stalls() -> None:
    weight = torch.zeros(8, 8)
    gap = GrowingGap(start=2, factor=2, limit=6, tolerance=0.1)
    optimizer = Frugal([{"params": [weight], "project": True}], gap=gap)
    gaps = []
    for loss in [8.0, 8.0, 4.0, 4.0, 3.9, 3.9, 3.9, 3.9, 3.9, 3.9, 3.9, 3.9, 3.9]:
        weight.grad = torch.ones_like(weight)
        optimizer.observe(torch.tensor(loss))
        optimizer.step()
        gaps.append(optimizer.param_groups[0]["gap"])
    # Refreshes at steps 0, 2, 4, 6, 10: at 4 the mean has halved, at 6 and 10 it has hardly moved.
    assert gaps == [2] * 6 + [4] * 4 + [6] * 3


def test_schedules_are_plain_callables() -> None:
    seen: list[Progress] = []

    def gap(progress: Progress) -> int:
        seen.append(progress)
        return progress.refresh + 1

    weight = torch.zeros(8, 8)
    optimizer = Frugal(
        [{"params": [weight], "project": True}], gap=gap, density=lambda progress: 1 / (1 + progress.step)
    )
    for _ in range(7):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert [p.step for p in seen[1:]] == [0, 1, 3, 6]  # the first call only fills the group in
    assert optimizer.param_groups[0]["density"] == pytest.approx(1 / 7)


# ---- which parameters


def projected_names(optimizer: Any) -> set[str]:
    return {name for group in optimizer.param_groups if group["project"] for name in group["param_names"]}


HIDDEN = {f"layers.{i}.{layer}.weight" for i in range(3) for layer in ("qkv", "output", "mlp.0", "mlp.2")}


@pytest.mark.parametrize("head", ["lm_head", "classifier", "to_logits", "last_one"])
def test_hidden_weights_of_a_module_are_projected(head: str) -> None:
    assert projected_names(Frugal.from_module(Model(head=head))) == HIDDEN


def test_hidden_weights_are_found_by_name_alone() -> None:
    assert projected_names(Frugal(Model().named_parameters())) == HIDDEN


def test_a_headless_encoder_has_no_head() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
    names = projected_names(Frugal.from_module(encoder))
    assert "layers.1.linear2.weight" in names
    assert not any("norm" in name or "bias" in name for name in names)


def test_tied_and_declared_heads_are_not_projected() -> None:
    tied = Model(head="mixer")
    tied.mixer.weight = tied.embed.weight
    assert projected_names(Frugal.from_module(tied)) == HIDDEN

    class Declared(Model):
        def get_output_embeddings(self) -> Any:
            return self.layers[0].qkv

    names = projected_names(Frugal.from_module(Declared(head="extra")))
    assert names == (HIDDEN - {"layers.0.qkv.weight"}) | {"extra.weight"}


def test_last_layer_of_a_plain_network_is_its_head_and_convolutions_are_projected() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 10))
    assert projected_names(Frugal.from_module(net)) == {"0.weight", "2.weight"}


def test_a_callable_decides_instead() -> None:
    model = Model()
    by_module = Frugal.from_module(model, project=lambda name, module, p: isinstance(module, nn.Embedding))
    assert projected_names(by_module) == {"embed.weight"}
    by_name = Frugal(model.named_parameters(), project=lambda name, p: name.endswith("qkv.weight"))
    assert projected_names(by_name) == {f"layers.{i}.qkv.weight" for i in range(3)}


def test_groups_can_be_edited_before_use() -> None:
    hidden, rest = groups_of(Model(), weight_decay=0.1)
    rest["weight_decay"] = 0.0
    rest["lr"] = 1e-4
    optimizer = Frugal([hidden, rest], lr=1e-3, density=0.1)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(1e-3, 0.1), (1e-4, 0.0)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.0.self_attn.q_proj.weight", True),
        ("encoder.layer.3.output.dense.weight", True),
        ("blocks.2.output.weight", True),
        ("output.weight", False),
        ("lm_head.weight", False),
        ("model.embed_tokens.weight", False),
        ("transformer.wte.weight", False),
        ("model.norm.weight", False),
        ("heads.0.weight", False),
    ],
)
def test_names(name: str, expected: bool) -> None:
    assert is_projected_name(name, torch.zeros(4, 4)) is expected
    assert not is_projected_name(name, torch.zeros(4))
