"""A process for one call, as the host sees it: what it was given when it was ordered.

It may be ordered ahead of the call: then it is forked, has its limits and its layers, and waits for its one request.
"""

from __future__ import annotations

import os
import select
import socket
from typing import TYPE_CHECKING, Any

from trace_core.integrations.sandbox.folders import output_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from trace_core.integrations.sandbox.folders import Folders


class Child:
    """Ends of the lines to a process that a worker is asked to fork.

    Attributes:
        id: of all its messages, drawn anew for each.
        directory: where it works.
        channel: to the process alone.
        status: from the worker alone.
        output: the file for what it prints.
        ahead: ordered before there was a request.
        preloaded: modules that the worker had loaded for it.
        ordered: the worker was told.
    """

    def __init__(
        self, folders: Folders, *, preloaded: Iterable[str], readable: Sequence[str] = (), given: int = 0, ahead: bool
    ) -> None:
        self.id = int.from_bytes(os.urandom(8), "big")
        self.ahead = ahead
        self.ordered = False
        self.preloaded = frozenset(preloaded)
        self._readable, self._given = readable, given
        self._folders = folders
        self.directory = folders.take()
        self.channel, self._theirs = socket.socketpair()
        self.channel.setblocking(False)
        self.status, self._status_theirs = os.pipe()
        self.output = output_file(folders.base)

    def order(self) -> dict[str, Any]:
        """The message to the worker."""
        return {
            "do": "call",
            "id": self.id,
            "directory": self.directory,
            "preload": sorted(self.preloaded),
            "readable": list(self._readable),
            "given": self._given,
            "ahead": self.ahead,
        }

    def descriptors(self) -> list[int]:
        """What travels with it."""
        return [self._theirs.fileno(), self._status_theirs, self.output]

    def given_away(self) -> None:
        """The worker has its ends now."""
        self._theirs.close()
        if self._status_theirs >= 0:
            os.close(self._status_theirs)
            self._status_theirs = -1

    def close(self, *, untouched: bool) -> None:
        """Let go of it; its directory can be used again if nobody uses it any more (``untouched``)."""
        self.let_go()
        if untouched:
            self._folders.give_back(self.directory)
        else:
            self._folders.drop(self.directory)

    def dismiss(self, seconds: float) -> None:
        """Let go of one that waits: it sees the end of its channel and leaves. Returns when it has, or after a time."""
        self.channel.close()
        poller = select.poll()
        poller.register(self.status, select.POLLIN)
        while poller.poll(1000 * seconds) and os.read(self.status, 4096):
            continue
        self.close(untouched=True)

    def let_go(self) -> None:
        """Close this side's ends; no more than that."""
        self.given_away()
        self.channel.close()
        for descriptor in (self.status, self.output):
            if descriptor >= 0:
                os.close(descriptor)
        self.status = self.output = -1

    def __del__(self) -> None:
        if hasattr(self, "output"):
            self.let_go()


__all__ = ["Child"]
