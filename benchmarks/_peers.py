"""The peers of the search benchmarks, doing nothing: what is left is their framework."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


class NothingAdapter:
    """A task for gepa: every evaluation is one lookup; candidates get a little better now and then."""

    propose_new_texts = None

    def evaluate(self, batch: list[int], candidate: dict[str, str], capture_traces: bool = False) -> Any:
        from gepa.core.adapter import EvaluationBatch

        quality = int(candidate["prompt"].rpartition(" ")[2])
        scores = [((quality * 7 + example) % 100) / 100 for example in batch]
        return EvaluationBatch([quality] * len(batch), scores, [{"x": x} for x in batch] if capture_traces else None)

    def make_reflective_dataset(self, candidate: dict[str, str], batch: Any, components: list[str]) -> Any:
        return {name: [{"Inputs": {"x": "1"}, "Generated Outputs": "o", "Feedback": "f"}] for name in components}


class Quiet:
    """gepa's logger, saying nothing."""

    def log(self, *arguments: Any, **more: Any) -> None:
        return


def gepa_seconds(metric_calls: int, examples: int, folder: Path | None = None) -> tuple[float, int]:
    """(CPU seconds, evaluations) of a gepa run whose model answers at once; ``folder`` makes it save its state."""
    import gepa

    asked = 0

    def model(prompt: Any) -> str:
        nonlocal asked
        asked += 1
        return f"```\ntry {asked}\n```"

    began = time.process_time()
    result = gepa.optimize(
        seed_candidate={"prompt": "try 0"},
        trainset=list(range(examples)),
        valset=list(range(examples)),
        adapter=NothingAdapter(),
        reflection_lm=model,
        max_metric_calls=metric_calls,
        logger=Quiet(),
        run_dir=None if folder is None else str(folder),
        skip_perfect_score=False,
    )
    return time.process_time() - began, int(result.total_metric_calls or metric_calls)


def optuna_study(folder: Path | None = None) -> Any:
    """A study with a random sampler, in memory or in an SQLite file."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = None if folder is None else f"sqlite:///{folder / 'optuna.sqlite'}"
    return optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(0))


def optuna_seconds(study: Any, trials: int) -> tuple[float, float]:
    """(CPU seconds, wall seconds) of so many trials of nothing."""
    cpu, wall = time.process_time(), time.perf_counter()
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=trials)
    return time.process_time() - cpu, time.perf_counter() - wall
