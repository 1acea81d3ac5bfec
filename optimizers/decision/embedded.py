"""What the MILPs of learned modes need of a surrogate: its value as a function of x for a given xi, or the reverse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core.nodes.decision._numpy import np
from trace_core.nodes.decision.errors import InvalidProblem
from trace_core.optimizers.decision.relu import Embedding

if TYPE_CHECKING:
    from collections.abc import Callable

    from trace_core.nodes.decision.checks import Array
    from trace_core.nodes.decision.milp import Columns, Model
    from trace_core.optimizers.decision.relu import Affine, Domain, ReluNetwork


class Embedded:
    """A network of ``features``, which are affine in x for a given xi, and the other way round.

    Attributes:
        network: from features to the (minimised) value; None before there is one.
        doubt: to infeasibility: positive where no reaction is expected; None without.
    """

    features: Any
    network: Any
    doubt: ReluNetwork | None

    def predict(self, x: Array, xi: Array) -> Array:
        """Minimised values for rows of x and xi."""
        raise NotImplementedError

    def in_scenario(self, xi: Array) -> Callable[[Array], Array]:
        """From rows of x to values in one scenario; fast, as what is fixed goes into the first layer."""
        if self.network is None or self.doubt is not None:
            return lambda x: self.predict(x, np.broadcast_to(xi, (len(x), len(xi))))
        folded = self.network.folded(*self.features.given_xi(xi))
        return lambda x: folded.values(x)[:, 0]

    def add_value(
        self, model: Model, columns: Columns, domain: Domain, *, x: Array | None = None, xi: Array | None = None
    ) -> Affine | None:
        """The value in a model, as a function of ``columns``: of xi where ``x`` is given, of x where ``xi`` is.

        Where xi is given, the model may only gain from smaller values. None before there is anything to embed.
        """
        return None if self.network is None else self._added(self.network, model, columns, domain, x, xi)

    def add_doubt(
        self, model: Model, columns: Columns, domain: Domain, *, x: Array | None = None, xi: Array | None = None
    ) -> Affine | None:
        """The same for infeasibility."""
        return None if self.doubt is None else self._added(self.doubt, model, columns, domain, x, xi)

    def _added(
        self, network: ReluNetwork, model: Model, columns: Columns, domain: Domain, x: Array | None, xi: Array | None
    ) -> Affine:
        if x is not None:
            matrix, offset = self.features.given_x(x)
            lifting = getattr(self.features, "lifting", None)
            if lifting is not None:  # features are affine in more than xi: that goes into the model first
                size = len(columns)
                inside = Embedding(model, columns, lifting(), np.eye(size), np.zeros(size), domain)
                first, domain, columns = inside.output, inside.domain, inside.output.columns
                matrix, offset = matrix @ first.matrix, matrix @ first.constant + offset
        elif xi is not None:
            matrix, offset = self.features.given_xi(xi)
        else:
            raise InvalidProblem("a network", "can only be embedded for a fixed x or a fixed xi")
        return Embedding(model, columns, network, matrix, offset, domain, pushed_down=xi is not None).output
