"""A trace as a pseudo-program: lines of code, documentation, and the values of its variables.

The layout follows the paper's pseudo-algorithm ("Trace is the Next AutoDiff", Cheng et al., 2024, section 4.1), made
short: what is written in Python's own notation (``a + b``, ``x[0]``, ``text.upper()``) needs no documentation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from trace_core._unwrap import find_nodes, holds_nodes, map_nodes
from trace_core._values import ATOMIC
from trace_core.graph import literal_inputs, node_kinds
from trace_core.node import ExceptionNode, Node
from trace_core.operators import CALL, METHOD, PACK, Operator
from trace_core.parameter import Parameter, Version
from trace_core.values import elide, now_and_then, render_value, same_value

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from trace_core.trace import Trace

_INLINE = 24  # a literal longer than this becomes a named input


class Line(NamedTuple):
    """One line of the pseudo-program; ``shape`` is equal for lines that do the same thing to other variables."""

    name: str
    text: str
    shape: str


class Program:
    """The parts of one rendered trace; everything by name.

    Attributes:
        lines: the operations in order.
        docs: operator signature -> description, for operators that are not self-explanatory.
        variables: trainable parameters that may change; ``values_of_variables`` holds what they were in this trace.
        inputs: leaves and literals, with their recorded values.
        values: results of the operations, in order, except the output.
        output: name and value of the output.

    With ``focus``, the code is whole, but values are only those that depend on the given parameters and their direct
    inputs: what a parameter does can be seen there, and nothing else distracts.
    """

    def __init__(
        self,
        trace: Trace,
        names: Mapping[Parameter, str] | None = None,
        focus: Collection[Parameter] | None = None,
    ) -> None:
        self.trace = trace
        self.names = trace.names(names)
        self.lines: list[Line] = []
        self.docs: dict[str, str] = {}
        self.variables: dict[str, Parameter] = {}
        self.inputs: dict[str, Any] = {}
        self.values: dict[str, Any] = {}
        self.values_of_variables: dict[str, Any] = {}
        self._taken = set(self.names.values())
        self._lifted = self.inputs  # where literals go
        folded = _groups(trace, names, self._taken)
        self.names.update({node: name for node, (name, _) in folded.items()})
        kinds = node_kinds(trace)
        downstream, beside = _forward_slice(trace, focus) if focus else (None, set[Node]())
        for node in trace.nodes:
            name = self.names[node]
            wanted = downstream is None or node in downstream
            if node in folded:
                if wanted or node in beside:
                    self.inputs[name] = folded[node][1]
                continue
            if isinstance(node, Version) and (names is None or node.parameter in names) and wanted:
                self.variables[name] = node.parameter
                self.values_of_variables[name] = now_and_then(node)
                continue
            given = kinds[node] in ("input", "parameter")  # a leaf, or what depends on no parameter: its value counts
            if not given and node.op is not None:
                self._lifted = self.inputs if wanted else {}
                self._operation(node, name, show_value=wanted)
            if node in beside or (wanted and given):
                self.inputs[name] = now_and_then(node)
        self.output_name = self.names[trace.output]
        self.output = now_and_then(trace.output)

    def code(self) -> str:
        """The pseudo-program as one text: what two traces of the same path have in common."""
        return "\n".join(line.text for line in self.lines)

    def _operation(self, node: Node, name: str, show_value: bool) -> None:
        op = node.op
        extra = node._extra
        if self.trace.unfolded and extra is not None and extra.inner is not None:
            inner = self._argument("result", extra.inner)
            self.lines.append(Line(name, f"{name} = {inner}", "= unfolded"))
        elif isinstance(op, Operator):
            text, shape = self._expression(op, node)
            self.lines.append(Line(name, f"{name} = {text}", shape))
            self._document(op)
        elif op is not None:
            arguments = [self._argument(arg, value) for arg, value in literal_inputs(node) if not _is_owner(arg, value)]
            arguments += self._reads(node, op)
            self.lines.append(Line(name, f"{name} = {op.name}({', '.join(arguments)})", f"{op.name}/{len(arguments)}"))
            reads = extra.reads if extra is not None else ()
            if not any(isinstance(read, Version) and self._shows_code(read, op) for read in reads):
                self._document(op)
        if show_value and node is not self.trace.output:
            self.values[name] = now_and_then(node)

    def _document(self, op: Any) -> None:
        """Note what an operator does, in words; two that only share a name are both noted."""
        if op.description:
            known = self.docs.get(op.name)
            if known is None:
                self.docs[op.name] = op.description
            elif op.description not in known.split(" / "):
                self.docs[op.name] = f"{known} / {op.description}"

    def _shows_code(self, read: Version, op: Any) -> bool:
        """Whether the function's own text stands under the variables: its documentation is in it."""
        parameter = read.parameter
        return parameter.kind == "code" and parameter.name == op.name and self.names.get(read) in self.variables

    def _reads(self, node: Node, op: Any) -> list[str]:
        """What the body read by itself, written like arguments; not the function's own code, which bears its name."""
        reads = node._extra.reads if node._extra is not None else ()
        shown = [self.names[read] for read in reads if read in self.names and self.names[read] != op.name]
        return list(dict.fromkeys(shown))

    def _expression(self, op: Operator, node: Node) -> tuple[str, str]:
        if op.form == METHOD.form or op.form == CALL.form:
            owner, *rest = node.args
            method = f".{rest.pop(0)}" if op.form == METHOD.form else ""
            arguments = [self._argument("arg", value) for value in rest]
            kwargs = (node._extra.kwargs if node._extra else None) or {}
            arguments += [f"{key}={self._argument(key, value)}" for key, value in kwargs.items()]
            return f"{self._argument('value', owner)}{method}({', '.join(arguments)})", f"{method}()"
        shown = []
        for position, value in enumerate(node.args):
            if op.form is not None and op.form == "{0}.{1}" and position == 1:
                shown.append(str(value))
            else:
                shown.append(self._argument("value" if op is PACK else "const", value))
        kwargs = (node._extra.kwargs if node._extra else None) or {}
        shown_kwargs = [f"{key}={self._argument(key, value)}" for key, value in kwargs.items()]
        reads = self._reads(node, op)
        if op.form is None or kwargs or op.form.count("{") != len(shown):
            return f"{op.name}({', '.join([*shown, *shown_kwargs, *reads])})", op.name
        return op.form.format(*shown), op.form

    def _argument(self, name: str, value: Any) -> str:
        """A node by its name, containers with the names inside, short literals as they are, long ones as an input."""
        if isinstance(value, Node):
            found = self.names.get(value)
            return found if found is not None else self._argument(name, value.recorded)  # outside of the trace
        if type(value) in (list, tuple, dict) and holds_nodes(value):
            if not any(node in self.names for _, node in find_nodes(value)):  # all of them lie outside of the trace
                return self._argument(name, map_nodes(value, lambda node: node.recorded))
            if isinstance(value, dict):
                return (
                    "{"
                    + ", ".join(f"{self._argument('key', k)}: {self._argument(name, v)}" for k, v in value.items())
                    + "}"
                )
            inside = ", ".join(self._argument(name, item) for item in value)
            return f"[{inside}]" if isinstance(value, list) else f"({inside})"
        if type(value) in ATOMIC:
            literal = render_value(value, _INLINE * 4)
            if len(literal) <= _INLINE and (
                name == "const" or not isinstance(value, str | int | float) or value in (True, False)
            ):
                return literal
        return self._lift(name, value)

    def _lift(self, name: str, value: Any) -> str:
        """Make a literal an input variable, so that traces that differ only in data have the same code."""
        from trace_core.names import identifier

        if isinstance(value, str | int | float | list | dict | tuple) or value is None:
            base = identifier(name)
            candidate, count = base, 1
            while candidate in self._taken:
                known = self._lifted.get(candidate)
                if candidate in self._lifted and same_value(known, value):
                    return candidate
                count += 1
                candidate = f"{base}_{count}"
            self._taken.add(candidate)
            self._lifted[candidate] = value
            return candidate
        return elide(render_value(value, 60), 60)

    def describe_output(self, max_chars: int) -> str:
        """The output's value, or that it is an error (whose text belongs to the feedback)."""
        if isinstance(self.trace.output, ExceptionNode):
            return "(raised an error)"
        return render_value(self.output, max_chars)

    def feedback(self) -> str:
        """Score and words, and the error text unless the words repeat it."""
        said = self.trace.feedback.summary()
        error = self.trace.error
        if error and error not in said:
            return f"{said}\n{error}" if said else error
        return said


