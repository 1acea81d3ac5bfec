# ruff: noqa: T201 - a script: its table is its output
"""What tracing costs: trace_core beside trace-opt (microsoft/Trace), measured in one run and printed as one table.

    make bench                                             makes both environments and runs this script
    python benchmarks/tracing.py                           the full run, five to ten minutes (mostly the peer)
    python benchmarks/tracing.py --quick --json out.json   smaller sizes and fewer repeats; the labels say which

The two libraries live in two environments. This driver starts one child process per side, asks them for the same
workload in turns (ours, peer, ours, peer, ...) and takes medians. Times are CPU seconds; memory rows and imports get a
fresh process each time. Without the peer's environment its column says "not installed" and the rest still runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from _tracing_child import HERE, NOT_INSTALLED, Child, SideError
from _tracing_common import Answer

PEER_PYTHON = HERE.parent / ".venv-bench-trace" / "bin" / "python"
PEER_BACKWARD_LIMIT = 20.0  # CPU seconds; beyond it the peer's chain is measured shorter and said to be extrapolated


# --- what is measured ---------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One line of the table: what both sides said, in `unit`; `value` per side is the median of its samples."""

    key: str
    label: str
    unit: str  # "us", "s", "MB", "tokens"
    n: int = 0
    samples: dict[str, list[float]] = field(default_factory=lambda: {"ours": [], "peer": []})
    instead: dict[str, str] = field(default_factory=dict)  # shown where there is no figure
    marks: dict[str, str] = field(default_factory=dict)  # shown before a figure, e.g. "~" for an extrapolated one

    def value(self, side: str) -> float | None:
        return median(self.samples[side]) if self.samples[side] else None


@dataclass(frozen=True)
class Sizes:
    operations: int
    chain: int
    long_chain: int
    dropped: int
    parameters: int
    repeats: int
    heavy_repeats: int


FULL = Sizes(5000, 10_000, 100_000, 100_000, 800, repeats=7, heavy_repeats=3)
QUICK = Sizes(1000, 2_000, 20_000, 10_000, 200, repeats=3, heavy_repeats=1)


