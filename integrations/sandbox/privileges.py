"""Gives up what being root brings. Stand-alone; Linux.

Hard limits bind only who may not raise them, and capabilities are what lets root do that. Landlock and the system call
filter bind root in any case.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Any

_VERSION = 0x20080522
_READ_SEARCH = 1 << 2  # CAP_DAC_READ_SEARCH: to read the user's modules in folders of others, as far as allowed


class Drop:
    """Gives up all capabilities in children of this process; with ``keep_reading``, that to read any file stays.

    ``keep_reading`` is only right where a list says what may be opened. Raises OSError.
    """

    def __init__(self, libc: Any, *, keep_reading: bool) -> None:
        self._header = struct.pack("=Ii", _VERSION, 0)
        had = ctypes.create_string_buffer(24)
        if libc.capget(self._header, had) != 0:
            raise OSError(ctypes.get_errno(), "capget")
        effective, permitted, inheritable, *rest = struct.unpack("=6I", had.raw)
        self._nothing_to_do = not (effective or permitted or inheritable or any(rest))
        kept = permitted & _READ_SEARCH if keep_reading else 0
        self._left = struct.pack("=6I", kept, kept, 0, 0, 0, 0)
        self._capset = libc.capset

    def __call__(self) -> None:
        """Do it, in the child."""
        if not self._nothing_to_do and self._capset(self._header, self._left) != 0:
            raise OSError(ctypes.get_errno(), f"capset: {os.strerror(ctypes.get_errno())}")


__all__ = ["Drop"]
