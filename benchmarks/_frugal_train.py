"""Training a Llama-shaped model from scratch, once per optimizer setting and seed, at equal steps.

Weights and optimizer state are float32, matrix products bfloat16 (on CUDA). Every setting of one seed starts from the
same weights and sees the same batches. The learning rate rises over a tenth of the steps and falls by a cosine to a
tenth. ``search`` finds a rate for each setting: from 1e-3 it goes up or down by factors of two while that helps.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from _frugal_llama import FULL, TINY, Llama, Size
from _frugal_text import Corpus, corpus

from trace_core.optimizers.tensor import Frugal

GAP = 100
MARKS = 4  # points of a run at which it is validated
MOST_VALIDATION = 1 << 19  # tokens


def _ours(**options: Any) -> Callable[[Any, float], Any]:
    return lambda model, lr: Frugal.from_module(model, lr=lr, gap=GAP, **options)


def _adamw(model: Any, lr: float) -> Any:
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, fused=True)


SETTINGS: dict[str, tuple[str, Callable[[Any, float], Any]]] = {
    "adamw": ("AdamW", _adamw),
    "frugal": ("FRUGAL block 0.25", _ours(density=0.25)),
    "frugal0": ("FRUGAL 0", _ours(density=0.0)),
    "frugalsvd": ("FRUGAL svd 0.25", _ours(density=0.25, split="svd")),
    "galore": ("GaLore-like: svd 0.25, free none", _ours(density=0.25, split="svd", free="none")),
    "badam": ("BAdam-like: block 0.25, free none", _ours(density=0.25, free="none")),
}


@dataclass
class Bench:
    """Text and one model, which all runs share: it is drawn anew for each, so it is compiled once."""

    size: Size
    data: Corpus
    model: Any
    run: Any  # the model, compiled if that was asked for and worked
    device: str

    def batch(self, data: Any, starts: Any) -> tuple[Any, Any]:
        window = data[starts.to(data.device)[:, None] + torch.arange(self.size.context + 1, device=data.device)]
        return window[:, :-1].contiguous(), window[:, 1:].contiguous()

    def losses(self, x: Any, y: Any) -> Any:
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.device == "cuda"):
            return self.run(x, y)

    @torch.no_grad()
    def validate(self, most: int = MOST_VALIDATION) -> tuple[float, float]:
        """Nats per token and per byte, over the same windows at every call."""
        data, size = self.data.validation, self.size
        windows = min(most, data.numel() - 1) // size.context // size.batch * size.batch
        starts = torch.arange(windows) * size.context
        nats, tokens, width = torch.zeros((), dtype=torch.float64, device=self.device), 0, 0.0
        for part in starts.split(size.batch):
            x, y = self.batch(data, part)
            nats += self.losses(x, y).sum(dtype=torch.float64)
            tokens += y.numel()
            width += float(self.data.widths[y].sum(dtype=torch.float64))
        return float(nats) / tokens, float(nats) / width

    def train(self, setting: str, lr: float, steps: int, seed: int, marks: int = MARKS) -> tuple[list[Any], float]:
        """What ``validate`` gave at each mark, and the optimizer's state in MiB."""
        self.model.start(seed)
        optimizer = SETTINGS[setting][1](self.model, lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, steps))
        made = torch.Generator().manual_seed(seed)
        stops = {max(1, steps * mark // marks) for mark in range(1, marks + 1)} if marks else set()
        curve = []
        for step in range(1, steps + 1):
            starts = torch.randint(
                0, self.data.training.numel() - self.size.context - 1, (self.size.batch,), generator=made
            )
            optimizer.zero_grad()
            self.losses(*self.batch(self.data.training, starts)).mean().backward()
            optimizer.step()
            schedule.step()
            if step in stops:
                curve.append(self.validate())
        held = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
        return curve, sum(v.numel() * v.element_size() for v in held) / 2**20

    def seconds_per_step(self, setting: str, steps: int) -> float:
        """Measured with a refresh among the steps, so rather too long than too short."""
        self.train(setting, 1e-3, 3, 0, marks=0)
        begin = self.now()
        self.train(setting, 1e-3, steps, 0, marks=0)
        return (self.now() - begin) / steps

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _share(step: int, steps: int) -> float:
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def prepare(device: str, *, quick: bool, compile_it: bool, say: Callable[[str], None]) -> Bench:
    begin = time.perf_counter()
    size = TINY if quick else FULL
    data = corpus(size.vocabulary, limit=2_000_000 if quick else None).to(device)
    model = Llama(size).to(device)
    bench = Bench(size, data, model, model, device)
    count = sum(p.numel() for p in model.parameters())
    say(
        f"{count / 1e6:.2f} M parameters; {data.training.numel() / 1e6:.2f} M tokens of training text "
        f"({data.training_bytes / 1e6:.1f} MB), {data.validation.numel() / 1e6:.2f} M for validation, "
        f"cut in {time.perf_counter() - begin:.0f} s"
    )
    if compile_it:
        begin = time.perf_counter()
        try:
            bench.run = torch.compile(model, dynamic=False)
            bench.train("adamw", 1e-3, 2, 0, marks=1)
        except Exception as error:  # noqa: BLE001 - whatever the compiler meets, the uncompiled model does as well
            say(f"torch.compile failed, going on without: {type(error).__name__}: {str(error)[:300]}")
            bench.run = model
        else:
            say(f"compiled in {time.perf_counter() - begin:.0f} s")
    bench.train("adamw", 1e-3, 2, 0, marks=1)
    return bench


@dataclass
class Result:
    steps: int
    tokens_per_step: int
    parameters: int
    rates: dict[str, float]
    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # one per seed
    state_mib: dict[str, float] = field(default_factory=dict)
    ms_per_step: dict[str, float] = field(default_factory=dict)

    def table(self) -> str:
        seeds = max((len(v) for v in self.runs.values()), default=0)
        lines = [
            f"{self.parameters / 1e6:.1f} M parameters, {self.steps} steps of {self.tokens_per_step} tokens each; "
            f"validation loss at the end, in nats",
            f"{'':36}{'lr':>8}{'per token':>11}{'+-':>8}{'per byte':>10}"
            + "".join(f"{f'seed {i}':>9}" for i in range(seeds))
            + f"{'state MiB':>11}{'ms/step':>9}",
        ]
        for key, runs in sorted(self.runs.items(), key=lambda item: mean(run["token"] for run in item[1])):
            ends = [run["token"] for run in runs]
            spread = stdev(ends) if len(ends) > 1 else math.nan
            lines.append(
                f"{SETTINGS[key][0]:36}{self.rates[key]:8.2g}{mean(ends):11.4f}{spread:8.4f}"
                f"{mean(run['byte'] for run in runs):10.4f}"
                + "".join(f"{end:9.4f}" for end in ends)
                + f"{self.state_mib[key]:11.1f}{self.ms_per_step[key]:9.2f}"
            )
        return "\n".join(lines)

    def save(self, path: Path | None, where: str) -> None:
        if path is not None:
            path.write_text(json.dumps({"where": where, **asdict(self)}, indent=1))


def train_all(
    bench: Bench, seconds: float, seeds: int, rates: dict[str, float], *, quick: bool, say: Callable[[str], None],
    keep: Callable[[Result], None],
) -> Result:  # fmt: skip
    """Every setting of ``rates`` with every seed, in about ``seconds``. ``keep`` gets what there is after each run."""
    begin = bench.now()
    speeds = _speeds(bench, list(rates), quick=quick, say=say)
    left = seconds - (bench.now() - begin)
    validating = _validating(bench) * MARKS
    steps = max(MARKS, int((0.95 * left / seeds - validating * len(rates)) / sum(speeds.values())))
    say(f"{steps} steps for each of {len(rates)} settings and {seeds} seeds")
    count = sum(p.numel() for p in bench.model.parameters())
    result = Result(steps, bench.size.batch * bench.size.context, count, rates)
    for seed in range(seeds):
        for key, lr in rates.items():
            start = bench.now()
            curve, weight = bench.train(key, lr, steps, seed)
            spent = bench.now() - start
            run = {"token": curve[-1][0], "byte": curve[-1][1], "curve": [point[0] for point in curve], "s": spent}
            result.runs.setdefault(key, []).append(run)
            result.state_mib[key] = weight
            result.ms_per_step[key] = speeds[key] * 1e3
            say(f"seed {seed}: {SETTINGS[key][0]}: {' '.join(f'{v:.4f}' for v, _ in curve)} ({spent:.1f} s)")
            keep(result)
    return result


class Ascent:
    """The search for one setting: ``next`` is the rate to try, None when its neighbours by factors of two are worse."""

    def __init__(self) -> None:
        self.found: dict[float, float] = {}

    @property
    def best(self) -> float:
        return min(self.found, key=lambda lr: self.found[lr], default=1e-3)

    @property
    def next(self) -> float | None:
        for lr in (1e-3, 2e-3, self.best * 2, self.best / 2):
            if lr not in self.found:
                return lr
        return None


def search(
    bench: Bench, seconds: float, keys: list[str], *, quick: bool, say: Callable[[str], None]
) -> dict[str, float]:
    """The best rate of each setting at a number of steps that lets about five runs of each take ``seconds``."""
    begin = bench.now()
    speeds = _speeds(bench, keys, quick=quick, say=say)
    once = _validating(bench)
    left = seconds - (bench.now() - begin)
    steps = max(4, int((0.95 * left / 5 - once * len(keys)) / sum(speeds.values())))
    say(f"search: {steps} steps each")
    ascents = {key: Ascent() for key in keys}
    while open_ones := [(key, lr) for key, ascent in ascents.items() if (lr := ascent.next) is not None]:
        for key, lr in open_ones:  # in turns, so that all have got equally far if time runs out
            if bench.now() - begin + steps * speeds[key] > seconds:
                say(f"search: out of time with {', '.join(key for key, _ in open_ones)} still open")
                open_ones = []
                break
            end = bench.train(key, lr, steps, 0, marks=1)[0][-1][0]
            ascents[key].found[lr] = end if math.isfinite(end) else math.inf
            say(f"search: {SETTINGS[key][0]}: lr {lr:g}: {end:.4f}")
        if not open_ones:
            break
    best = {key: ascent.best for key, ascent in ascents.items()}
    say("found: --rates " + ",".join(f"{key}={lr:g}" for key, lr in best.items()))
    return best


def _speeds(bench: Bench, keys: list[str], *, quick: bool, say: Callable[[str], None]) -> dict[str, float]:
    speeds = {key: bench.seconds_per_step(key, 4 if quick else 30) for key in keys}
    for key, speed in speeds.items():
        tokens = bench.size.batch * bench.size.context / speed
        say(f"speed: {SETTINGS[key][0]}: {speed * 1e3:.2f} ms/step, {tokens:.0f} tokens/s")
    return speeds


def _validating(bench: Bench) -> float:
    begin = bench.now()
    bench.validate()
    return bench.now() - begin
