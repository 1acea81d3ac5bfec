"""How the oracle is asked: autograd, given gradients, losses per example or per trace, a function, words."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from surrogate_problems import Linear, step

import trace_core as tc
from trace_core.integrations.llm import ScriptedLLM
from trace_core.nodes.tensor import TensorParameter, module_node
from trace_core.optimizers import OptimizerError
from trace_core.optimizers.surrogate import Answer, TargetSurrogate, TextTarget

Feedback = tc.Feedback
bce = torch.nn.functional.binary_cross_entropy_with_logits


def after(problem: Linear, output: Any, feedback: Any = "", **options: Any) -> torch.Tensor:
    step(TargetSurrogate([problem.w], **options), output, feedback)
    return problem.w.value.detach().clone()


def reference(**options: Any) -> torch.Tensor:
    problem = Linear(kind="logistic")
    return after(problem, problem.loss(), eta=4.0, **options)


# ---- sums and means


@pytest.mark.parametrize(
    "reduce",
    [
        lambda losses: losses.sum(),
        lambda losses: losses.mean(),
        lambda losses: losses.mean(dim=-1),
        lambda losses: losses.sum() / len(losses),
        lambda losses: losses.reshape(3, 4).mean(1).mean(),
        lambda losses: losses.reshape(3, 4).sum(1).mean(),
        lambda losses: -(-losses).mean() + 1,
    ],
)
def test_a_step_is_the_same_for_sums_and_means(reduce: Any) -> None:
    problem = Linear(kind="logistic")
    loss = tc.bundle(lambda z: reduce(problem.losses(z)), name="loss")
    torch.testing.assert_close(after(problem, loss(problem.predict()), eta=4.0), reference())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", ["bce", "cross_entropy", "mse"])
def test_torch_losses_take_the_same_step_for_both_reductions(kind: str, reduction: str) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(10, 5), TensorParameter(torch.zeros(5, 3), name="w")
    functional = torch.nn.functional
    losses = {
        "bce": lambda z: functional.binary_cross_entropy_with_logits(z, torch.ones(10, 3), reduction=reduction),
        "cross_entropy": lambda z: functional.cross_entropy(z, torch.arange(10) % 3, reduction=reduction),
        "mse": lambda z: functional.mse_loss(z, torch.ones(10, 3), reduction=reduction),
    }
    slopes = {
        "bce": torch.full((10, 3), -0.5),
        "cross_entropy": 1 / 3 - functional.one_hot(torch.arange(10) % 3).float(),
        "mse": torch.full((10, 3), -2.0),
    }
    predict = tc.bundle(lambda x, w: x @ w, name="predict")
    step(TargetSurrogate([weight], eta=0.5), tc.bundle(losses[kind], name="loss")(predict(x, weight)))
    expected = torch.linalg.pinv(x) @ (-0.5 * slopes[kind])
    torch.testing.assert_close(weight.value.detach(), expected, rtol=1e-4, atol=1e-5)


def test_a_given_gradient_is_that_of_a_sum_unless_said_otherwise() -> None:
    for mean in (False, True):
        problem = Linear(kind="logistic")
        z = problem.predict()
        slope = torch.sigmoid(z.value.detach()) - problem.y
        gradient = Feedback(gradient=slope / 12 if mean else slope)
        reduction = "mean" if mean else "auto"
        torch.testing.assert_close(after(problem, z, gradient, eta=4.0, reduction=reduction), reference())


def test_weight_decay_beside_the_loss_is_no_reason_to_take_shorter_steps() -> None:
    problem = Linear(kind="logistic", mean=True)
    optimizer = TargetSurrogate([problem.w], eta=4.0)
    penalty = tc.bundle(lambda w: 0.1 * w.square().sum(), name="penalty")(problem.w)
    before = problem.value() + float(penalty.value.detach())
    step(optimizer, problem.loss() + penalty)
    assert "predict0, penalty0" in optimizer.explain()
    assert "mean of 12, sum" in optimizer.explain()
    assert problem.value() + 0.1 * float(problem.w.value.detach().square().sum()) < before


# ---- kinds


def test_gradient_further_down_is_carried_back_to_the_target() -> None:
    problem = Linear(kind="logistic")
    z = problem.predict()
    probabilities = tc.bundle(torch.sigmoid, name="squash")(z)
    p = probabilities.value.detach()
    gradient = (p - problem.y) / (p * (1 - p))
    result = after(problem, probabilities, Feedback(gradient=gradient), target="predict", eta=4.0)
    torch.testing.assert_close(result, reference())


def black_box(problem: Linear) -> Any:
    """Losses without gradients, and how often they were asked for."""
    asked = []

    def judge(z: Any) -> Any:
        asked.append(z.shape)
        return problem.losses(z).detach().numpy() if problem.mean else problem.losses(z).detach()

    return tc.bundle(judge, name="judge"), asked


def test_losses_per_example_cost_one_question_per_column_whatever_the_parameters() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(20, 6, dtype=torch.float64), torch.arange(20) % 3
    net = torch.nn.Sequential(torch.nn.Linear(6, 50), torch.nn.Tanh(), torch.nn.Linear(50, 3)).double()
    policy, asked = module_node(net, name="policy"), []

    def judge(z: Any) -> Any:
        asked.append(tuple(z.shape))
        return torch.nn.functional.cross_entropy(z, y, reduction="none").detach()

    optimizer = TargetSurrogate(policy, eta=1.0, inner_steps=3)
    step(optimizer, tc.bundle(judge, name="judge")(policy(x)))
    assert asked == [(20, 3)] * 4  # the workflow's own, and one for each column
    assert (optimizer.calls.losses, optimizer.calls.gradients) == (4, 0)
    assert "coordinate differences, 1 + 3 losses" in optimizer.explain()


@pytest.mark.parametrize("numpy", [False, True])
def test_losses_per_example_lead_where_the_gradient_leads(numpy: bool) -> None:
    problem = Linear(kind="logistic", mean=numpy)
    judge, asked = black_box(problem)
    result = after(problem, judge(problem.predict()), eta=4.0)
    torch.testing.assert_close(result, reference(), rtol=1e-4, atol=1e-4)
    assert len(asked) == 2


def test_one_loss_for_all_takes_two_questions_and_learns() -> None:
    problem = Linear(rows=5, columns=3)
    judge = tc.bundle(lambda z: float(problem.losses(z).sum().detach()), name="judge")
    optimizer = TargetSurrogate([problem.w], eta=0.1, seed=3)
    before = problem.value()
    for _ in range(30):
        step(optimizer, judge(problem.predict()))
    assert optimizer.calls.losses == 30 * 3
    assert "SPSA, 1 of 2 losses" in optimizer.explain()
    assert problem.value() < 0.7 * before


def test_more_probes_come_closer_to_the_gradient() -> None:
    def distance(**options: Any) -> float:
        problem = Linear(rows=6, columns=6)
        judge = tc.bundle(lambda z: float(problem.losses(z).sum().detach()), name="judge")
        result = after(problem, judge(problem.predict()), eta=0.5, **options)
        exact = Linear(rows=6, columns=6)
        return float((result - after(exact, exact.loss(), eta=0.5)).norm())

    assert distance(probes=64) < 0.5 * distance(probes=1)
    assert distance(differences="coordinates") < 1e-4


@pytest.mark.parametrize("kind", ["loss", "losses", "gradient", "plain", "rows"])
def test_oracle_function(kind: str) -> None:
    problem = Linear(kind="logistic")
    asked: list[Any] = []

    def oracle(z: torch.Tensor) -> Any:
        asked.append(z)
        assert not z.requires_grad
        losses = problem.losses(z)
        return {
            "loss": lambda: Answer(loss=losses.sum()),
            "losses": lambda: Answer(losses=losses),
            "gradient": lambda: Answer(loss=losses.sum(), gradient=torch.sigmoid(z) - problem.y),
            "plain": lambda: float(losses.sum()),
            "rows": lambda: losses,
        }[kind]()

    options: dict[str, Any] = {"oracle": oracle, "eta": 4.0, "differences": "coordinates"}
    result = after(problem, problem.predict(), **options)
    torch.testing.assert_close(result, reference(), rtol=1e-4, atol=1e-4)
    assert len(asked) == {"loss": 13, "losses": 2, "gradient": 1, "plain": 13, "rows": 2}[kind]


def test_several_traces_are_taken_together() -> None:
    whole, parts = Linear(kind="logistic"), Linear(kind="logistic")
    expected = after(whole, whole.loss(), eta=4.0)
    optimizer = TargetSurrogate([parts.w], eta=4.0)
    predict = tc.bundle(lambda x, w: x @ w, name="predict")
    for rows in (slice(0, 5), slice(5, 12)):
        y = parts.y[rows]
        loss = tc.bundle(lambda z, y: bce(z, y), name="loss")  # a mean over rows: scaled for each trace
        optimizer.backward(loss(predict(parts.x[rows], parts.w), y))
    optimizer.step()
    # means of five and seven weigh their rows differently, so the surrogates' weights differ with them
    lowered = parts.value()
    assert lowered < Linear(kind="logistic").value()
    sums = Linear(kind="logistic")
    optimizer = TargetSurrogate([sums.w], eta=4.0)
    for rows in (slice(0, 5), slice(5, 12)):
        loss = tc.bundle(lambda z, y: bce(z, y, reduction="sum"), name="loss")
        optimizer.backward(loss(predict(sums.x[rows], sums.w), sums.y[rows]))
    optimizer.step()
    torch.testing.assert_close(sums.w.value.detach(), expected)
    assert optimizer.calls.gradients == 2


# ---- words


def plan() -> tuple[Any, Any]:
    """Five actions, each a parameter of its own by way of a linear map, and the node with them."""
    theta = TensorParameter(torch.zeros(5, dtype=torch.float64), name="theta")
    actions = tc.bundle(lambda t: 2 * t + 1, name="actions")(theta)
    return theta, actions


def answer(*changes: tuple[str, float]) -> str:
    return json.dumps({"reasoning": "as asked", "changes": [{"entry": e, "value": v} for e, v in changes]})


def test_words_become_a_target_that_the_parameters_move_to() -> None:
    theta, actions = plan()
    llm = ScriptedLLM([answer(("3", 0.25))])
    optimizer = TargetSurrogate([theta], llm=llm)
    step(optimizer, actions, "Action 3 is too strong, lower it.")
    assert (2 * theta.value.detach() + 1).tolist() == pytest.approx([1, 1, 1, 0.25, 1])
    assert (optimizer.calls.texts, optimizer.calls.total) == (1, 1)
    shown = llm.calls[0].messages[-1]["content"]
    assert "3: 1" in shown
    assert "Action 3 is too strong, lower it." in shown


def test_words_are_bounded_and_refused_values_asked_for_again() -> None:
    theta, actions = plan()
    llm = ScriptedLLM([answer(("north", -3.0), ("east", 0.5)), answer(("north", 0.0))])
    text = TextTarget(llm, entries=["north", "east", "south", "west", "centre"], bounds=(0.0, 2.0))
    proposal = step(TargetSurrogate([theta], llm=text), actions, "North is far too high, east a little.")
    assert (2 * theta.value.detach() + 1).tolist() == pytest.approx([0, 0.5, 1, 1, 1])
    assert proposal.dropped == ()
    assert "north = -3.0: must be from 0 to 2" in llm.calls[1].messages[-1]["content"]


def test_words_that_never_fit_change_nothing_and_say_why() -> None:
    theta, actions = plan()
    llm = ScriptedLLM([answer(("0", 1e6))] * 3)
    optimizer = TargetSurrogate([theta], llm=llm)
    proposal = step(optimizer, actions, "Much more!")
    assert proposal.status == "empty"
    assert [str(item) for item in proposal.dropped] == ["Dropped(0: may move by at most 10 from 1)"]
    assert theta.value.detach().tolist() == [0.0] * 5
    assert optimizer.calls.texts == 3


def test_words_about_unknown_entries_do_not_fit_the_answer() -> None:
    theta, actions = plan()
    llm = ScriptedLLM([answer(("7", 0.5)), answer(("4", 0.5))])
    step(TargetSurrogate([theta], llm=llm), actions, "The last one is too high.")
    assert float(2 * theta.value.detach()[4] + 1) == pytest.approx(0.5)


def test_words_about_a_target_inside() -> None:
    theta, actions = plan()
    report = tc.bundle(lambda a: f"the plan is {a.tolist()}", name="report")(actions)
    optimizer = TargetSurrogate([theta], llm=ScriptedLLM([answer(("0", 0.0))]), target="actions")
    step(optimizer, report, "Leave the first out.")
    assert float(2 * theta.value.detach()[0] + 1) == pytest.approx(0.0)


# ---- what cannot work


@pytest.mark.parametrize(
    ("make", "feedback", "options", "message"),
    [
        ("predict", "", {}, "the feedback is on the target itself"),
        ("predict", "too high", {}, "the feedback is on the target itself"),
        ("number", 0.7, {}, "a score alone does not say how it depends on the target"),
        ("words", "too long", {}, "nothing can be learned from an output of type str"),
        ("predict", Feedback(gradient=torch.ones(3)), {}, r"expected a gradient of the shape \(12,\), got \(3,\)"),
        ("predict", Feedback(gradient=torch.full((12,), torch.nan)), {}, "expected finite|not finite"),
        ("predict", "", {"oracle": lambda z: "bad"}, "oracle must return a loss"),
        ("predict", "", {"oracle": lambda z: float("nan")}, "not finite"),
        ("predict", "", {"oracle": lambda z: torch.ones(5)}, "expected one loss, or one for each row"),
        ("predict", Feedback(gradient=torch.ones(12)), {"eta": "line-search"}, "the line search needs losses"),
        ("predict", Feedback(gradient=torch.ones(12)), {"curvature": "diag"}, "needs second derivatives at the target"),
    ],
)
def test_feedback_that_says_nothing_is_refused(make: str, feedback: Any, options: Any, message: str) -> None:
    problem = Linear()
    z = problem.predict()
    output = {
        "predict": lambda: z,
        "number": lambda: tc.bundle(lambda z: float(z.detach().sum()), name="judge")(z),
        "words": lambda: tc.bundle(lambda z: "some words", name="judge")(z),
    }[make]()
    target = "predict" if make != "number" else None
    optimizer = TargetSurrogate([problem.w], target, **options)
    before = problem.w.value.detach().clone()
    with pytest.raises(tc.TraceCoreError, match=message):
        step(optimizer, output, feedback)
    assert torch.equal(problem.w.value.detach(), before)


def test_step_without_feedback_and_with_old_traces_is_refused() -> None:
    problem = Linear()
    optimizer = TargetSurrogate([problem.w])
    with pytest.raises(OptimizerError, match="no feedback has reached these parameters"):
        optimizer.step()
    optimizer.backward(problem.loss())
    optimizer.step()
    with pytest.raises(OptimizerError, match=r"call zero_feedback\(\) after each step"):
        optimizer.step()
