"""The report page in a real browser: it renders, reaches for nothing outside, and shows what happened."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import trace_core as tc
from trace_core.integrations.llm import ScriptedLLM
from trace_core.optimizers import OptoPrime, optimize
from trace_core.optimizers.loop import evaluate
from trace_core.optimizers.report import write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def page(tmp_path: Path) -> Path:
    prompt = tc.node("Hi <b>there</b> & you", trainable=True, name="prompt")

    @tc.bundle
    def greet(prompt: str, name: str) -> str:
        return f"{prompt} {name}"

    llm = ScriptedLLM(
        [json.dumps({"reasoning": "be <i>formal</i>", "prompt": value}) for value in ("Dear", "Hm", "Oh")]
    )
    optimizer = OptoPrime([prompt], llm)

    def politeness(output: str, example: str) -> tuple[float, str]:
        return (0.8 if output.startswith("Dear") else 0.1), "formal, please"

    result = optimize(
        lambda name: greet(prompt, name), politeness, ["Ann", "Ben"], optimizer=optimizer, steps=3, batch_size=2
    )
    trace, _ = evaluate(lambda name: greet(prompt, name), politeness, "Ann")
    return write_report(
        tmp_path / "report.html",
        result,
        title="Greetings & <more>",
        facts=["3 steps"],
        names=optimizer.names,
        scores={"validation": (result.start_score, result.score)},
        trace=trace,
    )


def test_page_escapes_what_it_shows_and_needs_no_network(page: Path) -> None:
    text = page.read_text()
    assert "<b>there</b>" not in text
    assert "Hi &lt;b&gt;there&lt;/b&gt; &amp; you" in text
    assert "be &lt;i&gt;formal&lt;/i&gt;" in text
    assert "<script" not in text
    assert "src=" not in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
def test_page_in_a_browser(page: Path, tmp_path: Path) -> None:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [str(BROWSER), *flags, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    dom = done.stdout
    assert "Greetings &amp; &lt;more&gt;" in dom
    assert dom.count("<svg") >= 2
    assert 'class="accepted"' in dom
    assert 'class="rejected"' in dom
    assert "Dear" in dom
