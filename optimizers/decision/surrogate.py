"""The second stage as a small network from executions: an ensemble on [x, xi, x * xi, hinges] with a linear part."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from trace_core._lazy import require
from trace_core.nodes.decision._numpy import np
from trace_core.optimizers.decision.embedded import Embedded
from trace_core.optimizers.decision.relu import ReluNetwork

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trace_core.nodes.decision.checks import Array
    from trace_core.optimizers.decision.executions import Record
    from trace_core.optimizers.decision.problem import RobustProblem

_PRODUCTS = 240  # at most so many features of products
_RATE, _BETAS, _DECAY = 1e-2, (0.9, 0.999), 1e-5  # of Adam
_KNOTS = (-0.5, 0.0, 0.5)  # of hinges, in the middle of the range and of its halves


class Features:
    """[x, xi, products, hinges], of x and xi scaled to [-1, 1] by their bounds. Affine in x for a given xi.

    A hinge is max(0, xi_j - knot): a second stage that reacts to what comes limits the loss, one entry after the other.
    For a given x, features are affine in ``lifted(xi)``, which is xi and its hinges.

    Where x and xi have equally many entries, as where each decision has its own uncertainty, products are taken entry
    by entry, of entries of x with those of xi and with their hinges; else of all pairs, if there are few, and hinges
    are taken as they are.
    """

    def __init__(self, problem: RobustProblem) -> None:
        xi = problem.uncertainty
        self.nx, self.nu = problem.size, xi.size
        self._middle = ((problem.low + problem.high) / 2, (xi.low + xi.high) / 2)
        half = ((problem.high - problem.low) / 2, (xi.high - xi.low) / 2)
        self._half = tuple(np.where(h > 0, h, 1.0) for h in half)
        self.gated = self.nx == self.nu
        if self.gated:
            pairs = [(k, k) for k in range(self.nx)]
        elif self.nx * self.nu <= _PRODUCTS:
            pairs = [(i, j) for i in range(self.nx) for j in range(self.nu)]
        else:
            pairs = []
        self._left, self._right = (np.array([pair[k] for pair in pairs], dtype=np.intp) for k in (0, 1))
        self._entries = np.repeat(np.arange(self.nu), len(_KNOTS))  # of hinges
        self._knots = np.tile(np.array(_KNOTS), self.nu)
        self.count = self.nx + self.nu + len(pairs) + len(self._entries)

    def __call__(self, x: Array, xi: Array) -> Array:
        """Rows of features for rows of x and xi."""
        u, v = self._scaled(0, x), self._scaled(1, xi)
        hinges = np.maximum(v[:, self._entries] - self._knots, 0.0)
        if self.gated:
            hinges *= (u[:, self._entries] + 1.0) / 2
        return np.concatenate([u, v, u[:, self._left] * v[:, self._right], hinges], axis=1)

    def given_xi(self, xi: Array) -> tuple[Array, Array]:
        """(matrix, offset): features are ``matrix @ x + offset``."""
        matrix, offset = np.zeros((self.count, self.nx)), np.zeros(self.count)
        v = self._scaled(1, xi)
        matrix[: self.nx] = np.eye(self.nx)
        offset[self.nx : self.nx + self.nu] = v
        first = self.nx + self.nu
        matrix[first + np.arange(len(self._left)), self._left] = v[self._right]
        first += len(self._left)
        hinges = np.maximum(v[self._entries] - self._knots, 0.0)
        offset[first:] = hinges / 2 if self.gated else hinges
        if self.gated:
            matrix[first + np.arange(len(hinges)), self._entries] = hinges / 2
        matrix = matrix / self._half[0]
        return matrix, offset - matrix @ self._middle[0]

    def given_x(self, x: Array) -> tuple[Array, Array]:
        """(matrix, offset): features are ``matrix @ lifted(xi) + offset``."""
        matrix, offset = np.zeros((self.count, self.nu + len(self._entries))), np.zeros(self.count)
        u = self._scaled(0, x)
        offset[: self.nx] = u
        first = self.nx + self.nu
        matrix[self.nx : first, : self.nu] = np.eye(self.nu)
        matrix[first + np.arange(len(self._left)), self._right] = u[self._left]
        first += len(self._left)
        places = np.arange(len(self._entries))
        matrix[first + places, self.nu + places] = (u[self._entries] + 1.0) / 2 if self.gated else 1.0
        matrix[:, : self.nu] /= self._half[1]
        return matrix, offset - matrix[:, : self.nu] @ self._middle[1]

    def lifting(self) -> ReluNetwork:
        """From xi to xi, as it is, and its hinges, scaled."""
        size, count = self.nu, len(self._entries)
        inner = np.zeros((count, size))
        inner[np.arange(count), self._entries] = 1.0 / self._half[1][self._entries]
        biases = -self._knots - (self._middle[1] / self._half[1])[self._entries]
        outer = np.concatenate([np.zeros((size, count)), np.eye(count)])
        skip = np.concatenate([np.eye(size), np.zeros((count, size))])
        return ReluNetwork([(inner, biases), (outer, np.zeros(size + count))], skip)

    def slopes(self, x: Array, xi: Array, above: Array) -> Array:
        """Derivatives by xi at rows of xi, for one x, of something with the derivatives ``above`` by the features."""
        by_lifted = above @ self.given_x(x)[0]
        active = self._scaled(1, xi)[:, self._entries] > self._knots
        inner = by_lifted[:, self.nu :] * active / self._half[1][self._entries]
        found: Array = by_lifted[:, : self.nu] + inner.reshape(len(xi), self.nu, -1).sum(axis=2)
        return found

    def _scaled(self, which: int, values: Array) -> Array:
        found: Array = (values - self._middle[which]) / self._half[which]
        return found


class Surrogate(Embedded):
    """An ensemble of small networks for the value, and one more for feasibility once infeasible records are there.

    Args:
        hidden: width of the one hidden layer of each member.
        members: how many networks; the mean is the prediction.

    Attributes:
        network: the ensemble as one network from features to the (minimised) value in its own units.
        doubt: the same for infeasibility: positive where no reaction is expected; None before there is any case.
        scale: what one standard deviation of the values is.
    """

    def __init__(self, problem: RobustProblem, *, hidden: int = 16, members: int = 2, seed: int = 0) -> None:
        self.features = Features(problem)
        self.network: ReluNetwork | None = None
        self.doubt: ReluNetwork | None = None
        self.scale, self._mean = 1.0, 0.0
        self._value = Ensemble(self.features.count, hidden, members, seed)
        self._feasible = Ensemble(self.features.count, hidden, 1, seed + 1)

    def fit(self, records: list[Record], *, epochs: int, near: Array | None = None, binary: bool = True) -> None:
        """Train on from where it is. Records near ``near`` count five times."""
        x, xi = np.array([r.x for r in records]), np.array([r.xi for r in records])
        features, values = self.features(x, xi), np.array([r.value for r in records])
        fine = np.isfinite(values)
        weights = np.ones(len(values))
        if near is not None and binary:
            weights[np.abs(x - near).sum(axis=1) <= 2] = 5.0
        if fine.any():
            self._mean = float(values[fine].mean())
            self.scale = float(max(values[fine].std(), 1e-9 * np.abs(values[fine]).max(), 1e-12))
            self._value.fit(features[fine], (values[fine] - self._mean) / self.scale, weights[fine], epochs)
            self.network = self._value.merged(self.scale, self._mean)
        if not fine.all() and fine.any():
            self.fit_doubt(x, xi, fine, epochs)

    def fit_doubt(self, x: Array, xi: Array, fine: Any, epochs: int) -> None:
        """Train what tells where no reaction is possible."""
        balance = np.where(fine, 1.0, max(1.0, fine.sum() / max(1, (~fine).sum())))
        self._feasible.fit(self.features(x, xi), np.where(fine, -1.0, 1.0), balance, epochs)
        self.doubt = self._feasible.merged(1.0, 0.0)

    def predict(self, x: Array, xi: Array) -> Array:
        """Values for rows of x and xi; where no reaction is expected, so much more that it is avoided."""
        if self.network is None:
            return np.zeros(len(x))
        values: Array = self.network.values(self.features(x, xi))[:, 0] + self.penalty(x, xi)
        return values

    def penalty(self, x: Array, xi: Array) -> Array:
        """What makes rows be avoided where no reaction is expected; 0 elsewhere."""
        if self.doubt is None:
            return np.zeros(len(x))
        found: Array = 20.0 * self.scale * np.maximum(self.doubt(self.features(x, xi))[:, 0], 0.0)
        return found

    def slopes(self, x: Array, xi: Array) -> Array:
        """Derivatives of the value by xi at rows of xi, for one x."""
        if self.network is None:
            return np.zeros_like(xi)
        above = self.network.slopes(self.features(np.broadcast_to(x, (len(xi), len(x))), xi))
        found: Array = self.features.slopes(x, xi, above)
        return found

    def state(self) -> dict[str, Any]:
        """Plain data."""
        value = None if self.network is None else self._value.state()
        doubt = None if self.doubt is None else self._feasible.state()
        return {"value": value, "doubt": doubt, "scale": self.scale, "mean": self._mean}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state`` of the same shape."""
        self.scale, self._mean = float(state["scale"]), float(state["mean"])
        if state["value"] is not None:
            self._value.restore(state["value"])
            self.network = self._value.merged(self.scale, self._mean)
        if state["doubt"] is not None:
            self._feasible.restore(state["doubt"])
            self.doubt = self._feasible.merged(1.0, 0.0)


