"""Training a Llama-shaped model from scratch, once per optimizer setting and seed, at equal steps.

The text is what is installed anyway: the sources of the standard library and of torch, and the documentation in
``pydoc_data.topics``, byte by byte. One file in forty, chosen by a hash of its text, is for validation.
"""

from __future__ import annotations

import hashlib
import math
import pydoc_data.topics
import sysconfig
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from trace_core.optimizers.tensor import Frugal

# ---- text


def texts() -> Iterable[bytes]:
    yield from (topic.encode() for topic in pydoc_data.topics.topics.values())
    for root in (Path(sysconfig.get_path("stdlib")), Path(str(torch.__file__)).parent):
        for path in sorted(root.rglob("*.py")):
            inside = path.relative_to(root).parts
            if not {"site-packages", "dist-packages", "test", "tests", "idle_test"} & set(inside):
                yield path.read_bytes()


def corpus(device: str, limit: int | None = None) -> tuple[Any, Any]:
    """(training, validation) bytes as uint8 tensors. Texts that occur twice are taken once."""
    parts: dict[bool, list[bytes]] = {True: [], False: []}
    seen: set[bytes] = set()
    size = 0
    for text in texts():
        digest = hashlib.sha256(text).digest()
        if digest not in seen and (limit is None or size < limit):
            seen.add(digest)
            size += len(text)
            parts[digest[0] % 40 == 0].append(text + b"\0")
    joined = (bytearray(b"".join(parts[flag])) for flag in (False, True))
    training, validation = (torch.frombuffer(part, dtype=torch.uint8).to(device) for part in joined)
    return training, validation


# ---- model


BATCHES = 40  # of validation, at each of four points of a run


@dataclass(frozen=True)
class Size:
    width: int
    inner: int
    blocks: int
    heads: int
    context: int
    batch: int


FULL = Size(width=512, inner=1376, blocks=8, heads=8, context=512, batch=32)  # the 60 M shape; bytes need no vocabulary
TINY = Size(width=64, inner=172, blocks=2, heads=2, context=64, batch=8)


