"""A small Llama: RMSNorm, rotary positions, gated feed-forward, untied head; named as in the usual checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Size:
    vocabulary: int
    width: int
    inner: int
    blocks: int
    heads: int
    context: int
    batch: int


FULL = Size(vocabulary=32000, width=512, inner=1376, blocks=8, heads=8, context=512, batch=32)  # 58.1 M parameters
TINY = Size(vocabulary=1000, width=64, inner=172, blocks=2, heads=2, context=64, batch=8)


def turned(x: Any, cosine: Any, sine: Any) -> Any:
    """Rotary positions: pairs of features turned by an angle that grows with the position."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cosine - b * sine, b * cosine + a * sine), dim=-1).to(x.dtype)


class Block(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        d, self.heads = size.width, size.heads
        self.attn_norm, self.mlp_norm = nn.RMSNorm(d), nn.RMSNorm(d)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.gate_proj, self.up_proj = nn.Linear(d, size.inner, bias=False), nn.Linear(d, size.inner, bias=False)
        self.down_proj = nn.Linear(size.inner, d, bias=False)

    def forward(self, x: Any, cosine: Any, sine: Any) -> Any:
        h = self.attn_norm(x)
        q, k, v = (
            f(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = turned(q, cosine, sine), turned(k, cosine, sine)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o_proj(mixed.transpose(1, 2).flatten(-2))
        h = self.mlp_norm(x)
        return x + self.down_proj(functional.silu(self.gate_proj(h)) * self.up_proj(h))


class Llama(nn.Module):
    """``forward`` gives the loss of each token, (batch, context), in nats."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embed = nn.Embedding(size.vocabulary, size.width)
        self.layers = nn.ModuleList(Block(size) for _ in range(size.blocks))
        self.norm = nn.RMSNorm(size.width)
        self.lm_head = nn.Linear(size.width, size.vocabulary, bias=False)
        half = size.width // size.heads // 2
        angles = torch.arange(size.context)[:, None] * 10000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cosine", angles.cos())
        self.register_buffer("sine", angles.sin())

    @torch.no_grad()
    def start(self, seed: int) -> None:
        """Draw the weights anew, in place: what has been compiled stays valid."""
        made = torch.Generator(device=self.cosine.device).manual_seed(seed)
        for p in self.parameters():
            p.grad = None
            if p.dim() == 2:
                p.normal_(std=0.02, generator=made)
            else:
                p.fill_(1.0)

    def forward(self, tokens: Any, targets: Any) -> Any:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, self.cosine, self.sine)
        logits = self.lm_head(self.norm(x)).float()
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
