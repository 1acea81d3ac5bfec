"""One new interpreter per call, for systems without fork. Slower by the start of an interpreter, otherwise the same."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
from typing import TYPE_CHECKING, Any

import msgpack

from trace_core.errors import RunnerError
from trace_core.integrations.sandbox import codec, frames, launch
from trace_core.integrations.sandbox.launch import Transcript
from trace_core.integrations.sandbox.removal import remove_tree
from trace_core.integrations.sandbox.tools import ToolServer

if TYPE_CHECKING:
    from trace_core.integrations.sandbox.launch import Settings
    from trace_core.integrations.sandbox.request import Request

START_SECONDS = 60.0  # for the interpreter to start


class Fresh:
    """Starts a process for each request. Holds no state, so any number of threads may use it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def converse(self, body: bytes, examples: int, request: Request) -> Transcript:
        """Run one request and wait for the end of its process. Raises RunnerError if none can be started."""
        base = tempfile.mkdtemp(prefix="trace_core-")
        home, printed = os.path.join(base, "home"), os.path.join(base, "output")
        os.mkdir(home, 0o700)
        try:
            with open(printed, "w+b") as output:
                process = self._start(home, printed)
                try:
                    transcript = _Conversation(process, self._settings, examples, request).run(body, home)
                finally:
                    _kill(process)
                    process.wait()
                transcript.keep_output(output.fileno())
            return transcript
        finally:
            remove_tree(base)

    def _start(self, home: str, printed: str) -> subprocess.Popen[bytes]:
        options: dict[str, Any] = {"start_new_session": True}
        if os.name == "nt":
            options = {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
        try:
            return subprocess.Popen(
                launch.command("once", launch.packages(), printed),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=home,
                env=launch.clean_environment(home),
                **options,
            )
        except OSError as error:
            raise RunnerError(f"the process for a call could not be started: {error}") from error


class _Conversation:
    def __init__(self, process: subprocess.Popen[bytes], settings: Settings, examples: int, request: Request) -> None:
        self._tools = ToolServer(request.tools)
        self._tally, self._timeout = request.tally, request.timeout
        self._process, self._settings, self._examples = process, settings, examples
        self._id = int.from_bytes(os.urandom(8), "big")
        self._timer: threading.Timer | None = None
        self.transcript = Transcript(forked=True)

    def run(self, request: bytes, home: str) -> Transcript:
        """Send the request from a second thread, read the answers, stop at the time limit."""
        config = msgpack.packb(self._settings.config(home), unicode_errors="surrogatepass")
        parts = [frames.HEADER.pack(self._id, len(config)), config, frames.HEADER.pack(self._id, len(request)), request]
        sender = threading.Thread(target=self._send, args=(parts,), daemon=True)
        sender.start()
        self._allow(START_SECONDS)
        try:
            self._receive()
            self._process.wait()
        finally:
            self._stop_timer()
            _kill(self._process)
            sender.join()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    _close(pipe)
        self.transcript.status = self._process.returncode
        return self.transcript

    def _send(self, parts: list[bytes]) -> None:
        stdin = self._process.stdin
        if stdin is None:
            return
        try:
            for part in parts:
                stdin.write(part)
            stdin.flush()
        except OSError:  # it ended before it had read everything: its status says why
            return

    def _receive(self) -> None:
        stdout = self._process.stdout
        if stdout is None:
            return
        limit = self._settings.result_bytes + frames.SLACK
        try:
            while not self.transcript.complete(self._examples):
                call_id, body = frames.read(stdout.fileno(), limit)
                if call_id != self._id:
                    raise frames.BadFrame("a message that does not belong to this call")
                if self.transcript.asks(body):
                    self._stop_timer()
                    answer = self._tools.answer(body)
                    self._allow(self._timeout)  # before: it may not take the answer
                    self._send([frames.HEADER.pack(self._id, len(answer)), answer])
                    continue
                if self._tally.exceeded(len(body)):
                    self.transcript.killed = "hoard"
                    _kill(self._process)
                    return
                self.transcript.take(body, self._examples)
                self._allow(self._timeout)
        except frames.ChannelClosed:
            return
        except (frames.BadFrame, codec.CodecError) as error:
            self.transcript.killed, self.transcript.trouble = "protocol", str(error)
            _kill(self._process)

    def _allow(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = threading.Timer(seconds, self._too_late)
        self._timer.daemon = True
        self._timer.start()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        self.transcript.killed = "leftover" if self.transcript.complete(self._examples) else "wall"
        _kill(self._process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and, where there are groups, all it has started that stayed in its group.

    Also called when the process has ended: a group lives on, and keeps its number, while it has members.
    """
    if os.name == "nt":
        process.kill()
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _close(pipe: Any) -> None:
    try:
        pipe.close()
    except OSError:  # what was left to send has no receiver
        return


__all__ = ["Fresh"]
