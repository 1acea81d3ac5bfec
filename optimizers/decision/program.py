"""A traced second stage as a program: which of its nodes are exact, which are to be learned, from what.

Steps are the nodes behind the cost in topological order. A step that depends on neither decision nor scenario is a
constant; one that a MILP can hold is exact; every other one is opaque and gets a surrogate on its own inputs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trace_core.graph import dependencies
from trace_core.node import ExceptionNode, Node
from trace_core.nodes.decision._numpy import np
from trace_core.operators import Operator
from trace_core.optimizers.decision.operations import Bilinear, Exact, exact_form, flat, known_as
from trace_core.optimizers.decision.recorded import Ref, code_of, equal, filled, merged, template_of, value_key
from trace_core.parameter import Version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trace_core.nodes.decision.checks import Array
    from trace_core.optimizers.decision.problem import RobustProblem
    from trace_core.parameter import Parameter


@dataclass(eq=False)
class Step:
    """One node of the second stage.

    Attributes:
        name: of its operator and its place.
        op, template: how it is made; in ``template`` (arguments, keywords, what the body read) inputs are ``Ref``.
        sources: positions of the steps that it is made of.
        inputs: those of them that vary; of an opaque step, what its surrogate looks at.
        on_x, on_xi: whether it depends on the decision, on the scenario.
        size: how many numbers it is; 0 if it is none.
        kind: ``x``, ``xi``, ``constant``, ``exact`` or ``opaque``.
        form: of an exact step.
        first: of an ``x`` step, where in the decision vector it begins.
        whole: an opaque step that stands for a part of the graph that differs between runs.
    """

    name: str
    op: Any
    template: Any
    sources: list[int]
    inputs: list[int]
    on_x: bool
    on_xi: bool
    size: int
    kind: str
    value: Any = None
    form: Exact | None = None
    first: int = 0
    whole: bool = False


@dataclass
class Observation:
    """What one run gave: a vector for each step that has one, and the context key of each opaque one, by name."""

    values: dict[str, Array] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    def data(self) -> dict[str, Any]:
        """Plain data."""
        return {"values": {name: value.tolist() for name, value in self.values.items()}, "keys": dict(self.keys)}

    @classmethod
    def of(cls, data: Any) -> Observation:
        """From ``data``."""
        values = {str(name): np.array(value, dtype=np.float64) for name, value in data["values"].items()}
        return cls(values, {str(name): str(key) for name, key in data["keys"].items()})


def topological(output: Node) -> list[Node]:
    """All nodes behind ``output``, what it depends on first; bodies of transparent bundles in place of these."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(output, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((source, False) for source in reversed(dependencies(node, True)) if source not in seen)
    return order


def parameters_behind(output: Node, problem: RobustProblem) -> list[Parameter]:
    """The trainable parameters that a run read, beside the decisions, in the order met."""
    found = (node.parameter for node in topological(output) if isinstance(node, Version))
    return list(dict.fromkeys(each for each in found if each not in problem.decisions))


def context_of(output: Node, problem: RobustProblem) -> list[str]:
    """A key of each of these with the value that was read, sorted."""
    versions = (node for node in topological(output) if isinstance(node, Version))
    return sorted({value_key(v.parameter, v._value) for v in versions if v.parameter not in problem.decisions})


def _unfolded(node: Node) -> bool:
    return node._extra is not None and node._extra.inner is not None


