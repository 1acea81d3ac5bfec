"""Mixed: schedules, trials that are undone exactly, what the language model is shown, ownership, checkpoints."""

from __future__ import annotations

import gc
import io
import json
import weakref
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trace_core as tc
from trace_core.integrations.llm import ScriptedLLM
from trace_core.optimizers import Mixed, Optimizer, OptimizerError, OptoPrime, Part, Proposal, TorchOptimizer

torch = pytest.importorskip("torch")

from trace_core.nodes.tensor import NonFiniteError, TensorParameter, module_node  # noqa: E402
from trace_core.optimizers.mixed import GradientSkipped  # noqa: E402
from trace_core.optimizers.mixed.light import light  # noqa: E402

POINTS = (-1.0, -0.5, 0.0, 0.5, 1.0)
GOOD = "def shape(x):\n    return [1.0, x, x * x]\n"
POOR = "def shape(x):\n    return [0.0, 0.0, x]\n"
BROKEN = "def shape(x):\n    return [1.0, missing, 0.0]\n"
NAN = "def shape(x):\n    return [1.0, float('inf'), 0.0]\n"  # a NaN itself never leaves the sandbox


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def shape(x: float) -> list[float]:
    """Features of a number."""
    return [1.0, 0.0, 0.0]


class Fit(tc.Module):
    """Weighs features of x to match 2 x^2 + 1; the first features can only match its mean."""

    def __init__(self) -> None:
        self.shape = tc.bundle(trainable=True)(shape)
        self.weights = TensorParameter(torch.zeros(3, dtype=torch.float64), name="weights")

    def forward(self, x: float) -> Any:
        return self._error(self.shape(x), x)

    @tc.bundle(name="error")
    def _error(self, features: Any, x: float) -> Any:
        """Squared error."""
        guess = (torch.tensor(features, dtype=torch.float64) * self.weights.value).sum()
        return (guess - (2 * x * x + 1)) ** 2


class Scripted:
    """A model that answers with these sources in turn; the last one again and again."""

    def __init__(self, *sources: str, name: str = "shape") -> None:
        self.llm = ScriptedLLM(self._reply)
        self.sources, self.name = list(sources), name

    def _reply(self, messages: Any) -> str:
        source = self.sources.pop(0) if len(self.sources) > 1 else self.sources[0]
        return json.dumps({"reasoning": "try this", self.name: source})

    @property
    def prompts(self) -> list[str]:
        return [call.prompt for call in self.llm.calls]


def score(fit: Fit) -> float:
    with tc.no_trace():
        return -sum(float(fit(x).value.detach()) for x in POINTS)


def mixed_for(fit: Fit, model: Scripted, every: int = 10, **options: Any) -> Mixed:
    return Mixed.by_kind(
        fit,
        llm=Part(partial(OptoPrime, llm=model.llm, focus=1), every=every),
        tensor=partial(torch.optim.Adam, lr=0.1),
        **options,
    )


def train(fit: Fit, mixed: Mixed, steps: int, gate: bool = True) -> list[Proposal]:
    made = []
    for _ in range(steps):
        mixed.zero_feedback()
        for x in POINTS:
            mixed.backward(fit(x), "the error should be 0")
        made.append(mixed.step((lambda: score(fit)) if gate else None))
    return made


def kinds(mixed: Mixed, part: str = "llm") -> list[tuple[int, str]]:
    return [(event.step, event.kind) for event in mixed.log if event.part == part]


def weights(fit: Fit) -> Any:
    return fit.weights.value.detach().clone()


# ---- schedules and trials


def test_both_halves_reach_what_neither_does_alone() -> None:
    numeric, together = Fit(), Fit()
    train(numeric, mixed_for(numeric, Scripted(GOOD), every=1000), 120)
    train(together, mixed_for(together, Scripted(POOR, GOOD)), 120)
    alone = Fit()
    alone.shape.code.update(GOOD)  # the best the model can do without the weights
    assert score(together) > -0.1 > score(numeric)
    assert score(together) > -0.1 > score(alone)


