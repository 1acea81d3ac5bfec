"""The embedded network is the network: optima against enumeration, samples and the float64 forward pass."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_core.nodes.decision import Box, Budget, InvalidProblem, Model, Polytope, UncertaintySet
from trace_core.optimizers.decision.relu import Domain, Embedding, IllConditioned, ReluNetwork, maximise


def network(rng: np.random.Generator, sizes: list[int], skip: bool) -> ReluNetwork:
    layers = [(rng.normal(size=(b, a)) / np.sqrt(a), rng.normal(size=b) * 0.3) for a, b in itertools.pairwise(sizes)]
    return ReluNetwork(layers, rng.normal(size=(sizes[-1], sizes[0])) if skip else None)


def a_set(rng: np.random.Generator, n: int) -> UncertaintySet:
    kind = rng.integers(3)
    if kind == 0:
        return Box(rng.uniform(-2, 0, n), rng.uniform(0, 2, n))
    if kind == 1:
        return Budget(n, gamma=float(rng.uniform(0.3, n)), lower=-1.0, upper=2.0)
    return Polytope(rng.normal(size=(3, n)), rng.uniform(0.5, 1.5, 3), low=-1, high=1)


def ascent(net: ReluNetwork, xi: UncertaintySet, starts: Any) -> float:
    """The best value that steps along the gradient, towards corners of the set, come to."""
    best = -np.inf
    for start in starts:
        point, here = start, float(net(start[None])[0, 0])
        for _ in range(12):
            corner = xi.worst(net.slopes(point[None])[0])[1]
            trial = point + np.array([1.0, 0.5, 0.25, 0.1, 0.03])[:, None] * (corner - point)
            values = net(trial)[:, 0]
            if values.max() <= here + 1e-9:
                break
            point, here = trial[int(np.argmax(values))], float(values.max())
        best = max(best, here)
    return best


def check_pair(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 7))
    sizes = [n, *[int(w) for w in rng.integers(2, 9, size=int(rng.integers(1, 3)))], 1]
    net, xi = network(rng, sizes, bool(rng.integers(2))), a_set(rng, n)
    best, point = maximise(net, Domain.of(xi))
    assert xi.contains(point, 1e-6)
    assert float(net(point[None])[0, 0]) == pytest.approx(best, abs=1e-5)
    samples = xi.sample(10_000, seed=seed)
    values = net(samples)[:, 0]
    assert best >= values.max() - 1e-6
    assert best >= ascent(net, xi, samples[np.argsort(-values)[:4]]) - 1e-6


@pytest.mark.parametrize("seed", range(20))
def test_the_embedded_optimum_is_the_forward_pass_and_beats_samples_and_ascent(seed: int) -> None:
    check_pair(seed)


@pytest.mark.slow
def test_180_more_pairs() -> None:
    for seed in range(20, 200):
        check_pair(seed)


@pytest.mark.parametrize("seed", range(15))
def test_over_binary_inputs_it_is_the_enumerated_optimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 6
    net = network(rng, [n, 8, 5, 1], bool(seed % 2))
    points = np.array(list(itertools.product((0.0, 1.0), repeat=n)))
    best, at = maximise(net, Domain.box(np.zeros(n), np.ones(n)), integer=True)
    assert best == pytest.approx(net(points).max(), abs=1e-5)
    assert np.round(at).tolist() in points.tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_bounds_never_cut_a_value_that_can_be_reached(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 5))
    net, xi = network(rng, [n, 6, 6, 1], False), a_set(rng, n)
    model = Model()
    inside = Embedding(model, Domain.of(xi).add_to(model), net, np.eye(n), np.zeros(n), Domain.of(xi))
    hidden = xi.sample(300, seed=seed)
    for (weights, biases), (low, high) in zip(net.layers, inside.bounds, strict=False):
        before = hidden @ weights.T + biases
        assert (before >= low - 1e-9).all()
        assert (before <= high + 1e-9).all()
        hidden = np.maximum(before, 0.0)


def test_linear_programs_tighten_and_stable_neurons_get_no_binary() -> None:
    rng = np.random.default_rng(0)
    net = network(rng, [4, 16, 16, 1], False)
    domain = Domain.box(np.zeros(4), np.ones(4))

    def embedded(tighten: bool) -> Embedding:
        model = Model()
        return Embedding(model, domain.add_to(model), net, np.eye(4), np.zeros(4), domain, tighten=tighten)

    loose, tight = embedded(False), embedded(True)
    assert tight.unstable <= loose.unstable < 32
    assert (tight.bounds[1][1] <= loose.bounds[1][1] + 1e-9).all()
    assert (tight.bounds[1][1] - tight.bounds[1][0]).sum() < (loose.bounds[1][1] - loose.bounds[1][0]).sum()
    positive = ReluNetwork([(np.ones((3, 4)), np.zeros(3)), (np.ones((1, 3)), np.zeros(1))])
    model = Model()
    assert Embedding(model, domain.add_to(model), positive, np.eye(4), np.zeros(4), domain).unstable == 0
    assert model.columns == 4


def test_inputs_may_be_affine_in_the_columns() -> None:
    """x, xi and x * xi as inputs, xi fixed: what the main problem does."""
    rng = np.random.default_rng(5)
    n = 4
    net, xi = network(rng, [3 * n, 8, 1], True), rng.uniform(size=n)
    matrix = np.concatenate([np.eye(n), np.zeros((n, n)), np.diag(xi)])
    offset = np.concatenate([np.zeros(n), xi, np.zeros(n)])
    domain = Domain.box(np.zeros(n), np.ones(n))
    model = Model(maximise=True)
    x = model.add_columns(n, 0, 1, integer=True)
    inside = Embedding(model, x, net, matrix, offset, domain)
    model.set_costs(inside.output.columns, inside.output.matrix[0])
    model.offset = float(inside.output.constant[0])
    points = np.array(list(itertools.product((0.0, 1.0), repeat=n)))
    values = net(np.concatenate([points, np.tile(xi, (len(points), 1)), points * xi], axis=1))
    assert model.solve().objective == pytest.approx(values.max(), abs=1e-5)


def test_a_torch_network_is_taken_over_in_double() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(3, 5),
        torch.nn.ReLU(),
        torch.nn.Linear(5, 4, bias=False),
        torch.nn.ReLU(),
        torch.nn.Linear(4, 2),
    )
    skip = torch.randn(2, 3)
    net = ReluNetwork.from_torch(module, skip)
    points = torch.randn(7, 3)
    wanted = module.double()(points.double()) + points.double() @ skip.double().T
    assert np.abs(net(points) - wanted.detach().numpy()).max() < 1e-12


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ReluNetwork([]), "at least one"),
        (lambda: ReluNetwork([([[1.0, 2.0]], [0.0, 0.0])]), "biases of layer 0 has shape"),
        (lambda: ReluNetwork([([[1.0]], [0.0]), ([[1.0, 1.0]], [0.0])]), "weights of layer 1 has shape"),
        (lambda: ReluNetwork([([[float("nan")]], [0.0])]), "is nan"),
        (lambda: ReluNetwork([([[1.0]], [0.0])], skip=[[1.0, 2.0]]), "skip has shape"),
        (lambda: ReluNetwork.from_torch(torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Tanh())), "found Tanh"),
        (lambda: ReluNetwork.from_torch(torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU())), "must end"),
        (lambda: ReluNetwork([([[1.0]], [0.0])])([[1.0, 2.0]]), "inputs has shape"),
    ],
)
def test_ill_formed_networks_are_refused(make: Any, text: str) -> None:
    with pytest.raises(InvalidProblem, match=text):
        make()


def test_values_too_large_for_a_big_m_are_refused() -> None:
    huge = ReluNetwork([([[1e7, -1e7]], [0.0]), ([[1.0]], [0.0])])
    with pytest.raises(IllConditioned, match="standardise"):
        maximise(huge, Domain.box(np.zeros(2), np.ones(2)))
