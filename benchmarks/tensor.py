# ruff: noqa: T201 - a script: its table is its output
"""What tracing costs beside eager torch: per operator, per training step, per replay, and in memory.

    python benchmarks/tensor.py                      CPU, one thread
    python benchmarks/tensor.py --device cuda        one GPU
    python benchmarks/tensor.py --json out.json --quick

Everything is measured beside its eager peer in one process, in turns (a, b, a, b, ...). Operators: CPU time of the
thread for each recorded operator beyond torch's own, on tensors of 4 x 4 numbers. Training steps: forward, backward and
AdamW; medians over rounds; CPU time of the process on a CPU, wall time between two synchronisations on a GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import trace_core as tc
from trace_core.nodes.tensor import TensorParameter, TensorReplay, module_node, send_gradients

MIB = 1 << 20
Row = dict[str, Any]


class Block(nn.Module):
    """A small transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x: Any) -> Any:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Embedding, blocks, head."""

    def __init__(self, vocabulary: int, width: int, blocks: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, 8) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Any) -> Any:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


# ---- operators


class Bare:
    """Takes part in torch's functions and does nothing: what remains is torch's own price for asking.

    It answers with the function of arguments that lie ready: nothing is unwrapped, made or kept.
    """

    __slots__ = ()
    ready: tuple[Any, ...] = ()

    def answer(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*Bare.ready, **kwargs) if kwargs else func(*Bare.ready)


Bare.__torch_function__ = MethodType(Bare.answer, Bare)  # type: ignore[attr-defined]


class BareParameter(Bare):
    """Stands where a parameter stands: torch's price is higher for two classes than for one."""

    __slots__ = ()


def operators(device: str, rounds: int) -> list[Row]:
    """CPU time in us of each operator: eager, recorded, the difference, and what torch takes of it for its protocol.

    The last is measured where torch asks by ``__torch_function__``, with an object that does nothing else.
    """
    x, b = torch.randn(4, 4, device=device), torch.randn(4, 4, device=device)
    w = torch.randn(4, 4, device=device, requires_grad=True)
    steps: dict[str, Callable[[Any, Any], Any]] = {
        "x @ w": lambda x, w: x @ w,
        "x + t": lambda x, w: x + b,
        "x * 2": lambda x, w: x * 2,
        "torch.relu(x)": lambda x, w: torch.relu(x),
        "x.sum()": lambda x, w: x.sum(),
        "x[0]": lambda x, w: x[0],
        "-x": lambda x, w: -x,
        "x.T": lambda x, w: x.T,
        "t + x": lambda x, w: b + x,
        "mean(-1, keepdim)": lambda x, w: x.mean(-1, keepdim=True),
        "linear(x, w)": lambda x, w: functional.linear(x, w),
        "gelu(x)": lambda x, w: functional.gelu(x),
        "x.softmax(-1)": lambda x, w: x.softmax(-1),
        "cat([x, x])": lambda x, w: torch.cat([x, x]),
        "layer_norm(x)": lambda x, w: functional.layer_norm(x, (4,)),
        "mean of a chain": chain,
    }
    node, parameter, bare, bare_parameter = tc.node(x), TensorParameter(w), Bare(), BareParameter()
    ready = {"linear(x, w)": (x, w), "cat([x, x])": ([x, x],), "layer_norm(x)": (x, (4,)), "t + x": (b, x)}
    rows = []
    for name, step in steps.items():
        count = CHAIN if step is chain else 1
        asked = name.startswith(("torch.", "linear", "gelu", "layer_norm", "cat", "t + x"))
        Bare.ready = ready.get(name, (x,))
        eager, recorded, own = in_turns(
            [
                lambda s=step: s(x, w),
                lambda s=step: s(node, parameter),
                lambda s=step, a=asked: s(*((bare, bare_parameter) if a else (x, w))),
            ],
            rounds,
            300 // count + 1,
            time.thread_time,
            device,
        )
        rows.append(
            {
                "what": name,
                "eager_us": eager / count * 1e6,
                "recorded_us": recorded / count * 1e6,
                "extra_us": (recorded - eager) / count * 1e6,
                "of_it_torch_us": (own - eager) / count * 1e6 if asked else "-",
                "ours_us": (recorded - (own if asked else eager)) / count * 1e6,
            }
        )
    return rows


CHAIN = 60