def test_a_proposal_is_tried_for_its_steps_then_judged() -> None:
    fit, model = Fit(), Scripted(POOR, GOOD)
    mixed = mixed_for(fit, model)
    train(fit, mixed, 9)
    assert not model.prompts
    at_nine = weights(fit)
    train(fit, mixed, 1)
    assert mixed.trial is not None
    assert fit.shape.code.value == POOR
    assert not torch.equal(weights(fit), at_nine)  # the numeric step of this turn came first
    before = weights(fit)
    state = mixed.parts["tensor"].state_dict()
    train(fit, mixed, 9)
    assert fit.shape.code.value == POOR
    assert not torch.equal(weights(fit), before)
    proposal = train(fit, mixed, 1)[0]
    assert kinds(mixed) == [(10, "tried"), (20, "undone"), (20, "tried")]
    assert proposal.values == {fit.shape.code: GOOD}
    assert torch.equal(weights(fit), before)
    now = mixed.parts["tensor"].state_dict()
    assert now["steps"] == state["steps"] == 10
    assert torch.equal(now["torch"]["state"][0]["exp_avg"], state["torch"]["state"][0]["exp_avg"])
    train(fit, mixed, 10)
    assert kinds(mixed)[3] == (30, "kept")
    assert fit.shape.code.value == GOOD


def test_an_undone_trial_without_a_successor_is_reported_as_rejected() -> None:
    fit = Fit()
    mixed = Mixed.by_kind(
        fit,
        llm=Part(partial(OptoPrime, llm=Scripted(POOR).llm, focus=1), every=5, trial=3),
        tensor=partial(torch.optim.Adam, lr=0.1),
    )
    made = train(fit, mixed, 8)
    assert made[-1].status == "rejected"
    assert not made[-1].values
    assert "undone" in made[-1].reason
    assert fit.shape.code.value.strip().endswith("return [1.0, 0.0, 0.0]")


def test_a_rolled_back_run_goes_on_as_if_nothing_had_been_tried() -> None:
    tried, untouched = Fit(), Fit()
    train(tried, mixed_for(tried, Scripted(POOR)), 20)  # tried in step 10, undone in step 20
    train(untouched, mixed_for(untouched, Scripted(POOR), every=1000), 10)
    assert torch.equal(weights(tried), weights(untouched))


def test_a_proposal_that_is_better_at_once_is_kept_at_once() -> None:
    fit = Fit()
    fit.weights.update([1.0, 0.0, 2.0])
    mixed = mixed_for(fit, Scripted(GOOD), every=1)
    assert train(fit, mixed, 1)[0].values[fit.shape.code] == GOOD
    assert kinds(mixed) == [(1, "kept")]
    assert mixed.trial is None


def test_code_that_fails_is_undone_at_once() -> None:
    fit = Fit()
    mixed = mixed_for(fit, Scripted(BROKEN), every=3)
    train(fit, mixed, 3)
    assert kinds(mixed) == [(3, "undone")]
    assert "missing" in mixed.log[0].reason
    assert mixed.trial is None
    train(fit, mixed, 2)


def test_a_loss_that_is_not_finite_ends_a_trial_and_is_an_error_without_one() -> None:
    fit = Fit()
    mixed = mixed_for(fit, Scripted(NAN), every=3)
    train(fit, mixed, 3)
    assert mixed.trial is not None  # its score was NaN: worse, and it may get better
    before = weights(fit)
    train(fit, mixed, 1)
    assert kinds(mixed) == [(3, "tried"), (4, "undone")]
    assert "not finite" in mixed.log[-1].reason
    assert torch.equal(weights(fit), before)
    fit.weights.update([float("nan")] * 3)
    with pytest.raises(NonFiniteError):
        mixed.backward(fit(1.0))