class Ensemble:
    """Members trained at once by Adam on all data; each a hidden layer beside a linear part."""

    def __init__(self, inputs: int, hidden: int, members: int, seed: int, outputs: int = 1) -> None:
        torch = require("torch", extra="torch")
        self._torch = torch
        made = torch.Generator().manual_seed(seed)

        def tensor(*shape: int, scale: float) -> Any:
            return torch.randn(*shape, generator=made) * scale

        self._weights = [
            tensor(members, inputs, hidden, scale=1.0 / math.sqrt(inputs)),
            tensor(members, 1, hidden, scale=0.5),
            tensor(members, hidden, outputs, scale=0.5 / math.sqrt(hidden)),
            tensor(members, 1, outputs, scale=0.1),
            tensor(members, inputs, outputs, scale=0.1 / math.sqrt(inputs)),
        ]

    def fit(self, features: Array, targets: Array, weights: Array, epochs: int) -> None:
        """Train on from where the weights are. Targets: (rows,) or (rows, outputs).

        Adam with weight decay, gradients by hand: for networks this small, autograd would cost more than the sums. Nor
        is torch's compiler imported, which torch.optim does.
        Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015).
        """
        torch = self._torch
        inputs = torch.as_tensor(features, dtype=torch.float32)
        wanted = torch.as_tensor(targets, dtype=torch.float32).reshape(1, len(features), -1)
        share = torch.as_tensor(weights / weights.sum(), dtype=torch.float32)[None, :, None]
        moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in self._weights]  # anew: only weights are state
        with torch.no_grad():
            for epoch in range(epochs):
                rate = _RATE * (1.0 if epoch < 0.6 * epochs else 0.2)
                done = 1 - _BETAS[0] ** (epoch + 1), math.sqrt(1 - _BETAS[1] ** (epoch + 1))
                slopes = self._gradients(inputs, wanted, share)
                for weight, slope, (mean, square) in zip(self._weights, slopes, moments, strict=True):
                    slope.add_(weight, alpha=_DECAY)
                    mean.lerp_(slope, 1 - _BETAS[0])
                    square.mul_(_BETAS[1]).addcmul_(slope, slope, value=1 - _BETAS[1])
                    weight.addcdiv_(mean, (square.sqrt() / done[1]).add_(1e-8), value=-rate / done[0])

    def _gradients(self, inputs: Any, wanted: Any, share: Any) -> list[Any]:
        """Of the sum of ``share`` times the Huber loss (1 where it becomes linear), in the order of the weights."""
        w1, b1, w2, b2, skip = self._weights
        hidden = (inputs @ w1 + b1).clamp_(min=0.0)
        off = (hidden @ w2 + b2 + inputs @ skip - wanted).clamp_(-1.0, 1.0) * share
        inner = (off @ w2.mT).mul_(hidden > 0)
        by = inputs.mT
        return [
            by @ inner,
            inner.sum(dim=1, keepdim=True),
            hidden.mT @ off,
            off.sum(dim=1, keepdim=True),
            by @ off,
        ]

    def merged(self, scale: Any, mean: Any) -> ReluNetwork:
        """The mean of the members as one network, in the units of the values: one scale and mean for each output."""
        w1, b1, w2, b2, skip = (p.double().numpy() for p in self._weights)
        members, inputs, hidden = w1.shape
        outputs = w2.shape[2]
        scales = np.broadcast_to(np.asarray(scale, dtype=np.float64), (outputs,))
        first = w1.transpose(0, 2, 1).reshape(members * hidden, inputs)
        last = w2.reshape(members * hidden, outputs).T / members * scales[:, None]
        layers = [(first, b1.reshape(-1)), (last, b2.mean(axis=0)[0] * scales + mean)]
        return ReluNetwork(layers, skip.mean(axis=0).T * scales[:, None])

    def state(self) -> list[Any]:
        """The weights as nested lists."""
        return [weight.tolist() for weight in self._weights]

    def restore(self, state: list[Any]) -> None:
        """Take over weights of ``state``."""
        torch = self._torch
        for weight, given in zip(self._weights, state, strict=True):
            weight.data = torch.tensor(given, dtype=torch.float32).reshape(weight.shape)
