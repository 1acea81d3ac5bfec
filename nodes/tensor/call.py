"""One call of a module: how it ran, so that it can run in the same way again."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trace_core._torch import PLAIN, Draws, as_recorded, devices_of, in_mode, mode_now
from trace_core.context import current
from trace_core.errors import ReplayError
from trace_core.nodes.tensor.errors import TensorError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from trace_core._torch import Mode
    from trace_core.node import Node
    from trace_core.nodes.tensor.module import ModuleNode


class ModuleCall:
    """The operator of a module's node.

    Attributes:
        owner: the module node.
        name, description: see ``Operator``.
        noted: whether it ran, and how is known.
        draws: the states of the random generators before; None if no random number was drawn.
    """

    __slots__ = (
        "buffers",
        "copies",
        "description",
        "draws",
        "flags",
        "mode",
        "name",
        "noted",
        "owner",
        "writes",
        "written",
    )

    def __init__(self, owner: ModuleNode) -> None:
        self.owner = owner
        self.name = owner.name
        self.description = owner.description
        self.noted = False
        self.draws: Draws | None = None
        self.mode: Mode = PLAIN
        self.flags: tuple[bool, ...] = ()
        self.buffers: list[tuple[dict[str, Any], str, Any, int]] = []  # table, name, tensor, its count of changes
        self.copies: list[Any] | None = None
        self.written: list[str] = []  # buffers whose values from before are lost
        self.writes = False  # the call wrote into copies of the buffers

    # ---- the first time

    def run(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run the module as it is, and note how."""
        owner = self.owner
        with owner.lock.shared():
            self._note_before(args, kwargs)
            result = owner.module(*args, **kwargs)
            self._note_after()
        return result

    def run_with(self, candidates: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The same with candidates (path -> tensor) in the place of weights; the module's buffers stay as they are."""
        owner = self.owner
        with owner.lock.alone():
            _refuse_checkpoints(owner)
            self._note_before(args, kwargs)
            copies = [(table, name, tensor.clone()) for table, name, tensor, _ in self.buffers]
            with owner.layout.with_weights(candidates, copies):
                result = owner.module(*args, **kwargs)
                self.writes = any(table[name] is not copy or copy._version for table, name, copy in copies)
            if self.draws is not None and not self.draws.drawn():
                self.draws = None
            self.noted = True
        return result

    def _note_before(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        layout = self.owner.layout
        self.mode = mode_now()
        self.flags = layout.flags()
        self.buffers = [(table, name, tensor, _count(tensor)) for table, name, tensor in layout.buffers()]
        if self.owner.keep_buffers:
            self.copies = [tensor.clone() for _, _, tensor, _ in self.buffers]
        devices = devices_of(args) | devices_of(kwargs.values()) | self.owner.devices
        self.draws = Draws(devices)

    def _note_after(self) -> None:
        if self.draws is not None and not self.draws.drawn():
            self.draws = None
        self.written = [
            name
            for table, name, tensor, count in self.buffers
            if table.get(name) is not tensor or _count(tensor) != count
        ]
        self.noted = True

    # ---- again

    def compute(self, weights: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run the module as it ran, with other weights (path -> tensor) or inputs. Pure: nothing of it moves.

        Buffers are those of then (the statistics that batch norms in training note are not noted), random numbers are
        drawn again, modes and autocast are those of then. Raises ReplayError if a buffer was changed since.
        """
        owner = self.owner
        with self.prepared(), as_recorded(self.mode), owner.layout.with_weights(weights, []):
            if self.draws is None:
                return owner.module(*args, **kwargs)
            with self.draws.again():
                return owner.module(*args, **kwargs)

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """The module to oneself, in the modes and with the buffers of then."""
        owner = self.owner
        with owner.lock.alone(), owner.layout.with_flags(self.flags):
            _refuse_checkpoints(owner)
            with owner.layout.with_weights({}, self._buffers_then()):
                yield

    def pure(self, weights: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """``compute`` without preparation and random state, in a form that torch.compile can look into."""
        from torch.func import functional_call

        module, positional, named = self.owner.module, tuple(args), dict(kwargs)
        if not self.mode.grad or self.mode.autocast:
            return in_mode(self.mode, lambda: functional_call(module, weights, positional, named))
        return functional_call(module, weights, positional, named)

    def prepares_like(self, other: ModuleCall) -> bool:
        """Whether one preparation serves both."""
        same_buffers = self.copies is None and other.copies is None and not self.writes and not other.writes
        return self is other or (self.flags == other.flags and same_buffers)

    def _buffers_then(self) -> list[tuple[dict[str, Any], str, Any]]:
        if self.copies is not None:
            return [
                (table, name, copy.clone()) for (table, name, _, _), copy in zip(self.buffers, self.copies, strict=True)
            ]
        if self.written:
            raise ReplayError(
                f"module {self.name!r} wrote its buffers {', '.join(self.written[:4])} while it ran, and what they "
                "held before is not kept: make it with module_node(..., keep_buffers=True)"
            )
        for table, name, tensor, count in self.buffers:
            if table.get(name) is not tensor or _count(tensor) != count:
                raise ReplayError(
                    f"buffer {name!r} of module {self.name!r} was changed after this trace was recorded: run the "
                    "workflow again, or make the node with module_node(..., keep_buffers=True)"
                )
        return [(table, name, tensor.clone()) for table, name, tensor, _ in self.buffers] if self.writes else []

    # ---- being an operator

    def rerun(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Node:
        """Run in the same way on new inputs and weights, and record it (see OperatorLike)."""
        outer = current.get()
        versions, candidates = self.owner.read(outer)
        return self.owner.record(self, args, kwargs, outer, versions, candidates)

    def input_names(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """Inputs by the names of the module's ``forward``."""
        return self.owner.input_names(args, kwargs)

    def __repr__(self) -> str:
        return f"<call of module {self.name}>"


def _count(tensor: Any) -> int:
    try:
        return int(tensor._version)
    except RuntimeError:  # inference tensors keep none
        return -1


def _refuse_checkpoints(owner: ModuleNode) -> None:
    for module in owner.layout.modules:
        if module.training and getattr(module, "gradient_checkpointing", False) is True:
            raise TensorError(
                f"module {owner.name!r} uses gradient checkpointing, which runs it again during the backward pass, "
                "then with its own weights: candidates would get wrong gradients. Turn it off"
            )


__all__ = ["ModuleCall"]
