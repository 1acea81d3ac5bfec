"""What happens inside a module, as a nested graph: one node for each call of a torch function or innermost module.

The nodes know what their values looked like and do not hold them: nobody can ask for them, and autograd frees its own.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from trace_core._lazy import require
from trace_core._unwrap import find_nodes, map_nodes
from trace_core._values import Released, is_tensor
from trace_core.errors import ReplayError
from trace_core.node import Node, make
from trace_core.operators import Operator
from trace_core.release import without_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from trace_core.nodes.tensor.call import ModuleCall


class _Inside(Operator):
    """An operator inside a module: shown, and run again only with the module as a whole."""

    def __init__(self, name: str, description: str | None = None) -> None:
        super().__init__(name, _refuse, None, description)


def _refuse(*_: Any, **__: Any) -> Any:
    raise ReplayError("what is inside a transparent module is replayed with the module as a whole")


def run_transparent(
    call: ModuleCall,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    kept: Iterable[Any],
    versions: Iterable[Node],
) -> tuple[Any, Any]:
    """(result, the same with nodes for its tensors) of a module's run; the second is None if nothing could be seen.

    Args:
        call: the call to be made.
        args, kwargs: for the module.
        kept: the recorded inputs, with nodes inside.
        versions: of the weights.
    """
    sources = [*versions, *(node for value in kept for _, node in find_nodes(value))]
    recorder = _Recorder(sources)
    owner = call.owner
    with owner.lock.alone():  # the hooks must not see another thread's run
        hooks = []
        try:
            for path, module in owner.module.named_modules():
                if path and not module._modules:
                    hooks += recorder.watch(path, module)
            with _watching()(recorder):
                result = call.run(args, kwargs)
        finally:
            for hook in hooks:
                hook.remove()
    return result, recorder.inner(result)


@cache  # made once: a class is a cycle, and would keep what it refers to until the next collection
def _watching() -> Any:
    base: Any = require("torch", extra="torch").overrides.TorchFunctionMode

    class Watching(base):  # type: ignore[misc]
        """Shows a recorder the calls of torch functions."""

        def __init__(self, recorder: _Recorder) -> None:
            super().__init__()
            self.recorder = recorder

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if not self.recorder.depth:
                self.recorder.function(func, args, kwargs or {}, result)
            return result

    return Watching


class _Recorder:
    """Links tensors to the nodes that made them, by identity, while the module runs."""

    def __init__(self, sources: Sequence[Node]) -> None:
        self.depth = 0  # how many watched modules are running
        self._sources = sources
        self._made: dict[int, Node] = {}
        self._alive: list[Any] = []  # so that no id is given out twice meanwhile
        for node in sources:
            if is_tensor(node._value):
                self._made[id(node._value)] = node

    def watch(self, path: str, module: Any) -> list[Any]:
        """Hooks that make one node of each call of the module."""

        def before(*_: Any) -> None:
            self.depth += 1

        def after(module: Any, args: Any, kwargs: Any, result: Any) -> None:
            self.depth -= 1
            if not self.depth and result is not None:
                weights = [w for w in module._parameters.values() if w is not None]
                self._note(_Inside(path, type(module).__name__), (*args, *weights), kwargs, result)

        return [
            module.register_forward_pre_hook(before),
            module.register_forward_hook(after, with_kwargs=True, always_call=True),
        ]

    def function(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        """Note a call of a torch function that gives tensors, or writes into one."""
        name = getattr(func, "__name__", type(func).__name__)
        if name == "__get__":
            name = getattr(func.__self__, "__name__", name)
        if name == "__setitem__":
            result = args[0]
        if _has_tensors(result):
            self._note(_Inside(name.strip("_")), args, kwargs, result)

    def _note(self, op: Operator, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        linked = tuple([map_nodes(value, self._node, leaves=is_tensor) for value in args])
        linked_kwargs = {key: map_nodes(value, self._node, leaves=is_tensor) for key, value in kwargs.items()}
        node = make(without_tensors(result), op, linked)
        if linked_kwargs:
            node._more().kwargs = linked_kwargs
        self._link(result, node)

    def _link(self, result: Any, node: Node) -> None:
        if is_tensor(result):
            self._made[id(result)] = node
            self._alive.append(result)
        elif isinstance(result, list | tuple):
            for item in result:
                self._link(item, node)
        elif isinstance(result, dict):
            for item in result.values():
                self._link(item, node)

    def _node(self, tensor: Any) -> Node:
        """The node that made a tensor: of a tensor made unseen, one that depends on whatever went in."""
        node = self._made.get(id(tensor))
        if node is None:
            if tensor.grad_fn is None:
                node = make(Released(tensor), None, ())
            else:
                node = make(Released(tensor), _Inside("unseen"), tuple(self._sources))
            self._link(tensor, node)
        return node

    def inner(self, result: Any) -> Any:
        """The result with nodes for its tensors."""
        return map_nodes(result, self._node, leaves=is_tensor) if _has_tensors(result) else None


def _has_tensors(value: Any) -> bool:
    return without_tensors(value) is not value
