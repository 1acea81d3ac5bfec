"""A small language model of characters, trained on text that ships with Python: FRUGAL beside AdamW."""

from __future__ import annotations

import pydoc_data.topics
from statistics import mean
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - after the skip

from trace_core.optimizers.tensor import Frugal  # noqa: E402 - after the skip

WIDTH, CONTEXT, BATCH, STEPS, LR = 96, 64, 16, 250, 3e-3


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn_norm, self.mlp_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.o_proj = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up_proj, self.down_proj = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        heads = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in self.qkv(self.attn_norm(x)).chunk(3, dim=-1))
        mixed = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.o_proj(mixed.transpose(1, 2).flatten(-2))
        return x + self.down_proj(nn.functional.gelu(self.up_proj(self.mlp_norm(x))))


class Language(nn.Module):
    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embed, self.pos_embed = nn.Embedding(characters, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.norm, self.lm_head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, characters, bias=False)

    def forward(self, x: Any, y: Any) -> Any:
        h = self.embed(x) + self.pos_embed.weight
        for layer in self.layers:
            h = layer(h)
        return nn.functional.cross_entropy(self.lm_head(self.norm(h)).flatten(0, 1), y.flatten())


def tokens() -> tuple[Any, Any, int]:
    """Training text, validation text (the last tenth), and how many characters there are."""
    text = "".join(pydoc_data.topics.topics.values())
    known = {character: number for number, character in enumerate(sorted(set(text)))}
    whole = torch.tensor([known[character] for character in text])
    cut = len(whole) * 9 // 10
    return whole[:cut], whole[cut:], len(known)


def windows(data: Any, starts: Any) -> tuple[Any, Any]:
    piece = data[starts[:, None] + torch.arange(CONTEXT + 1)]
    return piece[:, :-1], piece[:, 1:]


def trained(setting: str, seed: int) -> float:
    """The validation loss, in nats per character, after the last step."""
    training, validation, characters = tokens()
    torch.manual_seed(seed)
    model = Language(characters)
    if setting == "adamw":
        optimizer: Any = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)
    else:
        optimizer = Frugal.from_module(model, lr=LR, density=0.25, split=setting, gap=50, seed=seed)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(*windows(training, torch.randint(len(training) - CONTEXT, (BATCH,)))).backward()
        optimizer.step()
    with torch.no_grad():
        starts = torch.arange(0, len(validation) - CONTEXT, 2 * CONTEXT)
        return mean(float(model(*windows(validation, part))) for part in starts.split(64) if len(part) == 64)


@pytest.mark.slow
def test_frugal_trains_as_adamw_does_and_svd_better() -> None:
    """Small models do not show the order of large ones: what is asserted is closeness, and that subspaces help."""
    losses = {setting: [trained(setting, seed) for seed in range(3)] for setting in ("adamw", "block", "svd")}
    assert abs(mean(losses["block"]) - mean(losses["adamw"])) <= 0.05, losses
    assert all(ours < theirs for ours, theirs in zip(losses["svd"], losses["adamw"], strict=True)), losses
