"""Where a candidate works and prints, as files."""

from __future__ import annotations

import os
import tempfile
from collections import deque

from trace_core.integrations.sandbox import launch


class Folders:
    """Empty working directories. Making and removing one costs more than all the rest of a call on some disks, so one
    that was left as it was found is used again."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._free: deque[tuple[str, tuple[int, ...]]] = deque()
        self._taken: dict[str, tuple[int, ...]] = {}

    def take(self) -> str:
        """An empty directory that nobody else uses."""
        try:
            path, seal = self._free.pop()
        except IndexError:
            path = tempfile.mkdtemp(prefix="call-", dir=self._base)
            seal = _seal(path)
        self._taken[path] = seal
        return path

    def give_back(self, path: str) -> None:
        """Keep it if it is still the same, untouched directory; else remove it."""
        seal = self._taken.pop(path)
        if _seal(path) == seal:
            self._free.append((path, seal))
        else:
            launch.remove_tree(path)


def _seal(path: str) -> tuple[int, ...]:
    """What would show that a directory was replaced or changed: anything made in it moves its times."""
    try:
        seen = os.lstat(path)
        return seen.st_dev, seen.st_ino, seen.st_mode, seen.st_uid, seen.st_ctime_ns, len(os.listdir(path))
    except OSError:
        return ()


def output_file(base: str) -> int:
    """An open file without a name for what is printed."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("output")
    descriptor, path = tempfile.mkstemp(dir=base)
    os.unlink(path)
    return descriptor


__all__ = ["Folders", "output_file"]
