"""Any torch function on nodes records, and gives what it gives for tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from expressions import PLANS, Plan, evaluate
from hypothesis import given, settings
from torch.nn import functional

import trace_core as tc
from trace_core.nodes.tensor import TensorParameter, send_gradients, tensor


def leaves(seed: int) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 3, generator=generator) for _ in range(3)]


@settings(max_examples=150)
@given(plan=PLANS)
def test_expressions_gradients_and_replays_are_those_of_plain_torch(plan: Plan) -> None:
    plain = [value.requires_grad_() for value in leaves(1)]
    expected = evaluate(plain, plan)
    expected.backward()
    parameters = [TensorParameter(value, name=f"p{i}") for i, value in enumerate(leaves(1))]
    loss = evaluate(list(parameters), plan)
    assert isinstance(loss, tc.Node)
    assert torch.equal(loss.value, expected)
    trace = tc.Trace.of(loss)
    found = send_gradients(trace)
    for value, parameter in zip(plain, parameters, strict=True):
        gradient = value.grad if parameter in trace.parameters else None
        assert (gradient is None) == (parameter.grad is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)
        assert (parameter in found.reached) == (gradient is not None)
    changed = dict(zip(parameters, leaves(2), strict=True))
    again = trace.replay({p: value for p, value in changed.items() if p in trace.parameters})
    assert torch.allclose(again.value, evaluate(leaves(2), plan), atol=1e-6)


@settings(max_examples=30)
@given(plan=PLANS)
def test_the_same_inside_of_scopes(plan: Plan) -> None:
    """Under candidates, in a bundle's body, and under no_trace the general path runs; it gives the same."""
    parameters = [TensorParameter(value) for value in leaves(1)]
    candidates = dict(zip(parameters, leaves(2), strict=True))
    expected = evaluate(leaves(2), plan)
    with tc.using(candidates):
        assert torch.equal(evaluate(list(parameters), plan).value, expected)
        with tc.no_trace():
            assert torch.equal(evaluate(list(parameters), plan).value, expected)
    whole = tc.bundle(lambda: evaluate(list(parameters), plan))()
    assert torch.equal(whole.value, evaluate(leaves(1), plan))
    assert parameters[0] in tc.Trace.of(whole).parameters


@pytest.mark.parametrize(
    "function",
    [
        lambda n: torch.max(n, dim=0).values,
        lambda n: n.max(dim=0).indices,
        lambda n: torch.topk(n, 2)[0],
        lambda n: n.split(1)[1],
        lambda n: torch.split(n, [1, 1])[0],
        lambda n: n.chunk(2, dim=1)[0],
        lambda n: torch.unbind(n)[1],
        lambda n: next(iter(n)),
        lambda n: torch.linalg.qr(n).R,
        lambda n: torch.meshgrid(n[0], n[1], indexing="ij")[0],
        lambda n: functional.pad(n, (1, 1), value=2.0),
        lambda n: torch.nn.functional.one_hot(n.long().clamp(min=0)),
        lambda n: n.to(torch.float64),
        lambda n: n[n > 0],
        lambda n: n.sum(-1),
        lambda n: n.new_zeros(2),
        lambda n: torch.zeros_like(n),
        lambda n: torch.ones(2, 3) @ n.T,
    ],
)
def test_results_of_many_forms(function: Callable[[Any], Any]) -> None:
    p = TensorParameter(torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]]), name="p")
    result = function(p)
    assert isinstance(result, tc.Node)
    assert torch.equal(result.value, function(p.value))
    assert tc.Trace.of(result).parameters == [p]
    twice = tc.Trace.of(result).replay({p: p.value.detach() * 1.0})
    assert torch.equal(twice.value, result.value)


def test_operators_go_on_where_tensors_keep_no_count_of_changes() -> None:
    """Inference tensors have none: every form of operator works on them all the same."""
    with torch.inference_mode():
        plain = torch.arange(6.0).reshape(2, 3)
        first = tensor(plain) * 2
        for result, expected in (
            (torch.relu(torch.relu(first)), plain * 2),
            (first - 1, plain * 2 - 1),
            (1 - first, 1 - plain * 2),
            (first @ first.T, plain @ plain.T * 4),
            (-first, -2 * plain),
            (first[0], plain[0] * 2),
            (first.sum(dim=0), plain.sum(dim=0) * 2),
            (torch.cat([first, first]), torch.cat([plain, plain]) * 2),
        ):
            assert torch.equal(result.value, expected)
    assert torch.equal((first + 1).value, plain * 2 + 1)


