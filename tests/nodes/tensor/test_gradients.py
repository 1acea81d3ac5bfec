"""Gradients: one place runs autograd, and says where gradients stop and where NaN comes from."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import trace_core as tc
from trace_core.nodes.tensor import (
    GradientError,
    GradientStopsWarning,
    NonFiniteError,
    TensorParameter,
    module_node,
    send_gradients,
)


def weight(*values: float, name: str = "w", **options: Any) -> TensorParameter:
    return TensorParameter(torch.tensor(values), name=name, **options)


def test_gradients_of_several_passes_add_up() -> None:
    w = weight(1.0, 2.0)
    for factor in (1.0, 10.0):
        found = send_gradients(((w * factor) ** 2).sum().backward())
        assert found.reached == (w,)
        assert found.loss.item() == factor**2 * 5
        assert not found.loss.requires_grad
    assert w.grad.tolist() == [202.0, 404.0]
    w.zero_feedback()
    assert w.grad is None


def test_a_gradient_may_be_given_at_any_tensor() -> None:
    w = weight(1.0, 2.0)
    out = w * 3
    assert send_gradients(tc.Trace.of(out, tc.Feedback(gradient=[1.0, -1.0]))).loss is None
    assert w.grad.tolist() == [3.0, -3.0]
    with pytest.raises(GradientError, match=r"gradient of the output's shape \(2,\), got \(3,\)"):
        send_gradients(tc.Trace.of(w * 3, tc.Feedback(gradient=torch.ones(3))))
    with pytest.raises(GradientError, match="scalar loss"):
        send_gradients(tc.Trace.of(w * 3))


def test_only_chosen_parameters_get_gradients() -> None:
    """Two optimizers on one trace: each sends to its own parameters, once."""
    w, v = weight(2.0), weight(3.0, name="v")
    trace = tc.Trace.of((w * v).sum())
    send_gradients(trace, [w], retain_graph=True)
    assert (w.grad.tolist(), v.grad) == ([3.0], None)
    send_gradients(trace, [v])
    assert (w.grad.tolist(), v.grad.tolist()) == ([3.0], [2.0])


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        (
            lambda w: tc.bundle(lambda x: float(x.detach().sum()), name="judge")(w) * 1.0,
            "judge0 .a value of type float",
        ),
        (lambda w: (w * 2).sum().item() * 1.0, "a value of type float"),
        (lambda w: tc.bundle(lambda x: torch.tensor(x.tolist()), name="code")(w).sum(), "code0 .a float32 tensor"),
        (lambda w: (w > 0).float().sum(), "gt0 .a bool tensor: not differentiable"),
        (lambda w: tc.bundle(lambda x: x.detach() * v, name="cut")(w).sum(), "cut0 .it does not hand gradients on"),
    ],
)
def test_where_gradients_stop_is_an_error_that_names_the_node(cut: Any, said: str) -> None:
    w = weight(1.0, 2.0)
    output = cut(w)
    with pytest.raises(GradientError, match=said) as caught:
        send_gradients(tc.Trace.of(output), [w])
    assert len(caught.value.stops) == 1
    assert w.grad is None


v = torch.ones(2, requires_grad=True)  # what a bundle above holds on to


def test_no_grad_is_said() -> None:
    w = weight(1.0)
    with torch.no_grad():
        loss = (w * 2).sum()
    with pytest.raises(GradientError, match=r"mul0 .a float32 tensor without history: made under torch\.no_grad"):
        send_gradients(tc.Trace.of(loss))


def test_frozen_parameters_are_passed_over() -> None:
    w, frozen = weight(1.0), weight(2.0, name="frozen", requires_grad=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = send_gradients(tc.Trace.of((w * frozen).sum()))
    assert found.reached == (w,)
    with pytest.raises(GradientError, match=r"\(frozen\) are frozen"):
        send_gradients(tc.Trace.of((frozen * 2).sum()))
    with pytest.raises(GradientError, match="depends on no tensor parameter"):
        send_gradients(tc.Trace.of(tc.node(torch.ones(1)).sum()))


def test_a_partial_stop_is_a_warning() -> None:
    w, u = weight(1.0), weight(2.0, name="u")
    round_trip = tc.bundle(lambda x: torch.tensor(x.tolist()), name="service")
    loss = (w * round_trip(u * 1)).sum()
    with pytest.warns(GradientStopsWarning, match="stop on the way to others: u at service0"):
        found = send_gradients(tc.Trace.of(loss))
    assert found.reached == (w,)
    assert found.stops[u].op is round_trip
    assert u.grad is None


def test_a_parameter_reached_on_one_way_is_reached() -> None:
    w = weight(1.0, 2.0)
    loss = (torch.where(w > 1, w, 0 * w) * w.detach()).sum()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        send_gradients(tc.Trace.of(loss))
    assert w.grad.tolist() == [0.0, 2.0]


def test_stops_of_many_parameters_are_found_in_linear_time() -> None:
    parameters = [weight(1.0, name=f"p{i}") for i in range(3000)]
    total: Any = parameters[0] * 1
    for parameter in parameters[1:]:
        total = total + parameter
    stopped = tc.bundle(lambda x: x.item(), name="read")(total)
    with pytest.raises(GradientError, match="read0"):
        send_gradients(tc.Trace.of(stopped))


def test_a_graph_used_up_and_one_that_was_changed() -> None:
    w = weight(1.0, 2.0)
    trace = tc.Trace.of((w * w).sum())
    send_gradients(trace)
    with pytest.raises(GradientError, match="retain_graph=True"):
        send_gradients(trace)
    trace = tc.Trace.of((w * w).sum())
    w.update([3.0, 4.0])
    with pytest.raises(GradientError, match="changed in place after it was used"):
        send_gradients(trace)


def test_non_finite_values_name_the_first_node() -> None:
    w = weight(0.0, 1.0)
    inverse = 1 / w
    loss = (inverse * 2).sum()
    with pytest.raises(NonFiniteError, match="output is not finite: NaN or Inf first appeared in truediv0") as caught:
        send_gradients(tc.Trace.of(loss))
    assert caught.value.node is inverse
    assert w.grad is None
    bad = tc.node(torch.tensor([1.0, float("nan")]), name="batch")
    with pytest.raises(NonFiniteError, match="batch"):
        send_gradients(tc.Trace.of((w * bad).sum()))


def test_non_finite_gradients_name_the_parameter() -> None:
    w, u = weight(0.0, 1.0), weight(1.0, 1.0, name="u")
    loss = (torch.sqrt(w) + u).sum()
    with pytest.raises(NonFiniteError, match="gradient of w is not finite, while all values") as caught:
        send_gradients(tc.Trace.of(loss))
    assert caught.value.parameters == (w,)
    assert caught.value.node is None
    assert (w.grad, u.grad) == (None, None)  # nobody steps along them


def test_non_finite_gradients_spoil_those_collected_before() -> None:
    w = weight(0.0, 1.0)
    send_gradients(tc.Trace.of(w.sum()))
    with pytest.raises(NonFiniteError, match="collected before are spoiled"):
        send_gradients(tc.Trace.of(torch.sqrt(w).sum()))


def test_a_given_gradient_that_is_not_finite() -> None:
    w = weight(1.0)
    with pytest.raises(NonFiniteError, match="given gradient at mul0"):
        send_gradients(tc.Trace.of(w * 1, tc.Feedback(gradient=[float("inf")])))


def test_the_check_can_be_switched_off_and_large_numbers_pass_it() -> None:
    w = weight(0.0, 1.0)
    assert send_gradients(tc.Trace.of(torch.sqrt(w).sum()), finite=False).reached == (w,)
    assert torch.isinf(w.grad[0])
    large = weight(3e38, 3e38, name="large")  # finite, while its norm is not
    assert send_gradients(tc.Trace.of((large * torch.tensor([3e38, 3e38])).sum() * 0 + large.sum() * 0), finite=False)
    send_gradients(tc.Trace.of((large * 0.1).sum(), tc.Feedback(gradient=3e38)))


def test_release_lets_go_of_interior_tensors() -> None:
    w = weight(1.0, 2.0)
    hidden = torch.tanh(w * 3)
    loss = (hidden**2).sum()
    trace = tc.Trace.of(loss)
    before = hidden.value.clone()
    send_gradients(trace, release=True)
    assert torch.isfinite(loss.value)
    with pytest.raises(tc.ReleasedError, match=r"tensor.2, float32: released"):
        _ = hidden.value
    with pytest.raises(tc.ReleasedError):
        hidden + 1
    assert "released" in trace.render()
    assert torch.equal(trace.replay(until=hidden).value, before)
    assert torch.equal(trace.replay({w: w.value.detach() * 2}).value, (torch.tanh(w.value * 6) ** 2).sum())
    assert trace.to_dict()


def test_modules_and_accumulation_equal_plain_torch() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 1))
    twin = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 1))
    twin.load_state_dict(net.state_dict())
    node = module_node(net)
    for _ in range(3):
        x = torch.randn(5, 4)
        send_gradients(tc.Trace.of((node(x) ** 2).mean()))
        (twin(x) ** 2).mean().backward()
    for parameter, expected in zip(node.parameters(), twin.parameters(), strict=True):
        assert torch.equal(parameter.grad, expected.grad)  # type: ignore[attr-defined]
