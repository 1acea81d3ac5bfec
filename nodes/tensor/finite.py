"""NaN and Inf: found with one look at the device, and traced to where they came from only if there are any."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core._lazy import require
from trace_core.nodes.tensor.errors import NonFiniteError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trace_core.node import Node
    from trace_core.parameter import Version
    from trace_core.trace import Trace


def check_finite(trace: Trace, output: Any, seed: Any, reached: Sequence[Version], fresh: Sequence[Version]) -> None:
    """Raise NonFiniteError if the output, the given gradient or a parameter's gradient is not finite.

    One synchronisation for each device that has a part in it. ``fresh`` are the parameters that had no gradient before;
    theirs are dropped before the error is raised, so that nobody steps along them.
    """
    torch = require("torch", extra="torch")
    gradients = [version._value.grad for version in reached]
    looked_at = [output, *([] if seed is None else [seed]), *gradients]
    if _all_finite(torch, looked_at) or all(finite(tensor) for tensor in looked_at):  # a norm may overflow
        return
    bad = tuple(
        dict.fromkeys(v.parameter for v, gradient in zip(reached, gradients, strict=True) if not finite(gradient))
    )
    for version in fresh:
        version._value.grad = None
    spoiled = (
        ""
        if len(fresh) == len(reached)
        else (". Gradients collected before are spoiled: call zero_feedback() and begin the minibatch anew")
    )
    names = trace.names()
    node = first_non_finite(trace)
    if seed is not None and not finite(seed):
        raise NonFiniteError(f"the given gradient at {names[trace.output]} is not finite{spoiled}", trace.output, bad)
    if node is not None:
        what = "the output" if not finite(output) else "a gradient"
        raise NonFiniteError(
            f"{what} is not finite: NaN or Inf first appeared in {names[node]}{_by(node)}{spoiled}", node, bad
        )
    if not finite(output):
        raise NonFiniteError(f"the output is not finite, while every tensor of the trace that is left is{spoiled}")
    called = {version.parameter: names[version] for version in trace.versions}
    listed = ", ".join(called[parameter] for parameter in bad[:8]) + (" and others" if len(bad) > 8 else "")
    raise NonFiniteError(
        f"the gradient of {listed} is not finite, while all values of the trace are: a derivative is infinite there, "
        f"or overflows its dtype{spoiled}",
        None,
        bad,
    )


def _by(node: Node) -> str:
    return f" (made by {node.op.name})" if node.op is not None else " (a parameter or input)"


def _all_finite(torch: Any, tensors: Sequence[Any]) -> bool:
    """Whether all numbers are finite, by their norms; one synchronisation for each device. False may be an overflow."""
    groups: dict[tuple[Any, bool], list[Any]] = {}
    for tensor in tensors:
        found = tensor.detach()
        found = found._values() if found.is_sparse else found
        if found.numel() and (found.is_floating_point() or found.is_complex()):
            groups.setdefault((found.device, found.dtype.itemsize < 4), []).append(found)
    norms: dict[Any, list[Any]] = {}
    for (device, half), group in groups.items():
        found = torch._foreach_norm(group, 2.0, dtype=torch.float32 if half else None)
        norms.setdefault(device, []).extend(norm.to(torch.float32) for norm in found)
    return all(bool(torch.isfinite(torch.stack(group)).all()) for group in norms.values())


def finite(tensor: Any) -> bool:
    """Whether all numbers of a tensor are finite. Synchronises."""
    torch = require("torch", extra="torch")
    return bool(torch.isfinite(tensor._values() if tensor.is_sparse else tensor).all())


def first_non_finite(trace: Trace) -> Node | None:
    """The first node in topological order with NaN or Inf in a tensor or float of its value."""
    for node in trace.nodes:
        for part in _parts(node._value):
            if not finite(part):
                return node
    return None


def _parts(value: Any) -> Iterator[Any]:
    torch = require("torch", extra="torch")
    if isinstance(value, torch.Tensor):
        yield value.detach()
    elif isinstance(value, float):
        yield torch.tensor(value)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _parts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _parts(item)
