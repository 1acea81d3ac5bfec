"""The parent's side of a local model server: started once for each file and settings, ended with this process."""

from __future__ import annotations

import atexit
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from trace_core.errors import MissingExtra
from trace_core.integrations.llm.errors import LocalServerError
from trace_core.integrations.llm.extras import installed
from trace_core.integrations.llm.secrets import Secret, scrub

_CHILD = Path(__file__).with_name("_llama_child.py")
_PATIENCE = 5.0  # seconds between asking the child to end and killing it
_LOG_TAIL = 1500
_SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")


def cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class ServerSettings:
    """What makes two servers the same one.

    Attributes:
        path: absolute path of the GGUF file.
        context: tokens of prompt and answer together, shared by all slots.
        threads: CPU threads.
        slots: requests generated at the same time.
        cache_mib: memory for the prompts of earlier requests, in MiB.
    """

    path: Path
    context: int
    threads: int
    slots: int
    cache_mib: int


class LocalServer:
    """One child process. Thread-safe. Started by ``ensure``, and again by the next ``ensure`` if it died."""

    def __init__(self, settings: ServerSettings, startup_timeout: float) -> None:
        self._settings = settings
        self._startup_timeout = startup_timeout
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._address = ""
        self.token = Secret(secrets.token_urlsafe(24))

    @property
    def pid(self) -> int | None:
        """Process id of the running child, None while there is none."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def running(self) -> bool:
        """Whether the child is there and ready."""
        return bool(self._address) and self.pid is not None

    def ensure(self) -> str:
        """Address of the running server ("http://127.0.0.1:40123"). Starts it if need be, which takes seconds.

        Raises:
            MissingExtra: the runtime is not installed.
            LocalServerError: it did not start; the message holds the end of its log.
        """
        if self.running:
            return self._address
        with self._lock:
            if not self.running:
                self._discard()
                self._start()
            return self._address

    def stop(self) -> None:
        """End the child and wait for its end."""
        with self._lock:
            self._discard()

    def kill(self) -> None:
        """End the child at once, whatever another thread is doing with it (it may be loading for long)."""
        process = self._process
        if process is not None:
            process.kill()
            process.wait()

    def _start(self) -> None:
        check_runtime()
        _check_file(self._settings.path)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child, closed by _discard
        process = subprocess.Popen(
            [sys.executable, "-P", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_child_environment(),
            start_new_session=True,  # Ctrl-C in the terminal interrupts the call, not the server
        )
        self._process = process
        timer = threading.Timer(self._startup_timeout, process.kill)
        timer.daemon = True
        timer.start()
        try:
            reply = self._handshake(process)
        except BaseException:  # an interrupt while the model loads
            process.kill()
            self._discard()
            raise
        finally:
            timer.cancel()
        if "address" not in reply:
            code = process.poll()
            self._fail(reply.get("error") or f"it ended with code {code} within {self._startup_timeout:g} s")
        self._address = reply["address"]

    def _handshake(self, process: subprocess.Popen[bytes]) -> dict[str, str]:
        settings = {
            "path": str(self._settings.path),
            "alias": self._settings.path.stem,
            "context": self._settings.context,
            "threads": self._settings.threads,
            "slots": self._settings.slots,
            "cache_mib": self._settings.cache_mib,
            "token": self.token.reveal(),
            "parent": os.getpid(),
        }
        line = b""
        if process.stdin is not None and process.stdout is not None:
            try:
                process.stdin.write(json.dumps(settings).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                pass  # the child died at once; its log says why
        if not line:
            process.wait()
            return {}
        reply: dict[str, str] = json.loads(line)
        return reply

    def _fail(self, reason: str) -> None:
        tail = ""
        if self._log is not None:
            self._log.seek(0)
            tail = self._log.read()[-_LOG_TAIL:].decode("utf-8", "replace").strip()
        self._discard()
        raise LocalServerError(
            scrub(
                f"the local model {self._settings.path} could not be served: {reason}. End of the log:\n{tail}",
                [self.token],
            ),
            provider="local",
        )

    def _discard(self) -> None:
        process, self._process, self._address = self._process, None, ""
        if process is not None:
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()  # the child ends when its input does
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None


def _check_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise LocalServerError(f"the model file {path} cannot be read: {error.strerror}", provider="local") from error
    if start != b"GGUF":
        raise LocalServerError(f"{path} is not a GGUF file (it starts with {start!r})", provider="local")


def check_runtime() -> None:
    """Raise MissingExtra if the runtime for local models is not installed. Only the child imports it."""
    if not sys.executable:
        raise LocalServerError("a local model needs a Python executable to start, and sys.executable is empty")
    if not installed("xllamacpp"):
        raise MissingExtra(
            "'xllamacpp' is needed for local models and is not installed; run: pip install 'trace_core[local]'"
        )


def _child_environment() -> dict[str, str]:
    """This environment without keys, which the child does not need."""
    kept = {name: value for name, value in os.environ.items() if not any(word in name for word in _SECRET_WORDS)}
    # On shared cores, threads that spin while they wait for each other starve those that work.
    return {**kept, "OMP_WAIT_POLICY": "passive"}


_lock = threading.Lock()
_servers: dict[ServerSettings, LocalServer] = {}


def shared_server(settings: ServerSettings, startup_timeout: float) -> LocalServer:
    """The server of this process for ``settings``, started or not."""
    with _lock:
        server = _servers.get(settings)
        if server is None:
            server = _servers[settings] = LocalServer(settings, startup_timeout)
        return server


def _kill_servers() -> None:
    for server in list(_servers.values()):
        server.kill()


def stop_servers() -> None:
    """End all local servers of this process. The next call of an LLM starts its own again."""
    with _lock:
        servers = list(_servers.values())
    for server in servers:
        server.stop()


def _forget() -> None:
    """After a fork the servers are the parent's; the child process starts its own when it needs them."""
    global _lock
    _lock = threading.Lock()
    _servers.clear()


atexit.register(_kill_servers)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