def test_without_a_closure_proposals_are_applied() -> None:
    fit = Fit()
    mixed = mixed_for(fit, Scripted(POOR), every=4)
    made = train(fit, mixed, 4, gate=False)
    assert kinds(mixed) == [(4, "applied")]
    assert made[-1].values[fit.shape.code] == POOR
    assert made[-1].status == "applied"


def test_a_trial_cannot_be_judged_without_the_closure() -> None:
    fit = Fit()
    mixed = mixed_for(fit, Scripted(POOR), every=2)
    train(fit, mixed, 2)
    train(fit, mixed, 1, gate=False)
    mixed.backward(fit(1.0))
    with pytest.raises(OptimizerError, match="part 'llm' from step 2 is to be judged"):
        mixed.step()


def test_an_error_in_the_closure_undoes_the_trial_and_is_raised() -> None:
    fit = Fit()
    mixed = mixed_for(fit, Scripted(POOR), every=2)
    train(fit, mixed, 2)
    before = mixed.trial.saved["tensor"]["values"]["weights"]  # type: ignore[union-attr]
    train(fit, mixed, 1)
    mixed.backward(fit(1.0))

    def fails() -> float:
        raise OSError("the validation file is gone")

    with pytest.raises(OSError, match="is gone"):
        mixed.step(fails)
    assert mixed.trial is None
    assert torch.equal(weights(fit), before)
    assert fit.shape.code.value != POOR


def test_a_trial_can_be_settled_before_its_end() -> None:
    fit = Fit()
    mixed = mixed_for(fit, Scripted(GOOD))
    train(fit, mixed, 10)
    mixed.settle()
    mixed.settle()  # nothing is left to settle
    assert kinds(mixed) == [(10, "tried"), (10, "undone")]
    assert fit.shape.code.value != GOOD
    train(fit, mixed, 16)  # tried in step 20
    mixed.settle(lambda: 0.0)
    assert kinds(mixed)[-1] == (26, "kept")
    assert fit.shape.code.value == GOOD
    assert mixed.trial is None


@pytest.mark.parametrize("policy", ["keep", "reset"])
def test_numeric_state_on_a_change(policy: str) -> None:
    fit = Fit()
    mixed = Mixed.by_kind(
        fit,
        llm=Part(partial(OptoPrime, llm=Scripted(POOR).llm, focus=1), every=4, trial=2),
        tensor=partial(torch.optim.Adam, lr=0.1),
        on_change=policy,
    )
    train(fit, mixed, 4)
    state = mixed.parts["tensor"].state_dict()["torch"]["state"]
    assert bool(state) == (policy == "keep")
    train(fit, mixed, 2)  # undone: the state is there again
    assert mixed.parts["tensor"].state_dict()["torch"]["state"]


def test_budgets_end_a_parts_turns() -> None:
    fit = Fit()
    mixed = Mixed.by_kind(
        fit,
        llm=Part(partial(OptoPrime, llm=Scripted(POOR).llm, focus=1), every=2, budget=2),
        tensor=Part(partial(torch.optim.Adam, lr=0.1), budget=5),
    )
    train(fit, mixed, 12)
    assert kinds(mixed, "tensor") == [(5, "exhausted")]
    assert [kind for _, kind in kinds(mixed)].count("tried") == 2
    assert kinds(mixed).count((4, "exhausted")) == 1
    assert mixed.exhausted
    before = weights(fit)
    train(fit, mixed, 2)
    assert torch.equal(weights(fit), before)


