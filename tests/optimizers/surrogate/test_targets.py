"""Where the trace is cut, and what is said about it."""

from __future__ import annotations

import sys
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from surrogate_problems import Linear, step

import trace_core as tc
from trace_core.nodes.tensor import TensorParameter, module_node
from trace_core.optimizers import OptimizerError
from trace_core.optimizers.surrogate import TargetSurrogate
from trace_core.optimizers.surrogate.targets import choose


class Clock:
    """Stands still but for what the stages below say they take."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for name in ("trace_core.bundle", "trace_core._extra"):  # where times are taken
        monkeypatch.setattr(sys.modules[name], "perf_counter", made)
    return made


def slow(function: Any, name: str, milliseconds: float) -> Any:
    clock = sys.modules["trace_core._extra"].perf_counter  # type: ignore[attr-defined]

    def run(*args: Any) -> Any:
        clock.now += milliseconds / 1000
        return function(*args)

    return tc.bundle(run, name=name)


def chain(*stages: tuple[str, float]) -> tuple[TensorParameter, Any]:
    """A parameter and a loss behind it: named stages of sines, each of which takes so many milliseconds."""
    w = TensorParameter(torch.linspace(0.1, 0.9, 4), name="w")
    value: Any = w
    for name, milliseconds in stages:
        value = slow(torch.sin, name, milliseconds)(value)
    return w, tc.bundle(lambda z: (z - 1).square().sum(), name="loss")(value)


def names(trace: tc.Trace, choice: Any) -> list[str]:
    return [trace.names()[node] for node in choice.nodes]


def test_the_cut_lies_before_what_takes_long() -> None:
    w, loss = chain(("encode", 0.0), ("policy", 1.0), ("simulate", 40.0), ("score", 1.0))
    trace = tc.Trace.of(loss)
    choice = choose(trace, [w])
    assert names(trace, choice) == ["policy0"]
    told = choice.explain(trace)
    assert told.splitlines()[0] == "target: policy0 (the nearest to the feedback whose upstream is cheap)"
    assert [line.split()[0] for line in told.splitlines()[2:]] == ["loss0", "score0", "simulate0", "policy0", "encode0"]
    assert "it is the loss itself" in told
    assert told.splitlines()[5].split() == ["policy0", "4", "1.00", "ms", "41.00", "ms", "chosen"]


def test_without_measured_times_the_nearest_cut_is_taken() -> None:
    w, loss = chain(("encode", 0.0), ("policy", 0.0))
    trace = tc.Trace.of(loss)
    assert names(trace, choose(trace, [w])) == ["policy0"]


def test_where_the_upstream_takes_longest_it_is_said_that_a_surrogate_hardly_pays() -> None:
    w, loss = chain(("solve", 20.0))
    choice = choose(tc.Trace.of(loss), [w])
    assert "so a surrogate hardly pays here" in choice.explain(tc.Trace.of(loss))


def test_sums_of_losses_are_no_oracle() -> None:
    w = TensorParameter(torch.ones(3), name="w")
    losses = tc.bundle(torch.cosh, name="losses")(w * 2)
    trace = tc.Trace.of(losses.sum() / 3 - 1)
    assert names(trace, choose(trace, [w])) == ["mul0"]


def test_a_black_box_ends_where_gradients_end() -> None:
    w = TensorParameter(torch.ones(3), name="w")
    action = tc.bundle(torch.tanh, name="act")(w)
    cost = tc.bundle(lambda a: float(a.detach().square().sum()) + 1, name="simulate")(action)
    trace = tc.Trace.of(cost)
    choice = choose(trace, [w])
    assert names(trace, choice) == ["act0"]
    assert "holds a float, no floating point tensor" in choice.explain(trace)


def test_several_nodes_that_only_together_separate() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, dtype=torch.float64)
    w, v = (TensorParameter(torch.randn(3, dtype=torch.float64), name=name) for name in "wv")
    predict = tc.bundle(lambda w: x @ w, name="predict")
    loss = tc.bundle(lambda a, b: (a * b - 1).square().sum() + a.square().sum(), name="loss")

    def value() -> Any:
        return loss(predict(w), predict(v))

    optimizer = TargetSurrogate([w, v], eta=0.02)
    before = float(value().value.detach())
    for _ in range(5):
        step(optimizer, value())
        after = float(value().value.detach())
        assert after < before
        before = after
    trace = tc.Trace.of(value())
    assert names(trace, choose(trace, [w, v])) == ["predict0", "predict1"]


def test_nodes_that_depend_on_each_other_are_no_cut() -> None:
    w = TensorParameter(torch.ones(3), name="w")
    first = tc.bundle(torch.sin, name="first")(w)
    second = tc.bundle(torch.cos, name="second")(first)
    trace = tc.Trace.of(tc.bundle(lambda a, b: (a * b).sum(), name="loss")(first, second))
    choice = choose(trace, [w])
    assert names(trace, choice) == ["first0"]
    assert "one of the nodes depends on another" in choice.explain(trace)


@pytest.mark.parametrize("how", ["operator", "name in the trace", "label", "node", "bundle", "list"])
def test_the_target_can_be_named(how: str) -> None:
    w = TensorParameter(torch.ones(3), name="w")
    policy, refine = tc.bundle(torch.sin, name="policy"), tc.bundle(torch.cos, name="refine")
    action = policy(w)
    output = tc.bundle(lambda z: z.sum().square(), name="loss")(refine(action))
    target = {
        "operator": "policy",
        "name in the trace": "policy0",
        "label": "policy",
        "node": action,
        "bundle": policy,
        "list": ["policy"],
    }[how]
    optimizer = TargetSurrogate([w], target)
    step(optimizer, output)
    assert optimizer.explain().splitlines()[0] == "target: policy0 (named)"


def test_a_module_can_be_the_target_of_its_own_weights() -> None:
    policy = module_node(torch.nn.Linear(3, 2), name="policy")
    optimizer = TargetSurrogate(policy, policy)
    step(optimizer, tc.bundle(lambda z: z.square().sum(), name="loss")(torch.tanh(policy(torch.ones(4, 3)))))
    assert "target: policy0 (named)" in optimizer.explain()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("judge", "target 'judge' is not in the trace: expected one of policy0, refine0, penalty0, loss0"),
        ("refine", "the parameters also reach the feedback through penalty0"),
        (["policy", "refine", "penalty"], "one of the nodes depends on another"),
        ("words", "holds a str, no floating point tensor"),
    ],
)
def test_names_that_cannot_be_targets_are_refused(target: Any, message: str) -> None:
    w = TensorParameter(torch.ones(3), name="w")
    refined = tc.bundle(torch.cos, name="refine")(tc.bundle(torch.sin, name="policy")(w))
    penalty = tc.bundle(lambda w: w.square().sum(), name="penalty")(w)
    output: Any = tc.bundle(lambda z, p: z.sum() + p, name="loss")(refined, penalty)
    if target == "words":
        output = tc.bundle(lambda z: "words", name="words")(refined)
    with pytest.raises(OptimizerError, match=message):
        TargetSurrogate([w], target).backward(output)
    assert w.feedback == []


def test_nothing_to_cut_is_said_with_the_reasons() -> None:
    w = TensorParameter(torch.ones(3), name="w")
    with pytest.raises(OptimizerError, match=r"no target was found .* \(loss0: it is the loss itself\)"):
        TargetSurrogate([w]).backward(tc.bundle(lambda w: w.square().sum(), name="loss")(w))
    with torch.no_grad():
        action = tc.bundle(torch.sin, name="policy")(w)
    with pytest.raises(OptimizerError, match="policy0: no gradient reaches it from the parameters"):
        TargetSurrogate([w]).backward(tc.bundle(lambda z: float(z.sum()), name="cost")(action))


def test_a_target_recorded_without_gradients_is_refused() -> None:
    problem = Linear()
    with torch.no_grad():
        z = problem.predict()
    with pytest.raises(OptimizerError, match=r"predict0 cannot be the target: .* without torch.no_grad"):
        step(TargetSurrogate([problem.w], "predict"), z, tc.Feedback(gradient=z.value - problem.y))


def test_the_choice_stays_while_the_workflow_does() -> None:
    w, _ = chain(("policy", 1.0))
    optimizer = TargetSurrogate([w])
    for milliseconds in (40.0, 0.0):
        value: Any = slow(torch.sin, "policy", 1.0)(w)
        value = slow(torch.sin, "simulate", milliseconds)(value)
        step(optimizer, tc.bundle(lambda z: (z - 1).square().sum(), name="loss")(value))
        assert optimizer.explain().startswith("target: policy0")
    assert "chosen" in optimizer.explain()


def test_explain_before_the_first_feedback() -> None:
    assert TargetSurrogate([Linear().w]).explain() == "nothing has been asked yet"
