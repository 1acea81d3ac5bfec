"""AdaBelief, diffGrad, AdamP and SGDP of pytorch-optimizer, each against its paper's update written out here.

Where the package's update is not the paper's, the test says how it differs and checks both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from trace_core.optimizers import TorchOptimizer

torch = pytest.importorskip("torch")
package = pytest.importorskip("pytorch_optimizer")

from trace_core.nodes.tensor import TensorParameter  # noqa: E402

LR, BETA1, BETA2, EPS, DECAY = 0.05, 0.9, 0.99, 1e-8, 0.1
STEPS = 12
TARGET = torch.randn(4, 5, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def start() -> Any:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def quartic(w: Any) -> Any:
    """An ordinary loss."""
    return ((w - TARGET) ** 2).sum() + 0.1 * (w**4).sum()


def outwards(w: Any) -> Any:
    """Its gradient points along the weights: no projection."""
    return -5 * w.norm() + 0.1 * (w * TARGET).sum()


def rows(w: Any) -> Any:
    """Does not depend on the length of any row, so its gradient is orthogonal to each: the channel-wise branch."""
    return ((w / w.norm(dim=1, keepdim=True) - TARGET) ** 2).sum()


def whole(w: Any) -> Any:
    """Does not depend on the length of the whole, but on that of rows: the layer-wise branch."""
    return ((w / w.norm() - TARGET) ** 2).sum() + (w[0] * TARGET[0]).sum() ** 2 / w.norm() ** 2


def gradient(loss: Callable[[Any], Any], w: Any) -> Any:
    leaf = w.detach().clone().requires_grad_()
    loss(leaf).backward()
    return leaf.grad


def run(optimizer: Any, loss: Callable[[Any], Any], first: Any, **options: Any) -> list[Any]:
    """The weights after each step of the package's optimizer, behind TorchOptimizer."""
    weight = TensorParameter(first.clone(), name="w")
    adapter = TorchOptimizer([weight], optimizer, lr=LR, **options)
    seen = []
    for _ in range(STEPS):
        adapter.zero_feedback()
        adapter.backward(loss(weight))
        adapter.step()
        seen.append(weight.value.detach().clone())
    return seen


def follows(seen: list[Any], reference: Iterator[Any], tolerance: float = 1e-12) -> bool:
    return all(torch.allclose(w, next(reference), rtol=tolerance, atol=tolerance) for w in seen)


# ---- AdaBelief: Zhuang et al., "AdaBelief Optimizer" (2020), algorithm 2


def adabelief(loss: Callable[[Any], Any], w: Any, eps: float, decay: float) -> Iterator[Any]:
    m = s = torch.zeros_like(w)
    for t in range(1, STEPS + 1):
        g = gradient(loss, w)
        m = BETA1 * m + (1 - BETA1) * g
        s = BETA2 * s + (1 - BETA2) * (g - m) ** 2 + eps
        corrected_m, corrected_s = m / (1 - BETA1**t), s / (1 - BETA2**t)
        w = w - LR * decay * w  # decoupled, as in the authors' experiments
        w = w - LR * corrected_m / (corrected_s.sqrt() + eps)
        yield w


@pytest.mark.parametrize("decay", [0.0, DECAY])
@pytest.mark.parametrize("foreach", [False, True])
def test_adabelief(decay: float, foreach: bool) -> None:
    options = {"betas": (BETA1, BETA2), "eps": EPS, "weight_decay": decay, "foreach": foreach}
    seen = run(package.AdaBelief, quartic, start(), **options)
    assert follows(seen, adabelief(quartic, start(), EPS, decay))


def test_adabelief_with_coupled_decay_adds_it_to_the_gradient() -> None:
    seen = run(
        package.AdaBelief,
        quartic,
        start(),
        betas=(BETA1, BETA2),
        eps=EPS,
        weight_decay=DECAY,
        weight_decouple=False,
    )
    penalised = lambda w: quartic(w) + DECAY / 2 * (w**2).sum()  # noqa: E731
    assert follows(seen, adabelief(penalised, start(), EPS, 0.0))


