"""A trace as its operations with the values in place: ``parse('12 kg') returned 12``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core._values import ATOMIC
from trace_core.node import ExceptionNode, Node
from trace_core.operators import Operator
from trace_core.program import Program
from trace_core.values import now_and_then, render_value

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from trace_core.parameter import Parameter
    from trace_core.trace import Trace


def evaluated_steps(
    trace: Trace, names: Mapping[Parameter, str], focus: Collection[Parameter], max_chars: int
) -> list[str]:
    """The operations that depend on the parameters in ``focus``, in order, with the values of their inputs in place.

    Inputs that are the parameters themselves are written by name. Values are cut to ``max_chars`` characters. To a
    small model this says more than a program and a table of its variables.
    """
    evaluated = _Evaluated(trace, {p: name for p, name in names.items() if p in focus}, focus, max_chars)
    shown = {evaluated.names[node]: node for node in trace.nodes}
    wanted = {*evaluated.values, evaluated.output_name}
    lines = []
    for line in evaluated.lines:
        if line.name in wanted:
            node = shown[line.name]
            call = line.text.partition(" = ")[2]
            if isinstance(node, ExceptionNode):
                lines.append(f"{call} raised an error")
            else:
                infix = isinstance(node.op, Operator) and not call.endswith(")")
                lines.append(f"{call} {'=' if infix else 'returned'} {render_value(now_and_then(node), max_chars)}")
    return lines


class _Evaluated(Program):
    """A program whose arguments are written as values."""

    def __init__(
        self, trace: Trace, names: Mapping[Parameter, str], focus: Collection[Parameter], max_chars: int
    ) -> None:
        self._max_chars = max_chars
        super().__init__(trace, names, focus)

    def _argument(self, name: str, value: Any) -> str:
        if isinstance(value, Node):
            known = self.names.get(value)
            if known is not None and known in self.variables:
                return known
            return render_value(now_and_then(value), self._max_chars)
        if type(value) in ATOMIC:
            return render_value(value, self._max_chars)
        if type(value) is list or type(value) is tuple:
            inside = ", ".join(self._argument(name, item) for item in value[:20])
            return f"[{inside}]" if isinstance(value, list) else f"({inside})"
        return render_value(value, self._max_chars)

    def _reads(self, node: Node, op: Any) -> list[str]:
        reads = node._extra.reads if node._extra is not None else ()
        shown = []
        for read in reads:
            name = self.names.get(read)
            if name is not None and name != op.name:
                shown.append(name if name in self.variables else f"{name}={self._argument(name, read)}")
        return list(dict.fromkeys(shown))
