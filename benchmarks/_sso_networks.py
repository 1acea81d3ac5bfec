"""Networks for benchmarks/sso.py: digits, and imitation of a controller on a simulated pendulum."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import mean
from typing import Any

import gymnasium
import numpy as np
import torch
from _sso_rows import Row
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import trace_core as tc
from trace_core.nodes.tensor import module_node
from trace_core.optimizers.surrogate import TargetSurrogate

functional = torch.nn.functional
CALLS, BATCH = 60, 256

# ---- digits


def digits_run(seed: int, make: Callable[[Any], Any], black_box: bool = False) -> dict[str, Any]:
    """One training run of 60 oracle calls on batches of 256; (train loss, test accuracy, calls, CPU seconds)."""
    data = load_digits()
    parts = train_test_split(data.data / 16, data.target, test_size=0.25, random_state=seed, stratify=data.target)
    x, test_x = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
    y, test_y = (torch.tensor(part) for part in parts[2:])
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    shuffle = torch.Generator().manual_seed(seed)
    step, calls = make(net)
    start, order = time.process_time(), torch.empty(0, dtype=torch.long)
    for _ in range(CALLS):
        if len(order) < BATCH:
            order = torch.randperm(len(x), generator=shuffle)
        batch, order = order[:BATCH], order[BATCH:]
        step(x[batch], y[batch], black_box)
    cpu = time.process_time() - start
    with torch.no_grad():
        loss = float(functional.cross_entropy(net(x), y))
        accuracy = float((net(test_x).argmax(1) == test_y).float().mean())
    return {"loss": loss, "accuracy": accuracy, "calls": calls(), "cpu": cpu}


def with_torch(optimizer: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def make(net: Any) -> Any:
        made = optimizer(net.parameters())

        def step(x: Any, y: Any, black_box: bool) -> None:
            made.zero_grad()
            functional.cross_entropy(net(x), y).backward()
            made.step()

        return step, lambda: (CALLS, 0)

    return make


def with_surrogate(**options: Any) -> Callable[[Any], Any]:
    def make(net: Any) -> Any:
        policy = module_node(net, name="logits")
        optimizer = TargetSurrogate(policy, **options)

        def step(x: Any, y: Any, black_box: bool) -> None:
            def judge(z: Any) -> Any:
                return functional.cross_entropy(
                    z.detach() if black_box else z, y, reduction="none" if black_box else "mean"
                )

            optimizer.zero_feedback()
            optimizer.backward(tc.bundle(judge, name="loss")(policy(x)))
            optimizer.step()

        return step, lambda: (optimizer.calls.gradients, optimizer.calls.losses)

    return make


def digits_rows(quick: bool) -> Iterator[Row]:
    seeds = range(100, 101 if quick else 105)
    ways: list[tuple[str, Callable[[Any], Any], bool]] = [
        ("SGD, lr .5", with_torch(lambda w: torch.optim.SGD(w, 0.5)), False),
        ("Adam, lr .03", with_torch(lambda w: torch.optim.Adam(w, 0.03)), False),
        ("SSO adam m=20, eta 8", with_surrogate(inner="adam", inner_steps=20, eta=8.0), False),
        ("SSO lbfgs m=20, eta 4", with_surrogate(inner="lbfgs", inner_steps=20, eta=4.0), False),
        ("SSO exact, eta 4", with_surrogate(eta=4.0), False),
        ("SSO exact, line search", with_surrogate(eta="line-search"), False),
        ("SSO exact, eta 4, black box", with_surrogate(eta=4.0), True),
    ]
    for label, make, black_box in ways:
        runs = [digits_run(seed, make, black_box) for seed in seeds]
        result = {"train loss": mean(r["loss"] for r in runs), "test": mean(r["accuracy"] for r in runs)}
        gradients, losses = runs[0]["calls"]
        yield Row("digits 64-64-10, 60 calls", label, result, gradients, losses, mean(r["cpu"] for r in runs))


# ---- a pendulum that is to be swung up as a controller does it

ROUNDS, LENGTH = 60, 200


def expert(states: Any) -> Any:
    """Energy shaping far from the top, a linear law near it. States: (n, 3), cosine, sine, velocity; torques (n, 1)."""
    cosine, sine, velocity = states[:, 0], states[:, 1], states[:, 2]
    angle = torch.atan2(sine, cosine)
    energy = velocity.square() / 6 + 5 * (cosine - 1)  # 0 at rest at the top
    swing = -2.0 * velocity.sign() * (energy / 2).tanh()
    hold = -12 * angle - 3 * velocity
    return torch.where((angle.abs() < 0.4) & (velocity.abs() < 3), hold, swing).clamp(-2, 2)[:, None]


def rollout(env: Any, policy: Callable[[Any], Any], seed: int) -> tuple[Any, float]:
    """States met in one episode of 200 steps, and the return."""
    state, _ = env.reset(seed=seed)
    states, total = [], 0.0
    for _ in range(LENGTH):
        now = torch.as_tensor(np.asarray(state), dtype=torch.float32)[None]
        states.append(now)
        with torch.no_grad():
            torque = policy(now).clamp(-2, 2)
        state, reward, *_ = env.step(torque[0].numpy())
        total += float(reward)
    return torch.cat(states), total


def pendulum_run(seed: int, make: Callable[[Any], Any]) -> dict[str, float]:
    """Rounds of: one episode with the policy so far, the expert's torques for its states, an update."""
    env = gymnasium.make("Pendulum-v1")
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    update = make(net)
    start = time.process_time()
    for turn in range(ROUNDS):
        states, _ = rollout(env, net, 1000 * seed + turn)
        update(states, expert(states))
    cpu = time.process_time() - start
    tests = [rollout(env, net, 10_000_000 + 1000 * seed + turn) for turn in range(5)]
    states = torch.cat([states for states, _ in tests])
    with torch.no_grad():
        error = float(functional.mse_loss(net(states), expert(states)))
    env.close()
    return {"error": error, "return": mean(total for _, total in tests), "cpu": cpu}


