# ruff: noqa: T201 - a script: its table is its output
"""Running proposed code: the jail and the process tier beside a plain call, a subprocess and a process pool.

    python benchmarks/sandbox.py
    python benchmarks/sandbox.py --quick --json out.json
    python benchmarks/sandbox.py --torch                   also candidates that use torch

Each contender does the same work: the dot product of a short numpy vector, on one example or on many. They take turns
in one run. Shown are the wall-clock time, and the CPU time of all processes, which a loaded machine changes less. Last
comes a bare ``fork`` of this program, which has numpy loaded: about what any process per call costs at least. (It is
not among the others: after a fork a program is slower for a while, until it has its pages to itself again.)

Contenders: ``plain`` calls the function here. ``subprocess`` starts an interpreter per call, which imports numpy.
``pool`` is concurrent.futures.ProcessPoolExecutor with one worker that lives on: nothing protects one call from the
one before. ``process`` and ``jail`` are tiers of this library: one fork of a worker that has numpy loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from trace_core.integrations.sandbox import JailRunner, ProcessRunner

SOURCE = "import numpy as np\n\ndef f(x):\n    return float(np.dot(x, x))\n"
TORCH = "import torch\n\ndef f(x):\n    x = torch.from_numpy(x)\n    return float(torch.dot(x, x))\n"


@dataclass(frozen=True)
class Candidate:
    """As an optimizer's proposal arrives."""

    source: str = SOURCE
    name: str = "f"
    filename: str = "<code f v1>"
    is_async: bool = False


def f(x: Any) -> float:
    """The candidate's work."""
    return float(np.dot(x, x))


def in_subprocess(x: Any) -> float:
    """A new interpreter for one call."""
    program = f"import json, sys\n{SOURCE}\nprint(f(np.array(json.load(sys.stdin))))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], input=json.dumps(list(x)), capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def bare_fork(_: Any) -> float:
    """What a process per call costs at least."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return 0.0


def milliseconds(action: Callable[[], Any], times: int) -> list[float]:
    """How long each of several runs took."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        taken.append(1e3 * (time.perf_counter() - start))
    return taken


def cpu_ms() -> float:
    """CPU time of this program, and of what it has started: ended children count with their parents (Linux)."""
    ticks = 0
    for task in os.listdir("/proc/self/task") if os.path.isdir("/proc/self/task") else ():
        with open(f"/proc/self/task/{task}/children") as children:
            for child in children.read().split():
                with open(f"/proc/{child}/stat") as stat:
                    ticks += sum(map(int, stat.read().rpartition(")")[2].split()[11:15]))
    used = os.times()
    return 1e3 * (sum(used[:4]) + ticks / os.sysconf("SC_CLK_TCK"))


def calls(contenders: dict[str, Callable[[Any], Any]], x: Any, rounds: int, each: int) -> dict[str, list[float]]:
    """Times of single calls, in turns."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    used = dict.fromkeys(contenders, 0.0)
    for action in contenders.values():
        action(x)  # not the first one
    for _ in range(rounds):
        for name, action in contenders.items():
            before = cpu_ms()
            times[name] += milliseconds(lambda action=action: action(x), 1 if name == "subprocess" else each)
            used[name] += cpu_ms() - before
    for name, taken in times.items():
        CPU[id(taken)] = used[name] / len(taken)
    return times


CPU: dict[int, float] = {}  # of a list of times: CPU milliseconds per run


def starts(times: int) -> dict[str, list[float]]:
    """From nothing to a worker that is ready, and from nothing to the first answer with the self-test."""
    from trace_core.integrations.sandbox.zygote import Zygote

    ready, tested = [], []
    for _ in range(times):
        runner = JailRunner(partial=True)
        start = time.perf_counter()
        worker = Zygote(runner._settings)
        ready.append(1e3 * (time.perf_counter() - start))
        worker.stop()
        start = time.perf_counter()
        runner.check()
        tested.append(1e3 * (time.perf_counter() - start))
        runner.close()
    return {"worker ready": ready, "worker ready and self-test done": tested}


def show(title: str, times: dict[str, list[float]], share: int = 1) -> None:
    """One table; each run was of ``share`` examples."""
    print(f"\n{title:42}{'median':>10}{'p10':>10}{'p90':>10}{'CPU':>10}   ms")
    for name, taken in times.items():
        ordered = sorted(time / share for time in taken)
        tenth = len(ordered) // 10
        row = f"{statistics.median(ordered):10.3f}{ordered[tenth]:10.3f}{ordered[-1 - tenth]:10.3f}"
        row += f"{CPU[id(taken)] / share:10.3f}" if id(taken) in CPU else ""
        print(f"  {name:40}{row}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    parser.add_argument("--torch", action="store_true", help="candidates that use torch, too")
    parser.add_argument("--json", metavar="FILE", help="write all times there")
    options = parser.parse_args()
    rounds, each, many = (3, 5, 200) if options.quick else (12, 15, 2000)
    x = np.arange(8.0)
    report: dict[str, dict[str, list[float]]] = {}
    with ProcessRunner() as process, JailRunner(partial=True) as jail, ProcessPoolExecutor(1) as pool:
        if jail.missing():
            print(f"no jail here, but what there is of it; missing: {', '.join(jail.missing())}")

        def on(runner: ProcessRunner, source: str = SOURCE) -> Callable[[Any], Any]:
            return lambda x: runner.call(Candidate(source), (x,), {}, context={})

        contenders: dict[str, Callable[[Any], Any]] = {
            "plain": f,
            "pool": lambda x: pool.submit(f, x).result(),
            "process": on(process),
            "jail": on(jail),
            "subprocess": in_subprocess,
        }
        report["one call"] = calls(contenders, x, rounds, each)
        show("one call", report["one call"])

        examples = [((x,), {}) for _ in range(many)]
        batches: dict[str, Callable[[Any], Any]] = {
            "plain": lambda _: [f(*args) for args, _ in examples],
            "pool": lambda _: list(pool.map(f, [args[0] for args, _ in examples], chunksize=many // 4)),
            "process, call_many": lambda _: process.call_many(Candidate(), examples, context={}),
            "jail, call_many": lambda _: jail.call_many(Candidate(), examples, context={}),
        }
        report[f"{many} examples"] = calls(batches, None, 2 if options.quick else 5, 1)
        show(f"one example of {many}", report[f"{many} examples"], many)

        big = np.zeros(4_000_000)
        report["32 MB"] = calls({"process": on(process), "jail": on(jail)}, big, rounds, 1)
        show("one call with an array of 32 MB", report["32 MB"])
        if options.torch:
            report["torch"] = calls({"process": on(process, TORCH), "jail": on(jail, TORCH)}, x, rounds, 2)
            show("one call that uses torch", report["torch"])
    report["fork"] = calls({"bare fork of this program": bare_fork}, x, rounds, each)
    show("for comparison", report["fork"])
    report["start"] = starts(3 if options.quick else 10)
    show("start", report["start"])
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file)


if __name__ == "__main__":
    main()
