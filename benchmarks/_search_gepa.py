"""gepa on a landscape: what an adapter of its kind knows, and no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from _peers import Quiet
from _search_landscapes import Landscape, Task
from _search_model import Model


class LandscapeAdapter:
    """Runs a landscape for gepa.

    As in gepa's adapter for DSPy, a component's records are the runs in which it was called, and components without any
    are left out. Inputs that are too long for the model are clipped here: gepa does not do it.
    """

    propose_new_texts = None

    def __init__(self, landscape: Landscape, seed: int) -> None:
        self.landscape, self.metric = landscape, landscape.metric(seed)
        self.calls = 0

    def evaluate(self, batch: Sequence[Task], candidate: Mapping[str, str], capture_traces: bool = False) -> Any:
        from gepa.core.adapter import EvaluationBatch

        outputs, scores, records = [], [], []
        for task in batch:
            self.calls += 1
            ran = self.landscape.ran(candidate, task)
            score, said = (0.0, ran.error) if ran.error else self.metric(ran.output, task)
            outputs.append(ran.output)
            scores.append(score)
            records.append((task, ran, f"score {score:.3g}: {said}"))
        return EvaluationBatch(outputs, scores, records if capture_traces else None)

    def make_reflective_dataset(
        self, candidate: Mapping[str, str], batch: Any, components: Sequence[str]
    ) -> dict[str, list[dict[str, str]]]:
        found: dict[str, list[dict[str, str]]] = {}
        for component in components:
            called = [record for record in batch.trajectories if component in record[1].called]
            room = None
            if self.landscape.window is not None and called:
                rest = 3000 + len(candidate[component]) + sum(len(ran.output) + len(said) for _, ran, said in called)
                room = max(200, (self.landscape.window - rest) // len(called))
            found[component] = [
                {
                    "Component": component,
                    "Inputs": clipped(str(task), room),
                    "Generated Outputs": ran.output,
                    "Feedback": said,
                }
                for task, ran, said in called
            ]
        found = {component: records for component, records in found.items() if records}
        if not found:
            raise ValueError("no component that is to change was called on the minibatch")
        return found


def clipped(text: str, room: int | None) -> str:
    """The head and the tail."""
    return text if room is None or len(text) <= room else f"{text[: room // 2]} ... {text[-(room // 2) :]}"


def gepa_search(landscape: Landscape, seed: int, **options: Any) -> dict[str, float]:
    """A run of gepa: ``score`` is the true score of what it knew best when the metric calls were used up.

    gepa looks at its limit between iterations and passes it: ``returned`` is the true score of what it gives back
    after ``calls`` calls, which are more.
    """
    import gepa

    adapter = LandscapeAdapter(landscape, seed)
    result = gepa.optimize(
        seed_candidate=dict(landscape.seeds),
        trainset=list(landscape.train),
        valset=list(landscape.validation),
        adapter=adapter,
        reflection_lm=Model(landscape).reflect,
        max_metric_calls=landscape.calls,
        logger=Quiet(),
        seed=seed,
        raise_on_exception=False,  # noisy ancestors below 0 stop its merge as well
        **options,
    )
    size = len(landscape.validation)
    in_time = [k for k, calls in enumerate(result.discovery_eval_counts) if not k or calls + size <= landscape.calls]
    best = max(in_time, key=lambda k: result.val_aggregate_scores[k])
    return {
        "score": landscape.true(result.candidates[best]),
        "returned": landscape.true(result.best_candidate),
        "calls": adapter.calls,
    }
