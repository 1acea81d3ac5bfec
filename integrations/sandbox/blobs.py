"""Big arrays cross in memory that both sides map, not through the channel. Stand-alone; Linux.

One sealed file without a name per request. The candidate maps its parts privately: what it writes there is its own,
and gone with it.
"""

from __future__ import annotations

import os
import sys
from typing import Any

_PAGE = 64 * 1024  # where a part may begin, on every processor
_ADD_SEALS, _SEAL_ALL = 1033, 0x1 | 0x2 | 0x4 | 0x8  # fcntl(2): no more seals, shrinking, growing, writing
AVAILABLE = sys.platform == "linux" and hasattr(os, "memfd_create")


class Store:
    """The host's side: takes big arrays while a request is packed, if it is ``enabled``.

    Attributes:
        descriptor: of the memory, -1 while there is none.
        size: of it, in bytes.
        used: libraries whose values were packed, big or small.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.used: set[str] = set()
        self.descriptor = -1
        self.size = 0
        self._known: dict[int, tuple[int, Any]] = {}

    def put(self, key: Any, data: Any) -> int:
        """Where the bytes lie from now on. The same ``key`` object is stored once."""
        if id(key) in self._known:
            return self._known[id(key)][0]
        if self.descriptor < 0:
            self.descriptor = os.memfd_create("arguments", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        place = self.size
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view):
            written += os.pwrite(self.descriptor, view[written : written + (1 << 30)], place + written)
        self.size = -(-(place + len(view)) // _PAGE) * _PAGE
        self._known[id(key)] = (place, key)  # an id is only good while its object lives
        return place

    def seal(self) -> None:
        """From now on nobody changes it."""
        if self.descriptor >= 0:
            import fcntl

            os.ftruncate(self.descriptor, self.size)
            fcntl.fcntl(self.descriptor, _ADD_SEALS, _SEAL_ALL)
        self._known.clear()

    def close(self) -> None:
        """Let go of the memory; candidates that map it keep it."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


class Region:
    """The candidate's side: private views of what came."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def view(self, place: int, size: int) -> Any:
        """A writable buffer of that part."""
        import mmap

        flags, access = mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE
        return mmap.mmap(self._descriptor, size, flags=flags, prot=access, offset=place)


__all__ = ["AVAILABLE", "Region", "Store"]
