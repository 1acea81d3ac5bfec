"""Tensors as parameters: leaves of the trace and leaves of autograd at once."""

from __future__ import annotations

from typing import Any, Literal, overload

from trace_core._lazy import require
from trace_core.errors import ParameterError
from trace_core.node import Node, unwrap
from trace_core.parameter import Parameter, Version


class TensorRule:
    """Tensors of one shape and dtype. Others of that shape are converted, if that loses no kind (float to int does)."""

    def __init__(self, example: Any) -> None:
        self.shape, self.dtype, self.device = tuple(example.shape), example.dtype, example.device

    def check(self, value: Any) -> Any:
        """See Constraint. Arrays, numbers and nested lists are taken too; the data is not looked at."""
        torch = require("torch", extra="torch")
        if not isinstance(value, torch.Tensor):
            try:
                value = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ParameterError(
                    f"expected {self.describe()}, got {type(value).__name__}: {value!r:.80}"
                ) from error
        if tuple(value.shape) != self.shape:
            raise ParameterError(f"expected {self.describe()}, got shape {tuple(value.shape)}")
        if not torch.can_cast(value.dtype, self.dtype):
            raise ParameterError(f"expected {self.describe()}, got dtype {value.dtype}")
        return value.to(device=self.device, dtype=self.dtype)

    def describe(self) -> str:
        """See Constraint."""
        return f"a tensor of shape {self.shape}, {str(self.dtype).removeprefix('torch.')}"

    def annotation(self) -> Any:
        """See Constraint."""
        return Any


class TensorParameter(Parameter):
    """A parameter whose value is one torch tensor, kept for its whole life: a leaf of autograd.

    Args:
        data: a tensor (kept as it is if it is a leaf of the asked dtype and device), array, number or nested list.
        dtype, device: of the tensor; by default those of ``data``.
        requires_grad: whether gradients reach it; by default for floating point and complex data.
        name, description: see ``Parameter``.

    ``update`` copies into that tensor, so a module or optimizer that holds it sees the change. A candidate under
    ``using`` or in a replay is a tensor of its own. A trace keeps a reference to the tensor and says so when it was
    changed since.
    """

    __slots__ = ()

    def __init__(
        self,
        data: Any,
        *,
        dtype: Any = None,
        device: Any = None,
        requires_grad: bool | None = None,
        name: str | None = None,
        description: str | None = None,
        constraint: Any = None,
    ) -> None:
        torch = require("torch", extra="torch")
        plain = unwrap(data)[0]
        given = plain if isinstance(plain, torch.Tensor) else torch.as_tensor(plain)
        value = given.to(dtype=dtype, device=device)
        if not value.is_leaf:
            value = value.detach().clone()
        if requires_grad is None:
            requires_grad = value.is_floating_point() or value.is_complex()
        if value.requires_grad != requires_grad:
            value = value.detach() if value is given else value
            value.requires_grad_(requires_grad)
        super().__init__(
            value,
            name=name,
            description=description,
            constraint=TensorRule(value) if constraint is None else constraint,
        )

    @property
    def kind(self) -> str:
        """``tensor``."""
        return "tensor"

    @property
    def grad(self) -> Any:
        """The gradient of the current tensor, as autograd left it; None before the first."""
        return self._current._value.grad

    def update(self, value: Any) -> None:
        """Copy ``value`` into the tensor and count a version. Raises ParameterError, leaving it as it was."""
        torch = require("torch", extra="torch")
        checked = self.check(value)
        own = self._current._value
        if checked is not own:
            with torch.no_grad():
                own.copy_(checked)
        self.touch()

    def touch(self) -> None:
        """Count a version after the tensor was changed in place by others, as torch's optimizers do."""
        object.__setattr__(self, "_current", Version(self, self._current._value, self._current.index + 1))

    def zero_feedback(self) -> None:
        """Forget traces and gradient."""
        super().zero_feedback()
        self._current._value.grad = None


@overload
def tensor(data: Any, *, trainable: Literal[True], **options: Any) -> TensorParameter: ...
@overload
def tensor(data: Any, *, trainable: bool = False, **options: Any) -> Node: ...
def tensor(data: Any, *, trainable: bool = False, **options: Any) -> Node:
    """A node with a tensor; with ``trainable=True`` a TensorParameter, whose arguments ``options`` are."""
    if trainable:
        return TensorParameter(data, **options)
    torch = require("torch", extra="torch")
    name, description = options.pop("name", None), options.pop("description", None)
    plain = unwrap(data)[0]
    value = plain.to(**options) if isinstance(plain, torch.Tensor) else torch.as_tensor(plain, **options)
    return Node(value, name=name, description=description)


__all__ = ["TensorParameter", "TensorRule", "tensor"]