class Bench:
    def __init__(self, ours: Child, peer: Child, sizes: Sizes, say: Callable[[str], None]) -> None:
        self.sides = {"ours": ours, "peer": peer}
        self.sizes = sizes
        self.say = say
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.prompts: dict[str, dict[str, Answer]] = {}

    def run(self) -> None:
        for child in self.sides.values():
            if child.python.exists():
                try:
                    answer = child.ask("about")
                    child.about = f"{answer['value']}, Python {answer['python']}"
                except SideError as failure:
                    self.notes.append(str(failure))
        self.operations()
        self.backward()
        self.step()
        self.memory()
        self.prompt_rows()
        self.imports()

    def interleave(self, rows: list[Row], repeats: int, sample: Callable[[Child, str], Iterable[float]]) -> None:
        """Take `repeats` samples per side, the sides in turns. `sample` yields one figure per row.

        A side that fails is not asked again for these rows: its cell says so and the reason goes under the table.
        """
        self.rows += rows
        self.say(rows[0].label)
        for _ in range(repeats):
            for side, child in self.sides.items():
                if any(side in row.instead for row in rows):
                    continue
                if not child.installed:
                    reason = NOT_INSTALLED
                else:
                    try:
                        for row, figure in zip(rows, sample(child, side), strict=True):
                            row.samples[side].append(figure)
                        continue
                    except SideError as failure:
                        self.notes.append(str(failure))
                        reason = "failed"
                for row in rows:
                    row.instead[side] = reason

    def operations(self) -> None:
        lines = "100-line body"
        for key, label, factor in (
            ("add", "node + node", 1),
            ("add_parameter", "parameter + node", 1),
            ("plain_call", "plain Python call of a trivial function", 20),
            ("bundle_call", "bundle call of it", 1),
            ("trainable_small", "trainable bundle call, small body", 1),
            ("trainable_long", f"trainable bundle call, {lines}", 1),
            ("trainable_small_new", "  the same with proposed code, small body", 1),
            ("trainable_long_new", f"  the same with proposed code, {lines}", 1),
        ):
            n = self.sizes.operations * factor

            def sample(child: Child, side: str, key: str = key, n: int = n) -> list[float]:
                return [child.ask(key, n)["value"]]

            self.interleave([Row(key, label, "us", n)], self.sizes.repeats, sample)

    def backward(self) -> None:
        n, longer = self.sizes.chain, self.sizes.long_chain
        row = Row("backward", f"backward, chain of {n:,}", "s", n)
        peer_n = n
        if self.sides["peer"].installed:
            try:
                # The peer's pass is quadratic: a quarter of the length foretells the whole.
                if self.sides["peer"].ask("backward", n // 4)["value"] * 16 > PEER_BACKWARD_LIMIT:
                    peer_n = n // 4
                    row.marks["peer"] = "~"
                    self.notes.append(f"~ peer measured on a chain of {peer_n:,} and scaled by 16 (it is quadratic)")
            except SideError as failure:
                self.notes.append(str(failure))

        def sample(child: Child, side: str) -> list[float]:
            size = peer_n if side == "peer" else n
            return [child.ask("backward", size)["value"] * (n / size) ** 2]

        self.interleave([row], self.sizes.heavy_repeats, sample)

        long_row = Row("backward_long", f"backward, chain of {longer:,}", "s", longer)
        long_row.instead["peer"] = "not run" if self.sides["peer"].installed else NOT_INSTALLED
        self.interleave(
            [long_row], self.sizes.heavy_repeats, lambda child, side: [child.ask("backward", longer)["value"]]
        )
        short, long = row.value("ours"), long_row.value("ours")
        ratio_row = Row("backward_per_op", "  per operator, longer against shorter (1 = linear)", "x", longer)
        ratio_row.instead["peer"] = long_row.instead["peer"]
        if short and long:
            ratio_row.samples["ours"].append((long / longer) / (short / n))
        else:
            ratio_row.instead["ours"] = long_row.instead.get("ours", "failed")
        self.rows.append(ratio_row)

    def step(self) -> None:
        n = self.sizes.parameters
        step = Row("step", f"optimizer step without the LLM call, {n} parameters", "s", n)
        backward = Row("step_backward", "  the backward pass before it", "s", n)

        def sample(child: Child, side: str) -> list[float]:
            answer = child.ask("step", n)
            return [answer["value"], answer["backward"]]

        self.interleave([step, backward], self.sizes.heavy_repeats, sample)
        first = Row("first_step", "  the first step of a process", "s", n)
        self.interleave([first], self.sizes.heavy_repeats, lambda c, s: [c.ask("step", n, fresh=True)["value"]])

    def memory(self) -> None:
        n = self.sizes.dropped
        row = Row("rss_growth", f"RSS growth over {n:,} operators, nothing kept", "MB", n)
        self.interleave([row], self.sizes.heavy_repeats, lambda c, s: [c.ask("rss_growth", n, fresh=True)["value"]])
        m = self.sizes.chain
        recorded = Row("chain_recorded", f"memory of a kept chain of {m:,}, recorded", "MB", m)
        passed = Row("chain_memory", "  and after a backward pass", "MB", m)

        def sample(child: Child, side: str) -> list[float]:
            answer = child.ask("chain_memory", m, fresh=True)
            return [answer["recorded"], answer["value"]]

        self.interleave([recorded, passed], 1, sample)  # counted by the allocator: repeats give the same figure

    def prompt_rows(self) -> None:
        for key, label in (
            ("prompt_5_ops", "5 operators"),
            ("prompt_20_ops", "20 operators"),
            ("prompt_50_kb", "50 kB string"),
        ):

            def sample(child: Child, side: str, key: str = key) -> list[float]:
                answer = child.ask(key)
                texts = [message["content"] for message in answer["messages"]] + [answer["schema"]]
                counts = self.count_tokens(texts)
                self.prompts.setdefault(key, {})[side] = {**answer, "tokens": counts}
                return [float(sum(counts))]

            self.interleave([Row(key, f"OptoPrime prompt, {label}", "tokens")], 1, sample)
        if any(sides.get("ours", {}).get("schema") for sides in self.prompts.values()):
            self.notes.append("prompt tokens include the JSON schema that goes with our request; the peer sends none")

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Both sides' prompts by the same tokenizer: the peer's environment has it, ours only with litellm."""
        failures: list[str] = []
        for side in ("peer", "ours"):
            child = self.sides[side]
            if child.installed:
                try:
                    counts: list[int] = child.ask("count_tokens", texts=texts)["value"]
                    return counts
                except SideError as failure:
                    failures.append(str(failure))
        raise SideError("no tokenizer: " + "; ".join(failures or ["no environment has litellm and tiktoken"]))

    def imports(self) -> None:
        for key, label, choose in (
            ("interpreter", "bare interpreter start", lambda child: "pass"),
            ("import", "import of the package and its optimizers", lambda child: child.imports[0]),
            ("import_use", "  and of the OptoPrime class", lambda child: child.imports[1]),
        ):
            for child in self.sides.values():  # once unmeasured: compiled bytecode, warm file cache
                if child.installed:
                    with contextlib.suppress(SideError):  # the measured run below reports it
                        child.start_cost(choose(child))

            def sample(child: Child, side: str, choose: Callable[[Child], str] = choose) -> list[float]:
                return [child.start_cost(choose(child))]

            self.interleave([Row(key, label, "s")], min(5, self.sizes.repeats), sample)


# --- showing it ---------------------------------------------------------------------------------------------------


def shown(value: float, unit: str) -> str:
    """Three significant figures; whole tokens."""
    if unit == "tokens":
        return f"{value:,.0f}"
    scaled = value * 1e6 if unit == "us" else value
    if unit == "s" and abs(scaled) < 0.1:
        return f"{scaled * 1e3:.3g} ms"
    text = f"{scaled:,.0f}" if abs(scaled) >= 100 else f"{scaled:.3g}"
    return f"{text} {unit}"


def cell(row: Row, side: str) -> str:
    value = row.value(side)
    if value is None:
        return row.instead.get(side, "-")
    return row.marks.get(side, "") + shown(value, row.unit)


def ratio(row: Row) -> str:
    ours, peer = row.value("ours"), row.value("peer")
    if ours is None or peer is None or ours <= 0 or peer <= 0 or row.key in ("plain_call", "interpreter"):
        return ""
    return f"{peer / ours:,.0f}x" if peer >= 10 * ours else f"{peer / ours:.2g}x"


def table(rows: list[Row]) -> str:
    lines = [("CPU time, median", "trace_core", "trace-opt", "peer/ours")]
    lines += [(row.label, cell(row, "ours"), cell(row, "peer"), ratio(row)) for row in rows]
    widths = [max(len(line[k]) for line in lines) for k in range(4)]
    text = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}".rstrip() for a, b, c, d in lines]
    text.insert(1, "-" * (sum(widths) + 6))
    return "\n".join(text)


def figures(bench: Bench) -> dict[str, Any]:
    """The whole run as plain data: every sample, not only the medians. Times in seconds, memory in MB."""
    units = {"us": "s per operation"}
    return {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "sides": {side: child.about for side, child in bench.sides.items()},
        "rows": [
            {
                "key": row.key,
                "label": row.label.strip(),
                "unit": units.get(row.unit, row.unit),
                "n": row.n,
                **{side: {"median": row.value(side), "samples": row.samples[side]} for side in bench.sides},
                "instead": row.instead,
                "extrapolated": sorted(row.marks),
            }
            for row in bench.rows
        ],
        "prompt_tokens": {
            key: {side: answer["tokens"] for side, answer in sides.items()} for key, sides in bench.prompts.items()
        },
        "notes": bench.notes,
    }


def dump_prompts(bench: Bench, folder: Path) -> None:
    """One text file per case and side, so that a person can judge whether the task can be solved from it."""
    folder.mkdir(parents=True, exist_ok=True)
    for key, sides in bench.prompts.items():
        for side, answer in sides.items():
            counted = zip([m["role"] for m in answer["messages"]] + ["schema"], answer["tokens"], strict=True)
            parts = [", ".join(f"{role} {tokens} tokens" for role, tokens in counted)]
            parts += [f"===== {message['role']} =====\n{message['content']}" for message in answer["messages"]]
            if answer["schema"]:
                parts.append(f"===== schema sent beside the messages =====\n{answer['schema']}")
            (folder / f"{key}.{side}.txt").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Tracing costs of trace_core beside trace-opt.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample here")
    parser.add_argument("--prompts", type=Path, metavar="DIR", help="write both sides' prompts here")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer repeats")
    parser.add_argument("--ours-python", type=Path, default=Path(sys.executable), help="default: this interpreter")
    parser.add_argument("--peer-python", type=Path, default=PEER_PYTHON, help="default: %(default)s")
    parser.add_argument("--timeout", type=float, default=600.0, help="wall seconds for one workload (%(default)s)")
    options = parser.parse_args(arguments)

    ours_imports = ("import trace_core, trace_core.optimizers", "from trace_core.optimizers import OptoPrime")
    peer_imports = ("import opto.trace, opto.optimizers", "from opto.optimizers import OptoPrime")
    ours = Child("trace_core", options.ours_python, "_tracing_ours.py", ours_imports, options.timeout)
    peer = Child("trace-opt", options.peer_python, "_tracing_peer.py", peer_imports, options.timeout)

    def say(text: str) -> None:
        print(f"  {text.strip()}", file=sys.stderr, flush=True)

    bench = Bench(ours, peer, QUICK if options.quick else FULL, say)
    try:
        bench.run()
    finally:
        ours.close()
        peer.close()

    print(table(bench.rows))
    print(f"\nours: {ours.about}; peer: {peer.about}; {platform.machine()}, {os.cpu_count()} cores")
    for note in dict.fromkeys(bench.notes):
        print(f"note: {note}")
    if options.json is not None:
        options.json.write_text(json.dumps(figures(bench), indent=2) + "\n", encoding="utf-8")
    if options.prompts is not None:
        dump_prompts(bench, options.prompts)
    return 0 if ours.installed else 1


if __name__ == "__main__":
    sys.exit(main())
