"""Work for engines, importable by their processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import trace_core as tc


class Shift(tc.Module):
    """x -> x + offset; the right offset is 3."""

    def __init__(self) -> None:
        self.offset = tc.node(0, trainable=True)

    def forward(self, x: Any) -> tc.Node:
        return self.offset + x


def closeness(output: Any, x: int) -> tuple[float, str]:
    error = output - (x + 3)
    return 1 - abs(error) / 10, f"off by {error}"


class Stuck(Shift):
    """Does not come back from 5 where the offset is above 1."""

    @tc.bundle
    def add(self, x: int, offset: int) -> int:
        if x == 5 and offset > 1:
            threading.Event().wait()
        return x + offset

    def forward(self, x: Any) -> tc.Node:
        return self.add(x, self.offset)


def double(x: int) -> int:
    return 2 * x


def fail(x: int) -> int:
    return 1 // x


def process_id() -> int:
    return os.getpid()


def die(signal_number: int) -> None:
    os.kill(os.getpid(), signal_number)


def hang_with_a_child(note: str) -> None:
    """Starts a process, writes down both ids, and never returns."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
    Path(note).write_text(f"{os.getpid()} {child.pid}")
    threading.Event().wait()
