"""How the worker program is started, and with what: a clean environment, the user's import path, its limits."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Any

from trace_core.errors import RunnerError

# Names, never values, are what this list shows: nothing else of the environment reaches a candidate.
_KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
_ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
MAX_TAIL = 2_000  # bytes of an example's printed output that are kept


@dataclass(frozen=True)
class Jail:
    """What a candidate may open: to read, with all that lies below; to write; and to read about itself in /proc."""

    read: tuple[str, ...]
    write: tuple[str, ...] = ("/dev/null",)
    of_itself: tuple[str, ...] = ("/proc/self/maps",)  # where libraries are loaded: thread pools are found by it


@dataclass(frozen=True)
class Settings:
    """Limits of one runner. ``timeout`` and ``cpu`` in seconds per call, memory in MiB, sizes in bytes.

    ``disk_bytes`` is what a candidate's files may hold in all. ``imports`` are the modules it may import, None for any.
    """

    timeout: float
    cpu: float
    memory_mb: int
    output_bytes: int
    result_bytes: int
    files: int = 256
    disk_bytes: int = 256 * 1024 * 1024
    imports: frozenset[str] | None = None
    jail: Jail | None = None

    def config(self, base: str) -> dict[str, Any]:
        """What a worker is told at its start."""
        limits = {"memory_mb": self.memory_mb, "output_bytes": self.output_bytes, "files": self.files}
        jail = None
        if self.jail is not None:
            jail = {name: list(getattr(self.jail, name)) for name in ("read", "write", "of_itself")}
        imports = None if self.imports is None else sorted(self.imports)
        return {"base": base, "path": import_path(), "limits": limits, "jail": jail, "imports": imports}


@dataclass
class Transcript:
    """What was seen of one fork or one process.

    Attributes:
        answers: head and encoded value of each example that was answered, in order.
        started: whether the process came as far as reading its request.
        setup_error: the head of the message that the code could not be loaded, or None.
        ready: whether the code was loaded; not said where there is one example.
        status: exit status as in ``Popen.returncode``: negative for a signal; None if it was never learnt.
        killed: why this side ended it: ``wall``, ``disk``, ``protocol``, or empty.
        trouble: what was wrong with what came, for ``protocol``.
        cpu: CPU seconds used.
        printed: the end of what was printed during each answered example, and after the last one.
        printed_size: bytes printed in all.
        lost: the worker went away before the end was known.
        forked: a process for this request had been started.
    """

    answers: list[tuple[dict[str, Any], bytes]] = field(default_factory=list)
    started: bool = False
    setup_error: dict[str, Any] | None = None
    ready: bool = False
    status: int | None = None
    killed: str = ""
    trouble: str = ""
    cpu: float = 0.0
    printed: list[str] = field(default_factory=list)
    printed_size: int = 0
    lost: bool = False
    forked: bool = False

    @staticmethod
    def asks(body: bytes) -> bool:
        """Whether the message is a question that waits for an answer. Raises CodecError."""
        from trace_core.integrations.sandbox import codec

        head = codec.decode(body[4 : 4 + int.from_bytes(body[:4], "big")])
        return isinstance(head, dict) and "tool" in head

    def take(self, body: bytes, examples: int) -> None:
        """Record one message. Raises ValueError if it is not one that a candidate's process sends at this point."""
        from trace_core.integrations.sandbox import codec

        size = int.from_bytes(body[:4], "big")
        head = codec.decode(body[4 : 4 + size])
        if not isinstance(head, dict):
            raise codec.CodecError("a message without a head")
        if "started" in head and not self.started:
            self.started = True
        elif "setup" in head and not self.ready and not self.answers:
            self.setup_error = head
        elif "ready" in head and not self.ready:
            self.ready = True
        elif (self.ready or examples == 1) and head.get("index") == len(self.answers) < examples:
            self.answers.append((head, body[4 + size :]))
        else:
            raise codec.CodecError("a message out of turn")

    def complete(self, examples: int) -> bool:
        """Whether nothing more is to come."""
        return self.setup_error is not None or len(self.answers) == examples

    def keep_output(self, descriptor: int) -> None:
        """Read the ends of what was printed from the file it went to."""
        self.printed_size = size = os.fstat(descriptor).st_size
        start = 0
        for end in (*(head.get("printed") for head, _ in self.answers), size):
            end = min(max(end, start), size) if isinstance(end, int) else start
            os.lseek(descriptor, max(start, end - MAX_TAIL), os.SEEK_SET)
            text = os.read(descriptor, end - max(start, end - MAX_TAIL)).decode("utf-8", "replace")
            self.printed.append(f"… {text}" if end - start > MAX_TAIL else text)
            start = end


def command(*arguments: str) -> list[str]:
    """The command line of the worker program."""
    if not sys.executable:
        raise RunnerError("no worker can start: this Python does not know its own executable (sys.executable is empty)")
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker.py")
    return [sys.executable, "-I", "-X", "utf8", program, *arguments]


def clean_environment(directory: str) -> dict[str, str]:
    """Search paths, language and time zone of this process, one thread for linear algebra, ``directory`` as home."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, **dict.fromkeys(_ONE_THREAD, "1"), "HOME": directory, "TMPDIR": directory}


def packages() -> str:
    """The folder from which msgpack is imported."""
    import msgpack

    return os.path.dirname(os.path.dirname(os.path.abspath(str(msgpack.__file__))))


def import_path() -> list[str]:
    """``sys.path`` with relative entries made absolute."""
    strings = [entry for entry in sys.path if isinstance(entry, str)]
    return [entry if os.path.isabs(entry) else os.path.abspath(entry) for entry in strings]


def remove_tree(path: str) -> None:
    """Remove a folder with whatever a candidate left in it; what cannot be removed is left to the system."""
    try:
        os.rmdir(path)  # nearly always empty
    except FileNotFoundError:
        return
    except OSError:
        _remove_contents(path)


def _remove_contents(path: str) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)
    if not os.path.lexists(path):
        return
    try:
        if os.path.islink(path):  # put in the folder's place
            os.unlink(path)
            return
        os.chmod(path, 0o700)
        for folder, names, _ in os.walk(path):  # parents first, so that each can be entered when its turn comes
            for name in names:
                if not os.path.islink(os.path.join(folder, name)):
                    os.chmod(os.path.join(folder, name), 0o700)
    except OSError:  # not ours, or going away by itself
        return
    shutil.rmtree(path, ignore_errors=True)


__all__ = ["Settings", "Transcript", "clean_environment", "command", "import_path", "packages", "remove_tree"]