# ---- diffGrad: Dubey et al., "diffGrad: An Optimization Method for Convolutional Neural Networks" (2019), section III


def diffgrad(loss: Callable[[Any], Any], w: Any, eps: float, decay: float, *, as_packaged: bool) -> Iterator[Any]:
    m = v = before = torch.zeros_like(w)
    for t in range(1, STEPS + 1):
        g = gradient(loss, w)
        m = BETA1 * m + (1 - BETA1) * g
        v = BETA2 * v + (1 - BETA2) * g**2
        friction = 1 / (1 + torch.exp(-(before - g).abs()))
        before = g
        w = w - LR * decay * w
        correction = math.sqrt(1 - BETA2**t)
        if as_packaged:  # eps meets the uncorrected second moment, and 1e-15 stands under the root
            w = w - LR * correction / (1 - BETA1**t) * friction * m / ((v + 1e-15).sqrt() + eps)
        else:
            w = w - LR * friction * (m / (1 - BETA1**t)) / (v.sqrt() / correction + eps)
        yield w


@pytest.mark.parametrize("decay", [0.0, DECAY])
@pytest.mark.parametrize("foreach", [False, True])
def test_diffgrad_follows_the_paper_but_for_where_eps_stands(decay: float, foreach: bool) -> None:
    options = {"betas": (BETA1, BETA2), "weight_decay": decay, "foreach": foreach}
    seen = run(package.DiffGrad, quartic, start(), eps=EPS, **options)
    assert follows(seen, diffgrad(quartic, start(), EPS, decay, as_packaged=True))
    assert follows(seen, diffgrad(quartic, start(), EPS, decay, as_packaged=False), tolerance=1e-6)
    large = run(package.DiffGrad, quartic, start(), eps=0.1, **options)
    assert follows(large, diffgrad(quartic, start(), 0.1, decay, as_packaged=True))
    assert not follows(large, diffgrad(quartic, start(), 0.1, decay, as_packaged=False), tolerance=1e-3)


# ---- AdamP and SGDP: Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights"
# (2021), algorithms 1 and 2 with equation 12 for the projection; which views of a weight are tested, the weight decay
# and Adam's bias correction are in the authors' code, not in the algorithms.

DELTA, RATIO = 0.1, 0.1


def projected(w: Any, g: Any, update: Any) -> tuple[Any, float, str]:
    """(the update without its radial part where w is scale invariant, the factor on weight decay, the branch)."""
    if w.dim() > 1:
        for branch, shape in (("channel", (w.shape[0], -1)), ("layer", (1, -1))):
            x, d, u = w.reshape(shape), g.reshape(shape), update.reshape(shape)
            cosine = ((x * d).sum(1) / (x.norm(dim=1) * d.norm(dim=1))).abs()
            if cosine.max() < DELTA / math.sqrt(x.shape[1]):
                unit = x / x.norm(dim=1, keepdim=True)
                return (u - (unit * u).sum(1, keepdim=True) * unit).reshape(w.shape), RATIO, branch
    return update, 1.0, "none"


def adamp(loss: Callable[[Any], Any], w: Any, decay: float, nesterov: bool, branches: set[str]) -> Iterator[Any]:
    m = v = torch.zeros_like(w)
    for t in range(1, STEPS + 1):
        g = gradient(loss, w)
        m = BETA1 * m + (1 - BETA1) * g
        v = BETA2 * v + (1 - BETA2) * g**2
        ahead = BETA1 * m + (1 - BETA1) * g if nesterov else m
        # the package puts eps beside the uncorrected root; the authors' code beside the corrected one
        update = math.sqrt(1 - BETA2**t) * ahead / (v.sqrt() + EPS)
        update, ratio, branch = projected(w, g, update)
        branches.add(branch)
        w = w * (1 - LR * decay * ratio) - LR / (1 - BETA1**t) * update
        yield w


