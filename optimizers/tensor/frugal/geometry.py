"""Which part of a tensor keeps state: rows, columns, entries, or a low-rank subspace.

Every tensor is seen as a matrix (first dimension, all the others), a vector as one row - one column for ``rows`` - so
that its entries are what is chosen. A vector has no low-rank structure: ``svd`` and ``random`` choose its entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from trace_core.optimizers.tensor.frugal._torch import torch
from trace_core.optimizers.tensor.frugal.seeding import scatter_keys, scattered, subset

LOW_RANK = ("svd", "random")


def kind_for(tensor: Any, split: str) -> str:
    """The split that is used for a tensor of this shape."""
    return "columns" if split in LOW_RANK and tensor.dim() < 2 else split


def matrix_shape(tensor: Any, kind: str) -> tuple[int, int]:
    if tensor.dim() < 2:
        return (tensor.numel(), 1) if kind == "rows" else (1, tensor.numel())
    rows = tensor.shape[0]
    return (rows, tensor.numel() // rows if rows else 0)


def matrix(tensor: Any, kind: str) -> Any:
    """The tensor as a matrix: a view where its strides allow one, else a copy (see ``write_back``)."""
    return tensor if tensor.dim() == 2 else tensor.reshape(matrix_shape(tensor, kind))


def write_back(tensor: Any, view: Any) -> None:
    """Put ``view``, made by ``matrix``, into the tensor if it was a copy."""
    if view is not tensor and view.data_ptr() != tensor.data_ptr():
        tensor.copy_(view.view(tensor.shape))


def capacity(tensor: Any, kind: str) -> int:
    """How many rows, columns, entries or directions there are to choose from."""
    rows, columns = matrix_shape(tensor, kind)
    if kind == "randk":
        return rows * columns
    if kind in LOW_RANK:
        return min(rows, columns)
    return rows if kind == "rows" else columns


def chosen_count(tensor: Any, kind: str, density: float) -> int:
    """How many of them are chosen: rounded, but at least one of a tensor that is to have any."""
    whole = capacity(tensor, kind)
    return min(whole, max(1, round(whole * density))) if density > 0 and whole else 0


class Drawing(NamedTuple):
    """What entries are drawn from and how: ``taken`` of ``whole``, by ``keys``."""

    whole: int
    taken: int
    keys: tuple[int, int, int]


@dataclass
class Coordinates:
    """A set of rows, columns or entries of a matrix of ``extent`` (rows, columns).

    Rows and columns are ``held`` as an index, int64; entries are drawn when they are first asked for.
    """

    kind: str
    extent: tuple[int, int]
    device: Any
    held: Any = None
    drawing: Drawing | None = None

    @property
    def index(self) -> Any:
        if self.held is None and self.drawing is not None:
            self.held = scattered(*self.drawing, self.device)
        return self.held

    @property
    def count(self) -> int:
        return self.drawing.taken if self.drawing is not None else int(self.held.numel())

    @cached_property
    def slots(self) -> Any:
        """For each row or column its position among the chosen ones, -1 where it is none of them; int32."""
        whole = self.extent[1 if self.kind == "columns" else 0]
        order = torch.arange(self.count, dtype=torch.int32, device=self.device)
        return torch.full((whole,), -1, dtype=torch.int32, device=self.device).scatter_(0, self.held, order)

    @cached_property
    def _spread(self) -> Any:
        """The index of columns for every row; a view."""
        return self.index.expand(self.extent[0], -1)

    def forget(self) -> None:
        """Let go of what can be drawn again: the indices of entries weigh twice as much as a moment of them."""
        if self.drawing is not None:
            self.held = None

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of what ``take`` gives."""
        rows, columns = self.extent
        if self.kind == "columns":
            return (rows, self.count)
        return (self.count, columns) if self.kind == "rows" else (self.count,)

    def take(self, view: Any, out: Any = None) -> Any:
        """The chosen part, contiguous: (count, n) of rows, (m, count) of columns, (count,) of entries."""
        if self.kind == "randk":
            view = view.reshape(-1)
        return torch.index_select(view, 1 if self.kind == "columns" else 0, self.index, out=out)

    def put(self, view: Any, part: Any) -> None:
        """Overwrite the chosen part of a contiguous matrix, in place."""
        if self.kind == "rows":
            view.index_copy_(0, self.index, part)
        elif self.kind == "columns":
            view.scatter_(1, self._spread, part)
        else:
            view.view(-1).scatter_(0, self.index, part)  # on a CPU a quarter of the time of index_copy_

    def embed(self, part: Any, shape: tuple[int, int], *, squared: bool = False) -> Any:
        """A matrix that is zero but for the chosen part."""
        del squared
        whole = part.new_zeros(shape)
        self.put(whole, part)
        return whole

    def restrict(self, whole: Any, *, squared: bool = False) -> Any:
        del squared
        return self.take(whole)


