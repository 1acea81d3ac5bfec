"""A trace as data and back: for journals, reports and other processes. Reading one runs no code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_core._codec import decode, encode
from trace_core._values import UNSET
from trace_core.constraints import OfType
from trace_core.errors import FeedbackError, ParameterError, ReplayError, StateError
from trace_core.feedback import Feedback
from trace_core.graph import node_kinds
from trace_core.guards import SELF, STORED, mark_tested
from trace_core.node import ExceptionNode, Node
from trace_core.operators import BY_NAME, GETATTR, METHOD, Operator
from trace_core.parameter import Parameter, Version
from trace_core.values import now_and_then

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from trace_core.trace import Trace

FORMAT = "trace_core trace"
VERSION = 1


class StoredParameter(Parameter):
    """A parameter made from stored data: it keeps its kind, its rule only in words."""

    __slots__ = ("_kind",)
    _kind: str

    def __init__(self, value: Any, *, name: str | None, description: str | None, rule: str | None, kind: str) -> None:
        object.__setattr__(self, "_kind", kind)
        words = StoredRule(str(rule))
        super().__init__(value, name=name, description=description, constraint=words)
        if type(value) in _TYPED and value == value:  # NaN is there only where anything was allowed
            words.base = OfType(value)

    @property
    def kind(self) -> str:
        """As it was."""
        return self._kind


class StoredRule:
    """A constraint of which only the words are left, beside the type of the value."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.base: OfType | None = None

    def check(self, value: Any) -> Any:
        """See Constraint."""
        return value if self.base is None else self.base.check(value)

    def describe(self) -> str:
        """See Constraint."""
        return self.text

    def annotation(self) -> Any:
        """See Constraint."""
        return Any if self.base is None else self.base.annotation()


_TYPED = frozenset({str, int, float, bool, list, tuple, dict})