def imitate_with_torch(optimizer: Callable[[Any], Any], steps: int = 1) -> Callable[[Any], Any]:
    def make(net: Any) -> Any:
        made = optimizer(net.parameters())

        def update(states: Any, torques: Any) -> None:
            for _ in range(steps):
                made.zero_grad()
                functional.mse_loss(net(states), torques).backward()
                made.step()

        return update

    return make


def imitate_with_surrogate(**options: Any) -> Callable[[Any], Any]:
    def make(net: Any) -> Any:
        policy = module_node(net, name="policy")
        optimizer = TargetSurrogate(policy, **options)

        def update(states: Any, torques: Any) -> None:
            optimizer.zero_feedback()
            optimizer.backward(tc.bundle(lambda z: functional.mse_loss(z, torques), name="loss")(policy(states)))
            optimizer.step()

        return update

    return make


def pendulum_rows(quick: bool) -> Iterator[Row]:
    seeds = range(200, 201 if quick else 203)
    ways: list[tuple[str, Callable[[Any], Any] | None]] = [("the expert itself", None)]
    ways += [
        (f"Adam, lr {rate:g}", imitate_with_torch(lambda w, r=rate: torch.optim.Adam(w, r)))
        for rate in ((0.03,) if quick else (0.01, 0.03, 0.1))
    ]
    ways += [
        ("Adam, lr .01, 20 steps a round", imitate_with_torch(lambda w: torch.optim.Adam(w, 0.01), 20)),
        ("SSO adam m=20, eta .25", imitate_with_surrogate(inner="adam", inner_steps=20, eta=0.25)),
        ("SSO exact, eta .25", imitate_with_surrogate(eta=0.25)),
        ("SSO exact, line search", imitate_with_surrogate(eta="line-search")),
    ]
    for label, make in ways:
        if make is None:
            env = gymnasium.make("Pendulum-v1")
            returns = [rollout(env, expert, 10_000_000 + 1000 * s + turn)[1] for s in seeds for turn in range(5)]
            yield Row(f"pendulum, {ROUNDS} episodes", label, {"error": 0.0, "return": mean(returns)})
            continue
        runs = [pendulum_run(seed, make) for seed in seeds]
        result = {key: mean(run[key] for run in runs) for key in ("error", "return")}
        yield Row(f"pendulum, {ROUNDS} episodes", label, result, ROUNDS, None, mean(run["cpu"] for run in runs))
