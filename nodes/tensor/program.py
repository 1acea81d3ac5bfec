"""The part of a trace between parameters and a tensor, as a list of steps on plain values."""

from __future__ import annotations

from contextlib import ExitStack
from time import perf_counter
from typing import TYPE_CHECKING, Any

from trace_core._lazy import require
from trace_core._random_ops import RandomOperator
from trace_core._torch import PLAIN, in_mode
from trace_core._unwrap import holds_nodes, map_nodes
from trace_core._values import UNSET
from trace_core.context import no_trace
from trace_core.errors import ReplayError
from trace_core.graph import dependencies, minimal_subgraph
from trace_core.node import Node
from trace_core.nodes.tensor.call import ModuleCall
from trace_core.operators import Operator
from trace_core.parameter import Version
from trace_core.replay import changed_in_place, fresh, rerun_with, to_rerun

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trace_core._torch import Draws
    from trace_core.parameter import Parameter
    from trace_core.trace import Trace


class Step:
    """One operator to be run again, from the values so far (parameters first, then one for each earlier step).

    Attributes:
        node: whose operator it is.
        run: gives its value, with the random numbers and the module's state of then.
        traced: the same without these, for what has prepared them; None where torch cannot look into it.
        draws: the states of the random generators it began with; None if it draws no numbers.
    """

    __slots__ = ("draws", "node", "run", "traced")

    def __init__(
        self,
        node: Node,
        run: Callable[[list[Any]], Any],
        traced: Callable[[list[Any]], Any] | None = None,
        draws: Draws | None = None,
    ) -> None:
        self.node, self.run, self.traced, self.draws = node, run, traced, draws