@dataclass(frozen=True, slots=True)
class Subspace:
    """The span of the orthonormal columns of ``basis``: of row space if ``right``, else of column space."""

    basis: Any
    right: bool
    extent: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Of what ``take`` gives."""
        rows, columns = self.extent
        rank = int(self.basis.shape[1])
        return (rows, rank) if self.right else (rank, columns)

    def take(self, view: Any) -> Any:
        return view @ self.basis if self.right else self.basis.mT @ view

    def add(self, view: Any, part: Any, scale: float = 1.0) -> None:
        """``view += scale * (part seen in the full space)``, in place."""
        if self.right:
            view.addmm_(part, self.basis.mT, alpha=scale)
        else:
            view.addmm_(self.basis, part, alpha=scale)

    def embed(self, part: Any, shape: tuple[int, int], *, squared: bool = False) -> Any:
        """Back in the full space. Second moments go through the squared basis, which keeps them from being negative."""
        del shape
        basis = self.basis.square() if squared else self.basis
        return part @ basis.mT if self.right else basis @ part

    def restrict(self, whole: Any, *, squared: bool = False) -> Any:
        return Subspace(self.basis.square() if squared else self.basis, self.right, self.extent).take(whole)

    def turn(self, part: Any, onto: Subspace, *, squared: bool = False) -> Any:
        """Moments of this subspace as moments of another one of the same side."""
        rotation = self.basis.mT @ onto.basis
        rotation = rotation.square() if squared else rotation
        return part @ rotation if self.right else rotation.mT @ part


def draw_coordinates(tensor: Any, kind: str, count: int, place: tuple[int, int, int]) -> Coordinates:
    """Choose for the tensor at ``place`` = (seed, refresh, position of the tensor)."""
    whole, extent = capacity(tensor, kind), matrix_shape(tensor, kind)
    if kind == "randk":
        return Coordinates(kind, extent, tensor.device, drawing=Drawing(whole, count, scatter_keys(whole, *place)))
    return Coordinates(kind, extent, tensor.device, subset(whole, count, *place).to(tensor.device))


def subspace_of(tensor: Any, basis: Any) -> Subspace:
    return Subspace(basis, is_right(tensor), matrix_shape(tensor, "svd"))


def is_right(tensor: Any) -> bool:
    """Project the longer side away: the basis is small and the moments keep the longer side."""
    rows, columns = matrix_shape(tensor, "svd")
    return rows >= columns


def of_state(
    state: dict[str, Any], tensor: Any, kind: str, place: tuple[int, int, int]
) -> Coordinates | Subspace | None:
    """The part a tensor's state belongs to; None if the state covers the whole tensor. Entries are drawn again."""
    if "basis" in state:
        return subspace_of(tensor, state["basis"])
    extent = matrix_shape(tensor, kind)
    if "indices" in state:
        return Coordinates(kind, extent, tensor.device, state["indices"])
    if "entries" in state:
        seed, _, position = place
        keys = scatter_keys(tensor.numel(), seed, state["refresh"], position)
        drawing = Drawing(tensor.numel(), state["entries"], keys)
        return Coordinates("randk", extent, tensor.device, drawing=drawing)
    return None


def mask_of(part: Coordinates | Subspace | None, tensor: Any, kind: str) -> Any:
    """True where an entry keeps state (for coordinates), the basis (for a subspace), all True for a whole tensor."""
    if isinstance(part, Subspace):
        return part.basis.clone()
    mask = torch.zeros(matrix_shape(tensor, kind), dtype=torch.bool, device=tensor.device)
    if part is None:
        mask.fill_(True)
    else:
        part.put(mask, torch.ones_like(part.take(mask)))
    return mask.view(tensor.shape)