def test_gradients_add_up_until_a_numeric_part_takes_its_turn() -> None:
    waiting, plain = Fit(), Fit()
    mixed = Mixed(
        {"w": Part(TorchOptimizer([waiting.weights], torch.optim.SGD, lr=0.01), every=3)}, frozen=[waiting.shape.code]
    )
    optimizer = TorchOptimizer([plain.weights], torch.optim.SGD, lr=0.01)
    for step in range(1, 7):
        mixed.zero_feedback()
        mixed.backward(waiting(POINTS[step % 5]))
        mixed.step()
        optimizer.backward(plain(POINTS[step % 5]))
        if step % 3 == 0:
            optimizer.step()
            optimizer.zero_feedback()
    assert torch.equal(weights(waiting), weights(plain))
    assert optimizer.steps == mixed.parts["w"].steps == 2  # type: ignore[attr-defined]


# ---- what the language model sees


def test_the_model_sees_what_the_numeric_part_did() -> None:
    fit, model = Fit(), Scripted(POOR, POOR + "\n", GOOD)
    mixed = mixed_for(fit, model)
    train(fit, mixed, 30)
    first, second, _ = model.prompts
    assert "tensor: Adam, steps 1 to 10; loss " in first
    assert "gradient norm" in first
    assert "lr 0.1" in first
    assert "tensor: Adam, steps 1 to 10; loss " in second  # undone: what is in force was trained in steps 1 to 10
    assert "no better after 10 steps; Adam, steps 11 to 20; loss" in second


def test_notes_keep_to_the_token_budget() -> None:
    fit, model = Fit(), Scripted(POOR)
    mixed = mixed_for(fit, model)
    writer = mixed.parts["llm"]
    assert isinstance(writer, OptoPrime)
    writer.max_prompt_tokens = 400
    train(fit, mixed, 10)
    assert writer.count(model.prompts[0]) <= 400
    assert "Adam, steps" in model.prompts[0]


def test_the_window_is_bounded_and_shows_no_values_of_a_rejected_proposal() -> None:
    fit, model = Fit(), Scripted(POOR, GOOD)
    mixed = Mixed.by_kind(
        fit,
        llm=Part(partial(OptoPrime, llm=model.llm, focus=1), every=4, window=7),
        tensor=partial(torch.optim.Adam, lr=0.1),
    )
    train(fit, mixed, 8)
    for prompt in model.prompts:
        assert prompt.count("feedback: the error should be 0") == 7
        assert "returned [0.0, 0.0," not in prompt  # what POOR gives
        assert "returned [1.0, 0.0, 0.0]" in prompt


def test_kept_traces_hold_no_big_tensors() -> None:
    big = TensorParameter(torch.ones(100, 100), name="big")
    instruction = tc.Parameter("add", name="instruction")
    alive: list[Any] = []

    @tc.bundle
    def total(matrix: Any, how: str, batch: Any) -> Any:
        """The sum."""
        product = matrix @ batch
        alive.append(weakref.ref(product))
        return product

    mixed = Mixed(
        {
            "text": Part(OptoPrime([instruction], ScriptedLLM(['{"reasoning": "", "instruction": "sum"}'])), every=3),
            "tensor": TorchOptimizer([big], torch.optim.SGD, lr=1e-3),
        }
    )
    for _ in range(2):
        mixed.zero_feedback()
        mixed.backward(total(big, instruction, torch.ones(100, 200)).sum(), (0.5, "smaller"))
        mixed.step()
    mixed.zero_feedback()
    gc.collect()
    assert len(alive) == 2
    assert all(link() is None for link in alive)
    kept = mixed._members[0].traces
    assert len(kept) == 2
    assert "tensor(100x200, float32)" in kept[0].render()
    assert "smaller" in kept[0].render()


def test_a_kept_trace_reads_as_the_trace_did() -> None:
    fit = Fit()
    trace = fit(0.5).backward((0.5, "smaller"))
    assert light(trace).render() == trace.render()
    fit.shape.code.update(BROKEN)
    with pytest.raises(tc.ExecutionError) as failed:
        fit(0.5)
    trace = failed.value.node.backward("it must not fail")
    assert light(trace).render() == trace.render()


