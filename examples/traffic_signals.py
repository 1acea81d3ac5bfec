"""Green times for three crossings in a row, learned through a traffic simulator that gives no gradient.

A small network looks at the traffic that is expected and says how to split the green time at each crossing. What that
is worth only a simulation tells. ``learn_by_surrogate`` asks the simulator about the splits, a few numbers for each
situation, and not about the network's weights; the other functions spend as many simulations in the usual ways.

    python -m trace_core.examples.traffic_signals

Needs the extras ``torch`` and ``examples`` (for uxsim, the simulator, and cmaes, one of the peers).
"""

from __future__ import annotations

import gc
import sys
import warnings
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean
from typing import TYPE_CHECKING, Any

import trace_core as tc
from trace_core._lazy import require

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CROSSINGS, CYCLE = 3, 60.0
#: Vehicles per second: along the row, and across it at each crossing.
LEAST, MOST = (0.2, 0.05, 0.05, 0.05), (0.45, 0.3, 0.3, 0.3)
#: Steps of targets (best of 1/2, 1, 3, 10) and of REINFORCE (.01, .03, .1) were chosen on seed 0, which is not shown;
#: Adam has REINFORCE's rate, and sigma is not tuned.
ETA, PROBE, RATE, SIGMA = 1.0, 0.4, 0.03, 0.3
UNFINISHED = 10.0  # minutes that count for a vehicle that has not arrived at the end


@dataclass
class Simulator:
    """Traffic on the row of crossings; deterministic.

    Attributes:
        simulations: how many were run.
    """

    simulations: int = 0

    def delay(self, shares: Sequence[float], flows: Sequence[float]) -> float:
        """Minutes of delay per vehicle, for the share of green along the row at each crossing, each from 0 to 1."""
        self.simulations += 1
        if self.simulations % 10 == 0:
            gc.collect()  # worlds hold each other's parts in circles, and are big
        uxsim = require("uxsim", extra="examples")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            world = uxsim.World(
                deltan=2,
                tmax=1200,
                print_mode=0,
                save_mode=0,
                show_mode=0,
                random_seed=0,
                duo_update_time=1e4,
                cpp=True,
            )
            names = ["west", *(f"crossing{i}" for i in range(CROSSINGS)), "east"]
            signals = [[0], *([CYCLE * share, CYCLE * (1 - share)] for share in shares), [0]]
            for place, (name, signal) in enumerate(zip(names, signals, strict=True)):
                world.addNode(name, place, 0, signal=signal)
            for start, end in pairwise(names):
                world.addLink(f"{start}-{end}", start, end, length=400, free_flow_speed=15, signal_group=0)
            world.adddemand("west", "east", 0, 600, flows[0])
            for i in range(CROSSINGS):
                world.addNode(f"north{i}", i + 1, 1)
                world.addNode(f"south{i}", i + 1, -1)
                for start, end in ((f"north{i}", f"crossing{i}"), (f"crossing{i}", f"south{i}")):
                    world.addLink(f"{start}-{end}", start, end, length=400, free_flow_speed=15, signal_group=1)
                world.adddemand(f"north{i}", f"south{i}", 0, 600, flows[1 + i])
            world.exec_simulation()
            world.analyzer.basic_analysis()
        found = world.analyzer
        arrived = float(found.trip_completed) / max(1.0, float(found.trip_all))
        return float(arrived * found.average_delay / 60 + (1 - arrived) * UNFINISHED)


def situations(count: int, seed: int) -> Any:
    """Flows, (count, 4), drawn evenly."""
    torch = require("torch", extra="torch")
    draw = torch.Generator().manual_seed(seed)
    low, high = torch.tensor(LEAST), torch.tensor(MOST)
    return low + (high - low) * torch.rand(count, len(LEAST), generator=draw)


def network(seed: int) -> Any:
    """From flows, scaled, to one logit for each crossing: (n, 4) -> (n, 3)."""
    torch = require("torch", extra="torch")
    torch.manual_seed(seed)
    last = torch.nn.Linear(16, CROSSINGS)
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)  # half and half to begin with
    return torch.nn.Sequential(torch.nn.Linear(len(LEAST), 16), torch.nn.Tanh(), last)


def scaled(flows: Any) -> Any:
    """Flows as the network sees them, each from -1 to 1."""
    torch = require("torch", extra="torch")
    low, high = torch.tensor(LEAST), torch.tensor(MOST)
    return 2 * (flows - low) / (high - low) - 1


def delays(simulator: Simulator, logits: Any, flows: Any) -> Any:
    """Minutes for each situation: one simulation each. Shares of green are kept between .15 and .85."""
    torch = require("torch", extra="torch")
    shares = 0.15 + 0.7 * logits.detach().sigmoid()
    found = [simulator.delay(s, f) for s, f in zip(shares.tolist(), flows.tolist(), strict=True)]
    return torch.tensor(found)


