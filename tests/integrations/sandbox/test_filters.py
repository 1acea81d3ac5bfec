"""The system call filter: its bytes are those of the generator, and say what is meant, on both processors."""

from __future__ import annotations

import errno
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from trace_core.integrations.sandbox import filters, make_filters
from trace_core.integrations.sandbox.make_filters import ALLOW, ARCHITECTURES, KILL, NUMBERS, REFUSE, TRAP, UNKNOWN

X86, ARM = ARCHITECTURES
PID = 4321
OWN_PROCESS, SOMEBODY = PID, PID + 1


def decide(name: str, number: int, arguments: tuple[int, ...] = (), audit: int | None = None) -> int:
    """What the shipped program decides: an interpreter for the instructions that it may consist of."""
    code, holes = filters.FILTERS[name]
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    data = struct.pack(
        "<iIQ6Q", number, architecture.audit if audit is None else audit, 0, *arguments, *[0] * (6 - len(arguments))
    )
    program = [list(item) for item in struct.iter_unpack("<HBBI", code)]
    for hole in holes:
        program[hole][3] = PID
    place, accumulator = 0, 0
    while True:
        operation, if_true, if_false, value = program[place]
        place += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif operation == 0x54:
            accumulator &= value
        elif operation == 0x15:
            place += if_true if accumulator == value else if_false
        elif operation == 0x35:
            place += if_true if accumulator >= value else if_false
        elif operation == 0x05:
            place += value
        elif operation == 0x06:
            return value
        else:
            raise AssertionError(f"instruction {operation:#x}")


def test_the_shipped_bytes_are_the_generators() -> None:
    shipped = Path(filters.__file__).read_text()
    assert make_filters.render() == shipped
    command = [sys.executable, "-m", "trace_core.integrations.sandbox.make_filters"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == shipped


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_every_number_is_decided_by_the_lists(architecture: make_filters.Architecture) -> None:
    names = {numbers[architecture.column]: name for name, numbers in NUMBERS.items()}
    for number in range(700):
        name = names.get(number, "")
        if name in make_filters.CONDITIONS:
            continue
        expected = REFUSE if number <= make_filters.LAST_KNOWN else UNKNOWN
        if name in make_filters.ALLOWED:
            expected = ALLOW
        elif name in make_filters.TRAPPED:
            expected = TRAP
        elif name in make_filters.UNKNOWN_ON_PURPOSE:
            expected = UNKNOWN
        assert decide(architecture.name, number) == expected, (number, name)


def test_every_listed_call_has_a_number() -> None:
    listed = {*make_filters.ALLOWED, *make_filters.TRAPPED, *make_filters.CONDITIONS, *make_filters.UNKNOWN_ON_PURPOSE}
    assert listed <= set(NUMBERS)
    assert not make_filters.ALLOWED & make_filters.TRAPPED
    for architecture in ARCHITECTURES:
        numbers = [n[architecture.column] for n in NUMBERS.values() if n[architecture.column] is not None]
        assert len(set(numbers)) == len(numbers)
        trapped = filters.TRAPPED[architecture.name]
        assert {NUMBERS[name][architecture.column] for name in trapped.values()} == set(trapped)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_another_processors_numbers_end_the_process(architecture: make_filters.Architecture) -> None:
    for audit in (0x40000003, 0x40000028, X86.audit if architecture is ARM else ARM.audit):
        assert decide(architecture.name, 39, audit=audit) == KILL
    assert decide(architecture.name, make_filters.X32_BIT + 1) == KILL


_MAP_SHARED, _MAP_PRIVATE, _ANONYMOUS, _GROWS_DOWN = 1, 2, 0x20, 0x100
_THREAD = 0x003D0F00  # what pthread_create asks for
_VFORK = 0x4111


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
@pytest.mark.parametrize(
    ("call", "arguments", "expected"),
    [
        ("clone", (_THREAD,), ALLOW),
        ("clone", (17,), REFUSE),
        ("clone", (_VFORK,), REFUSE),
        ("clone", (0x10000000,), REFUSE),
        ("mmap", (0, 1 << 20, 3, _MAP_PRIVATE | _ANONYMOUS), ALLOW),
        ("mmap", (0, 1 << 20, 3, _MAP_PRIVATE | _ANONYMOUS | _GROWS_DOWN), REFUSE),
        ("mmap", (0, 1 << 20, 3, _MAP_SHARED | _ANONYMOUS), REFUSE),
        ("mmap", (0, 1 << 20, 3, 3 | _ANONYMOUS), REFUSE),
        ("mmap", (0, 1 << 20, 1, _MAP_SHARED), ALLOW),
        ("kill", (OWN_PROCESS, 9), ALLOW),
        ("kill", (SOMEBODY, 0), TRAP),
        ("kill", (0, 9), TRAP),
        ("kill", (2**32 - 1, 9), TRAP),
        ("tgkill", (OWN_PROCESS, 7, 6), ALLOW),
        ("tgkill", (SOMEBODY, 7, 6), TRAP),
        ("prlimit64", (0, 7), ALLOW),
        ("prlimit64", (SOMEBODY, 7), TRAP),
        ("sendto", (3, 1 << 40, 4, 0, 0), ALLOW),
        ("sendto", (3, 1 << 40, 4, 0, 1 << 40), TRAP),
        ("sendto", (3, 1 << 40, 4, 0, 8), TRAP),
        ("socketpair", (1, 1 | 0o2000000), ALLOW),
        ("socketpair", (1, 2), REFUSE),
        ("socketpair", (2, 1), REFUSE),
        ("socket", (2, 1), REFUSE),
        ("socket", (1, 1), REFUSE),
        ("fcntl", (1, 3), ALLOW),
        ("fcntl", (1, 8, SOMEBODY), REFUSE),
        ("fcntl", (1, 10), REFUSE),
        ("ioctl", (1, 0x5401), ALLOW),
        ("ioctl", (0, 0x5412), REFUSE),
        ("prctl", (15,), ALLOW),
        ("prctl", (1, 0), REFUSE),
        ("prctl", (22, 2), REFUSE),
        ("rt_sigaction", (2, 99), ALLOW),
        ("rt_sigaction", (31, 99), REFUSE),
        ("rt_sigaction", (31, 1 << 40), REFUSE),
        ("rt_sigaction", (31, 0), ALLOW),
        ("sched_setaffinity", (0,), ALLOW),
        ("sched_setaffinity", (SOMEBODY,), REFUSE),
    ],
)
def test_conditions(
    architecture: make_filters.Architecture, call: str, arguments: tuple[int, ...], expected: int
) -> None:
    number = NUMBERS[call][architecture.column]
    assert number is not None
    assert decide(architecture.name, number, arguments) == expected


def test_refusals_are_what_libraries_expect() -> None:
    assert REFUSE & 0xFFFF == errno.EPERM
    assert UNKNOWN & 0xFFFF == errno.ENOSYS
    for architecture in ARCHITECTURES:
        assert len(filters.FILTERS[architecture.name][0]) // 8 < 4096  # the kernel's limit
