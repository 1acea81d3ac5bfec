"""Options of `trace-core optimize` for models: cassette, limits, prices, and what a dry run says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from paid_run import KEY, OPTIMIZE, WORKFLOW, Provider

import trace_core as tc
from trace_core.errors import StateError
from trace_core.integrations.llm import LLM, Limited, Metered, Recorded, ScriptedLLM, resolve_llm
from trace_core.integrations.llm.prices import Price
from trace_core.integrations.store import Ledger
from trace_core.optimizers import OptoPrime, Study, optimize
from trace_core.optimizers.run_options import Models, prices_of

Command = Callable[..., tuple[int, str]]
SHORT = [*OPTIMIZE, "--steps", "2"]


def test_a_recorded_run_plays_without_key_or_network(
    project: Path, provider: Provider, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The models of the workflow are on the cassette as well as that of the optimizer."""
    code, out = command(*SHORT, "--cassette", "tape.json", "--cassette-mode", "record")
    assert code == 0, out
    asked = len(provider.bodies)
    best = (project / "result" / "best.json").read_text()
    tape = (project / "tape.json").read_bytes()
    assert asked > 10
    assert KEY.encode() not in tape
    provider.bodies.clear()
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("OPENAI_BASE_URL")
    (project / "result" / "best.json").unlink()
    code, out = command(*SHORT, "--cassette", "tape.json")
    assert code == 0, out
    assert (project / "result" / "best.json").read_text() == best
    assert not provider.bodies
    assert (project / "tape.json").read_bytes() == tape

    code, out = command("resume", "latest")
    assert code == 2
    assert "used the cassette tape.json" in out
    code, out = command(*OPTIMIZE, "--steps", "3", "--cassette", "tape.json")
    assert code == 2
    assert "record it with mode='extend'" in out  # strict: the third step asks what was not asked so often


def test_extend_asks_only_for_what_is_not_recorded(provider: Provider, command: Command) -> None:
    assert command(*SHORT, "--cassette", "tape.json", "--cassette-mode", "extend")[0] == 0
    first = len(provider.bodies)
    assert command(*OPTIMIZE, "--steps", "3", "--cassette", "tape.json", "--cassette-mode", "extend")[0] == 0
    assert 0 < len(provider.bodies) - first < first


