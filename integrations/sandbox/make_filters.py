"""Makes ``filters.py``: the system call filter of the jail as bytes, one for each processor. Not needed at run time.

    python -m trace_core.integrations.sandbox.make_filters > integrations/sandbox/filters.py

The filter is an allow-list. What it does not name is refused (EPERM); what no library tries by accident (``TRAPPED``)
ends the process; what came after this list was written does not exist (ENOSYS), so that libc takes the older call.
The one thing that is not constant is the process's own id: the installer writes it into the ``holes``.

BPF program: linux/filter.h; what is loaded from: struct seccomp_data in linux/seccomp.h. No library is needed.
"""

from __future__ import annotations

import base64
import errno
import struct
import sys
import textwrap
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Architecture(NamedTuple):
    """What tells the kernel's view of one processor from another's."""

    name: str  # as in ``os.uname().machine``
    audit: int  # AUDIT_ARCH_*
    column: int  # in NUMBERS


ARCHITECTURES = (Architecture("x86_64", 0xC000003E, 0), Architecture("aarch64", 0xC00000B7, 1))
X32_BIT = 0x40000000  # x86_64: the same calls by other numbers, for 32-bit pointers
LAST_KNOWN = 451  # numbers above are of calls that this list does not know

ALLOW, TRAP, KILL = 0x7FFF0000, 0x00030000, 0x80000000
REFUSE = 0x00050000 | errno.EPERM
UNKNOWN = 0x00050000 | errno.ENOSYS


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ALLOWED = _words(
    """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek sendfile copy_file_range close
    close_range fstat newfstatat stat lstat statx statfs fstatfs access faccessat faccessat2 readlink readlinkat open
    openat creat getdents getdents64 mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink
    symlinkat ftruncate fallocate fsync fdatasync flock fadvise64 dup dup2 dup3 pipe pipe2 chdir fchdir getcwd umask
    mprotect munmap mremap madvise brk mincore msync membarrier rseq futex futex_waitv set_robust_list get_robust_list
    set_tid_address restart_syscall exit exit_group sched_yield sched_getaffinity sched_getparam sched_getscheduler
    sched_get_priority_max sched_get_priority_min getpriority getcpu rt_sigprocmask rt_sigreturn rt_sigpending
    rt_sigsuspend rt_sigtimedwait sigaltstack pause nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday
    time times getitimer setitimer alarm timerfd_create timerfd_settime timerfd_gettime getrandom getpid gettid getppid
    getuid geteuid getgid getegid getgroups getresuid getresgid getpgid getpgrp getsid capget uname sysinfo getrusage
    getrlimit setrlimit poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait
    epoll_pwait2 eventfd eventfd2 recvfrom recvmsg sendmsg shutdown getsockopt getsockname getpeername wait4 waitid
    """
)
"""Calls that act on this process, or on files that were opened; opening them is Landlock's business."""

TRAPPED = _words(
    """
    execve execveat ptrace process_vm_readv process_vm_writev process_madvise process_mrelease pidfd_open pidfd_getfd
    pidfd_send_signal kcmp tkill rt_sigqueueinfo rt_tgsigqueueinfo connect bind listen accept accept4 mount umount2
    move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr pivot_root chroot unshare setns bpf
    perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register add_key request_key keyctl init_module
    finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff settimeofday clock_settime adjtimex
    clock_adjtime sethostname setdomainname syslog acct quotactl quotactl_fd name_to_handle_at open_by_handle_at
    fanotify_init iopl ioperm modify_ldt setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid
    setgroups capset memfd_secret
    """
)
"""Calls that end the process: no library makes them to see whether it may."""

UNKNOWN_ON_PURPOSE = frozenset({"clone3", "openat2"})  # their flags lie in memory, where no filter can look


