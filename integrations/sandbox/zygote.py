"""The host's side of the forking worker: start it, hand it calls, watch the clock, kill.

Any number of threads may talk to one worker. Each call has a channel and a status pipe of its own, so a thread waits
only for its own descriptors; the control socket is shared and takes one short message at a time.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import tempfile
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import msgpack

from trace_core.errors import RunnerError
from trace_core.integrations.sandbox import codec, disk, frames, launch
from trace_core.integrations.sandbox.folders import Folders, output_file
from trace_core.integrations.sandbox.launch import Transcript
from trace_core.integrations.sandbox.tools import ToolServer
from trace_core.integrations.sandbox.worker import ENDED, FAILED, FORKED, STATUS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trace_core.integrations.sandbox.launch import Settings
    from trace_core.integrations.sandbox.request import Request

START_SECONDS = 60.0  # for the interpreter to start, and for imports that the worker does for its children
DISK_SECONDS = 0.1  # between looks at what a candidate has written
GRACE_SECONDS = 5.0  # from the last answer, or from a kill, to the end of the process
_QUIETLY = getattr(socket, "MSG_NOSIGNAL", 0)  # the host may have made SIGPIPE deadly


class WorkerGone(Exception):
    """The worker does not take messages any more."""


class Zygote:
    """A running worker process. Raises RunnerError if it cannot be started."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self.preloaded: set[str] = set()
        self.base = tempfile.mkdtemp(prefix="trace_core-")
        self.folders = Folders(self.base)
        self._control, theirs = socket.socketpair()
        try:
            self._process = self._start(theirs)
        except BaseException as error:
            self._control.close()
            launch.remove_tree(self.base)
            if isinstance(error, OSError):
                raise RunnerError(f"the worker process could not be started: {error}") from error
            raise
        finally:
            theirs.close()
        self._stop = weakref.finalize(self, _shut_down, self._process, self._control, self.base, os.getpid())
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
        self._receive(frames.HEADER.unpack(header)[1])
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

    def submit(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send one control message. Raises WorkerGone."""
        body = msgpack.packb(message)
        data = frames.HEADER.pack(message["id"], len(body)) + body
        with self._lock:
            try:
                sent = socket.send_fds(self._control, [data], list(descriptors), _QUIETLY)
                if sent < len(data):
                    self._control.sendall(data[sent:], _QUIETLY)
            except OSError as error:
                raise WorkerGone(str(error)) from error

    def converse(self, body: bytes, examples: int, request: Request) -> Transcript:
        """Run one request in a fork of the worker and wait for its end. Does not raise for a worker that dies."""
        conversation = _Conversation(self, self._settings, body, examples, request)
        try:
            conversation.run([name for name in request.preload if name not in self.preloaded])
            if conversation.transcript.forked:
                self.preloaded.update(request.preload)
            return conversation.transcript
        finally:
            conversation.close()


class _Conversation:
    """One request: what is sent, what has come, how long it may still take."""

    def __init__(self, worker: Zygote, settings: Settings, body: bytes, examples: int, request: Request) -> None:
        self._request = request
        self._blob = request.store.descriptor
        self._worker, self._settings, self._examples = worker, settings, examples
        self._id = int.from_bytes(os.urandom(8), "big")
        self._directory = worker.folders.take()
        self._rest = memoryview(frames.HEADER.pack(self._id, len(body)) + body)
        self._reader = frames.Reader(self._id, settings.result_bytes + frames.SLACK)
        self._tools = ToolServer(request.tools)
        self._pid = 0
        self._deadline = 0.0
        self._over = False
        self._reading = True
        self._channel, self._theirs = socket.socketpair()
        self._channel.setblocking(False)
        self._status, self._status_theirs = os.pipe()
        self._poller = select.poll()
        self._poller.register(self._status, select.POLLIN)
        self._wanted = 0  # events of the channel that the poller was told of
        self._output = output_file(worker.base)
        self.transcript = Transcript()

    def run(self, preload: list[str]) -> None:
        """Send the request and wait until the worker reports the end of the child."""
        message = {
            "do": "call",
            "id": self._id,
            "directory": self._directory,
            "preload": preload,
            "readable": list(self._request.readable),
            "given": self._request.store.size,
        }
        try:
            self._worker.submit(message, [self._theirs.fileno(), self._status_theirs, self._output])
        except WorkerGone:
            self.transcript.lost = self._over = True
            return
        self._close_theirs()
        self._allow(START_SECONDS)
        while not self._over:
            self._wait()
        while self._reading and self._read():  # the child is gone: all that it sent is here
            continue
        self.transcript.keep_output(self._output)

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
        if not ready:
            if self._deadline <= time.monotonic():
                self._too_late()
            elif (
                not self.transcript.killed
                and self._pid
                and disk.over(self._directory, self._pid, self._settings.disk_bytes)
            ):
                self._kill("disk")
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
                self.transcript.take(body, self._examples)
                finished = self.transcript.complete(self._examples)
                self._allow(GRACE_SECONDS if finished else self._settings.timeout)
        except (frames.BadFrame, codec.CodecError) as error:
            self._reading = False
            self.transcript.trouble = str(error)
            self._kill("protocol")
        return self._reading

    def _serve_tool(self, body: bytes) -> None:
        """Answer the candidate's call of a tool; its clock stands still meanwhile."""
        started = time.monotonic()
        answer = self._tools.answer(body)
        self._deadline += time.monotonic() - started
        self._rest = memoryview(bytes(self._rest) + frames.HEADER.pack(self._id, len(answer)) + answer)

    def _read_status(self) -> None:
        report = os.read(self._status, STATUS.size)  # written at once, so it is whole
        if len(report) < STATUS.size:
            self._lose()
            return
        tag, number, _, cpu = STATUS.unpack(report)
        if tag == FORKED:
            self._pid = number
            self.transcript.forked = True
            if not self.transcript.complete(self._examples):
                self._allow(self._settings.timeout)
        elif tag == ENDED:
            self.transcript.status, self.transcript.cpu = os.waitstatus_to_exitcode(number), cpu
            self._over = True
        elif tag == FAILED:
            self._over = True
            raise RunnerError(f"the worker could not start a process for a call: {os.strerror(number)}")

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
        try:
            self._worker.submit({"do": "kill", "id": self._id})
        except WorkerGone:
            self._lose()

    def _lose(self) -> None:
        self.transcript.lost = self._over = True
        if self._pid:
            try:  # its death signal takes the child, but not what the child has started
                os.killpg(self._pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                return

    def _close_theirs(self) -> None:
        self._theirs.close()
        if self._status_theirs >= 0:
            os.close(self._status_theirs)
            self._status_theirs = -1

    def close(self) -> None:
        """Release everything; a child that still runs (the wait was interrupted) is killed."""
        if not self._over:
            self._kill("interrupted")
        self._close_theirs()
        self._channel.close()
        os.close(self._status)
        os.close(self._output)
        if self._over and not self.transcript.lost:
            self._worker.folders.give_back(self._directory)
        else:
            launch.remove_tree(self._directory)


def _shut_down(process: subprocess.Popen[bytes], control: socket.socket, base: str, owner: int) -> None:
    if os.getpid() != owner:
        return
    control.close()  # the worker kills what it runs, cleans up and leaves
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    launch.remove_tree(base)


__all__ = ["GRACE_SECONDS", "START_SECONDS", "WorkerGone", "Zygote"]
