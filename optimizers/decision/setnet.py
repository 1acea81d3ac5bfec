"""One network for second stages of any size: per-item nets, their mean, and a small network behind it.

The value of a second stage in which every item i has features f_i, an entry x_i of the decision and an entry xi_i of
what comes is learned as
``V(x, xi) = unit * value(mean over i of [ c(f_i) + a(f_i) x_i + b(f_i) xi_i + d(f_i) x_i xi_i ])``.
The coefficients are a network of the features, so for a given instance they are constants; what is left for a model is
one affine map, of x for a given xi and of xi for a given x, and the few neurons of ``value``. For binary x that is no
loss: any per-item network of (x_i, f_i) is affine in x_i.
Source: "Neur2RO: Neural Two-Stage Robust Optimization" (Dumouchelle et al., ICLR 2024), section 3 and appendix, whose
encoders of x and of xi are separate; here they are joined by the product, and have biases, since nothing is padded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.checks import Array, array, number
from trace_core.nodes.decision.errors import DecisionError, InvalidProblem
from trace_core.optimizers.decision.embedded import Embedded
from trace_core.optimizers.decision.relu import ReluNetwork

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = "trace_core set network 1"
TERMS = 4  # 1, x_i, xi_i, x_i xi_i


class NetworkFileError(DecisionError, ValueError):
    """A file that holds no set network."""


class StrangeInstance(UserWarning):
    """The items' features are unlike those the network was trained on."""


