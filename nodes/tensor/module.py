"""A torch module as a traced operator whose weights are Parameters."""

from __future__ import annotations

from functools import cache
from operator import is_
from typing import TYPE_CHECKING, Any
from weakref import ref

from trace_core._functions import named_arguments
from trace_core._lazy import require
from trace_core._values import ATOMIC
from trace_core.context import body_frame, current
from trace_core.module import Module
from trace_core.node import failure, link, unwrap
from trace_core.nodes.tensor.call import ModuleCall
from trace_core.nodes.tensor.errors import TensorError
from trace_core.nodes.tensor.layout import Layout
from trace_core.nodes.tensor.locking import SharedLock
from trace_core.nodes.tensor.parameter import TensorParameter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from trace_core.context import Frame
    from trace_core.node import Node
    from trace_core.parameter import Parameter


class Group:
    """The parameters of one module, told of together where they are not looked at one by one."""

    def __init__(self, name: str) -> None:
        self.name = name


class ModuleNode(Module):
    """See ``module_node``.

    Attributes:
        module: the torch module, unchanged; its weights are the parameters' tensors.
        name: short name of its nodes.
        description: one line for people and LLMs.
    """

    def __init__(
        self,
        module: Any,
        name: str,
        description: str | None = None,
        *,
        transparent: bool = False,
        keep_buffers: bool = False,
    ) -> None:
        self.module = module
        self.name = name
        self.description = description
        self.transparent = transparent
        self.keep_buffers = keep_buffers
        self.lock = SharedLock()
        self._group = Group(name)
        self._signature: Any = None
        self._take_over()

    def _take_over(self) -> None:
        """Make the parameters of the module's present weights; those known already stay."""
        known = {id(p.tensor): p for p in getattr(self, "_weights", {}).values()}
        self.layout = Layout(self.module)
        self._weights: dict[str, TensorParameter] = {}
        for path, weight in self.layout.weights.items():
            parameter = known.get(id(weight))
            if parameter is None:
                parameter = _known_elsewhere(weight)
            if parameter is None:
                if type(weight).__name__ == "UninitializedParameter":
                    raise TensorError(
                        f"weight {path!r} of {self.name!r} has no shape yet: run the module once on example data, then "
                        "wrap it"
                    )
                parameter = TensorParameter(weight, requires_grad=weight.requires_grad, name=path)
            _parameters()[weight] = ref(parameter)
            if parameter.group is None:
                object.__setattr__(parameter, "group", self._group)
            self._weights[path] = parameter
        self._paths = {parameter: path for path, parameter in self._weights.items()}
        self._read_last: tuple[Node, ...] = ()
        self.devices: set[Any] = set()

    def __call__(self, *args: Any, **kwargs: Any) -> Node:
        """Run the module; one node.

        Raises TensorError if the module got or lost weights since it was wrapped, ExecutionError if it raises.
        """
        self.check_layout()
        outer = current.get()
        versions, candidates = self.read(outer)
        return self.record(ModuleCall(self), args, kwargs, outer, versions, candidates)

    def record(
        self,
        call: ModuleCall,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        outer: Frame | None,
        reads: tuple[Node, ...],
        candidates: Mapping[str, Any],
    ) -> Node:
        """Run and link; ``call`` runs as noted if it ran before."""
        plain_args, kept = [], []
        for value in args:
            plain, recorded = unwrap(value)
            plain_args.append(plain)
            kept.append(recorded)
        plain_kwargs, kept_kwargs = {}, {}
        for key, value in kwargs.items():
            plain_kwargs[key], kept_kwargs[key] = unwrap(value)
        frame = body_frame(outer)
        token = current.set(frame)
        inner = None
        try:
            if call.noted:
                result = call.compute(candidates, plain_args, plain_kwargs)
            elif candidates:
                result = call.run_with(candidates, plain_args, plain_kwargs)
            elif self.transparent:
                from trace_core.nodes.tensor.transparent import run_transparent

                result, inner = run_transparent(call, plain_args, plain_kwargs, [*kept, *kept_kwargs.values()], reads)
            else:
                result = call.run(plain_args, plain_kwargs)
            if type(result) not in ATOMIC:
                result = unwrap(result)[0]
        except Exception as error:
            raise failure(call, tuple(kept), kept_kwargs, reads, error, outer) from error  # type: ignore[arg-type]
        finally:
            current.reset(token)
        node = link(result, call, tuple(kept), kept_kwargs, reads + frame.external_reads(), outer)  # type: ignore[arg-type]
        if inner is not None and node.op is not None:
            node._more().inner = inner
        return node

    def read(self, frame: Frame | None) -> tuple[tuple[Node, ...], dict[str, Any]]:
        """(the versions of the weights that are read in ``frame``, those of them that are candidates, by path)."""
        parameters = self._weights.values()
        candidates: dict[str, Any] = {}
        overlay = frame.overlay if frame is not None else None
        if not overlay or overlay.keys().isdisjoint(parameters):
            versions: tuple[Node, ...] = tuple([parameter.current() for parameter in parameters])
            if len(versions) != len(self._read_last) or not all(map(is_, versions, self._read_last)):
                self._read_last = versions  # one tuple for all calls while no weight changes
                self.devices = {parameter.tensor.device for parameter in parameters}
            return self._read_last, candidates
        found: list[Node] = []
        for path, parameter in self._weights.items():
            version = overlay.get(parameter)
            if version is None:
                version = parameter.current()
            elif version._value is not parameter.tensor:
                candidates[path] = version._value
            found.append(version)
        return tuple(found), candidates

    def input_names(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """Inputs by the names that the module's ``forward`` has for them."""
        if self._signature is None:
            import inspect

            try:
                self._signature = inspect.signature(getattr(self.module, "_orig_mod", self.module).forward)
            except (TypeError, ValueError):
                self._signature = False
        return named_arguments(self._signature or None, args, kwargs)

    # ---- what the module is made of

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(torch's dotted path, TensorParameter); a shared weight once. Raises TensorError as a call does."""
        self.check_layout()
        yield from self._weights.items()

    def named_buffers(self) -> Iterator[tuple[str, Any]]:
        """(torch's dotted path, tensor) of the buffers that are saved with the module."""
        paths = {id(m): path for path, m in self.module.named_modules()}
        for m in self.layout.modules:
            for name, buffer in m._buffers.items():
                if buffer is not None and name not in m._non_persistent_buffers_set:
                    prefix = paths[id(m)]
                    yield f"{prefix}.{name}" if prefix else name, buffer

    def path_of(self, parameter: Parameter) -> str | None:
        """The dotted path of one of the module's parameters."""
        return self._paths.get(parameter)  # type: ignore[call-overload, no-any-return]

    def check_layout(self) -> None:
        """Raise TensorError if the module has other weights than when it was wrapped."""
        if self.layout.holds():
            return
        with self.lock.shared():  # not while another thread has candidates in the place of the weights
            self._compare_layout()

    def _compare_layout(self) -> None:
        if self.layout.holds():
            return
        now = dict(self.module.named_parameters())
        before = self.layout.weights
        changes = [f"{path} is new" for path in now if path not in before]
        changes += [f"{path} is gone" for path in before if path not in now]
        changes += [f"{path} is another tensor" for path in now if path in before and now[path] is not before[path]]
        if not changes:  # submodules were moved about, the weights are the same
            self._take_over()
            return
        listed = ", ".join(changes[:6]) + (f" and {len(changes) - 6} more" if len(changes) > 6 else "")
        raise TensorError(
            f"the weights of {self.name!r} are not those it was wrapped with ({listed}): optimizers hold the old ones. "
            f"Call refresh() on it to take the new ones over, then make the optimizers anew"
        )

    def refresh(self) -> None:
        """Take over weights that were added, replaced or removed. Parameters whose tensor is still there are kept."""
        self._take_over()

    # ---- copies

    def __deepcopy__(self, memo: dict[int, Any]) -> ModuleNode:
        import copy

        twin = ModuleNode(
            copy.deepcopy(self.module, memo),
            self.name,
            self.description,
            transparent=self.transparent,
            keep_buffers=self.keep_buffers,
        )
        memo[id(self)] = twin
        for path, parameter in self._weights.items():
            memo[id(parameter)] = twin._weights[path]
        return twin

    def __reduce__(self) -> Any:
        return _rebuild, (self.module, self.name, self.description, self.transparent, self.keep_buffers)

    def __repr__(self) -> str:
        return f"<module node {self.name}, {len(self._weights)} weights>"


@cache
def _parameters() -> Any:
    """Weights of torch -> the parameters made of them: a weight in two wrapped modules is one parameter."""
    return require("torch.utils.weak", extra="torch").WeakIdKeyDictionary()


def _known_elsewhere(weight: Any) -> TensorParameter | None:
    found = _parameters().get(weight)
    return None if found is None else found()


def _rebuild(module: Any, name: str, description: str | None, transparent: bool, keep_buffers: bool) -> ModuleNode:
    return ModuleNode(module, name, description, transparent=transparent, keep_buffers=keep_buffers)


def module_node(
    module: Any,
    *,
    name: str | None = None,
    description: str | None = None,
    transparent: bool = False,
    keep_buffers: bool = False,
) -> ModuleNode:
    """Make a ``torch.nn.Module`` a traced operator: each call records one node that depends on its weights.

    The module itself is not changed, and runs as it would alone: modes, hooks, buffers, autocast, no_grad.

    Args:
        module: the module.
        name: short name of its nodes; by default the class name in lower case.
        description: one line for people and LLMs.
        transparent: record what happens inside as well, a node for each call of a torch function and of a module
            without submodules, shown by ``Trace.of(output, unfold=True)``. These nodes know shape, dtype and device of
            their values and do not hold them.
        keep_buffers: copy the buffers before each call, so that a replay can begin with them even if the module writes
            and reads them (spectral norms, running codebooks). The statistics of batch norms do not need it.

    Raises TensorError if ``module`` is no torch module, or has weights without a shape (lazy modules).
    """
    torch = require("torch", extra="torch")
    if not isinstance(module, torch.nn.Module):
        raise TensorError(f"module_node expects a torch.nn.Module, got {type(module).__name__}: {module!r:.80}")
    return ModuleNode(
        module,
        name or _name_of(module),
        description,
        transparent=transparent,
        keep_buffers=keep_buffers,
    )


def _name_of(module: Any) -> str:
    original = getattr(module, "_orig_mod", module)  # torch.compile wraps
    return type(original).__name__.lower()
