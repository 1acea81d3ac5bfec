"""Looks around in a candidate's place and says which layers are really there."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trace_core.integrations.sandbox.errors import Memory

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
    for folder in ("/proc/self/fd", "/dev/fd"):
        if os.path.isdir(folder):
            inherited = []
            for name in os.listdir(folder):
                try:
                    if int(name) > 3 and os.fstat(int(name)):
                        inherited.append(int(name))
                except OSError:
                    pass
            seen["descriptors"] = inherited
            break
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
_ABSENT = ("filesystem", "network", "system calls", "starting programs", "number of processes", "shared memory size")


@dataclass(frozen=True)
class _Probe:
    source: str
    name: str
    filename: str = "<probe>"
    is_async: bool = False


def probe(runner: ProcessRunner, settings: Settings, fork: bool) -> dict[str, Any]:
    """The description of a runner, from two calls on it. Raises RunnerError, CandidateError if even that fails."""
    seen: dict[str, Any] = runner.call(_Probe(_SOURCE, "look"), (), {}, context={})
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
        "memory limit": _refuses_memory(runner, settings),
        "CPU limit": "RLIMIT_CPU" in limited,
        "file size limit": "RLIMIT_FSIZE" in limited,
        "open file limit": "RLIMIT_NOFILE" in limited,
        "no core files": limits.get("RLIMIT_CORE") == 0,
        "orphans are ended": fork and sys.platform == "linux",
        "data-only results": True,
    }
    return {
        "tier": "process",
        "security_boundary": False,
        "fork_per_call": fork,
        "layers": tuple(name for name, present in layers.items() if present),
        "absent": (*(name for name, present in layers.items() if not present), *_ABSENT),
        "environment": tuple(seen["environment"]),
        "timeout_seconds": settings.timeout,
        "cpu_seconds": settings.cpu,
        "memory_mb": settings.memory_mb,
        "max_output_bytes": settings.output_bytes,
        "max_result_bytes": settings.result_bytes,
    }


def _refuses_memory(runner: ProcessRunner, settings: Settings) -> bool:
    size = (settings.memory_mb + 16) * 1024 * 1024
    try:
        runner.call(_Probe(_GRAB, "grab"), (size,), {}, context={})
    except Memory:
        return True
    return False


__all__ = ["probe"]
