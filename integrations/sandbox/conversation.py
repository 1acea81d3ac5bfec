"""One request and a process for it: what is sent, what has come, how long it may still take, and the end."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from typing import TYPE_CHECKING

from trace_core.errors import RunnerError
from trace_core.integrations.sandbox import codec, disk, frames
from trace_core.integrations.sandbox.launch import Transcript
from trace_core.integrations.sandbox.tools import ToolServer
from trace_core.integrations.sandbox.worker import ENDED, FAILED, FORKED, STATUS

if TYPE_CHECKING:
    from trace_core.integrations.sandbox.child import Child
    from trace_core.integrations.sandbox.launch import Settings
    from trace_core.integrations.sandbox.request import Request
    from trace_core.integrations.sandbox.zygote import Zygote

START_SECONDS = 60.0  # for imports that the worker does for its children
DISK_SECONDS = 0.1  # between looks at what a candidate has written
GRACE_SECONDS = 5.0  # from the last answer, or from a kill, to the end of the process
_QUIETLY = getattr(socket, "MSG_NOSIGNAL", 0)  # the host may have made SIGPIPE deadly


class Conversation:
    """One request: what is sent, what has come, how long it may still take."""

    def __init__(
        self, worker: Zygote, child: Child, settings: Settings, body: bytes, examples: int, request: Request
    ) -> None:
        self._worker, self._child, self._settings, self._examples = worker, child, settings, examples
        self._blob = request.store.descriptor
        self._rest = memoryview(frames.HEADER.pack(child.id, len(body)) + body)
        self._reader = frames.Reader(child.id, settings.result_bytes + frames.SLACK)
        self._tools = ToolServer(request.tools)
        self._tally, self._timeout = request.tally, request.timeout
        self._pid = 0
        self._deadline = 0.0
        self._next_look = time.monotonic() + DISK_SECONDS
        self._end = -1  # becomes readable when the process ends; -1 if only the worker can tell
        self._over = False
        self._reading = True
        self._channel, self._status = child.channel, child.status
        self._poller = select.poll()
        self._poller.register(self._status, select.POLLIN)
        self._wanted = 0  # events of the channel that the poller was told of
        self.transcript = Transcript()

    def run(self) -> None:
        """Send the request and wait for the end of the process."""
        if not self._child.ordered and not self._worker.order(self._child):
            self.transcript.lost = self._over = True
            return
        self._allow(START_SECONDS)
        self._write()
        while not self._over:
            self._wait()
        while self._reading and self._read():  # the child is gone: all that it sent is here
            continue
        self.transcript.keep_output(self._child.output)

    def _wait(self) -> None:
        channel = self._channel.fileno()
        wanted = (select.POLLIN if self._reading else 0) | (select.POLLOUT if self._rest else 0)
        if wanted != self._wanted:
            if self._wanted:
                self._poller.unregister(channel)
            if wanted:
                self._poller.register(channel, wanted)
            self._wanted = wanted
        left = self._deadline - time.monotonic()
        ready = dict(self._poller.poll(min(left, DISK_SECONDS) * 1000)) if left > 0 else {}
        if self._look_at_disk() or not ready:
            if self._deadline <= time.monotonic():
                self._too_late()
            return
        happened = ready.get(channel, 0)
        if happened & select.POLLOUT:
            self._write()
        if happened & ~select.POLLOUT:
            self._read()
            if happened & (select.POLLHUP | select.POLLERR):
                self._rest = memoryview(b"")  # nobody reads any more
        if self._status in ready:
            self._read_status()
        if self._end in ready:
            self._see_the_end()

    def _look_at_disk(self) -> bool:
        """Look at what it has written, if it is time to, however much it says meanwhile; whether it was killed."""
        now = time.monotonic()
        if now < self._next_look or self.transcript.killed or not self._pid:
            return False
        self._next_look = now + DISK_SECONDS
        if not disk.over(self._child.directory, self._pid, self._settings.disk_bytes):
            return False
        self._kill("disk")
        return True

    def _allow(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def _write(self) -> None:
        try:
            if self._blob >= 0:  # descriptors travel with the first bytes
                socket.send_fds(self._channel, [self._rest[:1]], [self._blob], _QUIETLY)
                self._blob, self._rest = -1, self._rest[1:]
            while self._rest:
                self._rest = self._rest[self._channel.send(self._rest[: 1 << 20], _QUIETLY) :]
        except BlockingIOError:
            return
        except OSError:  # the child ended before it had read everything: its status says why
            self._rest = memoryview(b"")

    def _read(self) -> bool:
        """Take what has come; False if there is nothing more for now."""
        try:
            data = self._channel.recv(1 << 20)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._reading = False
            return False
        try:
            for body in self._reader.feed(data):
                if self.transcript.asks(body):
                    self._serve_tool(body)
                    continue
                if self._tally.exceeded(len(body)):
                    self._reading = False
                    self._kill("hoard")
                    break
                self.transcript.take(body, self._examples)
                finished = self.transcript.complete(self._examples)
                self._allow(GRACE_SECONDS if finished else self._timeout)
        except (frames.BadFrame, codec.CodecError) as error:
            self._reading = False
            self.transcript.trouble = str(error)
            self._kill("protocol")
        return self._reading

    def _serve_tool(self, body: bytes) -> None:
        """Answer the candidate's call of a tool; its clock stands still meanwhile."""
        if self._rest:
            raise frames.BadFrame("a call of a tool before the answer to the last one was taken")
        started = time.monotonic()
        answer = self._tools.answer(body)
        self._deadline += time.monotonic() - started
        self._rest = memoryview(bytes(self._rest) + frames.HEADER.pack(self._child.id, len(answer)) + answer)

    def _read_status(self) -> None:
        report = os.read(self._status, STATUS.size)  # written at once, so it is whole
        if len(report) < STATUS.size:
            self._lose()
            return
        tag, number, _, cpu = STATUS.unpack(report)
        if tag == FORKED:
            self._pid = number
            self.transcript.forked = True
            self._watch()
            if not self.transcript.complete(self._examples):
                self._allow(self._timeout)
        elif tag == ENDED:
            self.transcript.status, self.transcript.cpu = os.waitstatus_to_exitcode(number), cpu
            self._over = True
        elif tag == FAILED:
            self._over = True
            if self._child.ahead:  # another is tried
                return
            raise RunnerError(f"the worker could not start a process for a call: {os.strerror(number)}")

    def _watch(self) -> None:
        """See the end of the process without the worker's help, where it cannot have left anything behind."""
        if self._worker.processes_are_single:
            try:
                self._end = os.pidfd_open(self._pid)
            except OSError:  # it has ended; the worker says how
                return
            self._poller.register(self._end, select.POLLIN)

    def _see_the_end(self) -> None:
        """The process is gone. If all was said, there is no need to hear how it ended."""
        self._poller.unregister(self._end)
        while self._reading and self._read():
            continue
        self._over = self._over or self.transcript.complete(self._examples)

    def _too_late(self) -> None:
        if self.transcript.killed or not self.transcript.forked:
            # even a kill has no effect, or an import in the worker hangs: give the worker up
            self._worker.destroy()
            self._lose()
        else:
            self._kill("leftover" if self.transcript.complete(self._examples) else "wall")

    def _kill(self, why: str) -> None:
        self.transcript.killed = why
        self._allow(GRACE_SECONDS)
        if self._over:
            return
        if not self._worker.submit({"do": "kill", "id": self._child.id}):
            self._lose()

    def _lose(self) -> None:
        self.transcript.lost = self._over = True
        if self._pid:
            try:  # its death signal takes the child, but not what the child has started
                os.killpg(self._pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                return

    def close(self) -> None:
        """Release everything; a child that still runs (the wait was interrupted) is killed."""
        if not self._over:
            self._kill("interrupted")
        if self._end >= 0:
            os.close(self._end)
        self._child.close(untouched=self._over and not self.transcript.lost)


__all__ = ["GRACE_SECONDS", "START_SECONDS", "Conversation"]
