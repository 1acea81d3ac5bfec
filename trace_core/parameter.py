"""Parameter: a trainable leaf with versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from trace_core._values import ATOMIC, UNSET, changed_since, snapshot, without_history
from trace_core.context import current
from trace_core.errors import MutationError, ParameterError
from trace_core.node import Blank, Node, unwrap

if TYPE_CHECKING:
    from collections.abc import Callable

    from trace_core.constraints import Constraint
    from trace_core.context import Frame
    from trace_core.trace import Trace


class Version(Node):
    """The value a parameter had at one moment: what a recorded graph links to.

    Attributes:
        parameter: whose value this is.
        index: 0 for the first value, counted up by each update; -1 for a candidate under ``using``.
        compiled: for code parameters, the function compiled from this version.
    """

    __slots__ = ("compiled", "index", "parameter")

    parameter: Parameter
    index: int
    compiled: Callable[..., Any] | None

    def __init__(self, parameter: Parameter, value: Any, index: int) -> None:
        _set_value(self, value)  # past Node.__setattr__: each step of an optimizer makes a version of every tensor
        _set_snap(self, UNSET if type(value) in ATOMIC else snapshot(value))
        _set_op(self, None)
        _set_args(self, ())
        _set_extra(self, None)
        _set_parameter(self, parameter)
        _set_index(self, index)
        _set_compiled(self, None)

    def _label(self) -> str | None:
        return self.parameter.name

    def _about(self) -> str | None:
        return self.parameter.description

    @property
    def name(self) -> str | None:
        """The parameter's name."""
        return self.parameter.name

    def _now(self) -> Node:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Node:
        import copy

        return copy.deepcopy(self.parameter, memo)

    def __reduce__(self) -> Any:
        return self.parameter.__reduce__()


_set_value, _set_snap, _set_op, _set_args, _set_extra = (
    Blank.__dict__[name].__set__ for name in ("_value", "_snap", "op", "args", "_extra")
)
_set_parameter, _set_index, _set_compiled = (
    Version.__dict__[name].__set__ for name in ("parameter", "index", "compiled")
)