class StoredFunction:
    """A function by its name. Its code is not part of the data, so it cannot be run again."""

    __slots__ = ("_names", "description", "name")

    def __init__(self, name: str, description: str | None, names: list[str]) -> None:
        self.name = name
        self.description = description
        self._names = names

    def rerun(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Node:
        """Raises ReplayError."""
        raise ReplayError(f"{self.name!r} is a function, and the code of functions is not part of a stored trace")

    def input_names(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """The stored names."""
        return [*zip(self._names, args, strict=False), *kwargs.items()]


# Attributes and methods only of values whose classes are Python's own: of anything else, even of an array, a method may
# do whatever it likes (``tofile`` writes files), and the name comes from a file.
_OWN = frozenset({str, bytes, int, float, bool, complex, list, tuple, dict, set, frozenset})


def _checked(value: Any, name: Any) -> Any:
    if type(value) not in _OWN or not isinstance(name, str) or name.startswith("_"):
        raise ReplayError(f"{type(value).__name__}.{name!s:.60} cannot be run from stored data")
    return getattr(value, name)


def _safe_method(value: Any, name: Any, *args: Any, **kwargs: Any) -> Any:
    return _checked(value, name)(*args, **kwargs)


#: Operators by their stored names. ``call`` is not among them: it would run whatever it is given.
_OPERATORS: dict[str, Operator] = {
    **{name: op for name, op in BY_NAME.items() if op is not GETATTR},
    "getattr": Operator("getattr", _checked, GETATTR.form),
    "method": Operator("method", _safe_method, METHOD.form),
}
_STORED_NAMES: dict[Any, str] = {**{op: name for name, op in _OPERATORS.items()}, GETATTR: "getattr", METHOD: "method"}


def to_dict(trace: Trace) -> dict[str, Any]:
    """See Trace.to_dict."""
    names = trace.names()
    kinds = node_kinds(trace)
    index = {node: position for position, node in enumerate(trace.nodes)}
    parameter_names: dict[Parameter, str] = {}
    for version in trace.versions:
        parameter_names.setdefault(version.parameter, names[version])

    def link(node: Node) -> Any:
        return {"$": "node", "index": index[node]} if node in index else encode(now_and_then(node))

    feedback = trace.feedback
    return {
        "format": FORMAT,
        "version": VERSION,
        "unfolded": trace.unfolded,
        "feedback": {**feedback.to_dict(), "gradient": encode(feedback.gradient), "example": encode(feedback.example)},
        "parameters": [_parameter(parameter, name) for parameter, name in parameter_names.items()],
        "nodes": [
            _node(node, names[node], kinds[node], trace.unfolded, link, parameter_names, index) for node in trace.nodes
        ],
        "output": index[trace.output],
    }


def _parameter(parameter: Parameter, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": parameter.name,
        "description": parameter.description,
        "kind": parameter.kind,
        "rule": parameter.constraint.describe(),
    }


def _node(
    node: Node,
    name: str,
    kind: str,
    unfolded: bool,
    link: Any,
    parameters: Mapping[Parameter, str],
    inside: Container[Node],
) -> dict[str, Any]:
    data: dict[str, Any] = {"name": name, "kind": kind, "value": encode(now_and_then(node))}
    if node._extra is not None:
        data.update(_tests(node, inside))
    if isinstance(node, Version):
        return {**data, "parameter": parameters[node.parameter], "version": node.index}
    data["label"], data["description"] = node._label(), node._about()
    if isinstance(node, ExceptionNode):
        data["text"] = node.text
    if node.op is None:
        return data
    extra = node._extra
    stored = _STORED_NAMES.get(node.op)
    kwargs = (extra.kwargs if extra is not None else None) or {}
    if stored is not None:
        data["operator"] = stored
        data["args"] = [encode(value, link) for value in node.args]
        data["kwargs"] = {key: encode(value, link) for key, value in kwargs.items()}
    else:
        inputs = node.op.input_names(node.args, kwargs)
        data["function"] = {"name": node.op.name, "description": node.op.description}
        data["inputs"] = [[key, encode(value, link)] for key, value in inputs]
    if extra is not None:
        if extra.reads:
            data["reads"] = [link(read) for read in extra.reads]
        if unfolded and extra.inner is not None:
            data["inner"] = encode(extra.inner, link)
        if guards := {how: encode(answer) for how, answer in (extra.guards or {}).items() if how != STORED}:
            data["guards"] = guards
    return data


def _tests(node: Node, inside: Container[Node]) -> dict[str, Any]:
    """How a path was chosen by the node: in full where it can be said, else only that it was."""
    extra = node._more()
    tested = any(watcher not in inside for watcher in extra.watchers or ())
    conditions = []
    for question, answer in (extra.guards or {}).items():
        if question == STORED:
            tested = True
        elif isinstance(question, tuple):
            how, op, args = question
            if how == STORED or (op is not None and op not in _STORED_NAMES):
                tested = True
                continue
            shown = [{"$": "self"} if value is SELF else encode(value) for value in args]
            conditions.append([how, None if op is None else _STORED_NAMES[op], shown, encode(answer)])
    found: dict[str, Any] = {"tested": True} if tested else {}
    return {**found, "conditions": conditions} if conditions else found


def from_dict(data: Mapping[str, Any], parameters: Mapping[str, Parameter] | None = None) -> Trace:
    """See Trace.from_dict."""
    from trace_core.trace import Trace

    if not hasattr(data, "get") or data.get("format") != FORMAT:
        raise StateError(f"this is no stored trace: expected a dict with format {FORMAT!r}")
    if data.get("version") != VERSION:
        raise StateError(f"a stored trace of version {data.get('version')!r}; this library reads version {VERSION}")
    try:
        reader = _Reader(data, parameters or {})
        nodes = [reader.node(item) for item in data["nodes"]]
        said = {key: decode(value) for key, value in data["feedback"].items()}
        return Trace(nodes[_index(data["output"], len(nodes))], Feedback(**said), nodes, bool(data["unfolded"]))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, StateError):
            raise
        if isinstance(error, FeedbackError | ParameterError):
            raise StateError(f"the stored trace does not fit: {error}") from error
        raise StateError(f"the stored trace is damaged: {type(error).__name__}: {error}") from error


def _index(value: Any, count: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
        raise StateError(f"a link leads to {value!r:.40}; expected the number of an earlier node, below {count}")
    return value


class _Reader:
    """Rebuilds the nodes in order; links lead only to nodes that were there before."""

    def __init__(self, data: Mapping[str, Any], live: Mapping[str, Parameter]) -> None:
        self._about = {str(item["name"]): item for item in data["parameters"]}
        self._live = live
        self._parameters: dict[str, Parameter] = {}
        self._nodes: list[Node] = []

    def _link(self, index: Any) -> Node:
        return self._nodes[_index(index, len(self._nodes))]

    def _value(self, data: Any) -> Any:
        return decode(data, self._link)

    def node(self, item: Mapping[str, Any]) -> Node:
        """The node for one stored entry."""
        value = decode(item["value"])
        node = self._version(item, value) if "parameter" in item else self._other(item, value)
        if item.get("tested"):
            mark_tested(node)
        for how, name, args, answer in item.get("conditions", ()):
            extra = node._more()
            values = tuple([SELF if value == {"$": "self"} else decode(value) for value in args])
            question = (str(how), None if name is None else _OPERATORS[name], values)
            extra.guards = {**(extra.guards or {}), question: decode(answer)}
        self._nodes.append(node)
        return node

    def _version(self, item: Mapping[str, Any], value: Any) -> Node:
        parameter = self._parameter(str(item["parameter"]), value)
        return Version(parameter, value, int(item["version"]))

    def _parameter(self, name: str, value: Any) -> Parameter:
        if name in self._parameters:
            return self._parameters[name]
        if name not in self._about:
            raise StateError(f"parameter {name!r} is used and not described in the stored trace")
        about = self._about[name]
        live = self._live.get(name)
        if live is None:
            live = self._live.get(str(about["label"]))
        if live is None:
            live = StoredParameter(
                value,
                name=about["label"],
                description=about["description"],
                rule=about["rule"],
                kind=str(about["kind"]),
            )
        elif not isinstance(live, Parameter) or live.kind != about["kind"]:
            raise StateError(f"parameter {name!r} was of kind {about['kind']!r}; the one given for it is {live!r:.80}")
        self._parameters[name] = live
        return live

    def _other(self, item: Mapping[str, Any], value: Any) -> Node:
        failed = "text" in item
        node = ExceptionNode.__new__(ExceptionNode) if failed else Node.__new__(Node)
        if isinstance(node, ExceptionNode):
            node.text = str(item["text"])
        node._value, node._snap, node._extra = value, UNSET, None
        node.op, node.args = None, ()
        if item["label"] is not None or item["description"] is not None:
            extra = node._more()
            extra.name, extra.description = item["label"], item["description"]
        kwargs: dict[str, Any] = {}
        if "operator" in item:
            op = _OPERATORS.get(item["operator"])
            if op is None:
                raise StateError(f"unknown operator {item['operator']!r:.60}")
            node.op = op
            node.args = tuple([self._value(arg) for arg in item["args"]])
            kwargs = {str(key): self._value(arg) for key, arg in item["kwargs"].items()}
        elif "function" in item:
            function, inputs = item["function"], item["inputs"]
            node.op = StoredFunction(function["name"], function["description"], [str(key) for key, _ in inputs])  # type: ignore[assignment]
            node.args = tuple([self._value(arg) for _, arg in inputs])
        if kwargs or item.get("reads") or item.get("guards") or "inner" in item:
            extra = node._more()
            extra.kwargs = kwargs or None
            extra.reads = tuple([read for read in map(self._value, item.get("reads", ())) if isinstance(read, Node)])
            extra.guards = {str(how): decode(answer) for how, answer in item.get("guards", {}).items()} or None
            extra.inner = self._value(item["inner"]) if "inner" in item else None
        return node
