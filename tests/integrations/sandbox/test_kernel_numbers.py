"""Numbers of the kernel that are written down in the sandbox, against the kernel's own tables, for both processors."""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trace_core.integrations.sandbox import filters, landlock, privileges, seccomp
from trace_core.integrations.sandbox.make_filters import ARCHITECTURES, NUMBERS

# As the kernel's sources have them (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h), for
# calls on which the jail hangs; the headers below are compared with in full where they are installed.
KNOWN = {
    "read": (0, 63),
    "openat": (257, 56),
    "mmap": (9, 222),
    "clone": (56, 220),
    "clone3": (435, 435),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tgkill": (234, 131),
    "tkill": (200, 130),
    "rt_sigaction": (13, 134),
    "ptrace": (101, 117),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "socket": (41, 198),
    "connect": (42, 203),
    "sendto": (44, 206),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "process_vm_readv": (310, 270),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "keyctl": (250, 219),
    "setns": (308, 268),
    "unshare": (272, 97),
    "open_by_handle_at": (304, 265),
}
HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"),
    "aarch64": ("/usr/include/asm-generic/unistd.h",),
}
# the generic table has one name for both widths of a processor
_RENAMED = {"fstatat": "newfstatat"}


def header(*places: str) -> str:
    for place in places:
        if Path(place).exists():
            return Path(place).read_text()
    pytest.skip(f"none of {', '.join(places)} is installed")


def test_calls_on_which_the_jail_hangs() -> None:
    assert {name: NUMBERS[name] for name in KNOWN} == KNOWN


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_all_numbers_are_those_of_the_kernels_table(architecture: Any) -> None:
    text = header(*HEADERS[architecture.name])
    found = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)\s*$", text, re.MULTILINE)
    table = {_RENAMED.get(name, name): int(number) for name, number in found}
    ours = {name: numbers[architecture.column] for name, numbers in NUMBERS.items()}
    assert len(table) > 250
    assert {name: number for name, number in ours.items() if number is not None} == {
        name: table.get(name) for name, number in ours.items() if number is not None
    }
    assert not {name for name, number in ours.items() if number is None} & table.keys()
    for name, number in (("create_ruleset", 444), ("add_rule", 445), ("restrict_self", 446)):
        assert table.get(f"landlock_{name}", number) == number == getattr(landlock, name.upper())
    assert table["seccomp"] == seccomp._SECCOMP[architecture.name]


def test_rights_of_landlock() -> None:
    text = header("/usr/include/linux/landlock.h")
    bits = dict(re.findall(r"^#define LANDLOCK_ACCESS_FS_(\w+)\s+\(1ULL << (\d+)\)", text, re.MULTILINE))
    names = [
        "EXECUTE",
        "WRITE_FILE",
        "READ_FILE",
        "READ_DIR",
        "REMOVE_DIR",
        "REMOVE_FILE",
        "MAKE_DIR",
        "MAKE_REG",
        "MAKE_SYM",
        "REFER",
    ]
    assert {name: getattr(landlock, name) for name in names} == {name: 1 << int(bits[name]) for name in names}
    for name in ("MAKE_CHAR", "MAKE_SOCK", "MAKE_FIFO", "MAKE_BLOCK"):  # handled, and granted to nobody
        assert not landlock.OWN & 1 << int(bits[name])
    assert "LANDLOCK_RULE_PATH_BENEATH = 1" in text


def test_constants_of_other_headers() -> None:
    places = {
        "prctl.h": {
            "PR_SET_PDEATHSIG": 1,
            "PR_SET_CHILD_SUBREAPER": 36,
            "PR_SET_NO_NEW_PRIVS": 38,
            "PR_SET_SECCOMP": 22,
        },
        "seccomp.h": {"SECCOMP_MODE_FILTER": 2, "SECCOMP_GET_ACTION_AVAIL": 2},
        "capability.h": {"CAP_DAC_READ_SEARCH": 2, "_LINUX_CAPABILITY_VERSION_3": 0x20080522},
    }
    for place, constants in places.items():
        text = header(f"/usr/include/linux/{place}")
        for name, value in constants.items():
            found = re.search(rf"^#\s*define {name}\s+(\w+)", text, re.MULTILINE)
            assert found is not None, name
            assert int(found[1], 0) == value
    from trace_core.integrations.sandbox import confine

    ours = (confine._SET_PDEATHSIG, confine._SET_CHILD_SUBREAPER, landlock._NO_NEW_PRIVILEGES, seccomp._SET_SECCOMP)
    assert ours == (1, 36, 38, 22)
    assert (seccomp._FILTER, seccomp._GET_ACTION_AVAIL, seccomp._NO_NEW_PRIVILEGES) == (2, 2, 38)
    assert (privileges._READ_SEARCH, privileges._VERSION) == (1 << 2, 0x20080522)


