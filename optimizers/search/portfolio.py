"""Several optimizers on one budget: each works until it gets nowhere, then the next one does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core.optimizers.base import Optimizer, OptimizerError, Proposal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from trace_core.feedback import Feedback, FeedbackLike
    from trace_core.node import Node
    from trace_core.parameter import Parameter
    from trace_core.trace import Trace


class Portfolio(Optimizer):
    """Optimizers over the same parameters that take turns: after ``plateau`` tickets in a row without a new best, the
    next one proposes. All of them learn how every candidate did.

    Args:
        optimizers: at least one; none that is chained.
        plateau: tickets.

    Raises OptimizerError for optimizers of different parameters, and for chained ones.
    """

    def __init__(self, optimizers: Sequence[Optimizer], plateau: int = 5) -> None:
        if not optimizers:
            raise OptimizerError("expected at least one optimizer, got none")
        if plateau < 1:
            raise OptimizerError(f"plateau must be at least 1, got {plateau}")
        first = optimizers[0]
        super().__init__({name: parameter for parameter, name in first.names.items()})
        for optimizer in optimizers:
            if optimizer.names != first.names:
                raise OptimizerError("the optimizers of a portfolio need the same parameters under the same names")
            if optimizer.chained:
                raise OptimizerError(
                    f"{type(optimizer).__name__} goes on from its own last step, so it cannot take turns with others"
                )
        self.optimizers, self.plateau = list(optimizers), plateau
        self.concurrent = all(optimizer.concurrent for optimizer in optimizers)
        self.turn = self.without = 0
        self._originals = list(optimizers)
        self._ticket: int | None = None  # of a fork

    @property
    def active(self) -> Optimizer:
        """Whose turn it is."""
        return self.optimizers[self.turn]

    def propose(self, traces: Sequence[Trace] | None = None, n: int = 1) -> list[Proposal]:
        """See Optimizer; by the active one."""
        self.active.only = self.only
        return self.active.propose(traces, n)

    def proposals(self, traces: Sequence[Trace] | None = None, n: int = 1) -> Iterator[Proposal]:
        """See Optimizer; by the active one."""
        self.active.only = self.only
        yield from self.active.proposals(traces, n)

    def backward(self, output: Node, feedback: FeedbackLike | Feedback = "") -> Trace:
        """See Optimizer; by the active one."""
        return self.active.backward(output, feedback)

    def fork(self, ticket: int) -> Optimizer:
        """A portfolio whose active optimizer is a fork; which one that is stays as it is for the ticket."""
        if not self.concurrent:
            return self
        twin = Portfolio(self.optimizers, self.plateau)
        twin._ticket, twin.turn = ticket, self.turn
        twin.optimizers[self.turn] = self.active.fork(ticket)
        return twin

    def join(self, fork: Optimizer, improved: bool = False) -> None:
        """Take over what the fork's active optimizer has learned; whether its turn is over is decided here."""
        if not isinstance(fork, Portfolio):
            return
        if fork is not self:
            self.optimizers[fork.turn].join(fork.active, improved)
        if fork.turn != self.turn:
            return  # it was at work when the turn ended
        self.without = 0 if improved else self.without + 1
        if self.without >= self.plateau:
            self.turn, self.without = (self.turn + 1) % len(self.optimizers), 0

    def commit(self, proposal: Proposal) -> None:
        """See Optimizer."""
        self.active.commit(proposal)

    def remember(self, values: Mapping[Parameter, Any], score: float | None, note: str = "") -> None:
        """Tell all of them."""
        for optimizer in self.optimizers:
            optimizer.remember(values, score, note)

    def state_dict(self) -> dict[str, Any]:
        """Whose turn it is, and the state of each; of a fork, that of the active one."""
        if self._ticket is not None:
            return {"turn": self.turn, "active": self.active.state_dict()}
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        return {"turn": self.turn, "without": self.without, "optimizers": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See Optimizer."""
        if self._ticket is not None:
            self.turn = int(state["turn"])
            self.optimizers = list(self._originals)
            self.optimizers[self.turn] = self.active.fork(self._ticket)
            self.active.load_state_dict(state["active"])
            return
        self.turn, self.without = int(state["turn"]), int(state["without"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