class Parameter(Node):
    """A value that optimizers may change: a trainable leaf of the graph.

    Args:
        value: the first value; must satisfy the constraint.
        name: short name shown to people and LLMs; a Module names an unnamed parameter after the attribute.
        description: what it means, for the optimizer.
        constraint: what values are allowed; see ``constraints.constraint_from`` for what may be passed. Without one,
            the type of the first value must be kept.

    Raises ParameterError if the first value violates the constraint.
    """

    __slots__ = ("_constraint_given", "_current", "_rule", "feedback")

    feedback: list[Trace]
    _current: Version

    def __init__(
        self,
        value: Any,
        *,
        name: str | None = None,
        description: str | None = None,
        constraint: Any = None,
    ) -> None:
        plain = unwrap(value)[0]
        put = object.__setattr__
        put(self, "_extra", None)
        put(self, "op", None)
        put(self, "args", ())
        put(self, "feedback", [])
        put(self, "_constraint_given", constraint)
        put(self, "_rule", None)
        if name is not None or description is not None:
            extra = self._more()
            extra.name, extra.description = name, description
        from trace_core.constraints import constraint_from

        put(self, "_rule", constraint_from(constraint, plain))
        put(self, "_current", Version(self, self.check(plain), 0))

    @property
    def kind(self) -> str:
        """What sort of thing is learned: ``text``, ``number``, ``code`` or ``data`` (anything else)."""
        value = self._current._value
        if isinstance(value, str):
            return "text"
        return "number" if isinstance(value, int | float) and not isinstance(value, bool) else "data"

    @property
    def constraint(self) -> Constraint:
        """The rule every new value is checked against."""
        rule: Constraint = self._rule
        return rule

    @property
    def name(self) -> str | None:
        """The short name, if any."""
        return self._label()

    @property
    def description(self) -> str | None:
        """What the parameter means, if given."""
        return self._about()

    @property
    def version(self) -> int:
        """How many updates there were."""
        return self._current.index

    # ---- reading

    @property
    def value(self) -> Any:
        """The current value; under ``using``, the candidate."""
        return self._read(current.get())._value

    @property
    def _value(self) -> Any:
        return self._read(current.get())._value

    @property
    def _snap(self) -> Any:
        return self._current._snap

    def _read(self, frame: Frame | None) -> Node:
        version: Node = self._current
        if version._snap is not UNSET and changed_since(version._value, version._snap, whole=True):
            self.update(version._value)  # its value was changed in place: a version like any other, or refused
            version = self._current
        if frame is not None:
            if frame.overlay is not None:
                version = frame.overlay.get(self, version)
            if frame.reads is not None:
                frame.reads[version] = None
        return version

    # ---- changing

    def check(self, value: Any) -> Any:
        """The value as it would be stored, without storing it. Raises ParameterError if it is not allowed."""
        plain = unwrap(value)[0]
        try:
            return self.constraint.check(plain)
        except ParameterError as error:
            raise ParameterError(f"parameter {self._title()}: {error}") from error
        except Exception as error:  # a rule that fails on a value does not allow it
            message = f"parameter {self._title()}: checking the value raised {type(error).__name__}: {error}"
            raise ParameterError(message) from error

    def update(self, value: Any) -> None:
        """Set a new value as the next version. Raises ParameterError, leaving the old value, if it is not allowed.

        Traces recorded earlier keep the version they read.
        """
        object.__setattr__(self, "_current", Version(self, self.check(value), self._current.index + 1))

    def _candidate(self, value: Any) -> Node:
        """A version for a context overlay: checked like an update, stored nowhere."""
        if isinstance(value, Version) and value.parameter is self:
            return value
        return Version(self, self.check(value), -1)

    def zero_feedback(self) -> None:
        """Forget the traces collected by backward passes."""
        self.feedback.clear()

    def _title(self) -> str:
        return repr(self.name) if self.name else "without a name"

    def _rename(self, name: str) -> None:
        self._more().name = name

    def __setattr__(self, attribute: str, value: Any) -> None:
        if attribute in ("value", "data"):
            self.update(value)
        elif attribute in ("name", "description"):
            setattr(self._more(), attribute, value)
        elif attribute == "_extra":
            object.__setattr__(self, attribute, value)
        else:
            raise MutationError(
                f"cannot set {attribute!r} on a Parameter: use parameter.update(value) for the value; "
                "the constraint is fixed when the parameter is made"
            )

    def __repr__(self) -> str:
        label = f"{self.name}: " if self.name else ""
        return f"{type(self).__name__}({label}{self.value!r:.200})"

    def detach(self) -> Node:
        """A leaf with the current value that is no parameter."""
        return Node(without_history(self.value))

    def __deepcopy__(self, memo: dict[int, Any]) -> Node:
        """An independent parameter with a copy of the value (under ``using``, of the candidate), without feedback."""
        import copy

        twin = Parameter.__new__(type(self))
        Parameter.__init__(
            twin,
            copy.deepcopy(self.value, memo),
            name=self.name,
            description=self.description,
            constraint=self._constraint_given,
        )
        object.__setattr__(twin, "_rule", self._rule)
        memo[id(self)] = twin
        return twin

    def __reduce__(self) -> Any:
        return _rebuild_parameter, (self.value, self.name, self.description, self._constraint_given)


def _rebuild_parameter(value: Any, name: str | None, description: str | None, constraint: Any) -> Parameter:
    return Parameter(value, name=name, description=description, constraint=constraint)


@overload
def node(
    value: Any,
    *,
    trainable: Literal[True],
    name: str | None = None,
    description: str | None = None,
    constraint: Any = None,
) -> Parameter: ...
@overload
def node(
    value: Any,
    *,
    trainable: bool = False,
    name: str | None = None,
    description: str | None = None,
    constraint: Any = None,
) -> Node: ...
def node(
    value: Any,
    *,
    trainable: bool = False,
    name: str | None = None,
    description: str | None = None,
    constraint: Any = None,
) -> Node:
    """Make a node of a value; with ``trainable=True`` a Parameter.

    A node of a node is that node. A container that holds nodes becomes a node that depends on them. ``constraint``
    needs ``trainable=True``.
    """
    if trainable:
        if isinstance(value, Parameter):
            if name is not None or description is not None or constraint is not None:
                raise ParameterError("this is a Parameter already: its name, description and constraint are its own")
            return value
        return Parameter(value, name=name, description=description, constraint=constraint)
    if constraint is not None:
        raise ParameterError("constraint= needs trainable=True: a plain node never changes")
    return value if isinstance(value, Node) else Node(value, name=name, description=description)