def test_processors_as_the_kernel_names_them() -> None:
    """AUDIT_ARCH_*: the number of the ELF machine, 64 bits, little-endian."""
    machines = {"x86_64": 62, "aarch64": 183}
    for architecture in ARCHITECTURES:
        assert architecture.audit == machines[architecture.name] | 0x80000000 | 0x40000000


class Libc:
    """Takes notes of what would be asked of a kernel."""

    def __init__(self, answer: Callable[..., int] = lambda *_: 0) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._answer = answer

    def syscall(self, number: int, *arguments: Any) -> int:
        plain = tuple(getattr(argument, "value", argument) for argument in arguments)
        self.calls.append(("syscall", number, *plain))
        return self._answer(number, *plain)

    def prctl(self, *arguments: Any) -> int:
        self.calls.append(("prctl", *arguments))
        return 0

    def sigaction(self, number: int, action: bytes, _old: Any) -> int:
        self.calls.append(("sigaction", number, action))
        return 0


@pytest.mark.parametrize(("machine", "number"), [("x86_64", 317), ("aarch64", 277)])
def test_each_processor_gets_its_own_filter(machine: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp.platform, "machine", lambda: machine)
    monkeypatch.setattr(seccomp.sys, "platform", "linux")
    libc = Libc()
    assert seccomp.available(libc)
    assert libc.calls[0][:3] == ("syscall", number, 2)
    assert libc.calls[0][-1] == struct.pack("=I", 0x00030000)  # SECCOMP_RET_TRAP
    monkeypatch.setattr(seccomp.os, "getpid", lambda: 0x01020304)
    seccomp.Filter(libc).install()
    assert [call[:2] for call in libc.calls[1:]] == [("sigaction", 31), ("prctl", 38), ("prctl", 22)]
    length, place = struct.unpack("@HxxxxxxQ", libc.calls[-1][3])
    loaded = ctypes.string_at(place, 8 * length)
    shipped, holes = filters.FILTERS[machine]
    assert len(loaded) == len(shipped)
    for instruction in range(length):
        ours = loaded[8 * instruction : 8 * instruction + 8]
        wanted = shipped[8 * instruction : 8 * instruction + 8]
        assert ours == (wanted[:4] + struct.pack("<I", 0x01020304) if instruction in holes else wanted)


@pytest.mark.parametrize("machine", ["riscv64", "ppc64le", "armv7l", "i686"])
def test_other_processors_have_no_filter(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp.platform, "machine", lambda: machine)
    libc = Libc()
    assert not seccomp.available(libc)
    assert libc.calls == []


@pytest.mark.parametrize(
    ("known", "files", "size"), [(1, 13, 8), (2, 14, 8), (3, 15, 8), (4, 15, 16), (5, 16, 16), (6, 16, 24)]
)
def test_each_landlock_is_asked_for_what_it_knows(known: int, files: int, size: int, tmp_path: Path) -> None:
    """More would be refused as a whole; less would leave something open."""
    monkey = Libc(lambda number, *_: 99 if number == 444 else 0)
    made = landlock.ruleset(monkey, known, [str(tmp_path)], ["/dev/null"], str(tmp_path))
    assert made == 99
    create, *rules = monkey.calls
    assert create[:2] == ("syscall", 444)
    assert create[3] == size == len(create[2])
    (handled,) = struct.unpack("=Q", create[2][:8])
    assert handled == (1 << files) - 1
    assert [rule[1] for rule in rules] == [445] * 3
    for rule in rules:
        rights, _place = struct.unpack("=Qi", rule[4])
        assert rights & ~handled == 0
        assert rights & landlock.EXECUTE == 0
    assert landlock.version(Libc(lambda *_: -1)) == 0