def sgdp(loss: Callable[[Any], Any], w: Any, decay: float, nesterov: bool, branches: set[str]) -> Iterator[Any]:
    p = torch.zeros_like(w)
    for _ in range(STEPS):
        g = gradient(loss, w)
        p = BETA1 * p + g
        update, ratio, branch = projected(w, g, g + BETA1 * p if nesterov else p)
        branches.add(branch)
        w = w * (1 - LR * decay * ratio / (1 - BETA1)) - LR * update
        yield w


@pytest.mark.parametrize(("loss", "branch"), [(outwards, "none"), (rows, "channel"), (whole, "layer")])
@pytest.mark.parametrize("decay", [0.0, DECAY])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("foreach", [False, True])
def test_adamp(loss: Callable[[Any], Any], branch: str, decay: float, nesterov: bool, foreach: bool) -> None:
    options = {"betas": (BETA1, BETA2), "eps": EPS, "weight_decay": decay, "nesterov": nesterov, "foreach": foreach}
    seen = run(package.AdamP, loss, start(), delta=DELTA, wd_ratio=RATIO, **options)
    branches: set[str] = set()
    # The package adds eps to the length of a weight before dividing by it: up to 1e-8 of the update's radial part.
    assert follows(seen, adamp(loss, start(), decay, nesterov, branches), tolerance=1e-12 if branch == "none" else 1e-6)
    assert branches == {branch}


@pytest.mark.parametrize(("loss", "branch"), [(outwards, "none"), (rows, "channel"), (whole, "layer")])
@pytest.mark.parametrize("decay", [0.0, DECAY])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("foreach", [False, True])
def test_sgdp(loss: Callable[[Any], Any], branch: str, decay: float, nesterov: bool, foreach: bool) -> None:
    options = {"momentum": BETA1, "eps": EPS, "weight_decay": decay, "nesterov": nesterov, "foreach": foreach}
    seen = run(package.SGDP, loss, start(), delta=DELTA, wd_ratio=RATIO, **options)
    branches: set[str] = set()
    assert follows(seen, sgdp(loss, start(), decay, nesterov, branches), tolerance=1e-12 if branch == "none" else 1e-6)
    assert branches == {branch}


@pytest.mark.parametrize("name", ["AdamP", "SGDP"])
def test_vectors_are_never_projected(name: str) -> None:
    unit = lambda w: ((w / w.norm() - TARGET.reshape(-1)) ** 2).sum()  # noqa: E731
    first, branches = start().reshape(-1), set[str]()
    options = {"betas": (BETA1, BETA2)} if name == "AdamP" else {"momentum": BETA1}
    seen = run(getattr(package, name), unit, first, eps=EPS, **options)
    assert follows(seen, (adamp if name == "AdamP" else sgdp)(unit, first, 0.0, False, branches))
    assert branches == {"none"}


@pytest.mark.parametrize("name", ["AdamP", "SGDP"])
def test_coupled_decay_has_no_effect_in_the_packages_adamp_and_sgdp(name: str) -> None:
    """It is added to the gradient after the moments were taken; the authors' code knows decoupled decay only."""
    plain = run(getattr(package, name), quartic, start() * 0.1)
    coupled = run(getattr(package, name), quartic, start() * 0.1, weight_decay=DECAY, weight_decouple=False)
    assert all(torch.equal(a, b) for a, b in zip(plain, coupled, strict=True))


@pytest.mark.parametrize("name", ["AdaBelief", "DiffGrad", "AdamP", "SGDP"])
def test_states_resume_bit_for_bit(name: str) -> None:
    def made() -> tuple[Any, TorchOptimizer]:
        weight = TensorParameter(start(), name="w")
        return weight, TorchOptimizer([weight], getattr(package, name), lr=0.01, weight_decay=DECAY)

    def go(weight: Any, adapter: TorchOptimizer) -> None:
        for _ in range(4):
            adapter.zero_feedback()
            adapter.backward(quartic(weight))
            adapter.step()

    weight, adapter = made()
    go(weight, adapter)
    state, value = adapter.state_dict(), weight.value.detach().clone()
    go(weight, adapter)
    other, resumed = made()
    other.update(value)
    resumed.load_state_dict(state)
    go(other, resumed)
    assert torch.equal(other.value, weight.value)
