"""Inner steps leave no mark on the model: buffers, random numbers, train mode, the parameters' own tensors."""

from __future__ import annotations

import gc
import random
import weakref
from typing import Any

import numpy
import pytest

pytest.importorskip("torch")

import torch
from surrogate_problems import Linear, step

import trace_core as tc
from trace_core.nodes.tensor import module_node
from trace_core.optimizers.surrogate import TargetSurrogate

INNER = ["exact", "adam", "lbfgs", "armijo", "gd"]
cross_entropy = tc.bundle(torch.nn.functional.cross_entropy, name="loss")


def net(*layers: Any) -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 6), *layers, torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()


def data() -> tuple[Any, Any]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(16, 5, generator=draw, dtype=torch.float64), torch.arange(16) % 3


@pytest.mark.parametrize("inner", INNER)
def test_batch_norm_statistics_move_once_for_each_run_of_the_workflow(inner: str) -> None:
    model, (x, y) = net(torch.nn.BatchNorm1d(6)), data()
    policy = module_node(model, name="policy")
    optimizer = TargetSurrogate(policy, inner=inner)
    for count in (1, 2):
        output = cross_entropy(policy(x), y)
        kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
        step(optimizer, output)
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, kept[name]), name
        assert int(model[1].num_batches_tracked) == count
    assert model.training


@pytest.mark.parametrize("inner", INNER)
def test_dropout_keeps_the_mask_of_the_workflow(inner: str) -> None:
    """The same mask in every inner step: the surrogate goes down for the outputs of that very mask."""
    model, (x, y) = net(torch.nn.Dropout(0.5)), data()
    policy = module_node(model, name="policy")
    optimizer = TargetSurrogate(policy, inner=inner)
    output = cross_entropy(policy(x), y)
    state = torch.get_rng_state()
    optimizer.backward(output)
    (proposal,) = optimizer.propose()
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn
    trace = tc.Trace.of(output)
    after = trace.replay(proposal.values)  # with the recorded mask
    assert float(after.value.detach()) < float(output.value.detach())


def test_gradient_descent_with_dropout_is_that_of_the_recorded_mask() -> None:
    model, (x, y) = net(torch.nn.Dropout(0.5)), data()
    twin = net(torch.nn.Dropout(0.5))
    policy = module_node(model, name="policy")
    torch.manual_seed(7)
    step(TargetSurrogate(policy, inner="gd", inner_lr=0.1), cross_entropy(policy(x), y))
    torch.manual_seed(7)
    torch.nn.functional.cross_entropy(twin(x), y).backward()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.detach(), theirs.detach() - 0.1 * theirs.grad, rtol=1e-12, atol=1e-14)


def test_losses_at_moved_targets_draw_the_same_random_numbers_and_leave_none_used() -> None:
    problem = Linear()
    drawn: list[tuple[float, float, float]] = []

    def noisy(z: Any) -> float:
        drawn.append((float(torch.rand(())), random.random(), float(numpy.random.rand())))
        return float(problem.losses(z).detach().sum()) + drawn[-1][0]

    output = tc.bundle(noisy, name="simulate")(problem.predict())
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    step(TargetSurrogate([problem.w], probes=3), output)
    assert len(drawn) == 7
    assert len(set(drawn[1:])) == 1
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), numpy.random.get_state()[1].tolist()) == states[1:]


def test_a_target_that_is_no_function_of_the_parameters_is_refused() -> None:
    problem = Linear()
    counter = iter(range(100))
    drifting = tc.bundle(lambda w: problem.x @ w + next(counter), name="predict")(problem.w)
    before = problem.w.value.detach().clone()
    with pytest.raises(tc.ReplayError, match="up to predict0 with unchanged parameters does not give the recorded"):
        step(TargetSurrogate([problem.w]), tc.bundle(problem.reduced, name="loss")(drifting))
    assert torch.equal(problem.w.value.detach(), before)


def test_a_workflow_that_would_take_another_path_is_refused() -> None:
    problem = Linear()
    z = problem.predict()
    if z.sum() > -1e9:  # a test of the target is no test before it
        z = z * 1.0
    before = problem.value()
    step(TargetSurrogate([problem.w], "predict"), tc.bundle(problem.reduced, name="loss")(z))
    assert problem.value() < before


def test_gradients_of_the_parameters_and_the_graph_are_left_for_others() -> None:
    problem = Linear()
    output = problem.loss()
    optimizer = TargetSurrogate([problem.w])
    optimizer.backward(output)
    optimizer.propose()
    assert problem.w.grad is None
    output.value.backward()  # autograd's graph is still there
    assert problem.w.grad is not None


def test_own_tensor_is_updated_in_place() -> None:
    model, (x, y) = net(), data()
    policy = module_node(model, name="policy")
    weight = model[0].weight
    before = weight.detach().clone()
    step(TargetSurrogate(policy), cross_entropy(policy(x), y))
    assert model[0].weight is weight
    assert not torch.equal(weight.detach(), before)


@pytest.mark.parametrize("eta", [1.0, "line-search", "bb"])
def test_traces_are_let_go(eta: Any) -> None:
    problem = Linear()
    optimizer = TargetSurrogate([problem.w], eta=eta)
    seen = []
    for _ in range(3):
        optimizer.zero_feedback()
        seen.append(weakref.ref(optimizer.backward(problem.loss())))
        optimizer.step()
    optimizer.zero_feedback()
    gc.collect()
    assert [trace() for trace in seen] == [None] * 3