WRONG = {
    "a missing tape": (["--cassette", "none.json"], "there is no cassette none.json"),
    "a mode that is none": (["--cassette", "t", "--cassette-mode", "play"], "'play' is not one of"),
    "a mode without a tape": (["--cassette-mode", "record"], "--cassette-mode record needs --cassette FILE"),
    "no requests": (["--rpm", "0"], "--rpm"),
    "tokens in words": (["--tpm", "many"], "--tpm"),
    "one price": (["--price-in", "1"], "--price-out is missing"),
    "a negative price": (["--price-in", "-1", "--price-out", "1"], "--price-in"),
    "no number": (["--price-in", "nan", "--price-out", "1"], "number of dollars"),
    "no price file": (["--prices", "none.json"], "none.json cannot be read"),
    "prices of another form": (["--prices", "x.jsonl"], 'must hold {"MODEL"'),
    "a negative budget": (["--usd", "-1"], "--usd"),
    "a probe in a run": (["--probe"], "--probe is for --dry-run"),
    "dollars without prices": (["--usd", "1"], "the price of this call is not known"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_one_message_and_exit_code_2(name: str, provider: Provider, command: Command) -> None:
    options, said = WRONG[name]
    code, out = command(*OPTIMIZE, *options)
    assert code == 2
    assert said in out
    assert "Traceback" not in out
    assert not provider.bodies


def test_prices_make_a_budget_in_dollars_hold(provider: Provider, command: Command, project: Path) -> None:
    code, out = command(*OPTIMIZE, "--usd", "1", "--price-in", "1000", "--price-out", "1000")
    assert code == 0, out
    assert "stopped: budget" in out
    spent = float(re.search(r"budget: ([\d.]+) of 1 usd spent", out)[1])  # type: ignore[index]
    assert spent == pytest.approx(0.015 * len(provider.bodies))  # 15 tokens each
    assert 0 < spent <= 1

    (project / "prices.json").write_text(json.dumps({"test-model": {"prompt": 1000, "completion": 2000}}))
    provider.bodies.clear()
    code, out = command(*SHORT, "--usd", "100", "--prices", "prices.json")
    assert code == 0, out
    assert f"{0.02 * len(provider.bodies):.6g} of 100 usd spent" in out


def test_a_model_object_that_a_tape_or_a_limit_would_not_reach_is_refused(
    project: Path, provider: Provider, command: Command
) -> None:
    own = WORKFLOW.replace('LLMCall("openai/test-model")', 'LLMCall(OpenAILLM("test-model"))')
    (project / "mine.py").write_text("from trace_core.integrations.llm import OpenAILLM\n" + own)
    for options in (["--rpm", "100"], ["--cassette", "t.json", "--cassette-mode", "record"]):
        code, out = command(*OPTIMIZE, *options)
        assert code == 2
        assert "would not reach the model object <OpenAILLM test-model" in out
    assert not provider.bodies


def test_one_limit_for_all_models_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    models = Models({"rpm": 7, "tpm": 9000})
    first, second = models.get("openai/a"), models.get("openai/b")
    assert isinstance(first, Limited)
    assert isinstance(second, Limited)
    assert first.limiter is second.limiter
    assert (first.limiter.requests_per_minute, first.limiter.tokens_per_minute) == (7, 9000)
    with models.in_force():
        assert resolve_llm("openai/a") is first
        own = ScriptedLLM("x")
        assert resolve_llm(own) is own
        assert isinstance(Metered("openai/b")._llm, Limited)
    plain: LLM = resolve_llm("openai/a")
    assert not isinstance(plain, Limited)


def test_a_tape_takes_a_request_before_a_limit_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    made = Models({"rpm": 1, "cassette": str(tmp_path / "t"), "cassette_mode": "record"}).get("openai/a")
    assert isinstance(made, Recorded)
    assert isinstance(made._llm, Limited)


def test_prices_by_name_go_before_the_price_of_all(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"a": {"prompt": 1, "completion": 2, "cached": 0.5}}')
    known, other = prices_of({"prices": str(tmp_path / "p.json"), "price_in": 3.0, "price_out": 4.0})
    assert known == {"a": Price(1, 2, 0.5)}
    assert other == Price(3, 4)


def test_a_dry_run_says_what_is_unknown_and_a_probe_measures_it(
    project: Path, provider: Provider, command: Command
) -> None:
    code, out = command(*OPTIMIZE, "--dry-run")
    assert code == 0
    assert "what the workflow and the metric ask of language models comes on top and is unknown" in out
    assert not provider.bodies
    code, out = command(*OPTIMIZE, "--dry-run", "--probe", "--price-in", "100", "--price-out", "100")
    assert code == 0
    assert len(provider.bodies) == 1
    evaluations = int(re.search(r"at most (\d+) evaluations", out)[1])  # type: ignore[index]
    cost = evaluations * 15 * 100 / 1e6
    assert f"about {evaluations} requests with {15 * evaluations:,} tokens, ${cost:.4f}" in out
    assert not (project / "runs").exists()


def test_a_dry_run_of_a_function_asks_nothing_either(project: Path, provider: Provider, command: Command) -> None:
    """Its parameters are found by running it; a call that this would make is not made."""
    (project / "mine.py").write_text(WORKFLOW + "\n\nwriter = Writer()\n\ndef write(name):\n    return writer(name)\n")
    told = ["mine:write" if word == "mine:Writer" else word for word in OPTIMIZE]
    code, out = command(*told, "--dry-run")
    assert code == 0, out
    assert "unknown" in out
    assert not provider.bodies
    code, out = command(*told, "--dry-run", "--probe")
    assert code == 0, out
    assert "about" in out


def test_a_search_by_name_with_several_steps_at_work(project: Path, provider: Provider, command: Command) -> None:
    told = ["--search", "ucb", "--in-flight", "3", "--out"]
    found = []
    for number in range(2):
        code, out = command(*SHORT, *told, f"r{number}", "--seed", "3")
        assert code == 0, out
        found.append((project / f"r{number}" / "history.json").read_text())
    assert found[0] == found[1]
    kinds = [event["kind"] for event in json.loads(found[0])]
    assert kinds[:2] == ["started", "chosen"]
    code, out = command("resume", "latest", "--steps", "3")
    assert code == 0, out
    assert "goes on: score" in out
    code, out = command(*SHORT, "--search", "luck")
    assert code == 2
    assert "'luck' is not one of 'pareto'" in out


def test_a_run_of_another_kind_is_not_resumed(project: Path, command: Command) -> None:
    """Neither one whose options say nothing of a search, nor one that another loop has written."""
    config = {"command": "optimize", "options": {"workflow": "mine:Writer"}, "folder": str(project)}
    with Ledger.open(project / "l.sqlite") as ledger:
        ledger.new_run("old", fingerprint={}, config=config)
    code, out = command("resume", "latest", "--store", "l.sqlite")
    assert code == 2
    assert "made by an earlier version" in out
    word = tc.node("a", trainable=True, name="word")
    with Ledger.open(project / "m.sqlite") as ledger:
        run = ledger.new_run("loop", fingerprint={}, config={})
        llm = ScriptedLLM('{"reasoning": "r", "word": "b"}')
        optimize(lambda x: word, lambda value, x: 0.1, [1], optimizer=OptoPrime([word], llm), steps=1, run=run)
        study = Study(lambda x: word, lambda value, x: 0.1, [1], optimizer=OptoPrime([word], llm), steps=2, store=run)
        with pytest.raises(StateError, match="was not made by a study"):
            study.run()
