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


def drop(libc: Any, *, keep_reading: bool) -> None:
    """Give up all capabilities; with ``keep_reading``, that to read any file stays. Raises OSError.

    ``keep_reading`` is only right where a list says what may be opened.
    """
    header = struct.pack("=Ii", _VERSION, 0)
    had = ctypes.create_string_buffer(24)
    if libc.capget(header, had) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    permitted = struct.unpack("=6I", had.raw)[1]
    kept = permitted & _READ_SEARCH if keep_reading else 0
    if libc.capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0)) != 0:
        raise OSError(ctypes.get_errno(), f"capset: {os.strerror(ctypes.get_errno())}")


__all__ = ["drop"]
