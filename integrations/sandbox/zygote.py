"""The host's side of the forking worker: start it, hand it calls, watch the clock, kill.

Any number of threads may talk to one worker. Each call has a channel and a status pipe of its own, so a thread waits
only for its own descriptors; the control socket is shared and takes one short message at a time.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import threading
import weakref
from typing import TYPE_CHECKING, Any

import msgpack

from trace_core.errors import RunnerError
from trace_core.integrations.sandbox import frames, launch, worker
from trace_core.integrations.sandbox.child import Child
from trace_core.integrations.sandbox.conversation import GRACE_SECONDS, START_SECONDS, Conversation
from trace_core.integrations.sandbox.folders import Folders
from trace_core.integrations.sandbox.removal import remove_tree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trace_core.integrations.sandbox.launch import Settings, Transcript
    from trace_core.integrations.sandbox.request import Request

WAITING = 3  # processes that are ready for calls to come, once there have been some: one takes as long as two calls
_QUIETLY = getattr(socket, "MSG_NOSIGNAL", 0)  # the host may have made SIGPIPE deadly


class Zygote:
    """A running worker process. Raises RunnerError if it cannot be started."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self.preloaded: set[str] = set()
        self.base = tempfile.mkdtemp(prefix="trace_core-")
        self.folders = Folders(self.base)
        self._waiting: list[Child] = []
        self._served = 0
        self._control, theirs = socket.socketpair()
        try:
            self._process = self._start(theirs)
        except BaseException as error:
            self._control.close()
            remove_tree(self.base)
            if isinstance(error, OSError):
                raise RunnerError(f"the worker process could not be started: {error}") from error
            raise
        finally:
            theirs.close()
        self._stop = weakref.finalize(
            self, _shut_down, self._process, self._control, self.base, self._waiting, os.getpid()
        )
        try:
            self._greet()
        except BaseException as error:
            detail = self._log()
            self.destroy()
            if isinstance(error, OSError):
                raise RunnerError(f"the worker process did not come up: {error}{detail}") from error
            raise

    def _start(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        with open(os.path.join(self.base, "worker.log"), "wb") as log:
            return subprocess.Popen(
                launch.command("serve", str(theirs.fileno()), launch.packages()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=self.base,
                env=launch.clean_environment(self.base),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )

    def _greet(self) -> None:
        """Send the settings and wait until the worker is ready."""
        self._control.settimeout(START_SECONDS)
        config = msgpack.packb(self._settings.config(self.base), unicode_errors="surrogatepass")
        self._control.sendall(frames.HEADER.pack(0, len(config)) + config, _QUIETLY)
        header = self._receive(frames.HEADER.size)
        seen = self._receive(frames.HEADER.unpack(header)[1])
        self.processes_are_single = seen == worker.SINGLE and hasattr(os, "pidfd_open")
        self._control.settimeout(GRACE_SECONDS)

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._control.recv(size - len(data))
            if not part:
                raise OSError("it ended at once")
            data += part
        return data

    def _log(self) -> str:
        try:
            with open(os.path.join(self.base, "worker.log"), encoding="utf-8", errors="replace") as log:
                text = log.read()[-2000:].strip()
        except OSError:
            return ""
        return f"\nit said:\n{text}" if text else ""

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End the worker and all that it runs; return when it is gone."""
        self._stop()

    def destroy(self) -> None:
        """End a worker that does not answer."""
        self._process.kill()
        self._stop()

    def abandon(self) -> None:
        """Let go of a worker that belongs to the process this one was forked from."""
        self._stop.detach()
        self._control.close()
        for child in self._waiting:
            child.let_go()
        self._waiting.clear()

    def submit(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> bool:
        """Send one control message; False if the worker does not take any more."""
        body = msgpack.packb(message)
        data = frames.HEADER.pack(message["id"], len(body)) + body
        with self._lock:
            try:
                sent = socket.send_fds(self._control, [data], list(descriptors), _QUIETLY)
                if sent < len(data):
                    self._control.sendall(data[sent:], _QUIETLY)
            except OSError:
                return False
        return True

    def order(self, child: Child) -> bool:
        """Have a process forked; False if the worker does not take orders any more."""
        child.ordered = self.submit(child.order(), child.descriptors())
        child.given_away()
        return child.ordered

    def stock(self) -> None:
        """Have processes ready for the calls to come."""
        while len(self._waiting) < min(WAITING, self._served) and self._stop.alive:
            try:
                child = Child(self.folders, preloaded=self.preloaded, ahead=True)
            except OSError:  # no descriptors left, or the worker was just ended: the next call will say so
                return
            if not self.order(child):
                child.close(untouched=True)
                return
            self._waiting.append(child)

    def _take(self, request: Request) -> Child | None:
        """A process that waits and is fit for the request."""
        wanted = set(request.preload)
        if request.readable or request.store.size or not wanted <= self.preloaded:
            return None
        while self._waiting:
            try:
                child = self._waiting.pop(0)
            except IndexError:  # another thread has taken it
                return None
            if wanted <= child.preloaded:
                return child
            child.dismiss(GRACE_SECONDS)  # one from before something was loaded
        return None

    def converse(self, body: bytes, examples: int, request: Request) -> Transcript:
        """Run one request in a fork of the worker and wait for its end. Does not raise for a worker that dies."""
        while (child := self._take(request)) is not None:
            seen = self._talk(child, body, examples, request)
            if seen.started or seen.killed or seen.lost:
                return seen
            # somebody has ended it while it waited
        preloaded = {*request.preload, *self.preloaded}
        size = request.store.size
        child = Child(self.folders, preloaded=preloaded, readable=request.readable, given=size, ahead=False)
        return self._talk(child, body, examples, request)

    def _talk(self, child: Child, body: bytes, examples: int, request: Request) -> Transcript:
        conversation = Conversation(self, child, self._settings, body, examples, request)
        try:
            conversation.run()
            if conversation.transcript.started:
                self.preloaded |= child.preloaded
            return conversation.transcript
        finally:
            conversation.close()
            self._served += 1
            self.stock()


def _shut_down(
    process: subprocess.Popen[bytes], control: socket.socket, base: str, waiting: list[Child], owner: int
) -> None:
    if os.getpid() != owner:
        return
    for child in waiting:
        child.let_go()
    waiting.clear()
    control.close()  # the worker kills what it runs, cleans up and leaves
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    remove_tree(base)


__all__ = ["WAITING", "Zygote"]
