"""Every abuse of ``abuses.py`` in the jail: as the user who runs the tests and, if that is root, as an ordinary one.

Each by itself, and all of them as proposals of one optimization. A program of its own plays the host: it starts with
a secret in its environment, as real ones do.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import abuses
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="the jail is for Linux"
    ),
]
PROGRAM = Path(abuses.__file__).resolve()
# finds what the interpreter of the tests finds, editable installs included
START = "import runpy, site, sys; [site.addsitedir(p) for p in {paths!r}]; sys.argv[:] = {argv!r}; "
START += "runpy.run_path({program!r}, run_name='__main__')"
NOBODY = 65534


def _program(interpreter: str, *what: str) -> list[str]:
    paths = [path for path in sys.path if "packages" in path]
    text = START.format(paths=paths, argv=["abuses", *what], program=str(PROGRAM))
    return [interpreter, "-c", text]


def _start(interpreter: str, user: int | None, *what: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "OPENAI_API_KEY": abuses.CANARY, "HOME": "/"}
    options: dict[str, Any] = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    return subprocess.run(
        _program(interpreter, *what), env=environment, cwd="/", capture_output=True, text=True, check=False, **options
    )


@functools.cache
def _interpreter_of_others() -> str:
    """A Python that an ordinary user may start and that finds this library; empty if there is none."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for interpreter in (sys.executable, *(shutil.which(name, path=p) for p in ("/usr/local/bin", "/usr/bin"))):
        if interpreter is not None:
            try:
                if _start(interpreter, NOBODY).returncode == 0:
                    return interpreter
            except OSError:  # it lies in a folder that is closed to others
                continue
    return ""


@pytest.fixture(params=["as who runs the tests", "as an ordinary user"], scope="module")
def report(request: pytest.FixtureRequest) -> Any:
    user = os.getuid()
    if request.param == "as who runs the tests":
        done = _start(sys.executable, None, "single", "optimization")
    else:
        if os.getuid() != 0:
            pytest.skip("the tests run as an ordinary user already")
        interpreter = _interpreter_of_others()
        if not interpreter:
            pytest.skip("no Python with this library can be started by another user here")
        user = NOBODY
        done = _start(interpreter, user, "single", "optimization")
    if "SandboxUnavailable" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) | {"asked for": user}


@pytest.mark.parametrize("name", abuses.ABUSES)
def test_an_abuse_ends_as_an_error_of_its_own_call(report: Any, name: str) -> None:
    """The host lives and the next call works, or there would be no report."""
    expected, _ = abuses.ABUSES[name]
    seen = report["single"][name]
    if expected != "any":
        may_be = {expected, "Timeout"} if name in abuses.SLOW else {expected}
        assert seen.get("error", "value") in may_be, seen
    assert abuses.CANARY not in json.dumps(seen)
    assert seen["untouched"]
    assert seen["left"] == []
    if "error" in seen:
        assert seen["text"].startswith("(in f) ")
        assert "worker.py" not in seen["text"]
    if expected == "PolicyViolation":
        assert seen["kind"] == "policy"
        assert "tried what it may not do" in seen["text"]


def test_an_optimization_goes_on_through_all_of_them(report: Any) -> None:
    seen = report["optimization"]
    assert (seen["steps"], seen["calls"], seen["stopped"]) == (seen["wanted"], seen["wanted"], "steps")
    assert (seen["score"], seen["value"]) == (1.0, "right")
    assert seen["untouched"]
    assert not seen["canary"]
    assert seen["infrastructure"] == []
    assert seen["violations"] > 30  # different ones


def test_who_ran_them(report: Any) -> None:
    assert report["user"] == report["asked for"]