class Program:
    """A BPF program under construction. Jumps only go forward, past a few instructions."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int]] = []
        self.holes: list[int] = []

    def load(self, offset: int) -> None:
        """A := 32 bits of seccomp_data."""
        self._code.append((0x20, 0, 0, offset))

    def mask(self, bits: int) -> None:
        """A := A & bits."""
        self._code.append((0x54, 0, 0, bits))

    def leave(self, action: int) -> None:
        """Decide."""
        self._code.append((0x06, 0, 0, action))

    def if_equal(self, value: int, then: Callable[[], None]) -> None:
        """Run ``then`` if A equals the value; ``then`` must decide in every case that matters."""
        self._branch(0x15, value, then)

    def if_at_least(self, value: int, then: Callable[[], None]) -> None:
        """Run ``then`` if A >= value."""
        self._branch(0x35, value, then)

    def if_own_id(self, then: Callable[[], None]) -> None:
        """Run ``then`` if A is the process id, which the installer fills in."""
        self.holes.append(len(self._code))
        self._branch(0x15, 0, then)

    def unless_at_least(self, value: int, then: Callable[[], None]) -> None:
        """Run ``then``, which decides in every case, if A < value."""
        self._code.append((0x35, 0, 1, value))  # A >= value: to the jump; else past it
        place = len(self._code)
        self._code.append((0x05, 0, 0, 0))
        then()
        self._code[place] = (0x05, 0, 0, len(self._code) - place - 1)  # JA has 32 bits for it

    def _branch(self, operation: int, value: int, then: Callable[[], None]) -> None:
        place = len(self._code)
        self._code.append((operation, 0, 0, value))
        then()
        skipped = len(self._code) - place - 1
        if skipped > 255:
            raise ValueError(f"a jump over {skipped} instructions; BPF has 8 bits for it")
        self._code[place] = (operation, 0, skipped, value)

    def bytes(self) -> bytes:
        """struct sock_filter[], little-endian as both processors are."""
        return b"".join(struct.pack("<HBBI", *instruction) for instruction in self._code)


def low(argument: int) -> int:
    """Offset of the lower half of an argument in seccomp_data."""
    return 16 + 8 * argument


def high(argument: int) -> int:
    """Offset of its upper half."""
    return low(argument) + 4


def _one_of(argument: int, values: Iterable[int], otherwise: int) -> Callable[[Program], None]:
    def emit(program: Program) -> None:
        program.load(low(argument))
        for value in values:
            program.if_equal(value, lambda: program.leave(ALLOW))
        program.leave(otherwise)

    return emit


def _own_process(argument: int, otherwise: int, *, zero: bool) -> Callable[[Program], None]:
    """The argument is this process's id; or 0 where that means the caller."""

    def emit(program: Program) -> None:
        program.load(low(argument))
        program.if_own_id(lambda: program.leave(ALLOW))
        if zero:
            program.if_equal(0, lambda: program.leave(ALLOW))
        program.leave(otherwise)

    return emit


def _null(argument: int, otherwise: int) -> Callable[[Program], None]:
    """The argument is a null pointer."""

    def emit(program: Program) -> None:
        program.load(low(argument))

        def upper() -> None:
            program.load(high(argument))
            program.if_equal(0, lambda: program.leave(ALLOW))

        program.if_equal(0, upper)
        program.leave(otherwise)

    return emit


def _clone(program: Program) -> None:
    """Threads, no processes: CLONE_VM | CLONE_THREAD. Libraries that start helpers go on without them."""
    program.load(low(0))
    program.mask(0x00010100)
    program.if_equal(0x00010100, lambda: program.leave(ALLOW))
    program.leave(REFUSE)


def _mmap(program: Program) -> None:
    """No memory that RLIMIT_DATA does not count: growing down (a stack), or shared without a file."""
    program.load(low(3))
    program.mask(0x0100)  # MAP_GROWSDOWN
    program.if_equal(0x0100, lambda: program.leave(REFUSE))
    program.load(low(3))
    program.mask(0x21)  # MAP_ANONYMOUS, and the bit that MAP_SHARED and MAP_SHARED_VALIDATE have
    program.if_equal(0x21, lambda: program.leave(REFUSE))
    program.leave(ALLOW)


