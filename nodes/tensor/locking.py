"""A lock for a torch module: many may run it as it is, one at a time may run it with other weights in its place."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from threading import Condition, get_ident
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class SharedLock:
    """Shared by runs with the module's own weights, exclusive for runs with others. May be entered again."""

    def __init__(self) -> None:
        self._free = Condition()
        self._sharing: Counter[int] = Counter()  # thread -> how often it is in
        self._owner: int | None = None
        self._depth = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        """While nobody has the module to himself."""
        me = get_ident()
        with self._free:
            while self._owner not in (None, me):
                self._free.wait()
            self._sharing[me] += 1
        try:
            yield
        finally:
            with self._free:
                self._sharing[me] -= 1
                if not self._sharing[me]:
                    del self._sharing[me]
                    self._free.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While no other thread runs the module."""
        me = get_ident()
        with self._free:
            while self._owner not in (None, me) or any(thread != me for thread in self._sharing):
                self._free.wait()
            self._owner = me
            self._depth += 1
        try:
            yield
        finally:
            with self._free:
                self._depth -= 1
                if not self._depth:
                    self._owner = None
                    self._free.notify_all()