@settings(max_examples=10, deadline=None)
@given(st.lists(st.sampled_from([GOOD, POOR, BROKEN]), min_size=1, max_size=4))
def test_whatever_is_undone_leaves_no_trace_in_what_is_learned(sources: list[str]) -> None:
    """Runs with and without the proposals that were undone end in the same weights."""
    tried, replayed = Fit(), Fit()
    mixed = Mixed.by_kind(
        tried,
        llm=Part(partial(OptoPrime, llm=Scripted(*sources).llm, focus=1), every=3, budget=len(sources)),
        tensor=partial(torch.optim.Adam, lr=0.1),
    )
    train(tried, mixed, 3 * len(sources) + 3)
    plain = Mixed({"w": TorchOptimizer([replayed.weights], torch.optim.Adam, lr=0.1)}, frozen=[replayed.shape.code])
    lost, changes = set(), {}
    asked = iter(sources)
    for event, judged in zip(mixed.log, [*mixed.log[1:], None], strict=True):
        if event.kind == "tried":
            source = next(asked)
            if judged is not None and judged.kind == "kept":
                changes[event.step] = source
            else:
                lost.update(range(event.step + 1, event.step + 4))
        elif event.kind == "empty" or "at once" in event.reason:
            source = next(asked)
            if event.kind == "kept":
                changes[event.step] = source
    for step in range(1, mixed.steps + 1):
        if step not in lost:
            train(replayed, plain, 1, gate=False)
        if step in changes:
            replayed.shape.code.update(changes[step])
    assert torch.equal(weights(tried), weights(replayed))
    assert tried.shape.code.value == replayed.shape.code.value


def test_a_loss_without_words_is_said_to_be_one() -> None:
    fit, model = Fit(), Scripted(POOR)
    mixed = mixed_for(fit, model, every=1)
    mixed.backward(fit(1.0))
    mixed.step()
    assert "feedback: The output is a loss: lower is better." in model.prompts[0]


def test_a_failed_output_teaches_the_model() -> None:
    fit, model = Fit(), Scripted(GOOD)
    fit.shape.code.update(BROKEN)
    mixed = mixed_for(fit, model, every=1)
    with pytest.raises(tc.ExecutionError) as failed:
        fit(1.0)
    mixed.backward(failed.value.node, (0.0, "it must not fail"))
    mixed.step()
    assert "missing" in model.prompts[0]
    assert fit.shape.code.value == GOOD
    assert kinds(mixed, "tensor") == [(1, "skipped")]


# ---- outputs without gradients, parameters without owner


@tc.bundle
def label(weights: Any, instruction: str) -> str:
    """A word."""
    return "high" if weights.detach().sum() > 1 else "low"


def test_an_output_without_gradient_is_skipped_aloud() -> None:
    tensor, instruction = TensorParameter(torch.zeros(3), name="w"), tc.Parameter("say it", name="instruction")
    answer = '{"reasoning": "", "instruction": "say the level"}'
    mixed = Mixed(
        {
            "text": OptoPrime([instruction], ScriptedLLM([answer])),
            "w": TorchOptimizer([tensor], torch.optim.SGD, lr=0.1),
        }
    )
    with pytest.warns(GradientSkipped, match="gradients stop at label"):
        mixed.backward(label(tensor, instruction), (0.0, "should be high"))
    mixed.step()
    assert instruction.value == "say the level"
    (skipped,) = [event for event in mixed.log if event.part == "w"]
    assert skipped.kind == "skipped"
    assert "gradients stop at label" in skipped.reason


def test_a_step_without_feedback_is_an_error() -> None:
    with pytest.raises(OptimizerError, match="no feedback has come"):
        mixed_for(Fit(), Scripted(GOOD)).step()