def chain(x: Any, w: Any) -> Any:
    """Sixty operators of the kinds a layer is made of."""
    for _ in range(CHAIN // 6):
        x = torch.relu(x @ w + x) * 0.5
        x = x - x.mean()
    return x


def in_turns(
    calls: list[Callable[[], Any]], rounds: int, repeats: int, clock: Callable[[], float], device: str
) -> list[float]:
    """Median seconds of one call of each, measured in turns."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(rounds):
        for index, call in enumerate(calls):
            wait(device)
            gc.collect()
            gc.disable()
            begin = clock()
            for _ in range(repeats):
                call()
            times[index].append((clock() - begin) / repeats)
            gc.enable()
    wait(device)
    return [median(values) for values in times]


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# ---- training steps


def steps(device: str, rounds: int, quick: bool) -> list[Row]:
    """Seconds of a training step: eager and recorded (one node for the network; or one for each call inside).

    Recorded ones without and with the look for NaN in loss and gradients, which waits for the device before the
    optimizer's step. The peer of the latter is a loop that looks at its loss there.
    """
    sizes = (256, 64) if quick else ((1024, 256) if device == "cpu" else (4096, 1024))
    width, batch = sizes
    small, length, blocks = (64, 32, 2) if quick else ((256, 128, 4) if device == "cpu" else (768, 512, 12))
    x, y = torch.randn(batch, width, device=device), torch.randint(10, (batch,), device=device)
    tokens = torch.randint(1000, (4 if quick else 8, length + 1), device=device)
    cases: list[tuple[str, Callable[[], nn.Module], Callable[[Any], Any]]] = [
        ("MLP", lambda: mlp(width), lambda net: functional.cross_entropy(net(x), y)),
        (
            "transformer",
            lambda: Transformer(1000, small, blocks),
            lambda net: functional.cross_entropy(net(tokens[:, :-1]).reshape(-1, 1000), tokens[:, 1:].reshape(-1)),
        ),
    ]
    clock = time.process_time if device == "cpu" else time.perf_counter
    rows = []
    for name, make, loss_of in cases:
        ways = {
            "eager": {},
            "recorded, NaN not looked for": {"recorded": True, "finite": False},
            "recorded, transparent, NaN not looked for": {"recorded": True, "transparent": True, "finite": False},
            "eager, looks whether its loss is finite": {"looks": True},
            "recorded": {"recorded": True},
        }
        runs = [training_step(make().to(device), loss_of, options, device) for options in ways.values()]
        found = in_turns([several(run, device) for run in runs], rounds, 1, clock, device)
        weights = sum(p.numel() for p in make().parameters())
        for way, seconds in zip(ways, found, strict=True):
            rows.append(
                {
                    "what": f"{name} ({weights / 1e6:.2g} M)",
                    "way": way,
                    "ms": seconds / TOGETHER * 1e3,
                    "ratio": seconds / found[0],
                }
            )
    return rows


TOGETHER = 4  # steps between two waits for the device: a training loop does not wait after each


def several(step: Callable[[], None], device: str) -> Callable[[], None]:
    def run() -> None:
        for _ in range(TOGETHER):
            step()
        wait(device)

    return run


def training_step(
    net: nn.Module, loss_of: Callable[[Any], Any], options: dict[str, bool], device: str
) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, foreach=True)
    if "recorded" not in options:
        looks = options.get("looks", False)

        def eager() -> None:
            loss = loss_of(net)
            loss.backward()
            if looks and not math.isfinite(loss.item()):
                raise ArithmeticError("the loss is not finite")
            optimizer.step()
            optimizer.zero_grad()

        return eager
    node = module_node(net, transparent=options.get("transparent", False))
    finite = options.get("finite", True)

    def recorded() -> None:
        send_gradients(tc.Trace.of(loss_of(node)), finite=finite)
        optimizer.step()
        optimizer.zero_grad()

    return recorded


# ---- replays


def replays(device: str, rounds: int, quick: bool) -> list[Row]:
    """Seconds of value and gradient of a network's output as a function of its weights."""
    width, batch = (64, 32) if quick else (256, 128)
    net = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10))
    net = net.to(device)
    node = module_node(net)
    x = torch.randn(batch, width, device=device)
    target = node(x) * 2
    trace = tc.Trace.of((target**2).mean())
    point = [p.detach().clone().requires_grad_() for p in net.parameters()]
    names = [name for name, _ in net.named_parameters()]

    def by_hand() -> None:
        z = torch.func.functional_call(net, dict(zip(names, point, strict=True)), (x,)) * 2
        torch.autograd.grad((z * z).sum(), point)

    ways: dict[str, Callable[[], None]] = {"functional_call": by_hand}
    modes = ["eager", "compile"] + (["cuda-graph"] if device == "cuda" else [])
    for mode in modes:
        replay = TensorReplay(trace, until=target, mode=mode)  # type: ignore[arg-type]

        def run(replay: TensorReplay = replay) -> None:
            z = replay.function(*point)
            torch.autograd.grad((z * z).sum(), point)

        ways[f"TensorReplay {mode}"] = run
    ways["trace.replay"] = lambda: torch.autograd.grad(
        (trace.replay(dict(zip(node.parameters(), point, strict=True)), until=target).value ** 2).sum(), point
    )
    clock = time.process_time if device == "cpu" else time.perf_counter
    found = in_turns([waited(way, device) for way in ways.values()], rounds, 10, clock, device)
    return [
        {"what": way, "us": seconds * 1e6, "ratio": seconds / found[0]}
        for way, seconds in zip(ways, found, strict=True)
    ]


