"""Tensors as parameters: leaves of the trace and leaves of autograd at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from trace_core._lazy import require
from trace_core._values import ByReference
from trace_core.constraints import constraint_from
from trace_core.errors import ParameterError
from trace_core.node import Blank, Node, unwrap
from trace_core.nodes.tensor import einops_nodes as _einops_nodes  # noqa: F401 - makes nodes known to einops
from trace_core.parameter import Parameter, Version

if TYPE_CHECKING:
    from trace_core.constraints import Constraint
    from trace_core.context import Frame


class TensorRule:
    """Tensors of the parameter's present shape. Others are converted to its dtype and device.

    A conversion that loses more than precision (float to int, complex to float) is refused.
    """

    def __init__(self, tensor: Any, also: Constraint | None = None) -> None:
        self.tensor = tensor  # the parameter's own: module.to(...) and module.half() change its device and dtype
        self.also = also

    def check(self, value: Any) -> Any:
        """See Constraint. Arrays, numbers and nested lists are taken too; the data is not looked at."""
        torch = require("torch", extra="torch")
        own = self.tensor
        if not isinstance(value, torch.Tensor):
            try:
                value = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ParameterError(
                    f"expected {self.describe()}, got {type(value).__name__}: {value!r:.80}"
                ) from error
        if value.shape != own.shape:
            raise ParameterError(f"expected {self.describe()}, got shape {tuple(value.shape)}")
        if not torch.can_cast(value.dtype, own.dtype):
            raise ParameterError(f"expected {self.describe()}, got dtype {value.dtype}")
        value = value.to(device=own.device, dtype=own.dtype)
        return value if self.also is None else self.also.check(value)

    def describe(self) -> str:
        """See Constraint."""
        plain = f"a tensor of shape {tuple(self.tensor.shape)}, {str(self.tensor.dtype).removeprefix('torch.')}"
        return plain if self.also is None else f"{plain}, {self.also.describe()}"

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
        constraint: a further rule for the tensor (a callable, a Constraint); shape and kind of dtype are always kept.

    ``update`` copies into that tensor, so a module or optimizer that holds it sees the change. Whoever changes it in
    place (a torch optimizer, ``module.to``) is noticed at the next read, which counts a version. A candidate under
    ``using`` or in a replay is a tensor of its own. A trace keeps a reference to the tensor and says so when it was
    changed since.
    """

    __slots__ = ("group",)

    #: the name of the module it belongs to: parameters of one module are told of together. None for one on its own.
    group: str | None

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
            if not isinstance(
                value, torch.nn.Parameter
            ):  # a tensor of the caller's does not start to collect gradients
                value = value.detach()
            value.requires_grad_(requires_grad)
        object.__setattr__(self, "group", None)
        also = None if constraint is None else constraint_from(constraint, value)
        super().__init__(value, name=name, description=description, constraint=TensorRule(value, also))
        object.__setattr__(self, "_constraint_given", constraint)
        _mark(self._current, value)

    @property
    def kind(self) -> str:
        """``tensor``."""
        return "tensor"

    @property
    def tensor(self) -> Any:
        """The parameter's own tensor, whatever candidate ``using`` puts in its place."""
        return self._current._value

    @property
    def grad(self) -> Any:
        """The gradient of the current tensor, as autograd left it; None before the first."""
        return self._current._value.grad

    @property
    def version(self) -> int:
        """How many updates there were, changes in place by others included."""
        return self.current().index

    def current(self) -> Version:
        """The present version: a new one if the tensor was changed in place since the last look."""
        version = self._current
        value, mark = version._value, version._snap
        try:
            if value._version == mark.version and value.data_ptr() == mark.place:
                return version
        except RuntimeError:  # see _mark
            if not mark.changed(value):
                return version
        self.touch()
        return self._current

    def _read(self, frame: Frame | None) -> Node:
        if frame is None:
            version = self._current
            value, mark = version._value, version._snap
            try:  # ``current`` written out: every operator on a parameter comes by here
                if value._version == mark.version and value.data_ptr() == mark.place:
                    return version
            except RuntimeError:
                pass
            return self.current()
        if frame.overlay is not None and self in frame.overlay:
            return super()._read(frame)
        version = self.current()
        if frame.reads is not None:
            frame.reads[version] = None
        return version

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
        version = Version(self, self._current._value, self._current.index + 1)
        _mark(version, version._value)
        _set_current(self, version)

    def zero_feedback(self) -> None:
        """Forget traces and gradient."""
        super().zero_feedback()
        self._current._value.grad = None

    def __repr__(self) -> str:
        tensor = self.tensor
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        where = "" if tensor.device.type == "cpu" else f" on {tensor.device}"
        label = f"{self.name}: " if self.name else ""
        return f"TensorParameter({label}{shape}, {str(tensor.dtype).removeprefix('torch.')}{where})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Node:
        """An independent parameter with a copy of the tensor (under ``using``, of the candidate), without feedback."""
        twin = memo[id(self)] = _rebuild(*self._parts())
        return twin

    def __reduce__(self) -> Any:
        return _rebuild, self._parts()

    def _parts(self) -> tuple[Any, ...]:
        value = self.value
        data = value.detach().clone()
        if type(value).__name__ == "Parameter":  # a leaf that a torch module may take over
            data = type(value)(data, requires_grad=value.requires_grad)
        return data, self.tensor.requires_grad, self.name, self.description, self._constraint_given


def _rebuild(data: Any, requires_grad: bool, name: str | None, description: str | None, rule: Any) -> TensorParameter:
    return TensorParameter(data, requires_grad=requires_grad, name=name, description=description, constraint=rule)


_set_snap = Blank.__dict__["_snap"].__set__
_set_current = Parameter.__dict__["_current"].__set__


def _mark(version: Version, tensor: Any) -> None:
    """Note count and place of the tensor's data, so that a later change is seen."""
    try:
        _set_snap(version, ByReference(tensor._version, tensor.data_ptr()))
    except RuntimeError:  # inference tensors have no count, others (sparse ones) no one place
        return


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
