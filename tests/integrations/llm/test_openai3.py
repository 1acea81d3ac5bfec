"""The gateway with openai 3, which litellm does not allow in the same environment: the tests run again in a process
that sees it first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PACKAGES = ROOT / ".venv-openai3"


@pytest.mark.slow
@pytest.mark.skipif(not (PACKAGES / "openai").is_dir(), reason="`make test` installs openai 3 into .venv-openai3")
def test_the_gateway_with_openai_3() -> None:
    files = ["test_fault_table.py", "test_canary.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(HERE / name) for name in files)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(PACKAGES), "TRACE_CORE_TESTED_OPENAI": "3"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "skipped" not in done.stdout.splitlines()[-1]