def _socketpair(program: Program) -> None:
    """A pair of connected streams, which asyncio wakes itself with. Datagrams could be sent elsewhere."""
    program.load(low(0))

    def unix() -> None:
        program.load(low(1))
        program.mask(0xF)
        program.if_equal(1, lambda: program.leave(ALLOW))

    program.if_equal(1, unix)
    program.leave(REFUSE)


def _sigaction(program: Program) -> None:
    """Any handler but that of SIGSYS, which says what was refused."""
    program.load(low(0))

    def sigsys() -> None:
        _null(1, REFUSE)(program)

    program.if_equal(31, sigsys)
    program.leave(ALLOW)


CONDITIONS: dict[str, Callable[[Program], None]] = {
    "clone": _clone,
    "mmap": _mmap,
    "socketpair": _socketpair,
    "rt_sigaction": _sigaction,
    "sendto": _null(4, TRAP),  # no address
    "kill": _own_process(0, TRAP, zero=False),
    "tgkill": _own_process(0, TRAP, zero=False),
    "prlimit64": _own_process(0, TRAP, zero=True),  # what it may set there is held by the hard limits
    "sched_setaffinity": _own_process(0, REFUSE, zero=True),
    # names of threads and of memory, and questions; not the death signal or whether it may be looked into
    "prctl": _one_of(0, (15, 16, 3, 21, 23, 0x53564D41), REFUSE),
    # not F_SETOWN and F_SETSIG, which send signals to others
    "fcntl": _one_of(1, (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1033, 1034), REFUSE),
    "ioctl": _one_of(1, (0x5401, 0x541B, 0x5421, 0x5450, 0x5451), REFUSE),  # isatty, how much is there, flags
}

