"""Looks around in a candidate's place and says which layers are really there."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trace_core.errors import CandidateError
from trace_core.integrations.sandbox.errors import Memory, PolicyViolation

if TYPE_CHECKING:
    from trace_core.integrations.sandbox.launch import Settings
    from trace_core.integrations.sandbox.runner import ProcessRunner

_SOURCE = """
def look():
    import os, stat, sys
    seen = {"pid": os.getpid(), "environment": sorted(os.environ), "directory": os.listdir(".")}
    seen["home"] = os.path.realpath(os.environ.get("HOME", "")) == os.path.realpath(os.getcwd())
    seen["stdin"] = os.path.samestat(os.fstat(0), os.stat(os.devnull)) if os.name == "posix" else None
    if hasattr(os, "getsid"):
        seen["session"] = os.getsid(0) == os.getpid() == os.getpgrp()
    inherited = []
    for number in range(4, 300):
        try:
            os.fstat(number)
        except OSError:
            continue
        inherited.append(number)
    seen["descriptors"] = inherited
    try:
        import resource
    except ImportError:
        return seen
    names = ("RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_CORE")
    seen["limits"] = {name: resource.getrlimit(getattr(resource, name))[0] for name in names}
    seen["unlimited"] = resource.RLIM_INFINITY
    return seen
"""
_GRAB = "def grab(size):\n    return len(bytearray(size))\n"
_ATTEMPTS = """
def attempt(canary, outside, port, parent):
    import mmap, os, signal, socket
    def fails(action):
        try:
            action()
        except OSError:
            return True
        return False
    def read(path):
        return lambda: open(path, "rb").read()
    def reach(kind, how):
        def go():
            with socket.socket(kind, how) as made:
                made.settimeout(2)
                made.connect(("127.0.0.1", port))
        return go
    def fork():
        if os.fork() == 0:
            os._exit(0)
        os.wait()
    seen = {}
    seen["filesystem"] = (
        fails(read(canary)) and fails(read(f"/proc/{parent}/environ")) and fails(lambda: open(outside, "ab").close())
        and fails(lambda: os.listdir("/"))
    )
    families = [(socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_DGRAM)]
    seen["network"] = all(fails(reach(*family)) for family in families) and (
        not hasattr(socket, "AF_UNIX") or fails(lambda: socket.socket(socket.AF_UNIX).close())
    )
    seen["number of processes"] = not hasattr(os, "fork") or fails(fork)
    seen["shared memory size"] = os.name == "posix" and fails(lambda: mmap.mmap(-1, 1 << 16).close())
    return seen
"""
# each of these ends the process where it is not allowed
_SIGNAL = "def signal(pid):\n    import os\n    os.kill(pid, 0)\n"
_PROGRAM = "def start(path):\n    import os\n    os.execv(path, [path])\n"
_TRACE = (
    "def trace():\n    import ctypes\n    libc = ctypes.CDLL(None)\n"
    "    return libc.syscall(101 if hasattr(libc, 'arch_prctl') else 117, 0, 0, 0, 0)\n"
)
_TRUE = "/bin/true"
_KERNEL = ("filesystem", "network", "starting programs", "number of processes", "signals to others", "system calls")


SECONDS = 60.0  # that a probe may take: a hasty runner on a busy machine is a jail, too
NEEDED = (
    "clean environment",
    "no inherited descriptors",
    "memory limit",
    "filesystem",
    "network",
    "starting programs",
    "number of processes",
    "signals to others",
    "system calls",
    "shared memory size",
)
"""Layers that the self-test must have seen at work for a runner to call itself a jail."""


@dataclass(frozen=True)
class _Probe:
    source: str
    name: str
    filename: str = "<probe>"
    is_async: bool = False


def probe(runner: ProcessRunner, settings: Settings, fork: bool) -> dict[str, Any]:
    """The description of a runner, from calls on it. Raises RunnerError, CandidateError if even those fail."""
    timeout, cpu = max(settings.timeout, SECONDS), max(settings.cpu, SECONDS)
    call = _Caller(runner, replace(settings, imports=None, timeout=timeout, cpu=cpu))
    seen: dict[str, Any] = call(_SOURCE, "look")
    tried = {**dict.fromkeys((*_KERNEL, "shared memory size"), False), **_attempts(call)}
    limits, unlimited = seen.get("limits", {}), seen.get("unlimited")
    limited = {name for name, value in limits.items() if value != unlimited}
    layers = {
        "own process": True,
        "wall-clock limit": True,
        "clean environment": not {n for n in seen["environment"] if "KEY" in n or "TOKEN" in n or "SECRET" in n},
        "own session": seen.get("session", False),
        "no standard input": bool(seen["stdin"]),
        "no inherited descriptors": seen.get("descriptors") == [],
        "empty working directory": seen["home"] and seen["directory"] == [],
        "memory limit": _refuses_memory(call, settings),
        "CPU limit": "RLIMIT_CPU" in limited,
        "file size limit": "RLIMIT_FSIZE" in limited,
        "open file limit": "RLIMIT_NOFILE" in limited,
        "no core files": limits.get("RLIMIT_CORE") == 0,
        "orphans are ended": fork and sys.platform == "linux",
        "data-only results": True,
        **tried,
    }
    return {
        "tier": "jail" if all(layers[name] for name in NEEDED) else "process",
        "security_boundary": all(layers[name] for name in NEEDED),
        "fork_per_call": fork,
        "layers": tuple(name for name, present in layers.items() if present),
        "absent": tuple(name for name, present in layers.items() if not present),
        "environment": tuple(seen["environment"]),
        "timeout_seconds": settings.timeout,
        "cpu_seconds": settings.cpu,
        "memory_mb": settings.memory_mb,
        "max_output_bytes": settings.output_bytes,
        "max_result_bytes": settings.result_bytes,
    }


class _Caller:
    """Runs probes, which may import whatever there is."""

    def __init__(self, runner: ProcessRunner, settings: Settings) -> None:
        self._runner, self._settings = runner, settings

    def __call__(self, source: str, name: str, *args: Any) -> Any:
        return self._runner._run(_Probe(source, name), [(args, {})], {}, self._settings)[0].unwrap()


def _attempts(call: _Caller) -> dict[str, bool]:
    """What a jail must refuse, tried on things of this process's own."""
    with tempfile.TemporaryDirectory(prefix="trace_core-probe-") as folder, socket.socket() as listener:
        canary, outside = os.path.join(folder, "canary"), os.path.join(folder, "outside")
        for path in (canary, outside):
            with open(path, "w") as file:
                file.write("canary")
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        seen: dict[str, bool] = call(_ATTEMPTS, "attempt", canary, outside, listener.getsockname()[1], os.getpid())
    seen["signals to others"] = _ended_by_policy(call, _SIGNAL, "signal", os.getpid())
    seen["starting programs"] = seen["number of processes"] and _ended_by_policy(call, _PROGRAM, "start", _TRUE)
    seen["system calls"] = _ended_by_policy(call, _TRACE, "trace")
    return seen


def _ended_by_policy(call: _Caller, source: str, name: str, *args: Any) -> bool:
    try:
        call(source, name, *args)
    except PolicyViolation:
        return True
    except CandidateError:
        return False
    return False


def _refuses_memory(call: _Caller, settings: Settings) -> bool:
    size = (settings.memory_mb + 16) * 1024 * 1024
    try:
        call(_GRAB, "grab", size)
    except Memory:
        return True
    return False


__all__ = ["NEEDED", "probe"]