def test_names_of_tensor_methods_are_free_on_other_values() -> None:
    """What ``node.sum`` is depends on the node's value alone, whatever was asked of other nodes before."""

    class Table:
        mean = 3.0

        def sum(self, start: int) -> int:
            return start + 1

    numbers = tensor(torch.ones(4))
    assert numbers.sum().value == 4.0
    assert numbers.mean().value == 1.0
    table = tc.node(Table())
    assert table.mean.value == 3.0
    assert table.sum(2).value == 3
    assert not hasattr(tc.node("text"), "sum")
    with pytest.raises(AttributeError, match="sum"):
        _ = tc.node(5).sum
    assert TensorParameter(torch.ones(2)).sum().value == 2.0
    assert tc.node("a,b").split(",").value == ["a", "b"]


def test_several_results_unpack() -> None:
    p = TensorParameter(torch.tensor([[1.0, 5.0], [4.0, 2.0]]))
    values, indices = p.max(dim=1)
    assert values.value.tolist() == [5.0, 4.0]
    assert indices.value.tolist() == [1, 0]
    first, second = torch.unbind(p)
    assert tc.Trace.of(first + second).parameters == [p]


def test_in_place_forms_are_refused() -> None:
    p = TensorParameter(torch.ones(2))
    n, plain = p * 1, torch.zeros(2)
    for change in (
        lambda: n.add_(1),
        lambda: functional.relu(n, inplace=True),
        lambda: functional.dropout(n, 0.5, True, True),
        lambda: torch.relu_(n),
        lambda: torch.add(plain, n, out=plain),
        lambda: plain.copy_(n),
        lambda: torch.nn.init.zeros_(n),
        lambda: n.__setitem__(0, 1),
        lambda: plain.__setitem__(0, n[0]),
    ):
        with pytest.raises(tc.MutationError):
            change()
    assert n.value.tolist() == [1.0, 1.0]
    assert plain.tolist() == [0.0, 0.0]


def test_metadata_is_plain() -> None:
    n = TensorParameter(torch.zeros(2, 3)) * 1
    assert n.shape == (2, 3)
    assert isinstance(n.shape, torch.Size)
    assert (n.size(0), n.size(), n.dim(), n.ndim, n.numel(), len(n)) == (2, (2, 3), 2, 2, 6, 2)
    assert n.dtype == torch.float32
    assert n.dtype is torch.float32
    assert n.device == torch.device("cpu")
    assert not n.is_cuda
    assert n.is_floating_point()
    assert n.requires_grad
    mask = torch.zeros(n.shape)
    mask[0] = 1  # a tensor of one's own, not a node
    assert torch.ones(6).view(n.size(0), -1).shape == (2, 3)
    assert torch.arange(n.size(1)).tolist() == [0, 1, 2]
    assert n.shape[-1] ** 0.5 == 3**0.5
    assert tc.Trace.of(n.view(n.size(0), -1)).nodes[-1].op.name == "method"


def test_a_shape_that_was_looked_at_is_checked_by_replays() -> None:
    p = TensorParameter(torch.tensor([1.0, 2.0, -3.0]), name="p")
    kept = p[p > 0]
    mean = kept.sum() / kept.shape[0]
    trace = tc.Trace.of(mean)
    assert trace.replay({p: torch.tensor([2.0, 4.0, -1.0])}).value.item() == 3.0
    with pytest.raises(tc.ReplayError, match="shape"):
        trace.replay({p: torch.tensor([2.0, 4.0, 1.0])})
    count = p[p > 0].shape[0]  # of a temporary that the output does not depend on
    with pytest.raises(tc.ReplayError, match="shape"):
        tc.Trace.of(p.sum() / count).replay({p: torch.tensor([2.0, 4.0, 1.0])})


