"""einops on nodes: ``einops.rearrange(node, "b c -> c b")`` records. Nothing happens if einops is not installed.

einops looks for a backend by the type of its argument. The one here records each step that the backend of the node's
value makes.
"""

from __future__ import annotations

from typing import Any

from trace_core.node import Node, apply
from trace_core.operators import foreign


def _backend() -> Any:
    """The backend for nodes. None if einops is not there, or is made otherwise than this expects."""
    try:
        from einops._backends import AbstractBackend, get_backend
    except ImportError:
        return None

    class NodeBackend(AbstractBackend):  # type: ignore[misc]
        """Hands on to the backend of the value, and records."""

        framework_name = "trace_core"

        def is_appropriate_type(self, tensor: Any) -> bool:
            return isinstance(tensor, Node)

        def shape(self, x: Node) -> tuple[int, ...]:
            return tuple(x.shape)

        def is_float_type(self, x: Node) -> bool:
            return bool(get_backend(x.value).is_float_type(x.value))

        def layers(self) -> Any:
            raise NotImplementedError("einops layers are made for a framework: wrap them with module_node")

    def recorded(name: str) -> Any:
        def method(self: Any, first: Any, *args: Any, **kwargs: Any) -> Any:
            node = first if isinstance(first, Node) else next(item for item in first if isinstance(item, Node))
            step = getattr(get_backend(node.value), name)
            return apply(foreign(step, name), (first, *args), kwargs)

        return method

    for name in _STEPS:
        setattr(NodeBackend, name, recorded(name))

    def einsum(self: Any, pattern: str, *tensors: Any) -> Any:
        node = next(item for item in tensors if isinstance(item, Node))
        return apply(foreign(get_backend(node.value).einsum, "einsum"), (pattern, *tensors))

    NodeBackend.einsum = einsum
    return NodeBackend


_STEPS = (
    "add_axes",
    "add_axis",
    "concat",
    "reduce",
    "reshape",
    "stack_on_zeroth_dimension",
    "tile",
    "transpose",
)
_kept = _backend()  # einops finds it among the subclasses, which are held weakly