class _Group:
    """What stands for the parameters of a module that are not looked at one by one."""

    def __init__(self, parameters: Collection[Parameter]) -> None:
        self.count = len(parameters)
        self.numbers = sum(parameter._current._value.numel() for parameter in parameters)

    def __repr__(self) -> str:
        return f"{self.count:,} weights, {_short(self.numbers)} numbers"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Group) and repr(self) == repr(other)

    __hash__ = None  # type: ignore[assignment]


def _short(number: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


_FOLDED = 8  # a module with more weights is one line, even if nobody says which parameters count


def _groups(trace: Trace, names: Mapping[Parameter, str] | None, taken: set[str]) -> dict[Node, tuple[str, _Group]]:
    """The name and the text that stand for weights of modules that are told of together."""
    from trace_core.names import identifier

    members: dict[Any, list[Version]] = {}
    for version in trace.versions:
        group = getattr(version.parameter, "group", None)
        if group is not None and (names is None or version.parameter not in names):
            members.setdefault(group, []).append(version)
    found: dict[Node, tuple[str, _Group]] = {}
    for group, versions in members.items():
        parameters = dict.fromkeys(version.parameter for version in versions)
        if names is None and len(parameters) <= _FOLDED:
            continue
        base = name = f"{identifier(group.name)}_weights"
        count = 1
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        taken.add(name)
        found.update(dict.fromkeys(versions, (name, _Group(parameters))))
    return found


def _forward_slice(trace: Trace, focus: Collection[Parameter]) -> tuple[set[Node], set[Node]]:
    """(what depends on the parameters, the other direct inputs of that): all that shows what the parameters do."""
    from trace_core.graph import dependencies

    downstream: set[Node] = set()
    beside: set[Node] = set()
    for node in trace.nodes:  # topologically ordered: inputs come first
        if isinstance(node, Version):
            if node.parameter in focus:
                downstream.add(node)
        else:
            sources = dependencies(node, trace.unfolded)
            if not downstream.isdisjoint(sources):
                downstream.add(node)
                beside.update(source for source in sources if source not in downstream)
    return downstream, beside


def _is_owner(name: str, value: Any) -> bool:
    return name in ("self", "cls") and not isinstance(value, Node)


def fold(lines: list[Line], keep: int) -> list[str]:
    """The texts of the lines with long repetitions left out.

    A block of up to eight lines that repeats more than three times is shown twice and counted. Then, if there are still
    more than ``keep`` lines, the middle is left out. Iterative, linear in the number of lines.
    """
    folded: list[str] = []
    index, total = 0, len(lines)
    while index < total:
        period, repeats = _repetition(lines, index)
        if repeats > 3:
            shown = lines[index : index + 2 * period]
            folded += [line.text for line in shown]
            last = lines[index + repeats * period - 1]
            step = "this line" if period == 1 else f"these {period} lines"
            folded.append(f"… {step} repeated {repeats - 2:,} more times, up to {last.name}")
            index += repeats * period
        else:
            folded.append(lines[index].text)
            index += 1
    if len(folded) <= keep:
        return folded
    head = (keep + 1) // 2
    tail = max(0, keep - head)
    gone = len(folded) - head - tail
    return [*folded[:head], f"… {gone:,} lines left out …", *(folded[-tail:] if tail else [])]


def _repetition(lines: list[Line], start: int) -> tuple[int, int]:
    """(period, how often it repeats) of the block that begins at ``start``; (1, 1) for none."""
    for period in range(1, 9):
        end = start + period
        if end + period > len(lines):
            break
        if lines[start].shape != lines[end].shape:
            continue
        position = end
        while position < len(lines) and lines[position].shape == lines[position - period].shape:
            position += 1
        repeats = (position - start) // period
        if repeats > 3:
            return period, repeats
    return 1, 1