def turned(x: Any, cosine: Any, sine: Any) -> Any:
    """Rotary positions: pairs of features turned by an angle that grows with the position."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cosine - b * sine, b * cosine + a * sine), dim=-1)


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
        mixed = functional.scaled_dot_product_attention(q, k.to(v.dtype), v, is_causal=True)
        x = x + self.o_proj(mixed.transpose(1, 2).flatten(-2))
        h = self.mlp_norm(x)
        return x + self.down_proj(functional.silu(self.gate_proj(h)) * self.up_proj(h))


class Llama(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, size.width)
        self.layers = nn.ModuleList(Block(size) for _ in range(size.blocks))
        self.norm = nn.RMSNorm(size.width)
        self.lm_head = nn.Linear(size.width, 256, bias=False)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)
        half = size.width // size.heads // 2
        angles = torch.arange(size.context)[:, None] * 10000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cosine", angles.cos())
        self.register_buffer("sine", angles.sin())

    def forward(self, tokens: Any) -> Any:
        x = self.embed(tokens)
        cosine, sine = self.cosine.to(x.dtype), self.sine.to(x.dtype)
        for layer in self.layers:
            x = layer(x, cosine, sine)
        return self.lm_head(self.norm(x))


# ---- settings


def settings() -> dict[str, Callable[[Any, float], Any]]:
    def ours(**options: Any) -> Callable[[Any, float], Any]:
        return lambda model, lr: Frugal.from_module(model, lr=lr, gap=200, **options)

    return {
        "AdamW": lambda model, lr: torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, fused=True),
        "FRUGAL block 0.25": ours(density=0.25),
        "FRUGAL 0": ours(density=0.0),
        "FRUGAL svd 0.25": ours(density=0.25, split="svd"),
        "GaLore-like (svd 0.25, free none)": ours(density=0.25, split="svd", free="none"),
        "BAdam-like (block 0.25, free none)": ours(density=0.25, free="none"),
    }


@dataclass
class Result:
    steps: int
    parameters: int
    training_bytes: int
    validation_bytes: int
    lr: float
    losses: dict[str, list[float]] = field(default_factory=dict)  # validation, nats per byte, one per seed
    curves: dict[str, list[list[float]]] = field(default_factory=dict)  # at a quarter, half, three quarters, the end
    state_mib: dict[str, float] = field(default_factory=dict)

    def table(self) -> str:
        head = (
            f"{self.parameters / 1e6:.1f} M parameters, {self.steps} steps each, lr {self.lr:g} with warm-up and "
            f"cosine, {self.training_bytes / 1e6:.1f} MB of text; validation loss in nats per byte"
        )
        seeds = max(len(v) for v in self.losses.values())
        lines = [
            head,
            f"{'':36}{'mean':>9}" + "".join(f"{f'seed {i}':>9}" for i in range(seeds)) + f"{'state MiB':>11}",
        ]
        for name, losses in sorted(self.losses.items(), key=lambda item: mean(item[1])):
            cells = "".join(f"{loss:9.4f}" for loss in losses)
            lines.append(f"{name:36}{mean(losses):9.4f}{cells}{self.state_mib[name]:11.1f}")
        return "\n".join(lines)


def batch_at(data: Any, size: Size, generator: Any) -> tuple[Any, Any]:
    starts = torch.randint(0, data.numel() - size.context - 1, (size.batch,), generator=generator).to(data.device)
    window = data[starts[:, None] + torch.arange(size.context + 1, device=data.device)].long()
    return window[:, :-1], window[:, 1:]


def loss_of(model: Any, x: Any, y: Any, device: str) -> Any:
    with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
        logits = model(x)
    return functional.cross_entropy(logits.float().flatten(0, 1), y.flatten())


@torch.no_grad()
def validate(model: Any, data: Any, size: Size, device: str, batches: int) -> float:
    generator = torch.Generator().manual_seed(12345)  # the same windows for everybody
    model.eval()
    losses = [loss_of(model, *batch_at(data, size, generator), device) for _ in range(batches)]
    model.train()
    return float(torch.stack(losses).mean())


def rate(step: int, steps: int) -> float:
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def train(
    make: Callable[[Any, float], Any],
    size: Size,
    data: tuple[Any, Any],
    device: str,
    steps: int,
    seed: int,
    lr: float,
    batches: int = BATCHES,
) -> tuple[list[float], float]:
    """Validation losses at four points, and the optimizer's state in MiB."""
    torch.manual_seed(seed)
    model = Llama(size).to(device)
    optimizer = make(model, lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    generator = torch.Generator().manual_seed(seed)
    curve = []
    marks = {max(1, steps * quarter // 4) for quarter in (1, 2, 3, 4)}
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss_of(model, *batch_at(data[0], size, generator), device).backward()
        optimizer.step()
        schedule.step()
        if step in marks:
            curve.append(validate(model, data[1], size, device, batches))
    states = optimizer.state.values()
    weight = sum(v.numel() * v.element_size() for s in states for v in s.values() if isinstance(v, torch.Tensor))
    return curve, weight / 2**20


def train_all(device: str, seconds: float, seeds: int, lr: float, *, quick: bool, say: Callable[[str], None]) -> Result:
    """Every setting with every seed. The number of steps is set so that all of it takes about ``seconds``."""
    started = time.perf_counter()
    size = TINY if quick else FULL
    data = corpus(device, limit=2_000_000 if quick else None)
    torch.backends.cuda.matmul.allow_tf32 = True
    short, longer = (2, 6) if quick else (20, 60)
    speeds = {}
    for name, make in settings().items():
        spent = []
        for trial in (2, short, longer):  # the first warms up; the difference of the others leaves set-up out
            begin = time.perf_counter()
            train(make, size, data, device, trial, 0, lr, batches=1)
            spent.append(time.perf_counter() - begin)
        speeds[name] = max(1e-4, (spent[2] - spent[1]) / (longer - short))
        say(f"trial: {name}: {speeds[name] * 1e3:.1f} ms/step")
    left = seconds - (time.perf_counter() - started)
    validating = 4 * BATCHES // 3  # in steps: a forward pass is a third of one
    steps = max(4, int(0.93 * left / seeds / sum(speeds.values())) - validating)
    parameters = sum(p.numel() for p in Llama(size).parameters())
    result = Result(steps, parameters, data[0].numel(), data[1].numel(), lr)
    say(f"{steps} steps for each of {len(speeds)} settings and {seeds} seeds")
    for seed in range(seeds):
        for name, make in settings().items():
            begin = time.perf_counter()
            curve, weight = train(make, size, data, device, steps, seed, lr)
            result.losses.setdefault(name, []).append(curve[-1])
            result.curves.setdefault(name, []).append(curve)
            result.state_mib[name] = weight
            spent = time.perf_counter() - begin
            say(f"seed {seed}: {name}: {' '.join(f'{v:.4f}' for v in curve)} ({spent:.0f} s)")
    return result
