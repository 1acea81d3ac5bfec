"""One thread per test; each test module skips itself where torch is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # for the helpers beside this file; importlib mode adds no folders


@pytest.fixture(autouse=True)
def one_thread() -> None:
    pytest.importorskip("torch").set_num_threads(1)
