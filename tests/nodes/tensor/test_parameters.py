"""TensorParameter: one tensor for its whole life, with versions."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch

import trace_core as tc
from trace_core.nodes.tensor import TensorParameter


def test_data_of_many_kinds() -> None:
    own = torch.nn.Parameter(torch.ones(2))
    assert TensorParameter(own).value is own
    plain = torch.ones(2)
    parameter = TensorParameter(plain)
    assert parameter.value.requires_grad
    assert not plain.requires_grad
    assert parameter.value.data_ptr() == plain.data_ptr()
    assert TensorParameter([1, 2]).value.dtype == torch.int64
    assert not TensorParameter([1, 2]).value.requires_grad
    assert TensorParameter(np.ones(2), dtype=torch.bfloat16).value.dtype == torch.bfloat16
    computed = own * 2
    assert TensorParameter(computed).value.is_leaf
    assert TensorParameter(tc.node(torch.ones(3))).value.shape == (3,)
    assert TensorParameter(1.0).kind == "tensor"
    assert repr(TensorParameter(torch.ones(2, 3), name="w")) == "TensorParameter(w: 2x3, float32)"


def test_updates_copy_in_place_and_count() -> None:
    w = TensorParameter(torch.zeros(2), name="w")
    held = w.value
    trace = tc.Trace.of((w * 2).sum())
    w.update([1, 2])
    assert w.value is held
    assert held.tolist() == [1.0, 2.0]
    assert w.version == 1
    assert held.requires_grad
    w.update(np.array([3.0, 4.0]))
    assert w.version == 2
    assert "changed in place since it was used" in repr(trace.values[w])
    assert "changed in place since it was used" in trace.render()
    assert "changed in place since it was used" in str(trace.to_dict())
    assert "changed in place since it was used" in tc.Trace.from_dict(trace.to_dict()).render()


@pytest.mark.parametrize("bad", [[1.0, 2.0, 3.0], "text", None, torch.ones(2, dtype=torch.complex64), [[1.0, 2.0]]])
def test_what_does_not_fit_is_refused(bad: Any) -> None:
    w = TensorParameter(torch.zeros(2), name="w")
    for change in (lambda: w.update(bad), lambda: tc.using({w: bad})):
        with pytest.raises(tc.ParameterError, match=r"'w': expected a tensor of shape \(2,\), float32"):
            change()
    assert w.value.tolist() == [0.0, 0.0]
    assert w.version == 0


def test_a_rule_of_ones_own_comes_on_top() -> None:
    w = TensorParameter(torch.ones(2), name="w", constraint=lambda t: bool((t >= 0).all()))
    w.update([2.0, 3.0])
    for bad in ([-1.0, 0.0], [1.0, 2.0, 3.0]):
        with pytest.raises(tc.ParameterError):
            w.update(bad)
    with pytest.raises(tc.ParameterError):
        TensorParameter([-1.0], constraint=lambda t: bool((t >= 0).all()))


def test_changes_by_others_are_noticed_at_the_next_read() -> None:
    w = TensorParameter(torch.ones(2), name="w")
    first = tc.Trace.of(w * 2)
    with torch.no_grad():
        w.value.mul_(3)
    second = tc.Trace.of(w * 2)
    assert [t.versions[0].index for t in (first, second)] == [0, 1]
    w.value.data = torch.full((2,), 7.0)  # torch does not count this
    third = tc.Trace.of(w * 2)
    assert third.versions[0].index == 2
    assert second.versions[0]._snap.changed(second.versions[0]._value)
    u = TensorParameter(torch.ones(2), name="u")
    mixed = tc.Trace.of(w * u)
    with torch.no_grad():
        w.value.add_(1)
    with pytest.raises(tc.ReplayError, match="'w' was changed in place"):
        mixed.replay({u: torch.zeros(2)})
    assert mixed.replay({u: torch.zeros(2), w: torch.ones(2)}).value.tolist() == [0.0, 0.0]


def test_candidates_are_tensors_of_their_own() -> None:
    w = TensorParameter(torch.ones(2), name="w")
    candidate = torch.tensor([2.0, 3.0], requires_grad=True)
    with tc.using({w: candidate}):
        assert w.value is candidate
        out = (w * 2).sum()
    assert w.value.tolist() == [1.0, 1.0]
    out.value.backward()
    assert candidate.grad.tolist() == [2.0, 2.0]
    assert w.grad is None


def test_copies_and_pickles() -> None:
    w = TensorParameter(torch.nn.Parameter(torch.ones(2)), name="w", description="d")
    for twin in (copy.deepcopy(w), pickle.loads(pickle.dumps(w))):  # noqa: S301 - one's own
        assert isinstance(twin, TensorParameter)
        assert (twin.name, twin.description) == ("w", "d")
        assert isinstance(twin.value, torch.nn.Parameter)
        twin.update([5.0, 5.0])
        assert w.value.tolist() == [1.0, 1.0]
    with tc.using({w: torch.tensor([8.0, 9.0])}):
        assert copy.deepcopy(w).value.tolist() == [8.0, 9.0]
