"""The system call filter of this process, and what happens when it bites. Stand-alone; Linux on x86_64 and aarch64.

A call that ends the process arrives here first, as SIGSYS with the call's number, so that it can be said what was
tried. It was not made, whatever becomes of the signal.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from trace_core.integrations.sandbox.filters import FILTERS, TRAPPED
else:
    FILTERS, TRAPPED = (getattr(sys.modules["_sandbox_filters"], name) for name in ("FILTERS", "TRAPPED"))

if TYPE_CHECKING:
    from collections.abc import Callable

_SET_SECCOMP, _FILTER, _NO_NEW_PRIVILEGES = 22, 2, 38  # of prctl(2)
_SIGSYS, _SIGINFO, _NO_DEFER = 31, 4, 0x40000000
_CALL_NUMBER = 24  # where siginfo_t has it, in bytes
_GET_ACTION_AVAIL, _TRAP = 2, struct.pack("=I", 0x00030000)
_SECCOMP = {"x86_64": 317, "aarch64": 277}

_leave = os._exit  # as it is now: a candidate may put something else there
_TRIED = {
    "execve": "start a program",
    "execveat": "start a program",
    "kill": "send a signal to another process",
    "tgkill": "send a signal to another process",
    "tkill": "send a signal to another process",
    "rt_sigqueueinfo": "send a signal to another process",
    "rt_tgsigqueueinfo": "send a signal to another process",
    "pidfd_send_signal": "send a signal to another process",
    "connect": "use the network",
    "bind": "use the network",
    "listen": "use the network",
    "accept": "use the network",
    "accept4": "use the network",
    "sendto": "use the network",
    "ptrace": "look into another process",
    "process_vm_readv": "look into another process",
    "process_vm_writev": "change another process",
    "prlimit64": "change the limits of another process",
    "mount": "change the file system",
    "umount2": "change the file system",
    "chroot": "change the file system",
    "pivot_root": "change the file system",
    "unshare": "make a namespace",
    "setns": "enter a namespace",
    "reboot": "restart the machine",
}


def available(libc: Any) -> bool:
    """Whether this kernel takes filters, and there is one for this processor."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in FILTERS:
        return False
    return bool(libc.syscall(_SECCOMP[machine], ctypes.c_uint(_GET_ACTION_AVAIL), ctypes.c_uint(0), _TRAP) == 0)


class Filter:
    """The filter of this processor, ready to be installed in children of this process."""

    def __init__(self, libc: Any) -> None:
        self._libc = libc
        machine = platform.machine()
        code, self._holes = FILTERS[machine]
        self._names = TRAPPED[machine]
        self._code = bytearray(code)
        self._buffer = (ctypes.c_char * len(code)).from_buffer(self._code)
        # struct sock_fprog: how many instructions, and where they are
        self._program = struct.pack("@HxxxxxxQ", len(code) // 8, ctypes.addressof(self._buffer))
        self.on_refusal: Callable[[str], None] | None = None
        self._listen()

    def install(self) -> None:
        """Put the filter on this process; nothing takes it off again. Raises OSError."""
        for hole in self._holes:
            struct.pack_into("<I", self._code, 8 * hole + 4, os.getpid())
        if self._libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
        if self._libc.prctl(_SET_SECCOMP, _FILTER, self._program, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")

    def _listen(self) -> None:
        """Hear of refused calls. Children inherit the handler, and the filter forbids them to change it."""
        kind = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        self._handler = kind(self._refused)
        handler = ctypes.cast(self._handler, ctypes.c_void_p).value
        # struct sigaction of libc on both processors: handler, 1024 signals that wait meanwhile, flags, restorer
        action = struct.pack("@Q128xixxxxQ", handler, _SIGINFO | _NO_DEFER, 0)
        if self._libc.sigaction(_SIGSYS, action, None) != 0:
            raise OSError(ctypes.get_errno(), "sigaction(SIGSYS)")

    def _refused(self, _signal: int, information: int, _context: int) -> None:
        number = ctypes.c_int.from_address(information + _CALL_NUMBER).value
        name = self._names.get(number, f"number {number}")
        tried = _TRIED.get(name, "use a system call that is reserved for administration")
        try:
            if self.on_refusal is not None:
                self.on_refusal(f"{tried} ({name})")
        finally:
            _leave(1)


__all__ = ["Filter", "available"]