class SetNetwork:
    """A second stage's value for instances of any number of items.

    Made by ``train_set_network``, or read by ``load``; ``on`` binds it to an instance.

    Args:
        encoder: from an item's standardised features to four blocks of coefficients: of 1, x_i, xi_i and x_i xi_i.
        value: from one block's length to one output.
        center, spread: of the features, which are standardised by them.
        low, high: of the features in training, for ``InstanceNetwork.strangeness``.
        sense: of the values it gives: ``"min"`` for costs, ``"max"`` for revenues.
        note: how it was made.

    Raises InvalidProblem if shapes do not fit.
    """

    def __init__(
        self,
        encoder: ReluNetwork,
        value: ReluNetwork,
        *,
        center: Any,
        spread: Any,
        low: Any,
        high: Any,
        sense: Literal["min", "max"] = "min",
        note: str = "",
    ) -> None:
        if encoder.outputs != TERMS * value.inputs or value.outputs != 1:
            raise InvalidProblem(
                "network",
                f"has an encoder with {encoder.outputs} outputs and a value with {value.inputs} inputs and "
                f"{value.outputs} outputs, expected {TERMS} outputs of the encoder for each input, and one output",
            )
        if sense not in ("min", "max"):
            raise InvalidProblem("network: sense", f"must be 'min' or 'max', got {sense!r}", value=sense)
        self.encoder, self.value, self.sense, self.note = encoder, value, sense, note
        self.features = encoder.inputs
        self.center, self.spread, self.low, self.high = (
            array(f"network: {name}", given, (self.features,))
            for name, given in (("center", center), ("spread", spread), ("low", low), ("high", high))
        )
        if (self.spread <= 0).any():
            raise InvalidProblem("network: spread", "must be positive", value=spread)

    def on(self, features: Any, *, unit: Any = None) -> InstanceNetwork:
        """The network on one instance.

        Args:
            features: (items, d), in the order of x and xi, made as for training.
            unit: what one unit of output is worth in this instance, as in training; by default the number of items.

        Raises InvalidProblem.
        """
        given = array("features", features, (None, self.features))
        if not len(given):
            raise InvalidProblem("features", "has no items")
        scale = float(len(given)) if unit is None else number("unit", unit)
        if scale <= 0:
            raise InvalidProblem("unit", f"must be positive, got {scale:g}", value=unit)
        return InstanceNetwork(self, given, scale)

    # ---- kept as JSON

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""

        def layers(network: ReluNetwork) -> dict[str, Any]:
            return {
                "layers": [{"weights": w.tolist(), "biases": b.tolist()} for w, b in network.layers],
                "skip": network.skip.tolist(),
            }

        data: dict[str, Any] = {"format": FORMAT, "sense": self.sense, "note": self.note}
        data |= {name: getattr(self, name).tolist() for name in ("center", "spread", "low", "high")}
        data |= {"encoder": layers(self.encoder), "value": layers(self.value)}
        # nine digits hold a float32, which is what training gives
        short = json.loads(json.dumps(data), parse_float=lambda text: float(f"{float(text):.9g}"))
        Path(path).write_text(json.dumps(short, separators=(",", ":")) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> SetNetwork:
        """Read what ``save`` wrote. Raises NetworkFileError for anything else."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(data, dict) or data.get("format") != FORMAT:
                raise NetworkFileError(f"{path} is no set network: expected a JSON object with format {FORMAT!r}")
            rest = {name: data[name] for name in ("center", "spread", "low", "high", "sense", "note")}
            return cls(_read(data["encoder"]), _read(data["value"]), **rest)
        except (UnicodeDecodeError, KeyError, TypeError, json.JSONDecodeError, InvalidProblem) as error:
            raise NetworkFileError(f"{path} is no set network: {type(error).__name__}: {error}") from error


def _read(data: Mapping[str, Any]) -> ReluNetwork:
    return ReluNetwork([(each["weights"], each["biases"]) for each in data["layers"]], data["skip"])


class _Joined:
    """The mean over items as an affine map: of x for a given xi, of xi for a given x."""

    def __init__(self, coefficients: Array) -> None:
        self.base, self.of_x, self.of_xi, self.of_both = (each / each.shape[0] for each in coefficients)

    def __call__(self, x: Array, xi: Array) -> Array:
        """Rows for rows of x and xi."""
        found: Array = self.base.sum(axis=0) + x @ self.of_x + xi @ self.of_xi + (x * xi) @ self.of_both
        return found

    def given_xi(self, xi: Array) -> tuple[Array, Array]:
        """(matrix, offset): the mean is ``matrix @ x + offset``."""
        return (self.of_x + xi[:, None] * self.of_both).T, self.base.sum(axis=0) + xi @ self.of_xi

    def given_x(self, x: Array) -> tuple[Array, Array]:
        """(matrix, offset): the mean is ``matrix @ xi + offset``."""
        return (self.of_xi + x[:, None] * self.of_both).T, self.base.sum(axis=0) + x @ self.of_x


class InstanceNetwork(Embedded):
    """A set network on one instance; made by ``SetNetwork.on``, given to ``Neur2RO(network=...)``.

    Attributes:
        items: how many.
        features: from (x, xi) to the inputs of ``network``, affine in each of them.
        network: from there to the value, minimised, in the instance's own units.
        scale: one unit.
        strangeness: share of the items' features that lie outside of what training had.
    """

    network: ReluNetwork
    doubt: ReluNetwork | None = None  # of feasibility; a set network has none

    def __init__(self, source: SetNetwork, given: Array, unit: float) -> None:
        self.source, self.items, self.scale = source, len(given), unit
        self.sign = 1.0 if source.sense == "min" else -1.0
        coefficients = source.encoder((given - source.center) / source.spread)
        self.features = _Joined(coefficients.reshape(len(given), TERMS, -1).transpose(1, 0, 2))
        *hidden, (weights, biases) = source.value.layers
        factor = unit * self.sign
        self.network = ReluNetwork([*hidden, (weights * factor, biases * factor)], source.value.skip * factor)
        room = 1e-9 * np.maximum(1.0, np.abs(source.high - source.low))
        self.strangeness = float(((given < source.low - room) | (given > source.high + room)).mean())

    def __call__(self, x: Any, xi: Any) -> float:
        """The value in the sense of the network. Raises InvalidProblem for a wrong length."""
        pair = (array("x", x, (self.items,))[None], array("xi", xi, (self.items,))[None])
        return self.sign * float(self.predict(*pair)[0])

    def predict(self, x: Array, xi: Array) -> Array:
        """Minimised values for rows of x and xi."""
        values: Array = self.network(self.features(x, xi))[:, 0]
        return values

    def slopes(self, x: Array, xi: Array) -> Array:
        """Derivatives of the minimised value by xi at rows of xi, for one x."""
        matrix, _ = self.features.given_x(x)
        found: Array = self.network.slopes(self.features(np.broadcast_to(x, xi.shape), xi)) @ matrix
        return found
