"""The landscapes of benchmarks/search.py: their optimum, the model that reads prompts, and a tiny contest."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import search as benchmark
from _search_landscapes import LANDSCAPES, WORLD, Landscape, branches, long_prompt
from _search_model import Model, with_words

from trace_core.integrations.budget import Budget
from trace_core.integrations.llm import ScriptedLLM
from trace_core.optimizers import OptoPrime, Study
from trace_core.optimizers.search import Repeats


def best_values(landscape: Landscape) -> dict[str, str]:
    values = dict(landscape.seeds)
    if landscape.code:
        return {name: with_words(source, list(WORLD)) for name, source in values.items()}
    for task in landscape.validation:
        values[task.place] += f"\n- {task.needs}"
    return values


@pytest.mark.parametrize("name", LANDSCAPES)
def test_the_optimum_is_1_and_the_first_values_are_below_it(name: str) -> None:
    landscape = LANDSCAPES[name]()
    assert landscape.true(best_values(landscape)) == 1.0
    assert 0 < landscape.true(landscape.seeds) < 0.8
    task = landscape.validation[-1]
    ran = landscape.ran(best_values(landscape), task)
    assert ran.error is None
    assert landscape.score(ran.output, task) == (1.0, "right")


@pytest.mark.parametrize("name", LANDSCAPES)
def test_the_workflow_and_the_run_without_a_trace_agree(name: str) -> None:
    landscape = LANDSCAPES[name]()
    workflow = landscape.workflow()
    right = [task for task in landscape.validation if landscape.ran(landscape.seeds, task).error is None]
    for task in right[:5]:
        assert workflow(task).value == landscape.ran(landscape.seeds, task).output


def asked(landscape: Landscape) -> list[dict[str, str]]:
    """The messages of the first request of a study."""
    seen: list[Any] = []

    def note(messages: Any) -> str:
        seen.append(messages)
        return "{}"

    workflow = landscape.workflow()
    optimizer = OptoPrime(workflow, ScriptedLLM(note))
    Study(workflow, landscape.metric(0), landscape.train, landscape.validation, optimizer=optimizer, steps=1).run()
    return seen[0]  # type: ignore[no-any-return]


def test_the_model_knows_only_what_stands_in_the_prompt() -> None:
    landscape = branches(3, 2)
    messages = asked(landscape)
    answer = json.loads(Model(landscape).answer(messages))
    assert any("rule-" in str(text) for name, text in answer.items() if name != "reasoning")
    without = [{**m, "content": m["content"].replace("missing: ", "")} for m in messages]
    blind = json.loads(Model(landscape).answer(without))
    assert {text for name, text in blind.items() if name != "reasoning"} <= set(landscape.seeds.values())


def test_a_prompt_that_shortens_the_value_loses_the_game() -> None:
    landscape = dataclasses.replace(long_prompt(), calls=220)
    whole = benchmark.study_search(landscape, 0, "pareto")
    workflow, model = landscape.workflow(), Model(landscape)
    optimizer = OptoPrime(workflow, ScriptedLLM(model.answer), max_prompt_tokens=700)
    budget = Budget(metric_calls=landscape.calls)
    study = Study(
        workflow, landscape.metric(0), landscape.train, landscape.validation, optimizer=optimizer, budget=budget
    )
    result = study.run()
    assert result.best is not None
    assert landscape.true(result.best.values) < whole["score"]


def test_a_study_and_gepa_on_a_small_landscape() -> None:
    pytest.importorskip("gepa")
    landscape = branches(3, 2, calls=80)
    ours = [benchmark.study_search(landscape, seed, "pareto") for seed in range(2)]
    theirs = [benchmark.gepa_search(landscape, seed) for seed in range(2)]
    assert [row["score"] for row in ours] == [1.0, 1.0]
    assert all(row["calls"] <= landscape.calls for row in ours)
    assert all(landscape.true(landscape.seeds) <= row["score"] <= row["returned"] <= 1 for row in theirs)
    assert ours == [benchmark.study_search(landscape, seed, "pareto") for seed in range(2)]


def test_repeats_find_the_better_values_under_noise() -> None:
    landscape = dataclasses.replace(branches(2, 2, calls=300), noise=0.2)
    search = benchmark.NOISY["pareto, repeats"]()
    assert isinstance(search.acceptance, Repeats)
    assert benchmark.study_search(landscape, 0, search)["score"] == 1.0


def test_the_benchmark_prints_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gepa")
    benchmark.main(["--quick", "--seeds", "1", "--only", "branches", "--json", str(tmp_path / "out.json")])
    said = capsys.readouterr().out
    assert "pareto beside gepa" in said
    assert "selection <=" in said
    found = json.loads((tmp_path / "out.json").read_text())
    assert set(found["landscapes"]["branches"]) == {*benchmark.STUDIES, *benchmark.PEERS}
