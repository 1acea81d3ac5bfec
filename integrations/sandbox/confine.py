"""What is put around a candidate, in its own process, before any of its code runs. Stand-alone.

``FORKED`` lists the layers in the order in which they are applied, each one function of a ``Place``. A layer that takes
rights away (a filesystem or system call filter) belongs at the end, when everything that needs those rights is done. A
layer that cannot be applied raises, and the candidate does not run. What can be found out or set once for all children
is done in the worker, by ``prepare``: every page a child touches has to be copied, so a layer should do little.
"""

from __future__ import annotations

# the plain functions: the wrappers in ``signal`` turn every number into an enum
import _signal as signal  # type: ignore[import-not-found]
import os
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from trace_core.integrations.sandbox import landlock, privileges, seccomp
else:
    landlock, privileges = sys.modules["_sandbox_landlock"], sys.modules["_sandbox_privileges"]
    seccomp = sys.modules["_sandbox_seccomp"]

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

MEBIBYTE = 1024 * 1024
RESERVE = 64 * MEBIBYTE  # kept back from a candidate, so that its MemoryError can still be reported
CHANNEL = 3  # the descriptor of the channel to the host, after ``descriptors``
_MOST_RULES = 64  # rulesets that are kept
_MOST_USES = 64  # of one: each use adds what the candidate may read of itself
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36  # options of prctl(2)


class Prepared:
    """What the worker has found out for its children.

    Attributes:
        limits: resource and (soft, hard) value, in the order in which they are set.
        last_descriptor: one above the highest number that an open descriptor can have.
        reaper: whether orphans of candidates come to this process (Linux).
        landlock: the kernel's version of it, 0 for none or not wanted.
        filter: the system call filter, None if there is none or it is not wanted.
    """

    limits: list[tuple[int, tuple[int, int]]]
    last_descriptor = 4096
    reaper = False
    landlock = 0
    filter: seccomp.Filter | None = None
    drop: privileges.Drop | None = None

    def __init__(self, wanted: dict[str, Any], jail: dict[str, Any] | None = None) -> None:
        self._wanted = wanted
        self._rules: dict[str, tuple[int, int]] = {}  # directory -> descriptor, how often it was used
        self.jail = jail
        self.libc: Any = None
        self.measure()

    def prepare(self) -> None:
        """Set up this process so that children inherit what need not be done in each of them."""
        if sys.platform == "linux":
            import ctypes

            self.libc = ctypes.CDLL(None, use_errno=True)
            self.prctl(_SET_CHILD_SUBREAPER, 1)
            self.reaper = True
            _prefer_for_oom()
            self._look_at_the_kernel()
        if resource is not None:
            self.last_descriptor = max(os.sysconf("SC_OPEN_MAX"), self.last_descriptor)
            _, hard = resource.getrlimit(resource.RLIMIT_CORE)
            resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
        standard_streams()
        default_signals()

    def _look_at_the_kernel(self) -> None:
        """What it offers of the layers of the jail. Those that are missing are left out; the host's self-test sees."""
        if self.jail is None:
            return
        self.landlock = landlock.version(self.libc)
        self.drop = privileges.Drop(self.libc, keep_reading=self.landlock > 0)
        if seccomp.available(self.libc):
            self.filter = seccomp.Filter(self.libc)

    def rules(self, directory: str, readable: Sequence[str]) -> int:
        """A descriptor of what a candidate in that directory may open; -1 for no such layer.

        Directories are used again and again, and making the rules takes as long as all other layers.
        """
        if self.jail is None or not self.landlock:
            return -1
        if not readable and directory in self._rules:
            made, uses = self._rules.pop(directory)
            if uses < _MOST_USES:
                self._rules[directory] = (made, uses + 1)
                return made
            os.close(made)
        read = (*self.jail["read"], *readable)
        made = landlock.ruleset(self.libc, self.landlock, read, self.jail["write"], directory)
        if not readable:
            self._rules[directory] = (made, 1)
            while len(self._rules) > _MOST_RULES:
                os.close(self._rules.pop(next(iter(self._rules)))[0])
        return made

    def release_rules(self, rules: int) -> None:
        """Close a descriptor that is not kept for the next call."""
        if rules >= 0 and all(rules != kept for kept, _ in self._rules.values()):
            os.close(rules)

    def prctl(self, option: int, value: int) -> None:
        """Call prctl(2), which only Linux has."""
        if self.libc is not None and self.libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(f"prctl({option}) failed")

    def measure(self) -> None:
        """Work out the limits. Memory counts what a candidate adds to what is loaded here now."""
        self.limits = []
        if resource is None:
            return
        memory = self._wanted["memory_mb"] * MEBIBYTE + _data_bytes()
        for which, soft, hard in (
            (resource.RLIMIT_DATA, memory, memory + RESERVE),
            (resource.RLIMIT_FSIZE, self._wanted["output_bytes"], None),
            (resource.RLIMIT_NOFILE, self._wanted["files"], None),
            (resource.RLIMIT_CORE, 0, None),
        ):
            _, ceiling = resource.getrlimit(which)
            top = soft if hard is None else hard
            if ceiling != resource.RLIM_INFINITY:
                top = min(top, ceiling)  # a limit that is lower already stays
            self.limits.append((which, (min(soft, top), top)))