def test_every_parameter_belongs_to_one_part() -> None:
    fit = Fit()
    with pytest.raises(OptimizerError, match="'weights' is in two parts, 'a' and 'b'"):
        Mixed({name: TorchOptimizer([fit.weights], torch.optim.SGD, lr=0.1) for name in "ab"})
    mixed = Mixed({"w": TorchOptimizer([fit.weights], torch.optim.SGD, lr=0.1)})
    with pytest.raises(OptimizerError, match=r"'shape' \(code\), which belongs to no part"):
        mixed.backward(fit(1.0))
    frozen = Mixed({"w": TorchOptimizer([fit.weights], torch.optim.SGD, lr=0.1)}, frozen=[fit.shape.code])
    frozen.backward(fit(1.0))
    frozen.step()
    with pytest.raises(OptimizerError, match="is frozen and in part"):
        Mixed({"w": TorchOptimizer([fit.weights], torch.optim.SGD, lr=0.1)}, frozen=[fit.weights])


def test_frozen_tensors_need_no_owner() -> None:
    fit = Fit()
    fit.weights.value.requires_grad_(False)
    model = Scripted(GOOD)
    mixed = Mixed.by_kind(fit, llm=Part(partial(OptoPrime, llm=model.llm, focus=1)))
    assert list(mixed.parts) == ["llm"]
    mixed.backward(fit(1.0), (0.0, "0 is wanted"))
    assert mixed.step().values == {fit.shape.code: GOOD}


class Halve(Optimizer):
    """A user's optimizer of numbers."""

    def propose(self, traces: Any = None, n: int = 1) -> list[Proposal]:
        self._traces_or_raise(traces)
        return [Proposal({p: p.value / 2 for p in self.parameters}, reason="half")]


def test_kinds_go_to_their_own_parts() -> None:
    class Flow(tc.Module):
        def __init__(self) -> None:
            self.prompt = tc.Parameter("say")
            self.level = tc.Parameter(8.0)
            self.matrix = TensorParameter(torch.ones(4, 4))

    flow = Flow()
    plain = Mixed.by_kind(flow, llm=ScriptedLLM(["{}"]))
    assert {name: list(part.names.values()) for name, part in plain.parts.items()} == {
        "llm": ["prompt", "level"],
        "tensor": ["matrix"],
    }
    assert plain.parts["tensor"].torch_optimizer.__class__.__name__ == "Frugal"  # type: ignore[attr-defined]
    own = Mixed.by_kind(flow, llm=ScriptedLLM(["{}"]), number=Part(Halve, every=2), frozen=[flow.prompt])
    assert list(own.parts) == ["number", "tensor"]
    for _ in range(4):
        own.zero_feedback()
        own.backward((flow.matrix * flow.level).sum(), (0.0, "smaller"))
        own.step()
    assert flow.level.value == 2.0
    with pytest.raises(OptimizerError, match="at least one parameter"):
        Mixed.by_kind(flow, frozen=[flow.prompt, flow.level, flow.matrix])
    with pytest.raises(OptimizerError, match="must make an Optimizer"):
        Mixed.by_kind(flow, llm=lambda pairs: "not one")


def test_frugal_is_told_of_the_modules_behind_the_tensors() -> None:
    class Flow(tc.Module):
        def __init__(self) -> None:
            self.net = module_node(
                torch.nn.Sequential(
                    torch.nn.Linear(2, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)
                )
            )

    mixed = Mixed.by_kind(Flow())
    groups = mixed.parts["tensor"].torch_optimizer.param_groups  # type: ignore[attr-defined]
    assert [tuple(tensor.shape) for group in groups if group["project"] for tensor in group["params"]] == [
        (4, 2),
        (4, 4),
    ]


def test_an_optimizer_that_proposes_nothing_is_written_down() -> None:
    class Silent(Optimizer):
        def propose(self, traces: Any = None, n: int = 1) -> list[Proposal]:
            return []

    level = tc.Parameter(1.0, name="level")
    mixed = Mixed({"level": Silent([level])})
    mixed.backward(level * 2, "smaller")
    assert not mixed.step()
    assert kinds(mixed, "level") == [(1, "empty")]


