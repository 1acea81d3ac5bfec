"""The functions that benchmarks/tracing.py turns into operators, and the document that one of them reads.

Plain Python without any tracer, so that both sides wrap exactly the same code. Their names and first docstring lines
appear in the prompts that are compared.
"""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Callable
from pathlib import Path


def plus(x: int, y: int) -> int:
    """Add two numbers."""
    return x + y


def small_body(x: int) -> int:
    """Add one."""
    return x + 1


def paper_cost(sheets: int, price_per_sheet: float) -> float:
    """Cost of the paper: number of sheets times the price of one sheet."""
    return round(sheets * price_per_sheet, 2)


def labour_cost(hours: float, hourly_rate: float) -> float:
    """Cost of the work: hours times the hourly rate."""
    return round(hours * hourly_rate, 2)


def add_margin(cost: float, margin: float) -> float:
    """Selling price: the cost raised by the margin, a fraction of the cost."""
    return round(cost * (1 + margin), 2)


def round_up(price: float, step: float) -> float:
    """Round a price up to the next multiple of step."""
    return -(-price // step) * step


def amount_after(document: str, marker: str) -> str:
    """Return what follows the marker in the first line of the document that starts with it."""
    return next((line[len(marker) :].strip() for line in document.splitlines() if line.startswith(marker)), "")


def long_body(lines: int, folder: Path) -> Callable[[int], int]:
    """A function of `lines` lines of which three run: what its length costs is then the tracer's, not its own."""
    rows = ["def long_body(x):", '    """Add one; the branch is never taken."""', "    if x < 0:"]
    rows += [f"        x = x * {k} - {k + 1}" for k in range(lines - 4)]
    rows += ["    return x + 1", ""]
    path = folder / f"long_body_{lines}.py"  # a real file: a library may ask `inspect` for the source
    path.write_text("\n".join(rows), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    found: Callable[[int], int] = module.long_body
    return found


def document(size: int) -> str:
    """Plain English of `size` characters: an invoice with many remarks, its payable amount in the last line."""
    draw = random.Random(7)
    who = ("The printer", "Our driver", "The customer", "The binder", "The warehouse", "The designer")
    did = ("checked", "delivered", "returned", "ordered", "corrected", "approved", "counted", "packed")
    what = ("the proofs", "a box of covers", "the second edition", "forty posters", "the menus", "the annual report")
    when = ("on Monday", "before noon", "a week later", "in the evening", "without delay", "after the holiday")
    head = ["Invoice 2024-117", "Subtotal: 1240.00", "Remarks:"]
    tail = "Amount payable: 1315.00"
    lines, length = head, sum(len(line) + 1 for line in head) + len(tail)
    while True:
        line = f"{draw.choice(who)} {draw.choice(did)} {draw.choice(what)} {draw.choice(when)}."
        if length + len(line) + 1 > size:
            break
        lines.append(line)
        length += len(line) + 1
    return "\n".join([*lines, tail])