_TABLE = """
accept=43/202 accept4=288/242 access=21/- acct=163/89 add_key=248/217 adjtimex=159/171 alarm=37/- bind=49/200
bpf=321/280 brk=12/214 capget=125/90 capset=126/91 chdir=80/49 chmod=90/- chown=92/- chroot=161/51
clock_adjtime=305/266 clock_getres=229/114 clock_gettime=228/113 clock_nanosleep=230/115 clock_settime=227/112
clone=56/220 clone3=435/435 close=3/57 close_range=436/436 connect=42/203 copy_file_range=326/285 creat=85/-
delete_module=176/106 dup=32/23 dup2=33/- dup3=292/24 epoll_create=213/- epoll_create1=291/20 epoll_ctl=233/21
epoll_pwait=281/22 epoll_pwait2=441/441 epoll_wait=232/- eventfd=284/- eventfd2=290/19 execve=59/221
execveat=322/281 exit=60/93 exit_group=231/94 faccessat=269/48 faccessat2=439/439 fadvise64=221/223
fallocate=285/47 fanotify_init=300/262 fchdir=81/50 fchmod=91/52 fchmodat=268/53 fchown=93/55 fchownat=260/54
fcntl=72/25 fdatasync=75/83 finit_module=313/273 flock=73/32 fork=57/- fsconfig=431/431 fsmount=432/432
fsopen=430/430 fspick=433/433 fstat=5/80 fstatfs=138/44 fsync=74/82 ftruncate=77/46 futex=202/98
futex_waitv=449/449 futimesat=261/- get_robust_list=274/100 getcpu=309/168 getcwd=79/17 getdents=78/-
getdents64=217/61 getegid=108/177 geteuid=107/175 getgid=104/176 getgroups=115/158 getitimer=36/102
getpeername=52/205 getpgid=121/155 getpgrp=111/- getpid=39/172 getppid=110/173 getpriority=140/141
getrandom=318/278 getresgid=120/150 getresuid=118/148 getrlimit=97/163 getrusage=98/165 getsid=124/156
getsockname=51/204 getsockopt=55/209 gettid=186/178 gettimeofday=96/169 getuid=102/174 init_module=175/105
io_uring_enter=426/426 io_uring_register=427/427 io_uring_setup=425/425 ioctl=16/29 ioperm=173/- iopl=172/-
kcmp=312/272 kexec_file_load=320/294 kexec_load=246/104 keyctl=250/219 kill=62/129 lchown=94/- link=86/-
linkat=265/37 listen=50/201 lookup_dcookie=212/18 lseek=8/62 lstat=6/- madvise=28/233 mbind=237/235
membarrier=324/283 memfd_create=319/279 memfd_secret=447/447 migrate_pages=256/238 mincore=27/232 mkdir=83/-
mkdirat=258/34 mknod=133/- mknodat=259/33 mmap=9/222 modify_ldt=154/- mount=165/40 mount_setattr=442/442
move_mount=429/429 move_pages=279/239 mprotect=10/226 mq_open=240/180 mremap=25/216 msgget=68/186 msync=26/227
munmap=11/215 name_to_handle_at=303/264 nanosleep=35/101 newfstatat=262/79 nfsservctl=180/42 open=2/-
open_by_handle_at=304/265 open_tree=428/428 openat=257/56 openat2=437/437 pause=34/- perf_event_open=298/241
personality=135/92 pidfd_getfd=438/438 pidfd_open=434/434 pidfd_send_signal=424/424 pipe=22/- pipe2=293/59
pivot_root=155/41 poll=7/- ppoll=271/73 prctl=157/167 pread64=17/67 preadv=295/69 preadv2=327/286
prlimit64=302/261 process_madvise=440/440 process_mrelease=448/448 process_vm_readv=310/270
process_vm_writev=311/271 pselect6=270/72 ptrace=101/117 pwrite64=18/68 pwritev=296/70 pwritev2=328/287
quotactl=179/60 quotactl_fd=443/443 read=0/63 readlink=89/- readlinkat=267/78 readv=19/65 reboot=169/142
recvfrom=45/207 recvmsg=47/212 rename=82/- renameat=264/38 renameat2=316/276 request_key=249/218
restart_syscall=219/128 rmdir=84/- rseq=334/293 rt_sigaction=13/134 rt_sigpending=127/136 rt_sigprocmask=14/135
rt_sigqueueinfo=129/138 rt_sigreturn=15/139 rt_sigsuspend=130/133 rt_sigtimedwait=128/137
rt_tgsigqueueinfo=297/240 sched_get_priority_max=146/125 sched_get_priority_min=147/126
sched_getaffinity=204/123 sched_getparam=143/121 sched_getscheduler=145/120 sched_setaffinity=203/122
sched_yield=24/124 select=23/- semget=64/190 sendfile=40/71 sendmsg=46/211 sendto=44/206 set_mempolicy=238/237
set_robust_list=273/99 set_tid_address=218/96 setdomainname=171/162 setfsgid=123/152 setfsuid=122/151
setgid=106/144 setgroups=116/159 sethostname=170/161 setitimer=38/103 setns=308/268 setpriority=141/140
setregid=114/143 setresgid=119/149 setresuid=117/147 setreuid=113/145 setrlimit=160/164 settimeofday=164/170
setuid=105/146 setxattr=188/5 shmat=30/196 shmget=29/194 shutdown=48/210 sigaltstack=131/132 socket=41/198
socketpair=53/199 stat=4/- statfs=137/43 statx=332/291 swapoff=168/225 swapon=167/224 symlink=88/-
symlinkat=266/36 sysinfo=99/179 syslog=103/116 tgkill=234/131 time=201/- timerfd_create=283/85
timerfd_gettime=287/87 timerfd_settime=286/86 times=100/153 tkill=200/130 truncate=76/45 umask=95/166
umount2=166/39 uname=63/160 unlink=87/- unlinkat=263/35 unshare=272/97 userfaultfd=323/282 utime=132/-
utimensat=280/88 utimes=235/- vfork=58/- vhangup=153/58 wait4=61/260 waitid=247/95 write=1/64 writev=20/66
"""
NUMBERS: dict[str, tuple[int | None, ...]] = {
    name: tuple(None if number == "-" else int(number) for number in numbers.split("/"))
    for name, _, numbers in (item.partition("=") for item in _TABLE.split())
}
"""Name -> its number on each processor of ARCHITECTURES, or None."""