def learn_by_surrogate(simulator: Simulator, net: Any, flows: Any, budget: int, seed: int) -> None:
    """One question for each crossing, in all situations at once: 1 + 3 simulations of each situation per step."""
    from trace_core.nodes.tensor import module_node
    from trace_core.optimizers.surrogate import TargetSurrogate

    policy = module_node(net, name="policy")
    simulate = tc.bundle(name="simulate")(lambda logits: delays(simulator, logits, flows))
    optimizer = TargetSurrogate(policy, inner="exact", eta=ETA, probe_size=PROBE)
    while simulator.simulations + len(flows) * (1 + CROSSINGS) <= budget:
        optimizer.zero_feedback()
        optimizer.backward(simulate(policy(scaled(flows))))
        optimizer.step()


def learn_by_adam(simulator: Simulator, net: Any, flows: Any, budget: int, seed: int) -> None:
    """The same questions, but each answer is used for one step of Adam on the weights."""
    torch = require("torch", extra="torch")
    adam = torch.optim.Adam(net.parameters(), lr=RATE)
    while simulator.simulations + len(flows) * (1 + CROSSINGS) <= budget:
        logits = net(scaled(flows))
        here = delays(simulator, logits, flows)
        moved = [logits + PROBE * unit for unit in torch.eye(CROSSINGS)]
        slopes = torch.stack([(delays(simulator, there, flows) - here) / PROBE for there in moved], dim=1)
        adam.zero_grad()
        logits.backward(slopes / len(flows))
        adam.step()


def learn_by_reinforce(simulator: Simulator, net: Any, flows: Any, budget: int, seed: int) -> None:
    """Policy gradient: four random variations of the logits in each situation, against their own mean."""
    torch = require("torch", extra="torch")
    draw, spread, samples = torch.Generator().manual_seed(seed), 0.4, 4
    adam = torch.optim.Adam(net.parameters(), lr=RATE)
    while simulator.simulations + len(flows) * samples <= budget:
        logits = net(scaled(flows))
        noise = torch.randn(samples, *logits.shape, generator=draw)
        costs = torch.stack([delays(simulator, logits + spread * part, flows) for part in noise])
        advantage = costs - costs.mean(0)
        chosen = (logits + spread * noise).detach()
        log_density = -((chosen - logits) / spread).square().sum(-1) / 2
        adam.zero_grad()
        (advantage * log_density).sum(0).mean().mul(1 / (samples - 1)).backward()
        adam.step()


def learn_by_cma(simulator: Simulator, net: Any, flows: Any, budget: int, seed: int) -> None:
    """CMA-ES on the network's weights; a candidate costs one simulation of each of six situations, in turns."""
    torch = require("torch", extra="torch")
    start = torch.nn.utils.parameters_to_vector(net.parameters()).detach().double().numpy()
    search = require("cmaes", extra="examples").SepCMA(mean=start, sigma=SIGMA, seed=seed)
    generation, few = 0, min(6, len(flows))
    while simulator.simulations + search.population_size * few <= budget:
        rows = torch.arange(generation * few, (generation + 1) * few) % len(flows)
        generation += 1
        told = []
        for _ in range(search.population_size):
            weights = search.ask()
            torch.nn.utils.vector_to_parameters(torch.tensor(weights, dtype=torch.float32), net.parameters())
            with torch.no_grad():
                told.append((weights, float(delays(simulator, net(scaled(flows[rows])), flows[rows]).mean())))
        search.tell(told)
    torch.nn.utils.vector_to_parameters(torch.tensor(search._mean, dtype=torch.float32), net.parameters())


def half_and_half(simulator: Simulator, net: Any, flows: Any, budget: int, seed: int) -> None:
    """Learns nothing."""


METHODS: dict[str, Callable[[Simulator, Any, Any, int, int], None]] = {
    "half and half": half_and_half,
    "surrogate": learn_by_surrogate,
    "same answers, one Adam step each": learn_by_adam,
    "REINFORCE": learn_by_reinforce,
    "CMA-ES (separable)": learn_by_cma,
}


def compare(
    seeds: Sequence[int] = (1, 2, 3), budget: int = 576, training: int = 12, tests: int = 24
) -> dict[str, list[float]]:
    """method -> minutes of delay per vehicle in new situations, one figure for each seed."""
    torch = require("torch", extra="torch")
    found: dict[str, list[float]] = {}
    new = situations(tests, 10_000)
    for name, learn in METHODS.items():
        for seed in seeds:
            net, simulator = network(seed), Simulator()
            learn(simulator, net, situations(training, seed), budget, seed)
            with torch.no_grad():
                found.setdefault(name, []).append(float(delays(Simulator(), net(scaled(new)), new).mean()))
    return found


def table(found: dict[str, list[float]]) -> str:
    """The comparison as text."""
    width = max(map(len, found))
    lines = [f"{'method'.ljust(width)}   mean  each seed (minutes of delay per vehicle)"]
    for name, values in found.items():
        lines.append(f"{name.ljust(width)}  {mean(values):5.2f}  {'  '.join(f'{value:.2f}' for value in values)}")
    return "\n".join(lines)


if __name__ == "__main__":
    require("torch", extra="torch").set_num_threads(1)
    sys.stdout.write(table(compare()) + "\n")
