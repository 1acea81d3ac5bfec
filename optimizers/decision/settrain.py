"""Training a set network on executions of many instances."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from trace_core._lazy import require
from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.checks import Array, array, count, number
from trace_core.nodes.decision.errors import InvalidProblem
from trace_core.optimizers.decision.relu import ReluNetwork
from trace_core.optimizers.decision.setnet import TERMS, SetNetwork

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass
class SetData:
    """Executions of second stages: for each instance its items' features, and rows of x, xi and value.

    Args:
        sense: of the values: ``"min"`` for costs, ``"max"`` for revenues.
    """

    sense: Literal["min", "max"] = "min"
    instances: list[tuple[Array, Array, Array, Array]] = field(default_factory=list, repr=False)

    def add(self, features: Any, x: Any, xi: Any, values: Any, *, unit: Any = None) -> None:
        """One instance more.

        Args:
            features: (items, d); in units that mean the same in every instance.
            x, xi: (rows, items).
            values: (rows), of the second stage, in its own sense.
            unit: what values are divided by; by default the number of items. As in ``SetNetwork.on``.

        Raises InvalidProblem.
        """
        width = self.instances[0][0].shape[1] if self.instances else None
        given = array("features", features, (None, width))
        scale = float(len(given)) if unit is None else number("unit", unit)
        if scale <= 0:
            raise InvalidProblem("unit", f"must be positive, got {scale:g}", value=unit)
        labels = array("values", values, (None,))
        rows, items = len(labels), len(given)
        if not rows or not items:
            raise InvalidProblem("values", f"has {rows} rows for {items} items: at least one of each is needed")
        self.instances.append((given, array("x", x, (rows, items)), array("xi", xi, (rows, items)), labels / scale))

    def add_records(self, features: Any, records: Iterable[Mapping[str, Any]], *, unit: Any = None) -> None:
        """The executions of an earlier run, as ``Neur2RO.records()`` gives them; infeasible ones are left out.

        Raises InvalidProblem.
        """
        given = [record for record in records if record["value"] is not None]
        if not given:
            raise InvalidProblem("records", "holds no execution with a value")
        sign = 1.0 if self.sense == "min" else -1.0  # records are minimised
        columns = ([record[name] for record in given] for name in ("x", "xi", "value"))
        x, xi, values = (np.array(column, dtype=np.float64) for column in columns)
        self.add(features, x, xi, sign * values, unit=unit)

    @property
    def rows(self) -> int:
        """How many executions."""
        return sum(len(each[3]) for each in self.instances)


def train_set_network(
    data: SetData,
    *,
    epochs: int = 200,
    embedding: int = 8,
    hidden: int = 16,
    encoder: int = 64,
    batch: int = 20,
    rate: float = 8e-3,
    convex: bool = True,
    seed: int = 0,
    note: str = "",
) -> SetNetwork:
    """A set network fitted to ``data`` by Adam with one cycle of learning rates.

    Args:
        epochs: passes over the data.
        embedding: length of the mean over items. hidden: neurons behind it; each costs a binary in a model.
        encoder: width of the two layers from features to coefficients; costs nothing in a model.
        batch: instances in a step.
        convex: whether costs are made convex (revenues concave) in the mean. They are where reactions are continuous,
            and nearly so where there are many whole ones; the main problem then has no binaries but its own. False for
            second stages of another form.

    Deterministic for a seed on one machine. Raises InvalidProblem, MissingExtra without torch.
    """
    if not data.instances:
        raise InvalidProblem("data", "holds no instance")
    for name, given in (("epochs", epochs), ("embedding", embedding), ("hidden", hidden), ("encoder", encoder)):
        count(name, given)
    torch = require("torch", extra="torch")
    items = np.concatenate([each[0] for each in data.instances])
    labels = np.concatenate([each[3] for each in data.instances])
    center, spread = items.mean(axis=0), items.std(axis=0)
    spread = np.where(spread > 1e-9, spread, 1.0)
    mean, size = float(labels.mean()), float(max(labels.std(), 1e-9 * np.abs(labels).max(), 1e-12))
    padded = [torch.as_tensor(each, dtype=torch.float32) for each in _padded(data, center, spread, mean, size)]
    sign = 1.0 if data.sense == "min" else -1.0

    def signed(weights: Any) -> Any:
        return sign * weights.abs() if convex else weights

    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        sizes = (items.shape[1], encoder, encoder, TERMS * embedding)
        linear = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        parts = [part for layer in linear for part in (layer, torch.nn.ReLU())][:-1]
        encode = torch.nn.Sequential(*parts)
        value = torch.nn.Sequential(torch.nn.Linear(embedding, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 1))
        skip = torch.nn.Linear(embedding, 1, bias=False)
        weights = [*encode.parameters(), *value.parameters(), *skip.parameters()]
        optimizer = torch.optim.Adam(weights, lr=rate)
        steps = epochs * math.ceil(len(data.instances) / batch)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=max(steps, 2), pct_start=0.1)
        for _ in range(epochs):
            for chosen in torch.randperm(len(data.instances)).split(batch):
                features, share, x, xi, wanted, weight = (each[chosen] for each in padded)
                blocks = (encode(features) * share).split(embedding, dim=2)
                joined = blocks[0].sum(dim=1, keepdim=True) + x @ blocks[1] + xi @ blocks[2] + (x * xi) @ blocks[3]
                hidden_units = torch.relu(value[0](joined))
                found = (torch.nn.functional.linear(hidden_units, signed(value[2].weight), value[2].bias))[..., 0]
                found = found + skip(joined)[..., 0]
                losses = torch.nn.functional.smooth_l1_loss(found, wanted, reduction="none", beta=0.1)
                optimizer.zero_grad()
                ((weight * losses).sum() / weight.sum()).backward()
                optimizer.step()
                cycle.step()
    with torch.no_grad():
        value[2].weight.copy_(signed(value[2].weight))
    raw = ReluNetwork.from_torch(value, skip.weight)
    *layers, (last, biases) = raw.layers
    scaled = ReluNetwork([*layers, (last * size, biases * size + mean)], raw.skip * size)
    ends = {"low": items.min(axis=0), "high": items.max(axis=0)}
    return SetNetwork(
        ReluNetwork.from_torch(encode), scaled, center=center, spread=spread, **ends, sense=data.sense, note=note
    )


def _padded(data: SetData, center: Array, spread: Array, mean: float, size: float) -> list[Array]:
    """Features, share of each item in the mean, x, xi, standardised values, weight of each row; 0 where nothing is."""
    instances = data.instances
    n, m = max(len(each[0]) for each in instances), max(len(each[3]) for each in instances)
    total, width = len(instances), instances[0][0].shape[1]
    features, share = np.zeros((total, n, width)), np.zeros((total, n, 1))
    x, xi, values, weight = np.zeros((total, m, n)), np.zeros((total, m, n)), np.zeros((total, m)), np.zeros((total, m))
    for k, (given, decisions, scenarios, labels) in enumerate(instances):
        i, r = len(given), len(labels)
        features[k, :i], share[k, :i] = (given - center) / spread, 1.0 / i
        x[k, :r, :i], xi[k, :r, :i] = decisions, scenarios
        values[k, :r], weight[k, :r] = (labels - mean) / size, 1.0
    return [features, share, x, xi, values, weight]