def assemble(architecture: Architecture) -> tuple[bytes, tuple[int, ...]]:
    """The program for one processor, and the instructions that compare with the process id."""
    program = Program()
    program.load(4)
    program.if_equal(architecture.audit, lambda: program.load(0))
    # if it was not equal, A still holds the identifier of a 32-bit processor, which has this bit as well
    program.if_at_least(X32_BIT, lambda: program.leave(KILL))
    _search(program, _ranges(architecture))
    return program.bytes(), tuple(program.holes)


Range = tuple[int, "int | str"]  # the first number of it; the action, or the call whose condition decides


def _ranges(architecture: Architecture) -> list[Range]:
    """All numbers, in order, as ranges of one decision."""
    names = {number: name for name, number in _numbers(architecture).items()}
    ranges: list[Range] = []
    for number in range(LAST_KNOWN + 2):
        decision = _decision(names.get(number, ""), number)
        if not ranges or ranges[-1][1] != decision:
            ranges.append((number, decision))
    return ranges


def _decision(name: str, number: int) -> int | str:
    if name in CONDITIONS:
        return name
    if name in ALLOWED:
        return ALLOW
    if name in TRAPPED:
        return TRAP
    return UNKNOWN if number > LAST_KNOWN or name in UNKNOWN_ON_PURPOSE else REFUSE


def _search(program: Program, ranges: list[Range]) -> None:
    """Find the range that A lies in by halving: the kernel tries every number when the filter is installed."""
    if len(ranges) == 1:
        decision = ranges[0][1]
        if isinstance(decision, int):
            program.leave(decision)
        else:
            CONDITIONS[decision](program)
        return
    middle = len(ranges) // 2
    program.unless_at_least(ranges[middle][0], lambda: _search(program, ranges[:middle]))
    _search(program, ranges[middle:])


def _numbers(architecture: Architecture) -> dict[str, int]:
    column = ((name, numbers[architecture.column]) for name, numbers in NUMBERS.items())
    return {name: number for name, number in column if number is not None}


def render() -> str:
    """The text of ``filters.py``."""
    parts = [
        '"""System call filters as bytes. Made by ``make_filters.py``; do not edit: a test compares. Stand-alone."""',
        "",
        "from __future__ import annotations",
        "",
        "import base64",
        "",
        "FILTERS: dict[str, tuple[bytes, tuple[int, ...]]] = {",
    ]
    for architecture in ARCHITECTURES:
        code, holes = assemble(architecture)
        parts += [f'    "{architecture.name}": (', "        base64.b64decode("]
        parts += [f'            "{line}"' for line in textwrap.wrap(base64.b64encode(code).decode(), 104)]
        parts += ["        ),", f"        {holes},", "    ),"]
    parts += ["}", '"""Processor -> the BPF program, and its instructions that compare with the process id."""', ""]
    parts += ["TRAPPED: dict[str, dict[int, str]] = {"]
    for architecture in ARCHITECTURES:
        numbers = _numbers(architecture)
        trapped = sorted((numbers[n], n) for n in {*TRAPPED, "kill", "tgkill", "prlimit64", "sendto"} if n in numbers)
        lines = [f'        {number}: "{name}",' for number, name in trapped]
        parts += [f'    "{architecture.name}": {{', *lines, "    },"]
    parts += ["}", '"""Processor -> names of the calls that end the process, by number."""', ""]
    parts += ['__all__ = ["FILTERS", "TRAPPED"]']
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
