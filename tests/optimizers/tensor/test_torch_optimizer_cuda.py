"""TorchOptimizer and Mixed on a CUDA device: torch's trajectories, no waiting, states that move, trials undone exactly.

Skipped without a device. Imports nothing that a machine with torch and pytest may lack.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import trace_core as tc  # noqa: E402 - after the skip
from trace_core.nodes.tensor import TensorParameter, module_node, send_gradients  # noqa: E402
from trace_core.optimizers import Mixed, Optimizer, Part, Proposal, TorchOptimizer  # noqa: E402
from trace_core.optimizers.tensor import Frugal  # noqa: E402

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

OPTIMIZERS: dict[str, Any] = {
    "adamw": partial(torch.optim.AdamW, lr=0.01),
    "adamw-fused": partial(torch.optim.AdamW, lr=0.01, fused=True),
    "sgd": partial(torch.optim.SGD, lr=0.01, momentum=0.9),
    "frugal-block": partial(Frugal, lr=0.01, density=0.5, gap=3, seed=1, project=True),
    "frugal-columns": partial(Frugal, lr=0.01, density=0.5, gap=3, seed=1, project=True, split="columns"),
    "frugal-svd": partial(Frugal, lr=0.01, density=0.5, gap=3, seed=1, project=True, split="svd"),
}
HALVING = partial(torch.optim.lr_scheduler.StepLR, step_size=3, gamma=0.5)


@contextmanager
def no_synchronisation() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def network(dtype: Any = torch.float32, device: str | None = None) -> Any:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 32), torch.nn.Tanh(), torch.nn.Linear(32, 3))
    return net.to(device=device or DEVICE, dtype=dtype)


def batch(like: Any) -> tuple[Any, Any]:
    made = torch.Generator().manual_seed(1)
    return torch.randn(16, 6, generator=made).to(like), torch.randn(16, 3, generator=made).to(like)


def loss_of(net: Any) -> Any:
    x, y = batch(next(getattr(net, "module", net).parameters()).detach())
    return torch.nn.functional.mse_loss(net(x), y)


def train(optimizer: TorchOptimizer, net: Any, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_feedback()
        optimizer.backward(loss_of(net))
        optimizer.step()


def values(net: Any) -> list[Any]:
    return [p.detach().clone() for p in net.module.parameters()]


def equal(left: Any, right: Any) -> bool:
    """Bit for bit, through dicts and lists, wherever the tensors are."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left.cpu(), right.cpu())
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


def through_a_file(state: Any, device: str | None = None) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True, map_location=device)


def floats(state: Any) -> list[Any]:
    """The moments among a torch optimizer's state: floating point tensors that are no counters."""
    return [
        value
        for entry in state.values()
        for value in entry.values()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim()
    ]


# ---- TorchOptimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_traced_loop_follows_the_plain_one_bit_for_bit(name: str, dtype: Any) -> None:
    plain, node = network(dtype), module_node(network(dtype))
    theirs = OPTIMIZERS[name](list(plain.named_parameters()))
    schedule = HALVING(theirs)
    ours = TorchOptimizer(node, OPTIMIZERS[name], scheduler=HALVING)
    for _ in range(8):
        theirs.zero_grad()
        loss_of(plain).backward()
        theirs.step()
        schedule.step()
    train(ours, node, 8)
    assert equal([p.detach() for p in plain.parameters()], values(node))
    assert ours.lr == theirs.param_groups[0]["lr"] == 0.01 * 0.25
    assert all(p.tensor.is_cuda for p in ours.paths)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_checkpoint_resumes_bit_for_bit(name: str) -> None:
    net = module_node(network())
    optimizer = TorchOptimizer(net, OPTIMIZERS[name], scheduler=HALVING)
    train(optimizer, net, 4)
    saved = through_a_file({"model": net.module.state_dict(), "optimizer": optimizer.state_dict()})
    train(optimizer, net, 5)
    other = module_node(network())
    resumed = TorchOptimizer(other, OPTIMIZERS[name], scheduler=HALVING)
    other.module.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    train(resumed, other, 5)
    assert equal(values(net), values(other))
    assert equal(optimizer.state_dict(), resumed.state_dict())


