"""The same on a GPU: no waiting for the device, no memory kept, random draws, CUDA graphs. Skipped without one."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import trace_core as tc
from trace_core.nodes.tensor import NonFiniteError, TensorParameter, TensorReplay, module_node, send_gradients

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICE = "cuda"


@contextmanager
def no_synchronisation() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def network(dropout: float = 0.5) -> Any:
    return nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Dropout(dropout), nn.Linear(32, 4)).to(
        DEVICE
    )


def work(node: Any, w: Any, x: Any) -> Any:
    hidden = node(x) * w
    first, second = hidden.split(2, dim=1)
    mixed = torch.cat([functional.dropout(first, 0.3), torch.relu(second)], dim=1)
    rows = torch.stack([mixed[0], mixed[1] + x[0, :4]])
    return (functional.softmax(rows, dim=-1) ** 2).mean() + hidden.view(hidden.size(0), -1).mean()


@pytest.mark.parametrize("transparent", [False, True])
def test_recording_and_gradients_wait_for_nothing(transparent: bool) -> None:
    node = module_node(network(), transparent=transparent)
    w = TensorParameter(torch.ones(4, device=DEVICE), name="w")
    x = torch.randn(8, 16, device=DEVICE)
    send_gradients(tc.Trace.of(work(node, w, x)))  # the first time, libraries are loaded
    with no_synchronisation():
        loss = work(node, w, x)
        trace = loss.backward("x")
        send_gradients(trace, finite=False, release=True)
        w.touch()
        trace = tc.Trace.of(work(node, w, x))
    with no_synchronisation():
        trace.replay({w: torch.ones(4, device=DEVICE)})
        TensorReplay(trace, [w])({w: torch.zeros(4, device=DEVICE)})


def test_the_look_for_nan_waits_once() -> None:
    node = module_node(network())
    w = TensorParameter(torch.ones(4, device=DEVICE), name="w")
    x = torch.randn(8, 16, device=DEVICE)
    send_gradients(tc.Trace.of(work(node, w, x)))
    trace = tc.Trace.of(work(node, w, x))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            send_gradients(trace)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([warning for warning in caught if "synchron" in str(warning.message)]) == 1


def test_a_summary_is_one_transfer() -> None:
    value = torch.randn(1000, device=DEVICE)
    trace = tc.Trace.of(TensorParameter(value, name="w") * 2)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            text = trace.render()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert "float32 on cuda:0: mean" in text
    assert len([warning for warning in caught if "synchron" in str(warning.message)]) == 2  # parameter and output


def test_memory_goes_with_the_output() -> None:
    node = module_node(network())
    w = TensorParameter(torch.ones(4, device=DEVICE), name="w")
    x = torch.randn(4096, 16, device=DEVICE)
    send_gradients(tc.Trace.of(work(node, w, x)))
    gc.collect()
    gc.disable()
    try:
        before = torch.cuda.memory_allocated()
        for _ in range(3):
            loss = work(node, w, x)
            assert torch.cuda.memory_allocated() > before
            send_gradients(tc.Trace.of(loss))
            del loss
            assert torch.cuda.memory_allocated() == before
    finally:
        gc.enable()


def test_release_gives_memory_back_before_the_output_goes() -> None:
    w = TensorParameter(torch.ones(1 << 20, device=DEVICE), name="w")
    send_gradients(tc.Trace.of(((w + 1) * 2).sum()))
    before = torch.cuda.memory_allocated()
    loss = ((w + 1) * 2).sum()
    trace = tc.Trace.of(loss)
    send_gradients(trace)
    assert torch.cuda.memory_allocated() - before >= 2 * 4 * (1 << 20)
    trace.release()
    assert torch.cuda.memory_allocated() - before < 1 << 16


def test_random_draws_on_the_device_are_repeated() -> None:
    p = TensorParameter(torch.randn(64, 64, device=DEVICE), name="p")
    for draw in (
        lambda n: functional.dropout(n, 0.5),
        lambda n: n + torch.randn_like(n),
        lambda n: n.sigmoid().bernoulli(),
        lambda n: module_node(network())(n[:, :16]),
    ):
        out = draw(p)
        state = torch.cuda.get_rng_state()
        assert torch.equal(tc.Trace.of(out).replay({p: p.value.detach().clone()}).value, out.value)
        assert torch.equal(torch.cuda.get_rng_state(), state)


MODES: list[tuple[Any, dict[str, Any]]] = [
    ("eager", {}),
    ("compile", {"backend": "aot_eager"}),
    ("compile", {}),
    ("cuda-graph", {}),
]


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(("mode", "options"), MODES)
def test_replays_in_every_mode(mode: Any, options: dict[str, Any], dropout: float) -> None:
    net = network(dropout)
    node = module_node(net)
    target = node(torch.randn(32, 16, device=DEVICE)) * 2
    trace = tc.Trace.of((target**2).mean())
    state = {name: value.clone() for name, value in net.state_dict().items()}
    replay = TensorReplay(trace, until=target, mode=mode, **options)
    plain = TensorReplay(trace, until=target)
    results = []
    for scale in (1.0, 0.5, 2.0):
        values = {p: (p.tensor.detach() * scale).requires_grad_() for p in replay.parameters}
        z = replay(values)
        z.square().sum().backward()
        twins = {p: (p.tensor.detach() * scale).requires_grad_() for p in replay.parameters}
        expected = plain(twins)
        expected.square().sum().backward()
        assert torch.allclose(z, expected, rtol=1e-3, atol=1e-4)
        for p in replay.parameters:
            assert torch.allclose(values[p].grad, twins[p].grad, rtol=1e-2, atol=1e-3)
        results.append((z, expected, values, twins))
    for z, expected, values, twins in results:  # no evaluation wrote over an earlier one
        assert torch.allclose(z, expected, rtol=1e-3, atol=1e-4)
        assert all(torch.allclose(values[p].grad, twins[p].grad, rtol=1e-2, atol=1e-3) for p in values)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in state.items())


def test_batches_have_the_recorded_mask_or_are_refused() -> None:
    node = module_node(network())
    target = node(torch.randn(8, 16, device=DEVICE))
    replay = TensorReplay(tc.Trace.of(target))
    rows = {p: torch.stack([p.tensor.detach(), p.tensor.detach() * 0.5]) for p in replay.parameters}
    try:
        batch = replay.batched(rows)
    except tc.ReplayError:
        pytest.skip("torch.vmap draws other numbers here, and it is refused")
    for index in range(2):
        assert torch.allclose(batch[index], replay({p: row[index] for p, row in rows.items()}), atol=1e-4)


def test_moves_between_devices(tmp_path: Path) -> None:
    class Flow(tc.Module):
        def __init__(self, device: str) -> None:
            self.net = module_node(network().to(device))
            self.w = TensorParameter(torch.ones(4), device=device, dtype=torch.float16)

    here, there = Flow("cpu"), Flow(DEVICE)
    here.save(tmp_path / "state.json")
    there.load(tmp_path / "state.json")
    assert there.net.module[0].weight.device.type == "cuda"
    assert torch.equal(there.net.module[0].weight.cpu(), here.net.module[0].weight)
    parameters = here.net.parameters()
    x = torch.randn(8, 16)
    old = tc.Trace.of(here.net(x))
    here.net.module.to(DEVICE)
    assert here.net.parameters() == parameters
    assert here.net(x.to(DEVICE)).device.type == "cuda"
    parameters[0].update(torch.zeros(32, 16))
    assert not here.net.module[0].weight.any()
    with pytest.raises(tc.ReplayError):
        old.replay({parameters[1]: torch.zeros(32)})


def test_half_precision_training_step() -> None:
    node = module_node(network(0.0))
    x = torch.randn(8, 16, device=DEVICE)
    with torch.autocast("cuda", dtype=torch.float16):
        out = node(x)
        loss = (out.float() ** 2).mean()
    assert out.dtype == torch.float16
    send_gradients(tc.Trace.of(loss))
    again = tc.Trace.of(loss).replay({p: p.value.detach().clone() for p in node.parameters()})
    assert torch.allclose(again.value, loss.value, rtol=1e-2)
    w = TensorParameter(torch.full((4,), 60000.0, device=DEVICE, dtype=torch.float16), name="w")
    with pytest.raises(NonFiniteError, match="mul0"):
        send_gradients(tc.Trace.of((w * 2).sum()))
