"""module_node: a torch module as it is, traced."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from torch import nn

import trace_core as tc
from trace_core.nodes.tensor import ModuleNode, TensorError, TensorParameter, module_node, send_gradients


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Any) -> Any:
        return self.head(self.embed(tokens))


@dataclass
class Output:
    logits: Any
    hidden: tuple[Any, ...]
    loss: Any = None


class Named(nn.Module):
    """As the modules of language models are: keywords in, a dataclass out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("shift", torch.full((4,), 0.5))

    def forward(self, inputs: Any = None, labels: Any = None) -> Output:
        hidden = torch.relu(self.first(inputs))
        logits = self.norm(hidden + self.shift) * self.scale
        loss = None if labels is None else ((logits - labels) ** 2).mean()
        return Output(logits, (hidden,), loss)


def test_a_call_is_one_node_that_depends_on_input_and_weights() -> None:
    net = mlp()
    node = module_node(net, name="mlp", description="two layers")
    assert [name for name, _ in node.named_parameters()] == [name for name, _ in net.named_parameters()]
    x = tc.node(torch.randn(5, 3), name="x")
    out = node(x)
    assert torch.equal(out.value, net(x.value))
    trace = tc.Trace.of(out)
    assert [n.name for n in trace.nodes if n.op is None] == ["x", "0.weight", "0.bias", "2.weight", "2.bias"]
    assert out.op.name == "mlp"
    assert out.inputs["input"] is x
    assert all(p.value is weight for p, weight in zip(node.parameters(), net.parameters(), strict=True))


def test_keywords_and_outputs_with_fields() -> None:
    net = Named()
    node = module_node(net)
    x, labels = torch.randn(2, 3), torch.randn(2, 4)
    out = node(inputs=x, labels=labels)
    assert torch.equal(out.loss.value, net(x, labels).loss)
    assert torch.equal(out.hidden[0].value, net(x).hidden[0])
    assert node(x).loss.value is None
    assert len(send_gradients(tc.Trace.of(out.loss)).reached) == 5
    assert set(out.inputs) >= {"inputs", "labels"}


def test_shared_weights_are_one_parameter() -> None:
    net = Tied()
    node = module_node(net)
    assert [name for name, _ in node.named_parameters()] == ["embed.weight"]
    (weight,) = node.parameters()
    tokens = torch.tensor([0, 3])
    candidate = torch.randn(5, 3)
    with tc.using({weight: candidate}):
        out = node(tokens)
    assert torch.allclose(out.value, candidate[tokens] @ candidate.T)
    assert torch.equal(tc.Trace.of(node(tokens)).replay({weight: candidate}).value, out.value)
    assert net.head.weight is net.embed.weight
    other = module_node(net.head)  # the same weight in two wrapped modules
    assert other.parameters() == [weight]


@pytest.mark.parametrize("make", [lambda: nn.LSTM(3, 4), lambda: nn.MultiheadAttention(3, 1), lambda: nn.GRU(3, 4, 2)])
def test_candidates_and_replays_use_other_weights_and_leave_the_module(make: Callable[[], Any]) -> None:
    net = make()
    node = module_node(net)
    x = torch.randn(5, 2, 3)
    args = (x, x, x) if isinstance(net, nn.MultiheadAttention) else (x,)
    before = [weight.clone() for weight in net.parameters()]
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for weight in twin.parameters():
            weight.mul_(0.5)
    expected = twin(*args)[0]
    trace = tc.Trace.of(node(*args)[0])
    candidates = {p: p.value.detach() * 0.5 for p in node.parameters()}
    with tc.using(candidates):
        assert torch.allclose(node(*args)[0].value, expected)
    assert torch.allclose(trace.replay(candidates).value, expected)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_modes_are_those_of_the_module_and_replays_those_of_the_record() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5))
    node = module_node(net)
    x = torch.randn(4, 3)
    trained = node(x)
    net.eval()
    evaluated = node(x)
    assert not torch.equal(trained.value, evaluated.value)
    changes = {p: p.value.detach().clone() for p in node.parameters()}
    assert torch.equal(tc.Trace.of(evaluated).replay(changes).value, evaluated.value)
    assert torch.equal(tc.Trace.of(trained).replay(changes).value, trained.value)
    assert not any(m.training for m in net.modules())


def test_replays_and_candidates_do_not_move_the_statistics() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    node = module_node(net)
    x = torch.randn(6, 3)
    out = node(x)
    state = copy.deepcopy(net.state_dict())
    assert state["1.num_batches_tracked"] == 1
    changes = {p: p.value.detach().clone() for p in node.parameters()}
    assert torch.equal(tc.Trace.of(out).replay(changes).value, out.value)
    with tc.using(changes):
        assert torch.equal(node(x).value, out.value)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), net.state_dict().values(), strict=True))
    net.eval()
    fixed = tc.Trace.of(node(x))
    net.train()
    node(x)  # moves the statistics that the recorded call read
    with pytest.raises(tc.ReplayError, match="buffer 'num_batches_tracked'"):
        fixed.replay(changes)


