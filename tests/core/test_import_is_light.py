"""Importing the library loads no heavy library."""

from __future__ import annotations

import subprocess
import sys

HEAVY = [
    "torch",
    "litellm",
    "openai",
    "networkx",
    "ray",
    "numpy",
    "pydantic",
    "rich",
    "click",
    "typer",
    "tenacity",
    "httpx",
    "safetensors",
    "msgpack",
]


def test_import_loads_no_heavy_library() -> None:
    code = "import sys, trace_core, trace_core.optimizers; print(' '.join(m for m in sys.modules if '.' not in m))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "trace_core" in loaded
    assert not set(HEAVY) & set(loaded)


def test_tracing_loads_no_heavy_library() -> None:
    code = """
import sys, trace_core as tc
@tc.bundle
def f(x): return x + 1
p = tc.node(1, trainable=True)
t = (f(p) * 2).backward("x")
t.render(budget=100), t.to_mermaid(), t._repr_html_(), t.to_dict(), t.replay({p: 2})
print(' '.join(sys.modules))
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(HEAVY) & set(loaded)