@pytest.mark.parametrize("way", [("cpu", DEVICE), (DEVICE, "cpu")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adamw-fused"])
def test_a_state_moves_between_devices(name: str, dtype: Any, way: tuple[str, str]) -> None:
    start, end = way
    here = module_node(network(dtype, start))
    optimizer = TorchOptimizer(here, OPTIMIZERS[name], scheduler=HALVING)
    train(optimizer, here, 4)
    state = through_a_file(optimizer.state_dict(), device="cpu")
    there = module_node(network(dtype, end))
    there.module.load_state_dict(here.module.state_dict())
    moved = TorchOptimizer(there, OPTIMIZERS[name], scheduler=HALVING)
    moved.load_state_dict(state)
    moments = floats(moved.torch_optimizer.state)
    assert moments
    assert all(moment.device.type == end for moment in moments)
    assert [m.dtype for m in moments] == [m.dtype for m in floats(optimizer.torch_optimizer.state)]
    assert equal(moved.state_dict(), optimizer.state_dict())
    train(optimizer, here, 1)
    train(moved, there, 1)
    assert moved.steps == optimizer.steps == 5
    assert moved.lr == optimizer.lr
    room = 1e-5 if dtype == torch.float32 else 0.02
    for a, b in zip(values(here), values(there), strict=True):
        if "frugal" not in name:  # the sign of an entry near zero differs between devices, and with it a whole step
            assert torch.allclose(a.cpu(), b.cpu(), atol=room)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_whole_training_step_waits_for_nothing(name: str, clip: float | None) -> None:
    """With the look for NaN off, and outside of FRUGAL's refreshes; the history is read afterwards."""
    net = module_node(network())
    made = partial(OPTIMIZERS[name], gap=100) if "frugal" in name else OPTIMIZERS[name]
    optimizer = TorchOptimizer(net, made, scheduler=HALVING, clip_norm=clip)
    x, y = batch(values(net)[0])
    train(optimizer, net, 2)
    with no_synchronisation():
        for _ in range(3):
            optimizer.zero_feedback()
            trace = tc.Trace.of(torch.nn.functional.mse_loss(net(x), y))
            optimizer.receive(trace, send_gradients(trace, optimizer.parameters, finite=False))
            proposal = optimizer.step()
    assert len(proposal.values) == 4
    records = optimizer.history.read()
    assert [record.step for record in records] == [1, 2, 3, 4, 5]
    assert all(record.loss and record.grad_norm for record in records)
    assert records[-1].loss < records[0].loss
    assert "loss" in optimizer.summary()


def test_a_learning_rate_on_the_device_is_not_read_by_a_step() -> None:
    net = module_node(network())
    rate = torch.tensor(0.01, device=DEVICE)
    optimizer = TorchOptimizer(net, torch.optim.AdamW, lr=rate, capturable=True)
    train(optimizer, net, 2)
    optimizer.zero_feedback()
    optimizer.backward(loss_of(net))
    with no_synchronisation():
        optimizer.step()
    rate.fill_(0.5)
    assert [record.lr for record in optimizer.history.read()] == pytest.approx([0.01] * 3)
    assert optimizer.lr == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_is_no_better_is_undone_bit_for_bit(name: str, dtype: Any) -> None:
    net = module_node(network(dtype))
    optimizer = TorchOptimizer(net, OPTIMIZERS[name], scheduler=HALVING)
    train(optimizer, net, 3)
    before, state = values(net), optimizer.state_dict()
    optimizer.zero_feedback()
    optimizer.backward(loss_of(net))
    proposal = optimizer.step(lambda: 0.0)
    assert proposal.status == "rejected"
    assert equal(values(net), before)
    assert equal(optimizer.state_dict(), state)
    optimizer.step()
    assert not equal(values(net), before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_applying_a_proposal_is_stepping(name: str) -> None:
    results = []
    for proposing in (False, True):
        net = module_node(network())
        optimizer = TorchOptimizer(net, OPTIMIZERS[name])
        train(optimizer, net, 3)
        optimizer.zero_feedback()
        optimizer.backward(loss_of(net))
        before = values(net)
        if proposing:
            (proposal,) = optimizer.propose()
            assert equal(values(net), before)
            optimizer.apply(proposal)
        else:
            optimizer.step()
        results.append((values(net), optimizer.state_dict()["torch"]))
    assert equal(*results)


def test_a_scheduler_that_watches_the_loss() -> None:
    net = module_node(network())
    schedule = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.1, threshold=0.9)
    optimizer = TorchOptimizer(net, torch.optim.SGD, lr=0.01, scheduler=schedule)
    train(optimizer, net, 3)  # no loss is so much lower than the last
    assert optimizer.lr == pytest.approx(0.0001)


def test_moments_of_half_precision_weights_are_kept_in_float32() -> None:
    net = module_node(network(torch.bfloat16))
    optimizer = TorchOptimizer(net, OPTIMIZERS["frugal-block"])
    train(optimizer, net, 4)
    assert {moment.dtype for moment in floats(optimizer.torch_optimizer.state)} == {torch.float32}
    assert {p.tensor.dtype for p in optimizer.paths} == {torch.bfloat16}


# ---- Mixed

POINTS = (-1.0, -0.5, 0.0, 0.5, 1.0)
GOOD = "def shape(x):\n    return [1.0, x, x * x]\n"
POOR = "def shape(x):\n    return [0.0, 0.0, x]\n"
NAN = "def shape(x):\n    return [1.0, float('inf'), 0.0]\n"  # a NaN itself never leaves the sandbox


def shape(x: float) -> list[float]:
    """Features of a number."""
    return [1.0, 0.0, 0.0]


class Fit(tc.Module):
    """Code makes features of x; weights on the device match them to 2 x^2 + 1."""

    def __init__(self, dtype: Any = torch.float32, device: str = DEVICE) -> None:
        self.shape = tc.bundle(trainable=True)(shape)
        self.weights = TensorParameter(torch.zeros(3, dtype=dtype, device=device), name="weights")

    def forward(self, x: float) -> Any:
        return self._error(self.shape(x), x)

    @tc.bundle(name="error")
    def _error(self, features: Any, x: float) -> Any:
        """Squared error."""
        weights = self.weights.value
        return ((torch.tensor(features).to(weights) * weights).sum() - (2 * x * x + 1)) ** 2


class Proposer(Optimizer):
    """Proposes these sources in turn, as a language model would."""

    def __init__(self, parameters: Any, sources: list[str]) -> None:
        super().__init__(parameters)
        self.sources = sources

    def propose(self, traces: Any = None, n: int = 1) -> list[Proposal]:
        source = self.sources.pop(0) if len(self.sources) > 1 else self.sources[0]
        return [Proposal(dict.fromkeys(self.parameters, source), reason="try this")]


def score(fit: Fit) -> float:
    with tc.no_trace():
        return -sum(float(fit(x).value.detach()) for x in POINTS)


def mixed_for(fit: Fit, sources: list[str], optimizer: Any, every: int = 5) -> Mixed:
    writer = Part(Proposer([fit.shape.code], sources), every=every)
    return Mixed({"code": writer, "tensor": TorchOptimizer([fit.weights], optimizer, scheduler=HALVING)})


def go(fit: Fit, mixed: Mixed, steps: int) -> list[Proposal]:
    made = []
    for _ in range(steps):
        mixed.zero_feedback()
        for x in POINTS:
            mixed.backward(fit(x), "the error should be 0")
        made.append(mixed.step(lambda: score(fit)))
    return made


NUMERIC: dict[str, Any] = {
    "adam": partial(torch.optim.Adam, lr=0.1),
    "frugal": partial(Frugal, lr=0.1, density=0.5, split="randk", gap=3, project=True),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NUMERIC)
def test_a_trial_is_undone_exactly(name: str, dtype: Any) -> None:
    fit = Fit(dtype)
    mixed = mixed_for(fit, [POOR, GOOD], NUMERIC[name])
    go(fit, mixed, 5)
    assert mixed.trial is not None
    assert fit.shape.code.value == POOR
    before, state = fit.weights.tensor.detach().clone(), mixed.parts["tensor"].state_dict()
    go(fit, mixed, 4)
    assert not torch.equal(fit.weights.tensor, before)
    go(fit, mixed, 1)
    assert ("undone", 10) in [(event.kind, event.step) for event in mixed.log]
    assert torch.equal(fit.weights.tensor, before)
    assert equal(mixed.parts["tensor"].state_dict(), state)
    assert fit.weights.tensor.is_cuda
    assert fit.weights.tensor.dtype == dtype


@pytest.mark.parametrize("name", NUMERIC)
def test_a_rolled_back_run_goes_on_as_if_nothing_had_been_tried(name: str) -> None:
    tried, untouched = Fit(), Fit()
    go(tried, mixed_for(tried, [POOR], NUMERIC[name]), 10)  # tried in step 5, undone in step 10
    go(untouched, mixed_for(untouched, [POOR], NUMERIC[name], every=1000), 5)
    assert torch.equal(tried.weights.tensor, untouched.weights.tensor)


def test_a_loss_that_is_not_finite_ends_a_trial() -> None:
    fit = Fit()
    mixed = mixed_for(fit, [NAN, GOOD], NUMERIC["adam"])
    go(fit, mixed, 5)
    before = fit.weights.tensor.detach().clone()
    made = go(fit, mixed, 1)[0]
    assert torch.equal(fit.weights.tensor, before) or made.values
    assert bool(fit.weights.tensor.isfinite().all())
    assert fit.shape.code.value != NAN


def test_both_halves_reach_what_neither_does_alone() -> None:
    numeric, together = Fit(), Fit()
    go(numeric, Mixed({"tensor": TorchOptimizer([numeric.weights], NUMERIC["adam"])}, frozen=[numeric.shape.code]), 120)
    writer = Part(Proposer([together.shape.code], [POOR, GOOD]), every=10, budget=2)
    go(together, Mixed({"code": writer, "tensor": TorchOptimizer([together.weights], NUMERIC["adam"])}), 120)
    assert together.shape.code.value == GOOD
    assert score(together) > -0.1 > score(numeric)


@pytest.mark.parametrize("way", [("cpu", DEVICE), (DEVICE, "cpu")])
def test_a_mixed_state_moves_between_devices_in_the_middle_of_a_trial(way: tuple[str, str]) -> None:
    here, there = Fit(device=way[0]), Fit(device=way[1])
    mixed = mixed_for(here, [POOR, GOOD], NUMERIC["adam"])
    go(here, mixed, 7)
    saved = through_a_file({"flow": here.state_dict(), "mixed": mixed.state_dict()}, device="cpu")
    resumed = mixed_for(there, [GOOD], NUMERIC["adam"])
    there.load_state_dict(saved["flow"])
    resumed.load_state_dict(saved["mixed"])
    assert there.weights.tensor.device.type == way[1]
    assert equal(here.weights.tensor.detach(), there.weights.tensor.detach())
    go(here, mixed, 3)
    go(there, resumed, 3)
    assert [(event.step, event.kind) for event in resumed.log] == [(event.step, event.kind) for event in mixed.log]
    assert torch.allclose(here.weights.tensor.cpu(), there.weights.tensor.cpu(), atol=1e-5)
    assert there.weights.tensor.device.type == way[1]


def test_a_scripted_language_model_and_tensors_on_the_device() -> None:
    pytest.importorskip("pydantic")
    import json

    from trace_core.integrations.llm import ScriptedLLM
    from trace_core.optimizers import OptoPrime

    sources = [POOR, GOOD]
    llm = ScriptedLLM(lambda _: json.dumps({"reasoning": "try this", "shape": sources.pop(0) if sources else GOOD}))
    fit = Fit(torch.bfloat16)
    mixed = Mixed.by_kind(
        fit,
        llm=Part(partial(OptoPrime, llm=llm, focus=1), every=5),
        tensor=partial(torch.optim.AdamW, lr=0.1, weight_decay=0.0),
    )
    go(fit, mixed, 5)
    before = fit.weights.tensor.detach().clone()
    go(fit, mixed, 5)
    assert torch.equal(fit.weights.tensor, before)  # the poor proposal is undone, and the good one is on trial
    go(fit, mixed, 60)
    assert fit.shape.code.value == GOOD
    assert score(fit) > -0.5
    assert fit.weights.tensor.is_cuda
    assert any("loss" in call.prompt for call in llm.calls)
