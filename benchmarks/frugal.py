# ruff: noqa: T201 - a script: its table is its output
"""What a step of FRUGAL costs beside torch's AdamW, in time and memory, and how models trained with it end up.

    python benchmarks/frugal.py                              CPU, one thread: 11.5 M parameters, 12 blocks of width 256
    python benchmarks/frugal.py --device cuda                one GPU: the 130 M Llama shape, with its state's memory
    python benchmarks/frugal.py --search --device cuda       a learning rate for each setting of what follows
    python benchmarks/frugal.py --train --device cuda --rates adamw=1e-3,frugal=1e-3
                                                             58 M parameters from scratch on real text
    python benchmarks/frugal.py --json out.json --quick      fewer repeats; for --search and --train a tiny model

All contenders run in one process in turns (a, b, c, a, b, c, ...) on tensors of their own with equal values.
Figures are medians, ratios are to torch's fused AdamW of the same run. CPU figures are CPU time of the process, CUDA
figures wall time between two synchronisations. "refresh" is a step that also chooses anew which part keeps state.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from trace_core.optimizers.tensor import Frugal

GIB = 1 << 30


@dataclass(frozen=True)
class Shape:
    """A Llama-shaped model as far as an optimizer sees it: the shapes of its weights."""

    vocabulary: int
    width: int
    inner: int
    blocks: int

    def hidden(self) -> list[tuple[int, ...]]:
        d, f = self.width, self.inner
        return [s for _ in range(self.blocks) for s in ((d, d), (d, d), (d, d), (d, d), (f, d), (f, d), (d, f))]

    def rest(self) -> list[tuple[int, ...]]:
        return [(self.vocabulary, self.width)] * 2 + [(self.width,)] * (2 * self.blocks + 1)


SHAPES = {"cpu": Shape(4000, 256, 688, 12), "cuda": Shape(32000, 768, 2048, 12)}
QUICK = Shape(500, 64, 172, 2)


@dataclass
class Contender:
    label: str
    make: Callable[[list[Any], list[Any]], Any]
    step: list[float] = field(default_factory=list)  # seconds
    refresh: list[float] = field(default_factory=list)
    state_gib: float | None = None  # what the state itself weighs
    peak_gib: float | None = None  # what the allocator held at most beyond parameters and gradients (CUDA)


def adamw(**options: Any) -> Callable[[list[Any], list[Any]], Any]:
    return lambda hidden, rest: torch.optim.AdamW(hidden + rest, lr=1e-4, weight_decay=0.0, **options)


def frugal(**options: Any) -> Callable[[list[Any], list[Any]], Any]:
    def make(hidden: list[Any], rest: list[Any]) -> Any:
        groups = [{"params": hidden, "project": True}, {"params": rest, "project": False}]
        return Frugal(groups, lr=1e-4, gap=None, **options)

    return make


def contenders() -> list[Contender]:
    made = [Contender("torch AdamW fused", adamw(fused=True)), Contender("torch AdamW foreach", adamw(foreach=True))]
    made += [Contender(f"Frugal block {rho:g}", frugal(density=rho)) for rho in (0.25, 0.0, 1.0)]
    for split in ("columns", "rows", "randk", "svd", "random"):
        made.append(Contender(f"Frugal {split} 0.25", frugal(split=split, density=0.25)))
    return made


class Timer:
    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def __call__(self, run: Callable[[], Any], times: int) -> float:
        if not self.cuda:
            start = time.process_time()
            for _ in range(times):
                run()
            return (time.process_time() - start) / times
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(times):
            run()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / times


def tensors(shapes: list[tuple[int, ...]], device: str, seed: int) -> list[Any]:
    made = torch.Generator(device=device).manual_seed(seed)
    params = []
    for shape in shapes:
        param = torch.randn(shape, device=device, generator=made).mul_(0.02).requires_grad_()
        param.grad = torch.randn(shape, device=device, generator=made).mul_(1e-3)
        params.append(param)
    return params


def is_frugal(optimizer: Any) -> bool:
    return isinstance(optimizer, Frugal)


def weigh(optimizer: Any) -> int:
    if is_frugal(optimizer):
        return int(optimizer.state_bytes().total)
    states = optimizer.state.values()
    return sum(v.numel() * v.element_size() for s in states for v in s.values() if isinstance(v, torch.Tensor))


def refreshing(optimizer: Any) -> Iterator[None]:
    """Within it every step refreshes."""
    for group in optimizer.param_groups:
        group["gap"] = 1
    yield
    for group in optimizer.param_groups:
        group["gap"] = None


def measure(device: str, shape: Shape, repeats: int, times: int) -> list[Contender]:
    timer = Timer(device)
    rows = contenders()
    held: list[Any] = []
    for row in rows:
        hidden, rest = tensors(shape.hidden(), device, 0), tensors(shape.rest(), device, 1)
        optimizer = row.make(hidden, rest)
        gc.collect()
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        optimizer.step()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
            row.peak_gib = (torch.cuda.max_memory_allocated() - before) / GIB
        row.state_gib = weigh(optimizer) / GIB
        held.append(optimizer)
    for _ in range(repeats):
        for row, optimizer in zip(rows, held, strict=True):
            optimizer.step()  # what the contender before left in the caches is not its business
            row.step.append(timer(optimizer.step, times))
    for _ in range(max(3, repeats // 4)):
        for row, optimizer in zip(rows, held, strict=True):
            if is_frugal(optimizer):
                for _ in refreshing(optimizer):
                    row.refresh.append(timer(optimizer.step, 1))
    return rows


def table(rows: list[Contender]) -> str:
    base = median(rows[0].step)
    head = f"{'':24}{'ms/step':>10}{'x fused':>10}{'refresh ms':>12}{'x step':>8}"
    lines = [head + f"{'state GiB':>11}{'x AdamW':>9}{'peak GiB':>10}"]
    whole = rows[0].state_gib or 1.0
    for row in rows:
        step = median(row.step)
        refresh = median(row.refresh) if row.refresh else None
        cells = [f"{row.label:24}", f"{step * 1e3:10.3f}", f"{step / base:10.2f}"]
        cells += [f"{refresh * 1e3:12.2f}{refresh / step:8.2f}" if refresh is not None else f"{'':20}"]
        cells += [f"{row.state_gib:11.4f}", f"{(row.state_gib or 0) / whole:9.2f}"]
        cells += [f"{row.peak_gib:10.4f}" if row.peak_gib is not None else f"{'-':>10}"]
        lines.append("".join(cells))
    return "\n".join(lines)


def device_name(device: str, threads: int) -> str:
    if device == "cuda":
        return str(torch.cuda.get_device_name())
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {threads} thread{'s' if threads > 1 else ''}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def train(options: argparse.Namespace, where: str) -> None:
    """``--search`` and ``--train``; what is printed comes with the seconds since the start."""
    import _frugal_train as training

    begin = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - begin:5.0f} s] {text}", flush=True)

    keys = [key for key in options.settings.split(",") if key] or list(training.SETTINGS)
    rates = dict.fromkeys(keys, 1e-3)
    for pair in filter(None, options.rates.split(",")):
        key, _, rate = pair.partition("=")
        if key in rates:
            rates[key] = float(rate)
    say(where)
    bench = training.prepare(options.device, quick=options.quick, compile_it=options.compile, say=say)
    if options.search:
        left = options.seconds - (time.perf_counter() - begin)
        rates = training.search(bench, left * (0.3 if options.train else 1.0), keys, quick=options.quick, say=say)
    if options.train:
        left = options.seconds - (time.perf_counter() - begin)
        result = training.train_all(
            bench, left, options.seeds, rates, quick=options.quick, say=say,
            keep=lambda result: result.save(options.json, where),
        )  # fmt: skip
        print(f"\n{where}\n{result.table()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--quick", action="store_true", help="few repeats; a tiny model for --train")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument("--train", action="store_true", help="train instead of timing steps")
    parser.add_argument("--search", action="store_true", help="find learning rates for --train")
    parser.add_argument("--seconds", type=float, default=480.0, help="--train, --search: for everything together")
    parser.add_argument("--seeds", type=int, default=3, help="--train: runs per setting")
    parser.add_argument("--rates", default="", help="--train: SETTING=RATE,...; those left out get 1e-3")
    parser.add_argument("--settings", default="", help="--train, --search: only these, e.g. adamw,frugal")
    parser.add_argument("--compile", action="store_true", help="--train, --search: compile the model")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where = (
        f"{device_name(options.device, options.threads)}; torch {torch.__version__}, Python {platform.python_version()}"
    )
    if options.train or options.search:
        train(options, where)
        return
    shape = QUICK if options.quick else SHAPES[options.device]
    rows = measure(options.device, shape, *((3, 1) if options.quick else (21, 3)))
    count = sum(torch.Size(s).numel() for s in shape.hidden() + shape.rest())
    print(f"{where}; {count / 1e6:.2f} M parameters in float32")
    print(table(rows))
    if options.json:
        plain = [{k: v for k, v in vars(row).items() if k != "make"} for row in rows]
        options.json.write_text(json.dumps({"where": where, "parameters": count, "rows": plain}, indent=1))


if __name__ == "__main__":
    main()