def waited(call: Callable[[], None], device: str) -> Callable[[], None]:
    def run() -> None:
        call()
        wait(device)

    return run


# ---- memory


def memory(device: str, quick: bool) -> list[Row]:
    """MiB held by tensors made in a forward pass of many operators, while its loss is alive, and after backward."""
    size, depth = (256, 10) if quick else (1024, 40)
    w = torch.randn(size, size, device=device, requires_grad=True)
    x = torch.randn(size, size, device=device)

    def work(x: Any, w: Any) -> Any:
        for _ in range(depth):
            x = torch.relu(x @ w + 1) / size  # autograd needs some of the results, not all
        return x.mean()

    rows = []
    for way in ("eager", "recorded", "recorded, released"):
        gc.collect()
        before = held(device)
        if way == "eager":
            loss = work(x, w)
            after_forward = held(device) - before
            loss.backward()
            after_backward = held(device) - before
            w.grad = None
            del loss
        else:
            parameter = TensorParameter(w)
            node = work(tc.node(x), parameter)
            after_forward = held(device) - before
            send_gradients(tc.Trace.of(node), release=way.endswith("released"))
            after_backward = held(device) - before
            parameter.zero_feedback()
            del node, parameter
        dropped = held(device) - before
        rows.append({"what": way, "forward_mib": after_forward, "backward_mib": after_backward, "dropped_mib": dropped})
    return rows


def held(device: str) -> float:
    """MiB of live tensors: by the allocator on a GPU; elsewhere of what the collector can see, plus autograd's own."""
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated() / MIB
    gc.collect()
    storages = {
        item.untyped_storage().data_ptr(): item.untyped_storage().nbytes()
        for item in gc.get_objects()
        if type(item) in (torch.Tensor, nn.Parameter)
    }
    return sum(storages.values()) / MIB


# ---- output


def table(title: str, rows: list[Row]) -> None:
    print(f"\n{title}")
    keys = list(rows[0])
    cells = [[key.replace("_", " ") for key in keys]] + [
        [f"{row[key]:.2f}" if isinstance(row[key], float) else str(row[key]) for key in keys] for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(keys))]
    for line in cells:
        text = [
            cell.ljust(width) if column < 1 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  " + "  ".join(text), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="small models, few rounds")
    parser.add_argument("--rounds", type=int, help="measurements of each contender")
    arguments = parser.parse_args()
    device, quick = arguments.device, arguments.quick
    rounds = arguments.rounds or (3 if quick else 9)
    torch.manual_seed(0)
    if device == "cpu":
        torch.set_num_threads(1)
    where = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    print(
        f"trace_core {tc.__version__}, torch {torch.__version__}, Python {platform.python_version()}, {device}: {where}"
    )
    seen = "" if device == "cuda" else " (those that Python sees)"
    parts: dict[str, Callable[[], list[Row]]] = {
        "operators: CPU time, us": lambda: operators(device, max(rounds, 5)),
        "training steps": lambda: steps(device, rounds, quick),
        "replays: value and gradient": lambda: replays(device, rounds, quick),
        f"memory of tensors{seen}": lambda: memory(device, quick),
    }
    sections = {}
    for title, measure in parts.items():
        sections[title] = measure()
        table(title, sections[title])
    if arguments.json is not None:
        data = {"device": where, "torch": torch.__version__, "python": platform.python_version(), **sections}
        arguments.json.write_text(json.dumps(data, indent=2))


if __name__ == "__main__":
    main()