class Counting(nn.Module):
    """Reads and writes its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Any) -> Any:
        self.calls += 1
        return x * self.weight + self.calls


def test_a_module_that_writes_what_it_reads() -> None:
    node = module_node(Counting())
    (weight,) = node.parameters()
    out = node(torch.zeros(1))
    with pytest.raises(tc.ReplayError, match="keep_buffers=True"):
        tc.Trace.of(out).replay({weight: torch.zeros(1)})
    node = module_node(Counting(), keep_buffers=True)
    (weight,) = node.parameters()
    first, second = node(torch.zeros(1)), node(torch.zeros(1))
    assert (first.value.item(), second.value.item()) == (1.0, 2.0)
    for out in (first, second, first):
        assert torch.equal(tc.Trace.of(out).replay({weight: torch.zeros(1)}).value, out.value)
    with tc.using({weight: torch.zeros(1)}):
        candidate = node(torch.zeros(1))
    assert candidate.value.item() == 3.0
    assert node.module.calls.item() == 2.0
    assert tc.Trace.of(candidate).replay({weight: torch.ones(1)}).value.item() == 3.0


def test_changes_of_weights_in_place_are_followed() -> None:
    net = mlp()
    node = module_node(net)
    weight = node.parameters()[0]
    assert isinstance(weight, TensorParameter)
    old = tc.Trace.of(node(torch.ones(1, 3)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert weight.version == 1
    assert "changed in place" not in tc.Trace.of(node(torch.ones(1, 3))).render()
    assert "changed in place" in old.render()
    with pytest.raises(tc.ReplayError, match="changed in place"):
        old.replay({node.parameters()[1]: torch.zeros(4)})
    net.double()
    assert weight.version == 2
    assert weight.value is net[0].weight
    assert node(torch.ones(1, 3, dtype=torch.float64)).dtype == torch.float64
    weight.update(torch.zeros(4, 3))
    assert net[0].weight.dtype == torch.float64
    assert not net[0].weight.any()
    net[0].weight.requires_grad_(False)
    assert len(send_gradients(tc.Trace.of(node(torch.ones(1, 3).double()).sum())).reached) == 3


class Adapter(nn.Module):
    """A low-rank addition to a layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Parameter(torch.zeros(2, 4))

    def forward(self, x: Any) -> Any:
        return self.layer(x) + (self.down @ x.T).T


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda net: setattr(net[0], "weight", nn.Parameter(torch.ones(4, 3))), "0.weight is another tensor"),
        (lambda net: net[0].register_parameter("gain", nn.Parameter(torch.ones(1))), "0.gain is new"),
        (lambda net: setattr(net[0], "bias", None), "0.bias is gone"),
        (lambda net: net.__setitem__(2, Adapter(net[2])), "2.down is new, 2.layer.weight is new"),
    ],
)
def test_other_weights_than_when_wrapped_are_refused_until_taken_over(change: Any, said: str) -> None:
    net = mlp()
    node = module_node(net)
    kept = dict(node.named_parameters())["2.weight"]
    change(net)
    for use in (lambda: node(torch.ones(1, 3)), node.parameters):
        with pytest.raises(TensorError, match=said):
            use()
    node.refresh()
    assert [name for name, _ in node.named_parameters()] == [name for name, _ in net.named_parameters()]
    assert kept in node.parameters()  # its tensor is still there
    assert torch.equal(node(torch.ones(1, 3)).value, net(torch.ones(1, 3)))


def test_lazy_and_other_things_are_refused() -> None:
    with pytest.raises(TensorError, match="no shape yet"):
        module_node(nn.LazyLinear(3))
    with pytest.raises(TensorError, match=r"torch\.nn\.Module, got function"):
        module_node(lambda x: x)


def test_errors_inside_become_nodes() -> None:
    node = module_node(mlp())
    with pytest.raises(tc.ExecutionError, match="shapes cannot be multiplied") as caught:
        node(torch.ones(1, 7))
    assert set(tc.Trace.of(caught.value.node).parameters) == set(node.parameters())


class Flow(tc.Module):
    def __init__(self) -> None:
        self.prompt = tc.node("add", trainable=True)
        self.net = module_node(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(torch.bfloat16))
        self.heads = [module_node(nn.Linear(2, 1)), module_node(nn.Linear(2, 1))]
        self.gain = TensorParameter(torch.ones(2, dtype=torch.float16))

    def forward(self, x: Any) -> Any:
        hidden = self.net(x.to(torch.bfloat16)).float()
        return self.heads[0](hidden) + self.heads[1](hidden * self.gain)


