"""TorchOptimizer: torch's own trajectories, gates that undo exactly, proposals that change nothing, checkpoints."""

from __future__ import annotations

import copy
import io
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import trace_core as tc
from trace_core.optimizers import OptimizerError, TorchOptimizer

torch = pytest.importorskip("torch")

from trace_core.nodes.tensor import GradientError, TensorParameter, module_node  # noqa: E402
from trace_core.optimizers.tensor import Frugal  # noqa: E402
from trace_core.optimizers.tensor.history import History, describe  # noqa: E402

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randn(32, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def network(dtype: Any = torch.float64) -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).to(dtype)


def loss_node(net: Any, x: Any = X, y: Any = Y) -> Any:
    return torch.nn.functional.mse_loss(net(x), y)


def train(optimizer: TorchOptimizer, net: Any, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_feedback()
        optimizer.backward(loss_node(net))
        optimizer.step()


def train_plainly(optimizer: Any, net: Any, steps: int, after: Any = lambda: None, clip: float | None = None) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_node(net).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        after()


def weights(net: Any) -> list[Any]:
    module = getattr(net, "module", net)
    return [p.detach().clone() for p in module.parameters()]


def equal(left: Any, right: Any) -> bool:
    """Bit for bit, through dicts and lists."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


OPTIMIZERS: dict[str, Any] = {
    "adamw": partial(torch.optim.AdamW, lr=0.01),
    "sgd": partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01),
    "adagrad": partial(torch.optim.Adagrad, lr=0.01),
    "amsgrad": partial(torch.optim.Adam, lr=0.01, amsgrad=True),
    "adafactor": partial(torch.optim.Adafactor, lr=0.01),
    "rprop": partial(torch.optim.Rprop, lr=0.01),
    "frugal": partial(Frugal, lr=0.01, density=0.5, gap=3, seed=1, project=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_traced_loop_follows_the_plain_one_bit_for_bit(name: str) -> None:
    plain, traced = network(), module_node(network())
    made = OPTIMIZERS[name](list(plain.named_parameters()))
    train_plainly(made, plain, 7)
    optimizer = TorchOptimizer(traced, OPTIMIZERS[name])
    train(optimizer, traced, 7)
    assert equal(weights(traced), weights(plain))
    assert optimizer.steps == 7


def test_options_go_to_the_optimizer_and_groups_have_their_own() -> None:
    net = module_node(network())
    first, *rest = [p for _, p in net.named_parameters()]
    optimizer = TorchOptimizer([{"params": first, "lr": 0.5}, {"params": rest}], torch.optim.AdamW, lr=0.1, eps=1e-4)
    assert [group["lr"] for group in optimizer.torch_optimizer.param_groups] == [0.5, 0.1]
    assert {group["eps"] for group in optimizer.torch_optimizer.param_groups} == {1e-4}
    assert [len(group["params"]) for group in optimizer.torch_optimizer.param_groups] == [1, 3]
    assert optimizer.lr == 0.5


def test_modules_and_parameters_mix_in_groups() -> None:
    net, scale = module_node(network()), TensorParameter(1.0, name="scale")
    optimizer = TorchOptimizer([{"params": net, "lr": 0.5}, scale], torch.optim.SGD, lr=0.1)
    assert [(len(g["params"]), g["lr"]) for g in optimizer.torch_optimizer.param_groups] == [(1, 0.1), (4, 0.5)]
    assert set(optimizer.paths.values()) == {"scale", "0.weight", "0.bias", "2.weight", "2.bias"}


def test_frugal_projects_what_from_module_would() -> None:
    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.tokens = torch.nn.Embedding(10, 6)
            self.body = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.LayerNorm(6))
            self.last = torch.nn.Linear(6, 3)

        def forward(self, x: Any) -> Any:
            return self.last(self.body(self.tokens(x)))

    module = Net()
    optimizer = TorchOptimizer(module_node(module), Frugal, lr=1e-3, density=0.5)
    ours = {name for g in optimizer.torch_optimizer.param_groups if g["project"] for name in g["param_names"]}
    theirs = {name for g in Frugal.from_module(module).param_groups if g["project"] for name in g["param_names"]}
    assert ours == theirs == {"body.0.weight"}
    by_hand = TorchOptimizer(module_node(module), Frugal, lr=1e-3, project=lambda name, tensor: name == "last.weight")
    assert [g["param_names"] for g in by_hand.torch_optimizer.param_groups if g["project"]] == [["last.weight"]]


@pytest.mark.parametrize(
    "schedule",
    [
        partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5),
        partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=20),
        lambda made: torch.optim.lr_scheduler.LambdaLR(made, lambda step: 1 / (1 + step)),
    ],
    ids=["step", "one-cycle", "lambda"],
)
def test_a_scheduler_advances_with_every_step(schedule: Any) -> None:
    plain, traced = network(), module_node(network())
    made = torch.optim.AdamW(plain.parameters(), lr=0.01)
    train_plainly(made, plain, 6, after=schedule(made).step)
    optimizer = TorchOptimizer(traced, torch.optim.AdamW, lr=0.01, scheduler=schedule)
    train(optimizer, traced, 6)
    assert equal(weights(traced), weights(plain))
    assert optimizer.lr == made.param_groups[0]["lr"]


def test_a_scheduler_that_watches_the_loss_gets_the_mean_of_the_step() -> None:
    weight = TensorParameter([1.0], name="w")
    schedule = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.5)
    optimizer = TorchOptimizer([weight], torch.optim.SGD, lr=0.1, scheduler=schedule)
    for losses in ((1.0, 3.0), (2.5, 2.5), (0.5, 0.5)):  # means 2, 2.5 (worse), 0.5 (better)
        optimizer.zero_feedback()
        for wanted in losses:
            optimizer.backward((weight * 0).sum() + wanted)
        optimizer.step()
    assert optimizer.lr == 0.05
    assert [record.loss for record in optimizer.history] == [2.0, 2.5, 0.5]

    optimizer.zero_feedback()
    optimizer.backward(torch.cat([weight, weight]), tc.Feedback(gradient=[1.0, 1.0]))
    before = weight.value.clone()
    with pytest.raises(OptimizerError, match="ReduceLROnPlateau watches the loss"):
        optimizer.step()
    assert equal(weight.value, before)


def test_a_scheduler_that_lacks_arguments_says_how_to_give_them() -> None:
    with pytest.raises(OptimizerError, match=r"functools\.partial"):
        TorchOptimizer(module_node(network()), torch.optim.SGD, lr=1.0, scheduler=torch.optim.lr_scheduler.StepLR)


def test_clipping_is_torchs_and_the_norm_before_it_is_noted() -> None:
    plain, traced = network(), module_node(network())
    train_plainly(torch.optim.SGD(plain.parameters(), lr=0.1), plain, 5, clip=0.05)
    optimizer = TorchOptimizer(traced, torch.optim.SGD, lr=0.1, clip_norm=0.05)
    train(optimizer, traced, 5)
    assert equal(weights(traced), weights(plain))
    assert all(record.grad_norm is not None and record.grad_norm > 0.05 for record in optimizer.history)
    valued = TorchOptimizer(traced, torch.optim.SGD, lr=1.0, clip_value=1e-3)
    before = weights(traced)
    train(valued, traced, 1)
    assert max(float((a - b).abs().max()) for a, b in zip(before, weights(traced), strict=True)) <= 1e-3 + 1e-12
    with pytest.raises(OptimizerError, match="clip_norm"):
        TorchOptimizer(traced, torch.optim.SGD, lr=0.1, clip_norm=0.0)


def test_gradients_of_several_outputs_add_up_until_zero_feedback() -> None:
    net = module_node(network())
    optimizer = TorchOptimizer(net, torch.optim.SGD, lr=0.1)
    for half in (slice(0, 16), slice(16, 32)):
        optimizer.backward(loss_node(net, X[half], Y[half]) / 2)
    added = [p.grad.clone() for p in optimizer.paths]
    optimizer.zero_feedback()
    assert all(p.grad is None and not p.feedback for p in optimizer.paths)
    optimizer.backward(loss_node(net))
    assert all(torch.allclose(a, p.grad, atol=1e-14) for a, p in zip(added, optimizer.paths, strict=True))


def test_a_step_without_gradients_is_an_error() -> None:
    net = module_node(network())
    optimizer = TorchOptimizer(net, torch.optim.AdamW, lr=0.1)
    with pytest.raises(OptimizerError, match="no gradient"):
        optimizer.step()
    with pytest.raises(OptimizerError, match="no gradient"):
        optimizer.propose()
    train(optimizer, net, 1)
    optimizer.zero_feedback()
    with pytest.raises(OptimizerError, match="no gradient"):
        optimizer.step()


def test_a_score_is_no_gradient() -> None:
    weight = TensorParameter([1.0])
    optimizer = TorchOptimizer([weight], torch.optim.SGD, lr=0.1)

    @tc.bundle
    def name_of(value: Any) -> str:
        return f"{value[0].item():.1f}"

    with pytest.raises(GradientError, match="name_of"):
        optimizer.backward(name_of(weight), 0.5)
    assert not weight.feedback


def test_frozen_parameters_are_left_out() -> None:
    module = network()
    module[0].requires_grad_(False)
    net = module_node(module)
    optimizer = TorchOptimizer(net, torch.optim.AdamW, lr=0.1)
    before = weights(net)
    train(optimizer, net, 2)
    after = weights(net)
    assert equal(before[:2], after[:2])
    assert not equal(before[2:], after[2:])
    module[0].requires_grad_(True)
    optimizer.zero_feedback()
    optimizer.backward(loss_node(net))
    with pytest.raises(OptimizerError, match=r"0\.weight, 0\.bias was frozen"):
        optimizer.step()
    module.requires_grad_(False)
    with pytest.raises(OptimizerError, match="every parameter is frozen"):
        TorchOptimizer(module_node(module), torch.optim.AdamW, lr=0.1)


def test_what_is_no_tensor_parameter_is_refused_with_its_name() -> None:
    with pytest.raises(OptimizerError, match=r"text parameter \(prompt\).*Mixed"):
        TorchOptimizer([tc.Parameter("hello", name="prompt")], torch.optim.SGD, lr=0.1)
    module = network()
    with pytest.raises(OptimizerError, match="share one tensor"):
        weight = module[0].weight
        TorchOptimizer([TensorParameter(weight), TensorParameter(weight)], torch.optim.SGD, lr=0.1)
    assert module_node(module).parameters() == module_node(module).parameters()  # one parameter for each weight
    weight = TensorParameter([1.0], name="w")
    with pytest.raises(OptimizerError, match="'w' is in two groups"):
        TorchOptimizer([{"params": weight}, {"params": weight}], torch.optim.SGD, lr=0.1)
    with pytest.raises(OptimizerError, match="key 'params'"):
        TorchOptimizer([{"lr": 0.1}], torch.optim.SGD, lr=0.1)


# ---- LBFGS


def test_lbfgs_recomputes_its_loss() -> None:
    plain, traced = network(), module_node(network())
    made = torch.optim.LBFGS(plain.parameters(), lr=0.5, max_iter=5, line_search_fn="strong_wolfe")

    def closure() -> Any:
        made.zero_grad()
        loss = loss_node(plain)
        loss.backward()
        return loss

    for _ in range(3):
        made.step(closure)
    optimizer = TorchOptimizer(traced, torch.optim.LBFGS, lr=0.5, max_iter=5, line_search_fn="strong_wolfe")
    for _ in range(3):
        optimizer.step(recompute=lambda: loss_node(traced))
    assert equal(weights(traced), weights(plain))
    losses = [record.loss for record in optimizer.history]
    assert losses == sorted(losses, reverse=True)  # type: ignore[type-var]


def test_lbfgs_without_recompute_says_what_is_missing() -> None:
    net = module_node(network())
    optimizer = TorchOptimizer(net, torch.optim.LBFGS)
    optimizer.backward(loss_node(net))
    with pytest.raises(OptimizerError, match="recompute="):
        optimizer.step()
    with pytest.raises(OptimizerError, match="cannot propose"):
        optimizer.propose()


def test_a_failing_recompute_undoes_the_step() -> None:
    net = module_node(network())
    optimizer = TorchOptimizer(net, torch.optim.LBFGS, max_iter=5)
    optimizer.step(recompute=lambda: loss_node(net))
    before, state, calls = weights(net), optimizer.state_dict(), []

    def fails_late() -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of data")
        return loss_node(net)

    with pytest.raises(RuntimeError, match="out of data"):
        optimizer.step(recompute=fails_late)
    assert equal(weights(net), before)
    assert equal(optimizer.state_dict(), state)


# ---- gates


@pytest.mark.parametrize("name", [*OPTIMIZERS, "lbfgs"])
def test_a_step_that_is_no_better_is_undone_bit_for_bit(name: str) -> None:
    net = module_node(network())
    schedule = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9)
    made = partial(torch.optim.LBFGS, max_iter=3) if name == "lbfgs" else OPTIMIZERS[name]
    optimizer = TorchOptimizer(net, made, scheduler=schedule)
    again: dict[str, Any] = {"recompute": lambda: loss_node(net)} if name == "lbfgs" else {}
    for _ in range(4):
        optimizer.zero_feedback()
        optimizer.backward(loss_node(net))
        optimizer.step(**again)
    before, state = weights(net), optimizer.state_dict()
    optimizer.zero_feedback()
    optimizer.backward(loss_node(net))
    seen = []

    def score() -> float:
        seen.append(weights(net))
        return 1.0  # equal is no better

    proposal = optimizer.step(score, **again)
    assert proposal.status == "rejected"
    assert not proposal.values
    assert "was 1 before" in proposal.reason
    assert not equal(seen[0], seen[1])  # it was tried
    assert equal(weights(net), before)
    assert equal(optimizer.state_dict(), state)


def test_a_step_that_is_better_is_kept() -> None:
    net, twin = module_node(network()), module_node(network())
    optimizer, free = (TorchOptimizer(n, torch.optim.AdamW, lr=0.01) for n in (net, twin))
    for _ in range(3):
        optimizer.zero_feedback()
        optimizer.backward(loss_node(net))
        assert optimizer.step(lambda: -float(loss_node(net).value)).status == "applied"
    train(free, twin, 3)
    assert equal(weights(net), weights(twin))


def test_a_closure_that_raises_after_the_step_undoes_it() -> None:
    net = module_node(network())
    optimizer = TorchOptimizer(net, torch.optim.AdamW, lr=0.1)
    train(optimizer, net, 1)
    optimizer.zero_feedback()
    optimizer.backward(loss_node(net))
    before, gradients, calls = weights(net), [p.grad.clone() for p in optimizer.paths], []

    def score() -> float:
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("no data")
        return 0.0

    with pytest.raises(ValueError, match="no data"):
        optimizer.step(score)
    assert equal(weights(net), before)
    assert equal([p.grad for p in optimizer.paths], gradients)
    optimizer.step()  # the gradients are still there


def test_float32_moments_of_half_precision_weights_survive_gate_and_checkpoint() -> None:
    def made() -> tuple[Any, TorchOptimizer]:
        net = module_node(network(torch.bfloat16))
        return net, TorchOptimizer(net, Frugal, lr=1e-2, density=0.5, gap=3, project=True)

    x, y = X.bfloat16(), Y.bfloat16()
    net, optimizer = made()

    def one_step(net: Any, optimizer: TorchOptimizer) -> None:
        optimizer.zero_feedback()
        optimizer.backward(loss_node(net, x, y))
        optimizer.step()

    for _ in range(4):
        one_step(net, optimizer)
    state = optimizer.state_dict()
    assert any(
        value.dtype == torch.float32
        for entry in state["torch"]["state"].values()
        for value in entry.values()
        if isinstance(value, torch.Tensor) and value.dim()
    )
    optimizer.zero_feedback()
    optimizer.backward(loss_node(net, x, y))
    optimizer.step(lambda: 0.0)
    assert equal(optimizer.state_dict(), state)


# ---- proposals


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_proposing_changes_nothing_and_applying_is_stepping(name: str) -> None:
    net, twin = module_node(network()), module_node(network())
    schedule = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9)
    optimizer, stepping = (TorchOptimizer(n, OPTIMIZERS[name], scheduler=schedule, clip_norm=0.1) for n in (net, twin))
    for _ in range(5):
        optimizer.zero_feedback()
        optimizer.backward(loss_node(net))
        before, state = weights(net), optimizer.state_dict()
        gradients = [p.grad.clone() for p in optimizer.paths]
        versions = [p.version for p in optimizer.paths]
        (proposal,) = optimizer.propose(n=3)
        assert equal(weights(net), before)
        assert equal(optimizer.state_dict(), state)
        assert equal([p.grad for p in optimizer.paths], gradients)
        assert [p.version for p in optimizer.paths] == versions
        assert not any(value.requires_grad for value in proposal.values.values())
        with tc.using(proposal.values):
            tried = float(loss_node(net).value)
        optimizer.apply(proposal)
        assert float(loss_node(net).value) == pytest.approx(tried, abs=1e-12)
        train(stepping, twin, 1)
    assert equal(weights(net), weights(twin))
    assert equal(optimizer.state_dict(), stepping.state_dict())


def test_a_proposal_overtaken_by_a_step_sets_values_only() -> None:
    net = module_node(network())
    optimizer = TorchOptimizer(net, torch.optim.AdamW, lr=0.01)
    optimizer.backward(loss_node(net))
    (proposal,) = optimizer.propose()
    optimizer.step()
    state = optimizer.state_dict()
    optimizer.apply(proposal)
    assert equal(optimizer.state_dict(), state)


def test_proposals_from_traces_that_were_not_sent_backward() -> None:
    net, twin = module_node(network()), module_node(network())
    optimizer, stepping = (TorchOptimizer(n, torch.optim.SGD, lr=0.1) for n in (net, twin))
    trace = tc.Trace.of(loss_node(net))
    (proposal,) = optimizer.propose([trace])
    assert all(p.grad is None for p in optimizer.paths)
    (again,) = optimizer.propose([trace])  # the graph is still there
    train(stepping, twin, 1)
    assert equal(list(proposal.values.values()), weights(twin))
    assert equal(list(again.values.values()), weights(twin))


def test_proposals_start_from_the_candidate_the_traces_were_recorded_with() -> None:
    weight = TensorParameter([1.0, 2.0], name="w")
    optimizer = TorchOptimizer([weight], torch.optim.SGD, lr=0.5)
    candidate = torch.tensor([10.0, 20.0], requires_grad=True)
    with tc.using({weight: candidate}):
        trace = tc.Trace.of((weight * weight).sum())
    (proposal,) = optimizer.propose([trace])
    assert proposal.values[weight].tolist() == [0.0, 0.0]  # 10 - 0.5 * 2 * 10
    with pytest.raises(OptimizerError, match="different values of w"):
        optimizer.propose([trace, tc.Trace.of((weight * weight).sum())])


# ---- state


@pytest.mark.parametrize("name", [*OPTIMIZERS, "lbfgs"])
def test_a_checkpoint_is_plain_and_resumes_bit_for_bit(name: str) -> None:
    schedule = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=12)
    made = partial(torch.optim.LBFGS, max_iter=3) if name == "lbfgs" else OPTIMIZERS[name]

    def start() -> tuple[Any, TorchOptimizer]:
        net = module_node(network())
        return net, TorchOptimizer(net, made, scheduler=schedule)

    def go(net: Any, optimizer: TorchOptimizer) -> None:
        again: dict[str, Any] = {"recompute": lambda: loss_node(net)} if name == "lbfgs" else {}
        for _ in range(4):
            optimizer.zero_feedback()
            optimizer.backward(loss_node(net))
            optimizer.step(**again)

    net, optimizer = start()
    go(net, optimizer)
    file = io.BytesIO()
    torch.save({"model": net.module.state_dict(), "optimizer": optimizer.state_dict()}, file)
    go(net, optimizer)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    kept = copy.deepcopy(saved)
    other, resumed = start()
    other.module.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    go(other, resumed)
    assert equal(weights(other), weights(net))
    assert equal(resumed.state_dict(), optimizer.state_dict())
    assert equal(saved, kept)  # going on did not change what was loaded


def test_a_state_that_does_not_fit_is_refused() -> None:
    net = module_node(network())
    optimizer = TorchOptimizer(net, torch.optim.SGD, lr=0.1)
    other = TorchOptimizer([TensorParameter([1.0], name="w")], torch.optim.SGD, lr=0.1)
    with pytest.raises(OptimizerError, match="belongs to other parameters: it names w"):
        optimizer.load_state_dict(other.state_dict())
    scheduled = TorchOptimizer(
        net, torch.optim.SGD, lr=0.1, scheduler=partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9)
    )
    with pytest.raises(OptimizerError, match="the state has a learning rate scheduler"):
        optimizer.load_state_dict(scheduled.state_dict())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_reset_is_a_fresh_start_at_the_present_rate(name: str) -> None:
    net = module_node(network())
    schedule = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    optimizer = TorchOptimizer(net, OPTIMIZERS[name], scheduler=schedule)
    train(optimizer, net, 4)
    rate = optimizer.lr
    optimizer.reset()
    assert optimizer.lr == rate
    twin = network()
    twin.load_state_dict(net.module.state_dict())
    fresh = OPTIMIZERS[name](list(twin.named_parameters()))
    for group in fresh.param_groups:
        group["lr"] = rate
    train_plainly(fresh, twin, 1)
    train(optimizer, net, 1)
    assert equal(weights(net), weights(twin))


def test_history_is_bounded_and_told_in_a_line() -> None:
    net = module_node(network())
    optimizer = TorchOptimizer(net, torch.optim.SGD, lr=0.1, history=5)
    train(optimizer, net, 8)
    records = optimizer.history.read()
    assert [record.step for record in records] == [4, 5, 6, 7, 8]
    assert [record.step for record in optimizer.history.read(since=6)] == [7, 8]
    assert records[-1].loss < records[0].loss  # type: ignore[operator]
    said = optimizer.summary(since=3)
    assert said.startswith("SGD, steps 4 to 8; loss ")
    assert said.endswith("lr 0.1")
    silent = TorchOptimizer(net, torch.optim.SGD, lr=0.1, history=0)
    train(silent, net, 2)
    assert len(silent.history) == 0
    assert silent.summary() == "SGD: no step"


@given(st.lists(st.floats(0, 100), min_size=1, max_size=40), st.integers(2, 10))
def test_a_summary_shows_first_and_last_and_no_more_than_asked(losses: list[float], points: int) -> None:
    history = History(100)
    for step, loss in enumerate(losses, start=1):
        history.add(step, [loss], 1, None, 0.5)
    (curve,) = [part for part in describe(history.read(), "SGD", points).split("; ") if part.startswith("loss ")]
    shown = curve.removeprefix("loss ").split(" -> ")
    assert len(shown) <= points
    assert (shown[0], shown[-1]) == (f"{losses[0]:.3g}", f"{losses[-1]:.3g}")


def test_sparse_gradients() -> None:
    module = torch.nn.EmbeddingBag(5, 2, sparse=True)
    net = module_node(module)
    optimizer = TorchOptimizer(net, torch.optim.SparseAdam, lr=0.1)
    optimizer.backward(net(torch.tensor([[1, 2]])).pow(2).sum())
    before = module.weight.detach().clone()
    optimizer.step()
    assert (module.weight != before).any(dim=1).tolist() == [False, True, True, False, False]
