"""Convex tasks for benchmarks/sso.py: least squares, and logistic regression on raw and standardised features."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.optimize
import torch
from _sso_rows import Row
from sklearn.datasets import load_breast_cancer

import trace_core as tc
from trace_core.nodes.tensor import TensorParameter
from trace_core.optimizers.surrogate import TargetSurrogate

LEVELS = (0.10, 0.07, 0.05)


class Logistic:
    """Mean logistic loss of a linear model with bias, and how many oracle calls it took to come below each level."""

    def __init__(self, standardised: bool, most: int) -> None:
        data = load_breast_cancer()
        x = (data.data - data.data.mean(0)) / data.data.std(0) if standardised else data.data
        self.x = torch.tensor(np.hstack([x, np.ones((len(x), 1))]))
        self.y = torch.tensor(data.target, dtype=torch.float64)
        self.most = most

    def loss(self, z: Any) -> Any:
        return torch.nn.functional.binary_cross_entropy_with_logits(z, self.y)

    def smoothness(self) -> float:
        """Of the loss in the parameters: 1/L is the step of gradient descent."""
        return float(torch.linalg.matrix_norm(self.x, 2)) ** 2 / 4 / len(self.y)

    def run(self, losses: Iterator[tuple[float, int]]) -> tuple[list[int | None], float]:
        """Oracle calls behind the first iterate below each level, from (loss of an iterate, calls so far)."""
        hit: dict[float, int] = {}
        last = float("inf")
        for value, calls in losses:
            last = min(last, value)
            for level in LEVELS:
                if value <= level:
                    hit.setdefault(level, calls)
            if len(hit) == len(LEVELS) or calls >= self.most:
                break
        return [hit.get(level) for level in LEVELS], last


def gradient_descent(task: Logistic, step: Callable[[Any], Any]) -> Iterator[tuple[float, int]]:
    w = torch.zeros(task.x.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = step([w])
    for calls in range(task.most + 1):
        optimizer.zero_grad()
        loss = task.loss(task.x @ w)
        yield float(loss.detach()), calls
        loss.backward()
        optimizer.step()


def lbfgs_of_torch(task: Logistic) -> Iterator[tuple[float, int]]:
    w = torch.zeros(task.x.shape[1], dtype=torch.float64, requires_grad=True)
    seen: list[float] = []
    optimizer = torch.optim.LBFGS([w], max_iter=task.most, max_eval=task.most, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimizer.zero_grad()
        loss = task.loss(task.x @ w)
        loss.backward()
        seen.append(float(loss.detach()))
        return loss

    optimizer.step(closure)
    yield from ((value, calls) for calls, value in enumerate(seen))


def lbfgs_of_scipy(task: Logistic) -> Iterator[tuple[float, int]]:
    x, y = task.x.numpy(), task.y.numpy()
    seen: list[float] = []

    def both(w: Any) -> tuple[float, Any]:
        z = x @ w
        seen.append(float((np.logaddexp(0, z) - y * z).mean()))
        return seen[-1], x.T @ (1 / (1 + np.exp(-np.clip(z, -500, 500))) - y) / len(y)

    scipy.optimize.minimize(both, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", options={"maxfun": task.most})
    yield from ((value, calls) for calls, value in enumerate(seen))


def surrogate(task: Logistic, made: list[TargetSurrogate], **options: Any) -> Iterator[tuple[float, int]]:
    w = TensorParameter(torch.zeros(task.x.shape[1], dtype=torch.float64), name="w")
    optimizer = TargetSurrogate([w], **options)
    made.append(optimizer)
    predict, judge = tc.bundle(lambda x, w: x @ w, name="logits"), tc.bundle(task.loss, name="loss")
    for calls in range(task.most + 1):
        output = judge(predict(task.x, w))
        yield float(output.value.detach()), calls
        optimizer.zero_feedback()
        optimizer.backward(output)
        if not optimizer.step():
            return


def logistic_rows(quick: bool) -> Iterator[Row]:
    from trace_core.optimizers.surrogate import LineSearch

    for standardised in (False, True):
        task = Logistic(standardised, 100 if quick else 400)
        name = f"breast_cancer {'standardised' if standardised else 'raw'}"
        rate = 1 / task.smoothness()
        yield measured(task, name, "GD, 1/L", lambda t, r=rate: gradient_descent(t, lambda w: torch.optim.SGD(w, r)))
        yield best_adam(task, name, [0.01, 0.05] if quick else [0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.3, 1.0])
        yield measured(task, name, "L-BFGS, torch", lbfgs_of_torch)
        yield measured(task, name, "L-BFGS-B, scipy", lbfgs_of_scipy)
        ways: list[tuple[str, dict[str, Any]]] = [
            ("SSO exact, eta 4", {"eta": 4.0}),
            ("SSO exact, line search", {"eta": "line-search"}),
            ("SSO exact, line search c=.5", {"eta": LineSearch(c=0.5)}),
            ("SSO exact, bb", {"eta": "bb"}),
            ("SSO exact, diagonal curvature", {"curvature": "diag"}),
        ]
        if standardised:
            ways += [
                ("SSO lbfgs m=20, eta 4", {"inner": "lbfgs", "inner_steps": 20, "eta": 4.0}),
                ("SSO armijo m=20, eta 4", {"inner": "armijo", "inner_steps": 20, "eta": 4.0}),
                ("SSO adam m=20, eta 4", {"inner": "adam", "inner_steps": 20, "eta": 4.0}),
            ]
        for label, options in ways:
            yield measured_surrogate(task, name, label, options)


def measured(task: Logistic, name: str, label: str, method: Callable[[Logistic], Iterator[tuple[float, int]]]) -> Row:
    start = time.process_time()
    calls, loss = task.run(method(task))
    return Row(name, label, {"calls": calls, "loss": loss}, cpu=time.process_time() - start)


def measured_surrogate(task: Logistic, name: str, label: str, options: dict[str, Any]) -> Row:
    start = time.process_time()
    made: list[TargetSurrogate] = []
    calls, loss = task.run(surrogate(task, made, **options))
    cpu = time.process_time() - start
    return Row(name, label, {"calls": calls, "loss": loss}, made[0].calls.gradients, made[0].calls.losses, cpu)


def best_adam(task: Logistic, name: str, rates: list[float]) -> Row:
    def key(row: Row) -> tuple[Any, ...]:
        return (
            *[-1 if calls is None else 1 / (1 + calls) for calls in reversed(row.result["calls"])],
            -row.result["loss"],
        )

    rows = [
        measured(task, name, f"Adam, lr {r:g} (best of {len(rates)})", lambda t, r=r: gradient_descent(t, adam(r)))
        for r in rates
    ]
    return max(rows, key=key)


def adam(rate: float) -> Callable[[Any], Any]:
    return lambda w: torch.optim.Adam(w, rate)


def least_squares_rows(quick: bool) -> Iterator[Row]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200, 20, generator=draw, dtype=torch.float64)
    x = torch.linalg.qr(x).Q * torch.logspace(0, 3, 20, dtype=torch.float64)
    y = torch.randn(200, generator=draw, dtype=torch.float64)
    optimum = float(0.5 * (x @ torch.linalg.pinv(x) @ y - y).square().sum())
    name = "least squares, condition 1e3"
    start, steps = time.process_time(), 1000 if quick else 10_000
    w = torch.zeros(20, dtype=torch.float64)
    for _ in range(steps):
        w -= x.T @ (x @ w - y) / 1e6
    gap = float(0.5 * (x @ w - y).square().sum()) - optimum
    yield Row(name, "GD, 1/L", {"gap": gap}, steps, 0, time.process_time() - start)
    start = time.process_time()
    parameter = TensorParameter(torch.zeros(20, dtype=torch.float64), name="w")
    target = tc.bundle(lambda x, w: x @ w, name="predict")(x, parameter)
    optimizer = TargetSurrogate([parameter], eta=1.0)
    optimizer.backward(tc.bundle(lambda z: 0.5 * (z - y).square().sum(), name="loss")(target))
    optimizer.step()
    gap = float(0.5 * (x @ parameter.value.detach() - y).square().sum()) - optimum
    yield Row(name, "SSO exact, eta 1", {"gap": gap}, optimizer.calls.gradients, 0, time.process_time() - start)
