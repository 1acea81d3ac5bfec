"""Comparing recorded operators: templates of their arguments, their code."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trace_core._unwrap import map_nodes
from trace_core.nodes.decision._numpy import np
from trace_core.optimizers.decision.operations import flat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trace_core.node import Node
    from trace_core.parameter import Parameter


@dataclass(frozen=True)
class Ref:
    """Stands for the k-th input in a template."""

    k: int


def template_of(node: Node) -> tuple[Any, list[Node]]:
    """(arguments with Refs, the inputs in order)."""
    inputs: list[Node] = []

    def place(source: Node) -> Ref:
        if source not in inputs:
            inputs.append(source)
        return Ref(inputs.index(source))

    extra = node._extra
    if extra is not None and extra.inner is not None:
        return map_nodes(extra.inner, place), inputs
    args = tuple(map_nodes(value, place) for value in node.args)
    kwargs = {name: map_nodes(value, place) for name, value in ((extra.kwargs if extra else None) or {}).items()}
    reads = [place(read) for read in (extra.reads if extra is not None else ())]
    return (args, kwargs, reads), inputs


def code_of(op: Any) -> bytes:
    """What an operator does, as bytes to compare: of a function its compiled code, of others the name."""
    code = getattr(getattr(op, "fn", None), "__code__", None)
    name = str(getattr(op, "name", op)).encode()
    return name if code is None else name + _code_bytes(code)


def _code_bytes(code: Any) -> bytes:
    parts = [_code_bytes(each) if hasattr(each, "co_code") else repr(each).encode() for each in code.co_consts]
    return bytes(code.co_code) + b"|".join(parts) + repr(code.co_names).encode()


def value_key(parameter: Parameter, value: Any) -> str:
    """Changes with the value of a parameter; equal in another process."""
    vector = flat(value)
    digest = hashlib.sha256(f"{parameter.name}{np.shape(value) if vector is not None else repr(value)}".encode())
    if vector is not None:
        digest.update(vector.tobytes())
    return digest.hexdigest()[:12]


def filled(template: Any, values: Sequence[Any]) -> Any:
    """The template with Refs replaced by values."""
    if isinstance(template, Ref):
        return values[template.k]
    if isinstance(template, list | tuple):
        return type(template)([filled(each, values) for each in template])
    if isinstance(template, dict):
        return {key: filled(each, values) for key, each in template.items()}
    return template


def merged(every: Sequence[Any], sources: Sequence[int], varying: Sequence[int], values: Sequence[Any]) -> list[Any]:
    """The inputs' values, those of ``varying`` replaced."""
    given = dict(zip(varying, values, strict=True))
    return [given.get(k, value) for k, value in zip(sources, every, strict=True)]


def equal(left: Any, right: Any) -> bool:
    """Whether two templates or constants are the same."""
    if left is right:
        return True
    if isinstance(left, list | tuple) and type(left) is type(right):
        return len(left) == len(right) and all(map(equal, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    a, b = flat(left), flat(right)
    if a is not None and b is not None:
        return np.shape(left) == np.shape(right) and np.array_equal(a, b)
    return type(left) is type(right) and bool(left == right)