class Program:
    """Made of one run; ``observe`` reads others into it.

    Args:
        problem: whose decisions are looked for.
        output: the node that the second stage gave.
        scenario: the node it was given.
        diverged: of an earlier program: what differed once is taken to differ still.

    Attributes:
        steps: in topological order, the decisions and the scenario first.
        diverged: names of the steps where two runs had different graphs.
    """

    def __init__(self, problem: RobustProblem, output: Node, scenario: Node, diverged: Sequence[str] = ()) -> None:
        self.problem = problem
        self.steps: list[Step] = []
        self.diverged: list[str] = []
        self._parameters = parameters_behind(output, problem)
        first = 0
        for each in problem.decisions:
            start = each.name or "x"
            self.steps.append(Step(start, each, None, [], [], True, False, each.size, "x", each.value, first=first))
            first += each.size
        self.xi = len(self.steps)
        size = problem.uncertainty.size
        self.steps.append(Step("xi", None, None, [], [], False, True, size, "xi", problem.uncertainty.center))
        at: dict[Node, int] = {scenario: self.xi}
        for node in topological(output):
            if node is scenario:
                continue
            if isinstance(node, Version) and node.parameter in problem.decisions:
                at[node] = next(k for k, each in enumerate(problem.decisions) if each is node.parameter)
                continue
            at[node] = len(self.steps)
            self.steps.append(self._step(node, at))
        self.output = at[output]
        self._made = self._values()
        names = {step.name: k for k, step in enumerate(self.steps)}
        for name in diverged:
            if name in names:
                self._cut(names[name])
        if self.steps[self.output].size != 1:
            self._cut(self.output)

    def _step(self, node: Node, at: dict[Node, int]) -> Step:
        value, place = node._value, len(self.steps)
        vector = None if isinstance(node, ExceptionNode) else flat(value)
        size = 0 if vector is None else len(vector)
        if isinstance(node, Version):
            name = node.parameter.name or "parameter"
            return Step(name, node.parameter, None, [], [], False, False, size, "constant", value)
        if node.op is None:
            return Step("constant", None, None, [], [], False, False, size, "constant", value)
        template, nodes = template_of(node)
        sources = [at[each] for each in nodes]
        on_x, on_xi = any(self.steps[k].on_x for k in sources), any(self.steps[k].on_xi for k in sources)
        step = Step(f"{node.op.name}{place}", node.op, template, sources, [], on_x, on_xi, size, "opaque", value)
        if not (on_x or on_xi):
            step.kind = "constant"
        elif size and (form := self._exact(node, step)) is not None:
            step.kind, step.form = "exact", form
            step.inputs = [k for k in sources if self._varies(k)]
        else:
            step.inputs = self._numeric(sources)
        return step

    def _varies(self, k: int) -> bool:
        return self.steps[k].on_x or self.steps[k].on_xi

    def _numeric(self, inputs: Sequence[int]) -> list[int]:
        """The inputs that vary; one that is no number is replaced by what it is made of."""
        found: list[int] = []
        stack = list(reversed(inputs))
        while stack:
            k = stack.pop()
            if not self._varies(k) or k in found:
                continue
            if self.steps[k].size:
                found.append(k)
            else:
                stack.extend(reversed(self.steps[k].sources))
        return found

    def _exact(self, node: Node, step: Step) -> Exact | None:
        varying = [k for k in step.sources if self._varies(k)]
        if any(not self.steps[k].size for k in varying):
            return None
        every = [self.steps[k].value for k in step.sources]
        if _unfolded(node):
            template, kind = step.template, "linear"

            def run(values: Sequence[Any]) -> Any:
                return filled(template, merged(every, step.sources, varying, values))
        else:
            args, kwargs, reads = step.template
            if not isinstance(node.op, Operator) or reads:
                return None
            known = known_as(node.op, node.args)
            if known is None:
                return None
            kind, function = known, node.op.fn

            def run(values: Sequence[Any]) -> Any:
                given = merged(every, step.sources, varying, values)
                return function(*filled(args, given), **filled(kwargs, given))

        arguments: Any = () if _unfolded(node) else step.template[0]
        whole = kind in ("max", "min") and len(arguments) < 2
        if node.op is not None and node.op.name == "method":
            whole = kind in ("max", "min")
        divides = (
            kind == "product"
            and node.op is not None
            and node.op.name in ("truediv", "true_divide", "divide")
            and isinstance(arguments[1], Ref)
            and self._varies(step.sources[arguments[1].k])
        )
        form = exact_form(kind, run, [self.steps[k].value for k in varying], whole, divides)
        if isinstance(form, Bilinear) and not self._separable(*varying):
            return None
        return form

    def _separable(self, left: int, right: int) -> bool:
        """Whether a product is exact in a MILP: of x alone and xi alone, or with a binary decision itself."""
        a, b = self.steps[left], self.steps[right]
        if (not a.on_xi and not b.on_x) or (not a.on_x and not b.on_xi):
            return True
        return any(self.binary(k) for k in (left, right))

    def binary(self, k: int) -> bool:
        """Whether a step is made of entries of binary decisions."""
        step = self.steps[k]
        if step.kind == "x":
            rule = step.op.rule
            return bool((rule.integer & (rule.low >= 0) & (rule.high <= 1)).all())
        return getattr(step.op, "name", "") == "getitem" and step.kind == "exact" and self.binary(step.inputs[0])

    # ---- other runs

    def _values(self) -> list[str]:
        return [value_key(each, each.value) for each in self._parameters]

    def stale(self) -> bool:
        """Whether a parameter has another value than when this was made, so that exact steps may be others."""
        return self._values() != self._made

    def live(self) -> list[int]:
        """Positions of the steps that the cost is worked out from, in order."""
        found, stack = {self.output}, [self.output]
        while stack:
            for k in self.steps[stack.pop()].inputs:
                if k not in found:
                    found.add(k)
                    stack.append(k)
        return sorted(found)

    def signature(self, k: int) -> list[Any]:
        """What a step is and what it is made of: equal in two programs where one surrogate serves both."""
        return [
            self.steps[k].name,
            self.steps[k].size,
            *([self.steps[j].name, self.steps[j].size] for j in self.steps[k].inputs),
        ]

    @property
    def opaque(self) -> list[int]:
        """Positions of the steps to be learned."""
        return [k for k in self.live() if self.steps[k].kind == "opaque"]

    @property
    def trivial(self) -> bool:
        """Whether the cost is one opaque step on decision and scenario: nothing is known of its structure."""
        last = self.steps[self.output]
        return last.kind == "opaque" and all(self.steps[k].kind in ("x", "xi") for k in last.inputs)

    def observe(self, output: Node, scenario: Node) -> Observation:
        """Read a run. Where its graph is another one, that part becomes one opaque step (see ``diverged``)."""
        matched: dict[int, Node] = {}
        stack: list[tuple[int, Node]] = [(self.output, output)]
        while stack:
            k, node = stack.pop()
            step = self.steps[k]
            if k in matched:
                if matched[k] is not node and step.kind != "x" and not step.whole:
                    self._cut(k)
                continue
            matched[k] = node
            if step.whole:
                continue
            sources = self._matches(step, node, scenario)
            if sources is None:
                self._cut(k)
            else:
                stack.extend(sources)
        found = Observation()
        for k in self.live():
            step = self.steps[k]
            if step.kind in ("x", "xi") or k not in matched:
                continue
            vector = flat(matched[k]._value)
            if vector is not None and len(vector) == step.size and np.isfinite(vector).all():
                found.values[step.name] = vector
            elif not step.whole:
                self._cut(k)
        for k in self.opaque:
            if k in matched:
                found.keys[self.steps[k].name] = self._key(k, matched)
        return found

    def _matches(self, step: Step, node: Node, scenario: Node) -> list[tuple[int, Node]] | None:
        """The inputs to match further; None if ``node`` is not made as the step is."""
        if step.kind == "xi":
            return [] if node is scenario else None
        if isinstance(node, Version):
            return [] if node.parameter is step.op else None
        if node.op is None:
            return [] if step.op is None and node is not scenario and equal(step.value, node._value) else None
        if step.template is None or code_of(step.op) != code_of(node.op):
            return None
        template, nodes = template_of(node)
        if len(nodes) != len(step.sources) or not equal(template, step.template):
            return None
        return list(zip(step.sources, nodes, strict=True))

    def _cut(self, k: int) -> None:
        """Runs differ at a step: what is behind it becomes one opaque step on all of decision and scenario."""
        step = self.steps[k]
        if step.kind in ("x", "xi") or step.whole:
            return
        step.kind, step.whole, step.form, step.on_x, step.on_xi = "opaque", True, None, True, True
        step.inputs = list(range(self.xi + 1))
        step.size = step.size or 1
        self.diverged.append(step.name)

    def _key(self, k: int, matched: dict[int, Node]) -> str:
        """The context of an opaque step: its code, and the values of everything in it that is neither x nor xi."""
        digest = hashlib.sha256()
        if self.steps[k].whole:
            return " ".join(context_of(matched[k], self.problem))
        stack, seen = [k], set()
        while stack:
            j = stack.pop()
            if j in seen:
                continue
            seen.add(j)
            step = self.steps[j]
            if j != k and self._varies(j) and step.size:
                continue  # an input
            if step.kind == "constant":
                value = matched[j]._value if j in matched else step.value
                vector = flat(value)
                digest.update(repr(value).encode() if vector is None else vector.tobytes())
                continue
            digest.update(code_of(step.op))
            stack.extend(step.sources)
        return digest.hexdigest()[:16]
