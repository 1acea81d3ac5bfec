"""A run writes down where proposed code ran and what was seen to hold it there; ``trace-core show`` says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import trace_core as tc
from trace_core.cli import cli
from trace_core.integrations.llm import ScriptedLLM
from trace_core.integrations.sandbox import SandboxUnavailable, open_sandbox
from trace_core.integrations.store import Ledger, Run
from trace_core.optimizers import OptoPrime, optimize

GOOD = '{"reasoning": "so", "f": "def f(x):\\n    return 1"}'


class Nowhere:
    """A place that cannot be had."""

    def call(self, code: Any, args: Any, kwargs: Any, *, context: Any) -> Any:
        raise SandboxUnavailable("no jail can be had here")

    def describe(self) -> dict[str, Any]:
        raise SandboxUnavailable("no jail can be had here")


class Elsewhere:
    """One that says nothing about itself."""

    def call(self, code: Any, args: Any, kwargs: Any, *, context: Any) -> Any:
        return 1


def recorded(path: Path, isolation: Any) -> tuple[dict[str, Any], str]:
    """What the ledger holds after a run, and what the command prints."""

    @tc.bundle(trainable=True, isolation=isolation)
    def f(x: int) -> int:
        return 0

    with Ledger.open(path) as ledger:
        run = ledger.new_run("code", fingerprint={}, config={"command": "mine"})
        optimizer = OptoPrime([f.code], ScriptedLLM(GOOD))
        optimize(f, lambda value, x: float(value == 1), [1], optimizer=optimizer, steps=1, run=run)
        config = Run(ledger, run.id).row().config
    assert config["command"] == "mine"
    shown = CliRunner().invoke(cli, ["show", "code", "--store", str(path)], catch_exceptions=False).output
    return config["isolation"], shown


def test_the_layers_that_the_self_test_saw(tmp_path: Path) -> None:
    with open_sandbox() as sandbox:
        seen = sandbox.describe()
        found, shown = recorded(tmp_path / "ledger.sqlite", sandbox)
    (name,) = found
    assert found[name] == {"tier": seen["tier"], "layers": list(seen["layers"]), "absent": list(seen["absent"])}
    assert f"{name}: proposed code runs in tier {seen['tier']!r} (seen: own process, " in shown
    assert len(str(found)) < 1000


@pytest.mark.parametrize(
    ("isolation", "tier", "said"),
    [
        ("inline", "inline", "runs in tier 'inline' (not there: everything)"),
        (Nowhere(), "none", "runs in nothing that can be had here (no jail can be had here)"),
        (Elsewhere(), "Elsewhere", "runs in tier 'Elsewhere'"),
    ],
)
def test_other_places(tmp_path: Path, isolation: Any, tier: str, said: str) -> None:
    found, shown = recorded(tmp_path / "ledger.sqlite", isolation)
    assert [seen["tier"] for seen in found.values()] == [tier]
    assert said in shown


def test_a_run_without_code_parameters_has_no_place(tmp_path: Path) -> None:
    word = tc.node("a", trainable=True, name="word")
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        run = ledger.new_run("text", fingerprint={}, config={})
        llm = ScriptedLLM('{"reasoning": "so", "word": "b"}')
        metric = lambda value, x: float(value == "b")  # noqa: E731
        optimize(lambda x: word, metric, [1], optimizer=OptoPrime([word], llm), steps=1, run=run)
        assert Run(ledger, run.id).row().config == {}
