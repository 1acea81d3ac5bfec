"""TensorReplay: a target as a pure function of parameters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from expressions import PLANS, Plan, evaluate
from hypothesis import given, settings
from torch import nn

import trace_core as tc
from trace_core.nodes.tensor import TensorParameter, TensorReplay, module_node, tensor


def leaves(seed: int) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 3, generator=generator) for _ in range(3)]


@settings(max_examples=60)
@given(plan=PLANS)
def test_values_gradients_and_batches_are_those_of_the_expression(plan: Plan) -> None:
    parameters = [TensorParameter(value, name=f"p{i}") for i, value in enumerate(leaves(1))]
    replay = TensorReplay(tc.Trace.of(evaluate(list(parameters), plan)))
    used = [parameters.index(p) for p in replay.parameters]
    fresh = [value.requires_grad_() for value in leaves(2)]
    expected = evaluate(fresh, plan)  # parameters that do not matter may have any value
    found = replay({parameters[i]: fresh[i] for i in used})
    assert torch.allclose(found, expected, atol=1e-6)
    wanted = torch.autograd.grad(expected, [fresh[i] for i in used], allow_unused=True)
    given_ = torch.autograd.grad(found, [fresh[i] for i in used], allow_unused=True)
    for one, other in zip(given_, wanted, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, atol=1e-6)
    if "where" not in {name for name, _, _ in plan}:
        rows = [torch.stack([value.detach(), value.detach() * 0.5]) for value in fresh]
        batch = replay.batched({parameters[i]: rows[i] for i in used})
        assert torch.allclose(batch[0], expected, atol=1e-5)
        assert torch.allclose(batch[1], evaluate([value.detach() * 0.5 for value in fresh], plan), atol=1e-5)


def network(dropout: float = 0.5) -> Any:
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 2))


def recorded(net: Any) -> tuple[Any, Any, tc.Trace]:
    node = module_node(net)
    target = node(torch.randn(8, 3)) * 2
    return node, target, tc.Trace.of((target**2).mean())


MODES = [("eager", "-"), ("compile", "eager"), ("compile", "aot_eager")]


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(("mode", "backend"), MODES)
def test_a_network_with_statistics_and_dropout(mode: Any, backend: str, dropout: float) -> None:
    net = network(dropout)
    node, target, trace = recorded(net)
    state, generator = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    replay = TensorReplay(trace, until=target, mode=mode, backend=backend)
    assert replay.parameters == node.parameters()
    assert replay.target is target
    own = {p: p.value.detach().clone().requires_grad_() for p in replay.parameters}
    z = replay(own)
    assert torch.allclose(z, target.value, atol=1e-6)
    z.sum().backward()
    target.value.sum().backward()
    for p, value in own.items():
        assert torch.allclose(value.grad, p.grad, atol=1e-5)
    halves = {p: value.detach() * 0.5 for p, value in own.items()}
    assert torch.allclose(replay(halves), trace.replay(halves, until=target).value, atol=1e-6)
    assert torch.allclose(replay(), target.value, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), net.state_dict().values(), strict=True))
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize(("mode", "backend"), MODES)
def test_transforms_of_torch_func(mode: Any, backend: str) -> None:
    _, target, trace = recorded(network())
    replay = TensorReplay(trace, until=target, mode=mode, backend=backend)
    point = tuple(p.value.detach() for p in replay.parameters)
    directions = tuple(torch.randn_like(value) for value in point)
    _, forward = torch.func.jvp(replay.function, point, directions)
    _, pull = torch.func.vjp(replay.function, *point)
    weights = torch.randn_like(target.value)
    back = pull(weights)
    assert torch.allclose(
        (forward * weights).sum(), sum((a * b).sum() for a, b in zip(back, directions, strict=True)), rtol=1e-4
    )
    by_parameter = dict(zip(replay.parameters, point, strict=True))
    _, same = torch.func.jvp(replay, (by_parameter,), (dict(zip(replay.parameters, directions, strict=True)),))
    assert torch.allclose(same, forward)
    jacobian = torch.func.jacrev(lambda w: replay({replay.parameters[0]: w}))(point[0])
    assert jacobian.shape == (8, 2, 6, 3)


def test_batches_share_the_mask_and_leave_out_what_is_not_given() -> None:
    net = network()
    node, target, trace = recorded(net)
    replay = TensorReplay(trace, until=target)
    weight = node.parameters()[0]
    rows = torch.stack([weight.value.detach(), torch.zeros(6, 3), weight.value.detach() * 2])
    batch = replay.batched({weight: rows})
    assert batch.shape == (3, 8, 2)
    for row, value in zip(rows, batch, strict=True):
        assert torch.allclose(replay({weight: row}), value, atol=1e-5)
    with pytest.raises(tc.ReplayError, match=r"expected \(batch, \*\(6, 3\)\)"):
        replay.batched({weight: weight.value})


def test_other_python_inside() -> None:
    w, u = TensorParameter(torch.ones(2), name="w"), TensorParameter(torch.ones(2), name="u")
    scale = tc.node(3.0, trainable=True, name="scale")
    mix = tc.bundle(lambda x: {"out": x * u.value * scale.value}, name="mix")
    out = mix(w * 2)["out"]
    for mode in ("eager", "compile"):
        replay = TensorReplay(tc.Trace.of(out), mode=mode, backend="eager")  # type: ignore[arg-type]
        assert replay.parameters == [w, u]
        changed = {w: torch.tensor([1.0, 2.0], requires_grad=True), u: torch.tensor([3.0, 4.0])}
        z = replay(changed)
        assert z.tolist() == [18.0, 48.0]
        z.sum().backward()
        assert changed[w].grad.tolist() == [18.0, 24.0]
    assert TensorReplay(tc.Trace.of(out)).batched({w: torch.ones(3, 2)}).tolist() == [[6.0, 6.0]] * 3


def test_tests_of_the_workflow() -> None:
    """Checked in eager mode; in the others they cannot be, so that the replay is refused."""
    w = TensorParameter(torch.tensor([1.0, 2.0]), name="w")
    hidden = w * 2
    loss = hidden.sum() if hidden.max() > 1 else hidden.mean()
    trace = tc.Trace.of(loss)
    replay = TensorReplay(trace)
    assert replay({w: torch.tensor([3.0, 4.0])}).item() == 14.0
    with pytest.raises(tc.ReplayError, match="bool"):
        replay({w: torch.tensor([0.1, 0.1])})
    with pytest.raises(tc.ReplayError, match=r"batched\(\) cannot check"):
        replay.batched({w: torch.ones(3, 2)})
    with pytest.raises(tc.ReplayError, match="mode 'compile' cannot check"):
        TensorReplay(trace, mode="compile")
    assert TensorReplay(trace, until=hidden, mode="compile", backend="eager")({w: torch.ones(2)}).tolist() == [2.0, 2.0]


def test_looking_at_shapes_does_not_hinder() -> None:
    w = TensorParameter(torch.ones(2, 2), name="w")
    trace = tc.Trace.of(sum(row.sum() for row in w * 2) / (w * 1).shape[0])
    assert TensorReplay(trace, mode="compile", backend="eager")({w: torch.ones(2, 2) * 2}).item() == 8.0
    assert TensorReplay(trace).batched({w: torch.ones(3, 2, 2)}).tolist() == [4.0] * 3


def test_what_is_used_as_recorded_must_not_have_changed() -> None:
    w, u = TensorParameter(torch.ones(2), name="w"), TensorParameter(torch.ones(2), name="u")
    x = torch.full((2,), 2.0)
    trace = tc.Trace.of(w * x + u)
    replay = TensorReplay(trace, [w])
    assert replay({w: torch.zeros(2)}).tolist() == [1.0, 1.0]
    x.add_(1)
    with pytest.raises(tc.ReplayError, match="changed in place"):
        replay({w: torch.zeros(2)})
    with pytest.raises(tc.ReplayError, match="changed in place"):
        TensorReplay(trace)
    trace = tc.Trace.of(w * 2 + u)
    replay, whole = TensorReplay(trace, [w]), TensorReplay(trace)
    u.update([5.0, 5.0])
    with pytest.raises(tc.ReplayError, match="'u' was changed in place"):
        replay({w: torch.zeros(2)})
    with pytest.raises(tc.ReplayError, match="'u' was changed in place"):
        whole({w: torch.zeros(2)})
    assert whole({w: torch.zeros(2), u: torch.ones(2)}).tolist() == [1.0, 1.0]


def test_released_traces_can_be_replayed() -> None:
    _, target, trace = recorded(network())
    before = target.value.clone()
    trace.release()
    assert torch.allclose(TensorReplay(trace, until=target)(), before)
    x = tensor(torch.ones(2))
    w, u = TensorParameter(torch.ones(2)), TensorParameter(torch.ones(2))
    trace = tc.Trace.of((torch.exp(u * x) * w).sum())
    trace.release()
    replay = TensorReplay(trace, [w])  # exp(u * x) was let go of and does not depend on w
    assert torch.allclose(replay({w: torch.ones(2) * 2}), torch.e * torch.ones(()) * 4)


def test_modes_and_autocast_of_the_record() -> None:
    net = network()
    node, target, trace = recorded(net)
    net.eval()
    assert torch.allclose(TensorReplay(trace, until=target)(), target.value)
    assert torch.allclose(TensorReplay(trace, until=target, mode="compile", backend="eager")(), target.value)
    assert not net[3].training
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = tc.Trace.of(node(torch.ones(2, 3)))
    assert TensorReplay(low)().dtype == torch.bfloat16
    assert TensorReplay(low, mode="compile", backend="eager")().dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert TensorReplay(trace, until=target)().dtype == torch.float32


def test_a_module_called_in_two_modes() -> None:
    net = network()
    node = module_node(net)
    x = torch.randn(4, 3)
    first = node(x)
    net.eval()
    second = node(x)
    trace = tc.Trace.of(first + second)
    for mode in ("eager", "compile"):
        replay = TensorReplay(trace, mode=mode, backend="eager")  # type: ignore[arg-type]
        assert torch.allclose(replay(), first.value + second.value, atol=1e-6)


def test_profile_names_every_step() -> None:
    _, target, trace = recorded(network())
    times = TensorReplay(trace, until=target).profile()
    assert [node.op.name for node in times] == ["sequential", "mul"]
    assert all(seconds > 0 for seconds in times.values())


def test_what_cannot_be_replayed() -> None:
    w = TensorParameter(torch.ones(2), name="w")
    prompt = tc.node("text", trainable=True)
    out = tc.bundle(lambda x, p: {"loss": x.sum(), "words": p})(w, prompt)
    loss = out["loss"]
    trace = tc.Trace.of(loss)
    for make, said in (
        (lambda: TensorReplay(trace, until=out), "must be a tensor, got dict"),
        (lambda: TensorReplay(trace, [prompt]), "takes TensorParameters"),
        (lambda: TensorReplay(trace, [TensorParameter(1.0)]), "depends on none of the parameters"),
        (lambda: TensorReplay(tc.Trace.of(prompt + "a")), "no tensor parameter"),
        (lambda: TensorReplay(trace, until=tc.node(1)), "not a node of this trace"),
        (lambda: TensorReplay(trace, mode="fast"), "mode must be"),  # type: ignore[arg-type]
        (lambda: TensorReplay(trace, mode="cuda-graph"), "cuda-graph"),
        (lambda: TensorReplay(trace)({prompt: torch.ones(2)}), "not among those"),  # type: ignore[dict-item]
    ):
        with pytest.raises(tc.ReplayError, match=said):
            make()
    with pytest.raises(tc.ParameterError, match="shape"):
        TensorReplay(trace)({w: torch.ones(3)})


def test_a_compiler_that_is_missing_is_said() -> None:
    w = TensorParameter(torch.ones(2), name="w")

    def broken(*_: Any) -> Any:
        raise RuntimeError("no C++ compiler")

    torch._dynamo.reset()
    replay = TensorReplay(tc.Trace.of((w * 2).sum()), mode="compile", backend=broken)  # type: ignore[arg-type]
    with pytest.raises(tc.ReplayError, match="needs a C\\+\\+ compiler"):
        replay({w: torch.ones(2)})


def test_a_network_is_compiled_as_a_whole() -> None:
    graphs = []

    def backend(graph: Any, examples: Any) -> Any:
        graphs.append([node for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    torch._dynamo.reset()
    _, target, trace = recorded(network(0.0).eval())
    replay = TensorReplay(trace, until=target, mode="compile", backend=backend)  # type: ignore[arg-type]
    assert torch.allclose(replay(), target.value, atol=1e-6)
    assert len(graphs) == 1
    assert len(graphs[0]) >= 5


@pytest.mark.slow
def test_inductor() -> None:
    _, target, trace = recorded(network(0.0))
    try:
        found = TensorReplay(trace, until=target, mode="compile")()
    except tc.ReplayError as error:
        pytest.skip(str(error))
    assert torch.allclose(found, target.value, atol=1e-5)
