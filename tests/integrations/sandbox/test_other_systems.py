"""The shape of macOS and Windows, played on Linux: which tier is taken, what is said, and that calls work there.

What such a system lacks is taken away from this program and from the worker's. What it has and Linux lacks cannot be
played, nor can its own limits.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="plays another system")

_AWAY = ["memfd_create", "pidfd_open", "waitid", "sched_getaffinity", "sched_setaffinity", "eventfd"]
_SYSTEMS = {
    "darwin": (_AWAY, "os.uname = lambda: Uname('Darwin', 'host', '23', '1', 'arm64')"),
    "win32": ([*_AWAY, "fork", "forkpty", "register_at_fork", "uname", "getuid", "setsid", "killpg"], ""),
}
# In this program and in every interpreter that it starts for the sandbox, before anything of the sandbox is loaded.
_PRELUDE = """
import os, sys, sysconfig
sysconfig.get_config_vars()  # found now: they are of this platform
import collections
Uname = collections.namedtuple("Uname", "sysname nodename release version machine")
sys.platform = {platform!r}
for name in {away!r}:
    if hasattr(os, name): delattr(os, name)
if {platform!r} == "win32": sys.modules["resource"] = None
{more}
"""
_WORKER = """
import runpy
sys.argv[:] = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
_PROGRAM = """
import json, warnings
import subprocess, tempfile, pathlib, shutil, importlib.metadata  # what looks at the platform when it is loaded
import numpy, msgpack
{prelude}
from trace_core.integrations.sandbox import fresh, launch, open_sandbox
from trace_core.errors import TraceCoreError
plain = launch.command
def command(*arguments):
    parts = plain(*arguments)
    at = next(i for i, part in enumerate(parts) if part.endswith("worker.py"))
    return [*parts[:at], "-c", {worker!r}, *parts[at:]]
launch.command = command
if {platform!r} == "win32":
    class Nt:
        name = "nt"
        def __getattr__(self, name): return getattr(os, name)
    fresh.os = Nt()
class Code:
    name, filename, is_async = "f", "<f>", False
    def __init__(self, source): self.source = "def f(x):\\n    " + source
found = {{}}
def call(where, source, x=None):
    try:
        return repr(where.call(Code(source), (x,), {{}}, context={{}}))[:40]
    except TraceCoreError as error:
        return type(error).__name__
for tier in ("jail", "process", "auto"):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            sandbox = open_sandbox(tier, timeout=20)
        except TraceCoreError as error:
            found[tier] = {{"refused": type(error).__name__, "why": str(error)}}
            continue
        with sandbox:
            found[tier] = {{
                "class": type(sandbox).__name__,
                "seen": sandbox.describe(),
                "sum": call(sandbox, "import numpy; return float(numpy.sum(x))", numpy.ones(100_000)),
                "print": call(sandbox, "print('x' * 100); return 'printed'"),
                "error": call(sandbox, "return 1 / 0"),
                "exit": call(sandbox, "import os; os._exit(3)"),
                "type": call(sandbox, "return object()"),
                "after": call(sandbox, "return 7"),
            }}
        found[tier]["said"] = [str(w.message) for w in said if "tier" in str(w.message)]
with open_sandbox("process", timeout=0.4) as sandbox:
    found["hang"] = call(sandbox, "\\n    while True: pass")
print(json.dumps(found))
"""


@pytest.fixture(params=["darwin", pytest.param("win32", marks=pytest.mark.slow)], scope="module")
def there(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    pytest.importorskip("numpy")
    platform = request.param
    away, more = _SYSTEMS[platform]
    prelude = _PRELUDE.format(platform=platform, away=away, more=more)
    program = textwrap.dedent(_PROGRAM).format(prelude=prelude, worker=prelude + _WORKER, platform=platform)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return platform, json.loads(done.stdout.splitlines()[-1])


def test_there_is_no_jail_and_the_error_says_what_is_missing(there: Any) -> None:
    platform, found = there
    refused = found["jail"]
    assert refused["refused"] == "SandboxUnavailable"
    memory = "memory limit, " if platform == "win32" else ""
    assert refused["why"].startswith(f"no jail can be had here: missing {memory}filesystem, network, starting programs")
    assert "needs Linux 5.13" in refused["why"]
    assert "isolation='process'" in refused["why"]


def test_automatic_is_the_process_tier_with_one_warning(there: Any) -> None:
    platform, found = there
    (said,) = found["auto"]["said"]
    memory, held = ("memory limit, ", "time") if platform == "win32" else ("", "time and memory")
    assert said.startswith(f"proposed code runs in the tier 'process', not in a jail: missing here: {memory}filesystem")
    assert f"held to {held}, but" in said
    assert "no security boundary" in said
    assert found["process"]["said"] == []  # it was asked for
    for tier in ("auto", "process"):
        seen = found[tier]["seen"]
        assert (seen["tier"], seen["security_boundary"]) == ("process", False)
        assert {"own process", "wall-clock limit", "clean environment", "data-only results"} <= set(seen["layers"])
        wanted = {"filesystem", "network", "starting programs", "signals to others", "system calls"}
        assert {*wanted, "orphans are ended"} <= set(seen["absent"])
        assert seen["fork_per_call"] is (platform == "darwin")


def test_calls_work_there(there: Any) -> None:
    for tier in ("auto", "process"):
        seen = there[1][tier]
        assert (seen["sum"], seen["print"], seen["after"]) == ("100000.0", "'printed'", "7")
        assert (seen["error"], seen["exit"], seen["type"]) == ("CandidateException", "Crash", "ResultRejected")
    assert there[1]["hang"] == "Timeout"