def test_no_grad_and_autocast_are_part_of_the_record() -> None:
    w, v = TensorParameter(torch.randn(4, 4), name="w"), TensorParameter(torch.randn(4, 4), name="v")
    with torch.no_grad():
        target = torch.tanh(w)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = v @ v
    assert product.dtype == torch.bfloat16
    assert not target.requires_grad
    loss = ((product.float() - target) ** 2).mean()
    trace = tc.Trace.of(loss)
    again = trace.replay({w: w.value.detach().clone().requires_grad_(), v: v.value.detach().clone()})
    assert torch.equal(again.value, loss.value)
    assert not again.requires_grad
    full = tc.Trace.of(v @ torch.ones(4, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert full.replay({v: v.value.detach().clone()}).dtype == torch.float32


def test_autocast_in_a_bundle_is_part_of_the_record() -> None:
    v = TensorParameter(torch.randn(4, 4), name="v")
    square = tc.bundle(lambda x: x @ x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = square(v)
    assert tc.Trace.of(out).replay({v: v.value.detach().clone()}).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "draw",
    [
        lambda n: functional.dropout(n, 0.5),
        lambda n: torch.bernoulli(torch.sigmoid(n)),
        lambda n: n.sigmoid().bernoulli(),
        lambda n: n + torch.randn_like(n),
        lambda n: functional.rrelu(n, training=True),
        lambda n: torch.multinomial(n.exp(), 3, replacement=True),
        lambda n: functional.gumbel_softmax(n, hard=True),
        lambda n: functional.scaled_dot_product_attention(n, n, n, dropout_p=0.5),
    ],
)
def test_random_draws_are_repeated_by_replays_and_move_nothing(draw: Callable[[Any], Any]) -> None:
    p = TensorParameter(torch.randn(8, 8), name="p")
    out = draw(p)
    state = torch.get_rng_state()
    again = tc.Trace.of(out).replay({p: p.value.detach().clone()})
    assert torch.equal(again.value, out.value)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_tensor_that_came_without_a_node_is_watched_for_changes() -> None:
    p, q = TensorParameter(torch.ones(2), name="p"), TensorParameter(torch.ones(2), name="q")
    for use in (
        lambda x: p * x + q,
        lambda x: torch.stack([p, x]).sum() + q,
        lambda x: torch.add(p, other=x) + q,
        lambda x: tc.bundle(lambda a, b: a * b["x"])(p, {"x": x}) + q,
    ):
        x = torch.full((2,), 3.0)
        out = use(x)
        trace = tc.Trace.of(out)
        assert torch.equal(trace.replay({p: torch.ones(2)}).value, out.value)
        x.add_(1)
        assert torch.equal(trace.replay({q: torch.ones(2)}).value, out.value)  # does not need x
        with pytest.raises(tc.ReplayError, match="changed in place"):
            trace.replay({p: torch.ones(2)})


def test_clone_and_detach() -> None:
    p = TensorParameter(torch.ones(2), name="p")
    n = p * 2
    loss = (n.clone() * n.detach()).sum()
    send_gradients(tc.Trace.of(loss))
    assert p.grad.tolist() == [4.0, 4.0]


def test_einops() -> None:
    einops = pytest.importorskip("einops")
    p = TensorParameter(torch.randn(2, 3, 4), name="p")
    for step in (
        lambda x: einops.rearrange(x, "a b c -> (a c) b"),
        lambda x: einops.rearrange(x, "a b (c d) -> a d (b c)", d=2),
        lambda x: einops.reduce(x, "a b c -> b", "mean"),
        lambda x: einops.repeat(x, "a b c -> a r b c", r=2),
        lambda x: einops.einsum(x, x, "a b c, a d c -> b d"),
        lambda x: einops.rearrange([x, x], "s a b c -> a s b c"),
        lambda x: einops.pack([x, x], "a * c")[0],
    ):
        result = step(p)
        assert isinstance(result, tc.Node)
        assert torch.allclose(result.value, step(p.value))
        assert tc.Trace.of(result).parameters == [p]
        changed = torch.randn(2, 3, 4)
        assert torch.allclose(tc.Trace.of(result).replay({p: changed}).value, step(changed))


def test_tensor_makes_leaves_and_parameters() -> None:
    leaf = tensor([1.0, 2.0], dtype=torch.float64, name="x", description="two numbers")
    assert type(leaf) is tc.Node
    assert (leaf.name, leaf.description, leaf.dtype) == ("x", "two numbers", torch.float64)
    kept = torch.ones(2)
    assert tensor(kept).value is kept
    parameter = tensor([1.0], trainable=True, name="w")
    assert isinstance(parameter, TensorParameter)
    assert parameter.value.requires_grad