class TensorProgram:
    """The steps from parameters to a target, with everything else at its recorded value.

    Attributes:
        steps: in order.
        changed: the versions that the parameters' values stand for.
        kept: nodes whose recorded values are used, by reference.
    """

    def __init__(self, trace: Trace, parameters: Sequence[Parameter], until: Node | None) -> None:
        nodes = minimal_subgraph(trace.output) if trace.unfolded else trace.nodes
        self.target = trace.output if until is None else until
        if self.target not in set(nodes):
            raise ReplayError("until= is not a node of this trace")
        place = {parameter: index for index, parameter in enumerate(parameters)}
        self.changed = [n for n in nodes if isinstance(n, Version) and n.parameter in place]
        self._index: dict[Node, int] = {version: place[version.parameter] for version in self.changed}
        self._constant: dict[Node, Node] = {}  # values that were let go of and depend on no parameter: computed once
        self.kept: dict[Node, None] = {}
        self.steps: list[Step] = []
        affected: set[Node] = set(self.changed)
        for node in to_rerun(nodes, self.target, affected):
            if affected.isdisjoint(dependencies(node)):
                self._constant[node] = rerun_with(node, self._constant)
                continue
            affected.add(node)
            self.steps.append(self._step(node))
            self._index[node] = len(parameters) + len(self.steps) - 1
        if self.target not in self._index:
            raise ReplayError("the target depends on none of the parameters")
        self._target = self._index[self.target]
        self.nodes = [node for node in nodes if node in self._index]

    def run(self, values: Sequence[Any]) -> Any:
        """The target's value."""
        known = list(values)
        for step in self.steps:
            known.append(step.run(known))
        return known[self._target]

    def run_traced(self, *values: Any) -> Any:
        """The same from torch functions alone; within ``prepared``, from the generators' present states."""
        known = list(values)
        for step in self.steps:
            known.append(step.traced(known))  # type: ignore[misc]
        return known[self._target]

    def run_all(self, values: Sequence[Any]) -> dict[Node, Any]:
        """The value of every node that depends on the parameters."""
        known = list(values)
        for step in self.steps:
            known.append(step.run(known))
        return {node: known[index] for node, index in self._index.items()}

    def is_traceable(self) -> bool:
        """Whether ``run_traced`` can be used: only torch functions and modules, each module in one state."""
        calls = self._calls()
        first = {call.owner: call for call in calls}
        return all(step.traced is not None for step in self.steps) and all(
            call.prepares_like(first[call.owner]) for call in calls
        )

    def prepared(self) -> ExitStack:
        """The modules to oneself, in the modes and with the buffers of then; see ``is_traceable``."""
        stack = ExitStack()
        first = {call.owner: call for call in self._calls()}
        try:
            for owner in sorted(first, key=id):  # one order for all threads
                stack.enter_context(first[owner].prepared())
        except BaseException:
            stack.close()
            raise
        return stack

    def _calls(self) -> list[ModuleCall]:
        ops: list[Any] = [step.node.op for step in self.steps]
        return [op for op in ops if isinstance(op, ModuleCall)]

    def compile_modules(self, options: Mapping[str, Any]) -> None:
        """Put compiled modules in the place of the program's own, each by itself."""
        torch = require("torch", extra="torch")
        for step in self.steps:
            if isinstance(step.node.op, ModuleCall) and step.traced is not None:
                step.run = _compiled_module(step.node.op, torch.compile(step.traced, **options))

    def profile(self, values: Sequence[Any], repeats: int) -> dict[Node, float]:
        """See TensorReplay.profile."""
        torch = require("torch", extra="torch")
        wait = torch.cuda.synchronize if any(value.is_cuda for value in values) else lambda: None
        best: dict[Node, float] = {}
        with torch.no_grad():
            for _ in range(max(1, repeats)):
                known = list(values)
                for step in self.steps:
                    wait()
                    begin = perf_counter()
                    known.append(step.run(known))
                    wait()
                    took = perf_counter() - begin
                    best[step.node] = min(took, best.get(step.node, took))
        return best

    def check_kept(self) -> None:
        """Raise ReplayError if a value that is used as recorded was changed in place since."""
        for node in self.kept:
            if node._snap.changed(node._value):
                raise changed_in_place(node)

    # ---- building

    def _step(self, node: Node) -> Step:
        op, extra = node.op, node._extra
        if isinstance(op, ModuleCall):
            return self._module(node, op)
        if isinstance(op, Operator) and not (extra is not None and extra.reads):
            plain = self._function(node, op)
            mode = extra.mode if extra is not None and extra.mode is not None else PLAIN
            in_its_mode = plain if mode is PLAIN else lambda known: in_mode(mode, lambda: plain(known))
            if not isinstance(op, RandomOperator):
                return Step(node, in_its_mode, in_its_mode)
            draws = op.draws

            def drawn_again(known: list[Any]) -> Any:
                with draws.again():
                    return in_its_mode(known)

            return Step(node, drawn_again, in_its_mode, draws)
        return Step(node, self._python(node))

    def _function(self, node: Node, op: Operator) -> Callable[[list[Any]], Any]:
        fn, args, kwargs = op.fn, *self._inputs(node)
        if not kwargs:
            return lambda known: fn(*[value(known) for value in args])
        return lambda known: fn(
            *[value(known) for value in args], **{key: value(known) for key, value in kwargs.items()}
        )

    def _inputs(self, node: Node) -> tuple[list[Callable[[list[Any]], Any]], dict[str, Callable[[list[Any]], Any]]]:
        recorded = (node._extra.kwargs if node._extra is not None else None) or {}
        return [self._fill(value) for value in node.args], {key: self._fill(v) for key, v in recorded.items()}

    def _fill(self, value: Any) -> Callable[[list[Any]], Any]:
        """From the values so far to an argument."""
        if isinstance(value, Node):
            index = self._index.get(value)
            if index is not None:
                return lambda known: known[index]
            plain = self._recorded(value)
            return lambda known: plain
        if not holds_nodes(value):
            return lambda known: value
        kind = type(value)
        if kind in (list, tuple):
            items = [self._fill(item) for item in value]
            return lambda known: kind([item(known) for item in items])
        if kind is dict and not any(isinstance(key, Node) for key in value):
            pairs = {key: self._fill(item) for key, item in value.items()}
            return lambda known: {key: item(known) for key, item in pairs.items()}
        index_of = self._index
        constants = {n: self._recorded(n) for n in _nodes_in(value) if n not in index_of}
        return lambda known: map_nodes(value, lambda n: known[index_of[n]] if n in index_of else constants[n])

    def _recorded(self, node: Node) -> Any:
        made = self._constant.get(node)
        if made is not None:
            return made._value
        node = fresh(node)
        if hasattr(node._snap, "changed"):
            self.kept[node] = None
        return node._value

    def _module(self, node: Node, op: ModuleCall) -> Step:
        args, kwargs = self._inputs(node)
        weights: dict[str, int] = {}
        for read in node._extra.reads if node._extra is not None else ():
            path = op.owner.path_of(read.parameter) if isinstance(read, Version) else None
            if read not in self._index:
                self._recorded(read)
            elif path is not None:
                weights[path] = self._index[read]

        def run(known: list[Any]) -> Any:
            given = {path: known[index] for path, index in weights.items()}
            plain = {key: value(known) for key, value in kwargs.items()}
            return op.compute(given, [value(known) for value in args], plain)

        def traced(known: list[Any]) -> Any:
            given = {path: known[index] for path, index in weights.items()}
            plain = {key: value(known) for key, value in kwargs.items()}
            return op.pure(given, [value(known) for value in args], plain)

        return Step(node, run, traced, op.draws)

    def _python(self, node: Node) -> Callable[[list[Any]], Any]:
        """Other operators: run as an ordinary replay does."""
        sources = list(dict.fromkeys(dependencies(node)))
        index_of = {source: self._index[source] for source in sources if source in self._index}
        for source in sources:
            if source not in index_of:
                self._recorded(source)
        constant = self._constant

        def run(known: list[Any]) -> Any:
            new = dict(constant)
            for source, index in index_of.items():
                value = known[index]
                new[source] = Version(source.parameter, value, -1) if isinstance(source, Version) else leaf(value)
            with no_trace():
                result = rerun_with(node, new)
            if not isinstance(result, Node):
                raise ReplayError(f"{node.op.name!r} is async: use trace.areplay")  # type: ignore[union-attr]
            return result.value

        return run


def _compiled_module(op: ModuleCall, fast: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    def run(known: list[Any]) -> Any:
        with op.prepared():
            if op.draws is None:
                return fast(known)
            with op.draws.again():
                return fast(known)

    return run


def leaf(value: Any) -> Node:
    """A node for a value, without a look at it."""
    made = Node.__new__(Node)
    made._value, made._snap, made._extra, made.op, made.args = value, UNSET, None, None, ()
    return made


def _nodes_in(value: Any) -> list[Node]:
    from trace_core._unwrap import find_nodes

    return [node for _, node in find_nodes(value)]