def test_in_a_module_and_its_state(tmp_path: Path) -> None:
    first, second = Flow(), Flow()
    assert [name for name, _ in first.named_parameters()] == [
        "prompt",
        "net.0.weight",
        "net.0.bias",
        "net.1.weight",
        "net.1.bias",
        "heads.0.weight",
        "heads.0.bias",
        "heads.1.weight",
        "heads.1.bias",
        "gain",
    ]
    x = torch.randn(4, 3)
    first(x)
    first.prompt.update("subtract")
    assert "net.1.running_mean" in first.state_dict()
    first.save(tmp_path / "flow.json")
    weights = second.net.parameters()
    second.load(tmp_path / "flow.json")
    assert second.net.parameters() == weights
    for f in (first, second):
        f.net.module.eval()
    assert torch.equal(first(x).value, second(x).value)
    assert second.prompt.value == "subtract"
    assert second.gain.value.dtype == torch.float16
    state = first.state_dict()
    first.gain.update(torch.zeros(2))
    assert state["gain"].tolist() == [1.0, 1.0]  # a copy
    state["net.1.running_mean"] = torch.zeros(7)
    with pytest.raises(tc.StateError, match=r"net.1.running_mean.*expected a tensor of shape \(2,\)"):
        first.load_state_dict(state)
    wider = {name: value.float() if torch.is_tensor(value) else value for name, value in second.state_dict().items()}
    first.load_state_dict(wider)  # other precision: converted
    assert first.net.module[0].weight.dtype == torch.bfloat16


def test_copies_are_independent() -> None:
    node = module_node(mlp())
    twin = copy.deepcopy({"node": node, "weight": node.parameters()[0]})
    assert isinstance(twin["node"], ModuleNode)
    assert twin["node"].parameters()[0] is twin["weight"]
    twin["weight"].update(torch.zeros(4, 3))
    assert node.module[0].weight.any()


def test_candidates_in_threads_do_not_mix() -> None:
    net = mlp()
    node = module_node(net)
    x = torch.randn(4, 3)
    expected, found = {}, {}

    def evaluate(scale: float) -> None:
        with tc.using({p: p.tensor.detach() * scale for p in node.parameters()}):
            found[scale] = [node(x).value for _ in range(20)]

    def plain() -> None:
        found[1.0] = [node(x).value for _ in range(20)]

    for scale in (0.0, 0.5, 1.0, 2.0):
        twin = copy.deepcopy(net)
        with torch.no_grad():
            for weight in twin.parameters():
                weight.mul_(scale)
        expected[scale] = twin(x)
    threads = [Thread(target=evaluate, args=(scale,)) for scale in (0.0, 0.5, 2.0)] + [Thread(target=plain)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for scale, values in found.items():
        assert all(torch.allclose(value, expected[scale]) for value in values)
    assert len(found) == 4


def test_transparent_modules_show_what_is_inside() -> None:
    net = Named()
    node = module_node(net, transparent=True, name="net")
    x = tc.node(torch.randn(2, 3), name="x")
    out = node(x)
    assert torch.equal(out.logits.value, net(x.value).logits)
    folded, unfolded = tc.Trace.of(out.logits), tc.Trace.of(out.logits, unfold=True)
    assert [n.op.name for n in folded.nodes if n.op is not None] == ["net", "getattr"]
    inside = [n.op.name for n in unfolded.nodes if n.op is not None]
    assert inside == ["first", "relu", "add", "norm", "mul", "net", "getattr"]
    assert set(unfolded.parameters) == set(node.parameters()) == set(folded.parameters)
    text = unfolded.render()
    assert "first0 = first(x, first_weight, first_bias)" in text
    assert "relu0 = tensor(2x4, float32: released)" in text
    changes = {p: p.value.detach() * 2 for p in node.parameters()}
    assert torch.equal(unfolded.replay(changes).value, folded.replay(changes).value)
    assert len(send_gradients(tc.Trace.of((out.logits**2).mean(), "", unfold=True)).reached) == 5
    assert not net.first._forward_hooks
    with pytest.raises(tc.ExecutionError):
        node(torch.ones(2, 9))
    assert not net.first._forward_pre_hooks


def test_compiled_and_parallel_modules() -> None:
    net = mlp()
    x = torch.randn(4, 3)
    wrapped = module_node(nn.DataParallel(net))
    assert next(name for name, _ in wrapped.named_parameters()) == "module.0.weight"
    assert torch.equal(wrapped(x).value, net(x))
    compiled = module_node(torch.compile(net, backend="aot_eager"))
    assert compiled.name == "sequential"
    out = compiled(x)
    assert torch.allclose(out.value, net(x), atol=1e-6)
    zeros = {p: torch.zeros_like(p.value) for p in compiled.parameters()}
    with tc.using(zeros):
        assert not compiled(x).value.any()
    assert torch.allclose(compiled(x).value, net(x), atol=1e-6)


def test_checkpointing_and_candidates_are_refused() -> None:
    net = mlp()
    net[0].gradient_checkpointing = True
    node = module_node(net)
    node(torch.ones(1, 3))
    with tc.using({node.parameters()[0]: torch.zeros(4, 3)}), pytest.raises(tc.ExecutionError, match="checkpointing"):
        node(torch.ones(1, 3))
