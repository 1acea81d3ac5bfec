"""Where a candidate finds itself: no environment, no files, no descriptors of the host."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from trace_core.integrations.sandbox import ProcessRunner

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def test_environment_of_the_host_is_not_there(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = "sk-canary-5f1c9a"
    for name in ("OPENAI_API_KEY", "MY_TOKEN", "PYTHONPATH", "PYTHONSTARTUP"):
        monkeypatch.setenv(name, canary)
    source = """
        import os, subprocess, sys
        def f():
            inherited = open("/proc/self/environ").read()
            worker = open(f"/proc/{os.getppid()}/environ").read()
            program = subprocess.run(["env"], capture_output=True, text=True).stdout
            return [dict(os.environ), inherited, worker, program, sys.argv, list(map(str, sys.path))]
    """
    with ProcessRunner() as own:
        seen = run(source, on=own)
    assert canary not in repr(seen)
    assert (
        {"HOME", "PATH"}
        <= set(seen[0])
        <= {
            *("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ"),
            *(name for name in seen[0] if name.endswith("_THREADS")),
        }
    )


def test_no_descriptor_of_the_host_is_there(run: Any, tmp_path: Any) -> None:
    with open(tmp_path / "secret", "w") as secret:
        os.set_inheritable(secret.fileno(), True)
        with ProcessRunner() as own:
            source = """
                import os
                def f():
                    links = {}
                    for name in os.listdir("/proc/self/fd"):
                        try:
                            links[int(name)] = os.readlink(f"/proc/self/fd/{name}")
                        except OSError:
                            pass
                    return links
            """
            seen = run(source, on=own)
    assert set(seen) == {0, 1, 2, 3}
    assert seen[0] == "/dev/null"
    assert seen[3].startswith("socket:")


def test_working_directory_is_empty_private_and_does_not_stay(run: Any, whereabouts: Any) -> None:
    source = """
        import os, stat, tempfile
        def f():
            seen = os.listdir("."), stat.S_IMODE(os.stat(".").st_mode), os.environ["HOME"] == os.getcwd()
            inside = tempfile.mkstemp()[1].startswith(os.getcwd())
            os.makedirs("a/b/c")
            open("a/b/c/left", "w").close()
            os.chmod("a/b", 0)
            os.chmod(".", 0)
            return (*seen, inside, os.getcwd())
    """
    for _ in range(2):
        *seen, directory = run(source)
        assert seen == [[], 0o700, True, True]
        assert not os.path.exists(directory)


def test_working_directory_that_was_replaced(run: Any, tmp_path: Any) -> None:
    (tmp_path / "theirs").write_text("keep")
    source = """
        import os
        def f(target):
            here = os.getcwd()
            os.rmdir(here)
            os.symlink(target, here)
            return here
    """
    assert not os.path.lexists(run(source, str(tmp_path)))
    assert run("import os\ndef f():\n    return os.listdir('.')") == []
    assert (tmp_path / "theirs").read_text() == "keep"