def test_wrong_settings_are_refused() -> None:
    fit = Fit()
    numeric = TorchOptimizer([fit.weights], torch.optim.SGD, lr=0.1)
    with pytest.raises(OptimizerError, match="every must be a whole number from 1"):
        Part(numeric, every=0)
    with pytest.raises(OptimizerError, match="on_change"):
        Mixed({"w": numeric}, on_change="forget")
    with pytest.raises(OptimizerError, match=r"for Mixed\.by_kind"):
        Mixed({"w": partial(TorchOptimizer, optimizer=torch.optim.SGD)})  # type: ignore[dict-item]

    class Tensors(Halve):
        pass

    with pytest.raises(OptimizerError, match="reset"):
        Mixed({"w": Tensors([fit.weights])}, on_change="reset")


def test_two_numeric_parts_share_one_pass_of_autograd() -> None:
    a, b = TensorParameter([1.0, 2.0], name="a"), TensorParameter([3.0, 4.0], name="b")
    mixed = Mixed(
        {name: TorchOptimizer([p], torch.optim.SGD, lr=lr) for name, p, lr in (("a", a, 0.1), ("b", b, 0.01))}
    )
    mixed.backward((a * b).sum())
    mixed.step()
    assert torch.allclose(a.value.detach(), torch.tensor([0.7, 1.6]))
    assert torch.allclose(b.value.detach(), torch.tensor([2.99, 3.98]))


# ---- held by others


def test_proposals_for_a_search_change_nothing_until_applied() -> None:
    fit, model = Fit(), Scripted(GOOD)
    mixed = mixed_for(fit, model, every=3)
    owners = []
    for _ in range(6):
        before, source = weights(fit), fit.shape.code.value
        traces = [tc.Trace.of(fit(x), (0.0, "smaller")) for x in POINTS]
        (proposal,) = mixed.propose(traces)
        assert torch.equal(weights(fit), before)
        assert fit.shape.code.value == source
        if not proposal:
            owners.append("none")
            continue
        owners.append("tensor" if fit.weights in proposal.values else "llm")
        with tc.using(proposal.values):
            score(fit)
        mixed.remember(proposal.values, 0.5)
        mixed.apply(proposal)
    assert owners == ["tensor", "tensor", "llm", "tensor", "tensor", "none"]
    assert fit.shape.code.value == GOOD
    assert mixed.parts["tensor"].steps == 4  # type: ignore[attr-defined]


# ---- state


@pytest.mark.parametrize("at", [7, 10, 14])  # before, at the beginning of, and in the middle of a trial
def test_a_checkpoint_is_plain_and_resumes_bit_for_bit(at: int) -> None:
    def make() -> tuple[Fit, Scripted, Mixed]:
        fit, model = Fit(), Scripted(POOR, GOOD)
        return fit, model, mixed_for(fit, model)

    fit, model, mixed = make()
    train(fit, mixed, at)
    file = io.BytesIO()
    torch.save({"flow": fit.state_dict(), "mixed": mixed.state_dict()}, file)
    asked = len(model.prompts)
    train(fit, mixed, 32 - at)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, again, resumed = make()
    again.sources = again.sources[asked:]
    other.load_state_dict(saved["flow"])
    resumed.load_state_dict(saved["mixed"])
    train(other, resumed, 32 - at)
    assert torch.equal(weights(other), weights(fit))
    assert other.shape.code.value == fit.shape.code.value == GOOD
    assert resumed.log == mixed.log
    assert again.prompts == model.prompts[asked:]


def test_a_state_of_other_parts_is_refused() -> None:
    fit = Fit()
    mixed = mixed_for(fit, Scripted(GOOD))
    other = Mixed({"w": TorchOptimizer([fit.weights], torch.optim.SGD, lr=0.1)})
    with pytest.raises(OptimizerError, match="the state has the parts w; these are"):
        mixed.load_state_dict(other.state_dict())
