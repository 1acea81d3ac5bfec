"""What recording keeps alive: nothing beyond what autograd keeps, once the output is dropped."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import trace_core as tc
from trace_core.nodes.tensor import TensorParameter, module_node, send_gradients


class Alive:
    """Which of the tensors it was shown are still there."""

    def __init__(self) -> None:
        self._seen: dict[str, Any] = {}

    def watch(self, name: str, tensor: Any) -> None:
        self._seen[name] = weakref.ref(tensor)

    def names(self) -> set[str]:
        return {name for name, reference in self._seen.items() if reference() is not None}


@pytest.fixture(autouse=True)
def no_collector() -> Any:
    """Tensors must go at once, not with the next collection."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def deep(width: int = 4) -> Any:
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))


def test_everything_goes_with_the_output() -> None:
    alive = Alive()
    node, w = module_node(deep()), TensorParameter(torch.ones(4), name="w")
    x = torch.randn(2, 4)
    hidden = node(x)
    scaled = hidden * w
    rows = list(scaled)
    kept = torch.cat([scaled.split(1)[0], rows[0][None]])
    loss = torch.relu(kept).sum(dim=0).mean()
    for name, n in (("hidden", hidden), ("scaled", scaled), ("row", rows[0]), ("kept", kept), ("loss", loss)):
        alive.watch(name, n.value)
    assert alive.names() == {"hidden", "scaled", "row", "kept", "loss"}
    del hidden, scaled, rows, kept, n
    assert "hidden" in alive.names()  # the output's graph
    del loss
    assert alive.names() == set()


def test_backward_and_its_trace_keep_nothing_after_zero_feedback() -> None:
    alive = Alive()
    node = module_node(deep())
    hidden = node(torch.randn(2, 4))
    loss = (hidden**2).mean()
    alive.watch("hidden", hidden.value)
    send_gradients(loss.backward("x"))
    del hidden, loss
    assert alive.names() == {"hidden"}  # the trace lies with the parameters
    for parameter in node.parameters():
        parameter.zero_feedback()
    assert alive.names() == set()


def test_release_frees_what_only_the_trace_holds() -> None:
    alive = Alive()
    w = TensorParameter(torch.ones(4), name="w")
    shifted = w + 1  # autograd does not need the sum
    loss = (shifted * 2).sum()
    alive.watch("shifted", shifted.value)
    trace = tc.Trace.of(loss)
    send_gradients(trace)
    assert alive.names() == {"shifted"}
    assert trace.release() == 2
    assert alive.names() == set()
    assert loss.value.item() == 16.0


def test_transparent_modules_hold_no_inner_tensors() -> None:
    alive = Alive()
    net = deep()
    net[1].register_forward_hook(lambda module, args, result: alive.watch("tanh", result))
    node = module_node(net, transparent=True)
    with torch.no_grad():
        out = node(torch.randn(2, 4))
    assert alive.names() == set()
    assert [n.op.name for n in tc.Trace.of(out, unfold=True).nodes if n.op is not None] == ["0", "1", "2", "sequential"]


def test_looking_at_shapes_and_lengths_makes_no_cycles() -> None:
    alive = Alive()
    w = TensorParameter(torch.ones(3, 4), name="w")
    hidden = w * 2
    alive.watch("hidden", hidden.value)
    assert (len(hidden), hidden.shape, hidden.size(0)) == (3, (3, 4), 3)
    out = sum(row.sum() for row in hidden) / hidden.shape[0]
    del hidden
    assert alive.names() == {"hidden"}
    del out
    assert alive.names() == set()


def test_a_failed_call_keeps_no_activations() -> None:
    alive = Alive()

    class Fails(nn.Module):
        def forward(self, x: Any) -> Any:
            y = x * 2
            alive.watch("inside", y)
            raise ValueError("no")

    node = module_node(Fails())
    with pytest.raises(tc.ExecutionError):
        node(torch.ones(3))
    gc.collect()
    assert alive.names() == set()


def test_a_training_loop_is_flat() -> None:
    node = module_node(deep(), transparent=True)
    optimizer = torch.optim.SGD(node.module.parameters(), lr=0.01)
    counts = []
    for _ in range(6):
        for _ in range(5):
            send_gradients(tc.Trace.of((node(torch.randn(2, 4)) ** 2).mean()))
            optimizer.step()
            optimizer.zero_grad()
        counts.append(sum(type(item) in (torch.Tensor, nn.Parameter) for item in gc.get_objects()))
    assert counts[-1] == counts[1]
