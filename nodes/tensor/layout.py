"""What tensors a torch module is made of, and whether that is still so."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trace_core._lazy import require

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Layout:
    """The parameters and buffers of a torch module at one moment.

    Attributes:
        weights: path -> parameter; a shared (tied) one once, by its first path, as ``named_parameters`` has it.
        modules: all submodules, the module itself first.
    """

    def __init__(self, module: Any) -> None:
        self.modules: list[Any] = list(module.modules())
        self.weights: dict[str, Any] = dict(module.named_parameters())
        self._tables = [table for m in self.modules for table in (m._parameters, m._modules)]
        self._ids = [_ids(table) for table in self._tables]
        self._places: dict[int, list[tuple[dict[str, Any], str]]] = {}  # id of a parameter -> where it is
        for m in self.modules:
            for name, weight in m._parameters.items():
                if weight is not None:
                    self._places.setdefault(id(weight), []).append((m._parameters, name))
        torch = require("torch", extra="torch")
        norms = torch.nn.modules.batchnorm._NormBase
        self._norms = [m for m in self.modules if isinstance(m, norms) and m._buffers]
        self._others = [m for m in self.modules if not isinstance(m, norms) and m._buffers]

    def holds(self) -> bool:
        """Whether the module has the same submodules and the same parameter tensors. Some 0.2 us for each submodule."""
        for table, ids in zip(self._tables, self._ids, strict=True):
            if (table or ids) and _ids(table) != ids:
                return False
        return True

    def buffers(self) -> Iterator[tuple[dict[str, Any], str, Any]]:
        """(table, name, tensor) of the buffers that a run may read.

        Not those of batch norms in training: they compute with the statistics of the batch, and only note theirs.
        """
        for m in self._others:
            for name, buffer in m._buffers.items():
                if buffer is not None:
                    yield m._buffers, name, buffer
        for m in self._norms:
            if not m.training:
                for name, buffer in m._buffers.items():
                    if buffer is not None:
                        yield m._buffers, name, buffer

    def statistics(self) -> Iterator[tuple[dict[str, Any], str]]:
        """(table, name) of the buffers that batch norms in training write and do not read."""
        for m in self._norms:
            if m.training:
                for name in m._buffers:
                    yield m._buffers, name

    def flags(self) -> tuple[bool, ...]:
        """Which submodules are in training mode."""
        return tuple([m.training for m in self.modules])

    @contextmanager
    def with_flags(self, flags: tuple[bool, ...]) -> Iterator[None]:
        """The submodules in these modes. Needs the module for oneself."""
        before = self.flags()
        if before == flags:
            yield
            return
        self._set_flags(flags)
        try:
            yield
        finally:
            self._set_flags(before)

    def _set_flags(self, flags: tuple[bool, ...]) -> None:
        for m, training in zip(self.modules, flags, strict=True):
            m.training = training

    @contextmanager
    def with_weights(self, given: Mapping[str, Any], buffers: list[tuple[dict[str, Any], str, Any]]) -> Iterator[None]:
        """The module with other parameters (by path) and buffers. Needs the module for oneself.

        Batch norms in training note no statistics inside.
        """
        changes = list(buffers)
        for path, value in given.items():
            changes += [(table, name, value) for table, name in self._places[id(self.weights[path])]]
        changes += [(table, name, None) for table, name in self.statistics()]
        before = [(table, name, table[name]) for table, name, _ in changes]
        try:
            for table, name, value in changes:
                table[name] = value
            yield
        finally:
            for table, name, value in before:
                table[name] = value


def _ids(table: Mapping[str, Any]) -> list[int]:
    return [*map(id, table.values())]
