"""Landlock: from now on this process opens only what a list allows. Stand-alone; needs Linux 5.13.

The numbers are those of linux/landlock.h; ``restrict`` uses what the kernel's version of it knows. Newer versions also
forbid TCP, signals to others and abstract sockets, which the system call filter forbids in any case.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every processor
_VERSION_FLAG, _BENEATH = 1, 1
_NO_NEW_PRIVILEGES = 38  # of prctl(2)

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_DIR, MAKE_REG, MAKE_SYM = 1 << 7, 1 << 8, 1 << 12
REFER, TRUNCATE = 1 << 13, 1 << 14
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # version -> how many rights on files it knows
_ALL_FILE_RIGHTS = 16
READ = READ_FILE | READ_DIR
OWN = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM | REFER | TRUNCATE
_ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE  # what can be granted on something that is no directory


def version(libc: Any) -> int:
    """Which Landlock this kernel has; 0 for none."""
    if sys.platform != "linux":
        return 0
    return max(0, int(libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))))


def ruleset(libc: Any, known: int, read: Iterable[str], write: Iterable[str], own: str) -> int:
    """A descriptor of rules: read what lies under ``read``, write to the files ``write``, all in ``own``; nothing else.

    Names that do not exist are passed over: nobody can open them. Raises OSError if the kernel refuses.
    """
    handled = (1 << _FILE_RIGHTS.get(known, _ALL_FILE_RIGHTS)) - 1
    attributes = struct.pack("=Q", handled)
    if known >= 4:
        attributes += struct.pack("=Q", 3)  # bind and connect TCP
    if known >= 6:
        attributes += struct.pack("=Q", 3)  # abstract sockets and signals of other domains
    made: int = libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    _check(made, "landlock_create_ruleset")
    for paths, rights in ((read, READ), (write, READ_FILE | WRITE_FILE), ((own,), OWN)):
        for path in paths:
            _allow(libc, made, path, rights & handled)
    return made


def allow_reading(libc: Any, known: int, rules: int, paths: Iterable[str]) -> None:
    """Add to a ruleset."""
    for path in paths:
        _allow(libc, rules, path, READ & ((1 << _FILE_RIGHTS.get(known, _ALL_FILE_RIGHTS)) - 1))


def restrict(libc: Any, rules: int) -> None:
    """Put the rules on this process; nothing takes them off again. Raises OSError."""
    _check(libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl")
    _check(libc.syscall(RESTRICT_SELF, rules, 0), "landlock_restrict_self")


def _allow(libc: Any, ruleset: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
            return
        raise
    try:
        rule = struct.pack("=Qi", rights, place)
        made = libc.syscall(ADD_RULE, ruleset, ctypes.c_int(_BENEATH), rule, ctypes.c_uint32(0))
        if made != 0 and ctypes.get_errno() == errno.EINVAL:  # a file: rights on directories make no sense there
            rule = struct.pack("=Qi", rights & _ON_FILES, place)
            made = libc.syscall(ADD_RULE, ruleset, ctypes.c_int(_BENEATH), rule, ctypes.c_uint32(0))
        _check(made, "landlock_add_rule")
    finally:
        os.close(place)


def _check(result: int, call: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


__all__ = ["allow_reading", "restrict", "ruleset", "version"]
