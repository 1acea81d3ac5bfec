"""``JailRunner``: a process per call that the kernel holds to a list of files and of system calls. Linux.

The same worker as ``ProcessRunner``, with three more layers around each candidate: no privileges, Landlock, seccomp.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from trace_core.integrations.sandbox.errors import SandboxUnavailable
from trace_core.integrations.sandbox.launch import Jail, import_path
from trace_core.integrations.sandbox.probe import NEEDED
from trace_core.integrations.sandbox.runner import ProcessRunner

if TYPE_CHECKING:
    from collections.abc import Iterable

_NOT_FOR_COMPUTING = """
    asyncore asynchat audioop cgi cgitb code codeop crypt ctypes curses dbm ensurepip fcntl ftplib getpass grp http
    idlelib imaplib imp lib2to3 mailbox mmap msilib msvcrt multiprocessing nis nntplib ossaudiodev pdb pip poplib
    posix pty pwd readline resource select selectors site smtpd smtplib socket socketserver spwd sqlite3 ssl
    subprocess syslog telnetlib termios tkinter tty turtle turtledemo urllib venv webbrowser winreg winsound wsgiref
    xmlrpc
"""
_LIBRARIES = "einops msgpack networkx numpy pandas scipy sklearn sympy torch"
DEFAULT_IMPORTS = frozenset(
    {name for name in sys.stdlib_module_names if not name.startswith("_") and name not in _NOT_FOR_COMPUTING.split()}
    | {"__future__"}
    | set(_LIBRARIES.split())
)
"""The standard library without what talks to the system or the network, and libraries that compute."""

_SYSTEM = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share/zoneinfo",
    "/usr/share/locale",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/dev/null",
    "/dev/zero",
    "/dev/random",
    "/dev/urandom",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sys/devices/system/cpu",
)


class JailRunner(ProcessRunner):
    """Runs proposed code in a process that cannot open files outside a list, use the network, start programs or other
    processes, or signal others; it has none of your environment, and its time, memory, output and disk are limited.

    It shares your kernel. It is meant for code written by a language model you chose, on data you chose; for a hostile
    author use a container or another machine.

    Readable are the standard library, installed packages, system libraries, and the files of your own modules that are
    loaded, where the code needs them. Its working directory is its own.

    Args:
        imports: top-level modules the code may import, besides those your program has imported; None for any.
        readable: more files and folders that it may read, with all below them.
        partial: take what there is of the layers rather than none; ``describe()`` says which, and the tier is then
            ``process``.
        limits: as for ``ProcessRunner``.

    The first call, or ``check()``, runs a self-test. Both raise SandboxUnavailable if it fails, unless ``partial``.
    """

    def __init__(
        self,
        *,
        imports: Iterable[str] | None = DEFAULT_IMPORTS,
        readable: Iterable[str | os.PathLike[str]] = (),
        partial: bool = False,
        **limits: Any,
    ) -> None:
        self._readable = tuple(os.path.abspath(path) for path in readable)
        self._partial = partial
        self._passed = False
        self._testing = threading.Lock()
        super().__init__(imports=imports, **limits)

    @property
    def tier(self) -> str:
        """``jail``, or ``process`` where some layer is missing and that was allowed."""
        return "jail" if not self.missing() else "process"

    def missing(self) -> tuple[str, ...]:
        """Layers of a jail that the self-test did not see at work. Raises RunnerError if it cannot even run."""
        layers = self.describe()["layers"]
        return tuple(name for name in NEEDED if name not in layers)

    def check(self) -> None:
        """Run the self-test. Raises SandboxUnavailable if this is no jail, with the layers that are missing."""
        missing = self.missing()
        if missing and not self._partial:
            self.close()
            raise SandboxUnavailable(
                f"no jail can be had here: missing {', '.join(missing)}. It needs Linux 5.13 with Landlock and seccomp "
                "on x86_64 or aarch64. Use isolation='process', or another sandbox"
            )

    def _jail(self) -> Jail:
        return Jail(_outermost((*library_paths(), *_SYSTEM, *self._readable)))

    def _before_call(self) -> None:
        with self._testing:  # nobody's code runs before the self-test has passed; it does not come by here itself
            if not self._passed:
                self.check()
                self._passed = True

    def _after_fork(self) -> None:
        super()._after_fork()
        self._testing = threading.Lock()


def _outermost(paths: Iterable[str]) -> tuple[str, ...]:
    """Real paths that exist, without those that lie below another."""
    kept: list[str] = []
    for path in sorted({os.path.realpath(path) for path in paths if os.path.exists(path)}):
        if not any(path.startswith(f"{outer}{os.sep}") for outer in kept):
            kept.append(path)
    return tuple(kept)


@lru_cache(maxsize=1)
def library_paths() -> tuple[str, ...]:
    """Where Python and installed packages lie: the standard library, every site-packages of the import path."""
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    for entry in import_path():
        parts = entry.split(os.sep)
        if "site-packages" in parts or "dist-packages" in parts:
            paths.add(entry)
    paths |= {os.path.join(prefix, "lib") for prefix in (sys.prefix, sys.base_prefix)}
    paths |= {path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path}
    paths |= _own_folders()
    real = {os.path.realpath(path) for path in paths if path} - {"/", os.path.expanduser("~")}
    return tuple(sorted(real))


def _own_folders() -> set[str]:
    """Folders of this library, which lie elsewhere when it is installed in place."""
    package = sys.modules["trace_core"]
    return {os.path.abspath(path) for path in package.__path__} | {os.path.dirname(os.path.abspath(__file__))}


__all__ = ["DEFAULT_IMPORTS", "JailRunner", "library_paths"]