class Place:
    """Where one candidate runs: folder, descriptors, the process that started it, what that has prepared."""

    def __init__(
        self,
        *,
        directory: str,
        channel: int,
        output: int,
        supervisor: int,
        prepared: Prepared,
        rules: int = -1,
        given: int = 0,
    ) -> None:
        self.directory = directory
        self.channel = channel
        self.output = output
        self.supervisor = supervisor
        self.prepared = prepared
        self.rules = rules  # what may be opened, -1 for anything
        self.given = given  # bytes of memory that its arguments take and that are not counted against it


def session(place: Place) -> None:
    """A session and a process group of its own: one signal reaches all that the candidate starts."""
    os.setsid()


def death_signal(place: Place) -> None:
    """Die with the worker (Linux)."""
    if place.prepared.reaper:
        place.prepared.prctl(_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != place.supervisor:
            os._exit(1)  # it went before the request was in force


def descriptors(place: Place) -> None:
    """Standard input, output, error and the channel; every other descriptor is closed."""
    os.dup2(place.output, 1)
    os.dup2(place.output, 2)
    os.dup2(place.channel, CHANNEL, inheritable=False)
    if place.rules >= 0:
        os.dup2(place.rules, CHANNEL + 1, inheritable=False)
        place.rules = CHANNEL + 1
    os.closerange(CHANNEL + 1 + (place.rules >= 0), place.prepared.last_descriptor)


def worker_signals(place: Place) -> None:
    """Undo what the worker needs to hear of its children."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def directory(place: Place) -> None:
    """An empty working directory, which is also home and the place for temporary files."""
    os.chdir(place.directory)
    os.environ["HOME"] = os.environ["TMPDIR"] = place.directory
    tempfile: Any = sys.modules.get("tempfile")
    if tempfile is not None:
        tempfile.tempdir = None  # may have been decided before


def randomness(place: Place) -> None:
    """``random`` reseeds itself after a fork; numpy's global generator does not."""
    generator: Any = sys.modules.get("numpy.random")
    if generator is not None:
        generator.seed()


def limits(place: Place) -> None:
    """Resource limits."""
    for which, (soft, hard) in place.prepared.limits:
        if place.given and which == resource.RLIMIT_DATA:
            _, ceiling = resource.getrlimit(which)
            soft, hard = soft + place.given, hard + place.given
            if ceiling != resource.RLIM_INFINITY:
                soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(which, (soft, hard))


def rights(place: Place) -> None:
    """What root may do beyond others (Linux)."""
    if place.prepared.drop is not None:
        place.prepared.drop()


def files(place: Place) -> None:
    """What can be opened: Landlock."""
    prepared = place.prepared
    if prepared.jail is not None and place.rules >= 0:
        landlock.allow_reading(prepared.libc, prepared.landlock, place.rules, prepared.jail["of_itself"])
        landlock.restrict(prepared.libc, place.rules)
        os.close(place.rules)


def system_calls(place: Place) -> None:
    """Which system calls there are: seccomp. The last layer, since it forbids what the others need."""
    if place.prepared.filter is not None:
        place.prepared.filter.install()


FORKED: tuple[Callable[[Place], None], ...] = (
    session,
    death_signal,
    descriptors,
    worker_signals,
    directory,
    randomness,
    limits,
    rights,
    files,
    system_calls,
)
"""Layers of a candidate that was forked from the worker; the last three do nothing outside of the jail."""

FRESH: tuple[Callable[[Place], None], ...] = (directory, limits)
"""Layers of a candidate that has an interpreter of its own; the host gave it its session and its descriptors."""


def apply(place: Place, layers: tuple[Callable[[Place], None], ...]) -> None:
    """Apply the layers in order."""
    for layer in layers:
        layer(place)


def standard_streams() -> None:
    """Standard streams as a program expects them. Lines are written at once: a crash does not swallow them."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]


def default_signals() -> None:
    """Too large a file ends the process, so that the limit cannot be shrugged off; Python would ignore it."""
    for name in ("SIGXFSZ", "SIGXCPU", "SIGTERM"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)


def cap_cpu(seconds: float) -> None:
    """Let this process use ``seconds`` of CPU time in all; beyond that the kernel kills it."""
    if resource is None:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    wanted = int(seconds) + 3
    wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (wanted, wanted))


def allow_cpu(seconds: float) -> None:
    """Let this process use ``seconds`` more of CPU time, rounded up; beyond that SIGXCPU comes."""
    if resource is None:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(time.process_time()) + int(seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def release_reserve() -> None:
    """Make room for the report of a MemoryError."""
    if resource is None:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _data_bytes() -> int:
    """Writable private memory of this process so far; 0 where it cannot be read."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[5]) * resource.getpagesize()
    except OSError:
        return 0


def _prefer_for_oom() -> None:
    """If the machine runs out of memory, let the kernel take one of ours: the biggest is a candidate (Linux)."""
    try:
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write("800")
    except OSError:  # no /proc: a wish, not a promise
        return
