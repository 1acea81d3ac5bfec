"""Trace: the graph behind an output together with the feedback on it. What every optimizer consumes."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from trace_core.errors import TraceCoreError
from trace_core.feedback import Feedback
from trace_core.graph import minimal_subgraph
from trace_core.node import ExceptionNode, Node
from trace_core.parameter import Parameter, Version

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from networkx import MultiDiGraph

    from trace_core.feedback import FeedbackLike


class UnreachedWarning(UserWarning):
    """Feedback was given on an output that depends on no parameter: nothing can learn from it."""


class Trace:
    """(feedback, graph) of OPTO: the minimal subgraph between parameters and an output, and what was said of it.

    Source: "Trace is the Next AutoDiff" (Cheng et al., 2024), section 3: the oracle returns feedback f and graph g.

    Attributes:
        output: the node the feedback is about.
        feedback: the feedback.
    """

    __slots__ = ("__weakref__", "_nodes", "_versions", "feedback", "output", "unfolded")

    def __init__(self, output: Node, feedback: Feedback, nodes: list[Node] | None, unfolded: bool = False) -> None:
        self.output = output
        self.feedback = feedback
        self._nodes = nodes  # None: cut when it is looked at, since many traces are only scored
        self.unfolded = unfolded
        self._versions: list[Version] | None = None

    @classmethod
    def of(cls, output: Node, feedback: FeedbackLike | Feedback = "", *, unfold: bool = False) -> Trace:
        """Cut the trace behind ``output``. Changes nothing: parameters do not get it (``deposit`` gives it to them).

        Args:
            output: any node; a Parameter stands for its current version.
            feedback: see ``Feedback.of``.
            unfold: show the recorded bodies of transparent bundles in place of their folded nodes.

        Raises FeedbackError if the feedback cannot be used.
        """
        said = Feedback.of(feedback)
        if not isinstance(output, Node):
            raise TraceCoreError(
                f"backward needs a Node, got {type(output).__name__}: make the output with a bundle or tc.node"
            )
        if isinstance(output, Parameter):
            from trace_core.context import current

            output = output._read(current.get())
        return cls(output, said, minimal_subgraph(output, unfold), unfold)

    def deposit(self) -> Trace:
        """Append this trace to ``feedback`` of every parameter in it; warns with UnreachedWarning if there is none."""
        reached = self.parameters
        if not reached:
            warnings.warn(
                "feedback was given on an output that depends on no parameter, so nothing can learn from it; values "
                "taken out of nodes (f-strings, .value, float(...)) outside of a bundle lose their history",
                UnreachedWarning,
                stacklevel=3,
            )
        for parameter in reached:
            parameter.feedback.append(self)
        return self

    @property
    def nodes(self) -> list[Node]:
        """The subgraph in topological order, the output last."""
        if self._nodes is None:
            self._nodes = minimal_subgraph(self.output, self.unfolded)
        return self._nodes

    @property
    def versions(self) -> list[Version]:
        """The parameter versions read, in topological order."""
        if self._versions is None:
            self._versions = [node for node in self.nodes if isinstance(node, Version)]
        return self._versions

    @property
    def parameters(self) -> list[Parameter]:
        """The parameters the output depends on, in topological order, each once."""
        return list(dict.fromkeys(version.parameter for version in self.versions))

    @property
    def values(self) -> dict[Parameter, Any]:
        """The value each parameter had when it was read (the last one read, if it changed in between).

        A tensor is kept by reference. Where it was changed in place since, what it was is lost, and a ``Changed``
        stands for it, whose ``value`` is the present one.
        """
        from trace_core.values import now_and_then

        return {version.parameter: now_and_then(version) for version in self.versions}

    @property
    def error(self) -> str | None:
        """The marked error text, if the output is that of a failed operator."""
        return self.output.text if isinstance(self.output, ExceptionNode) else None

    @property
    def seconds(self) -> dict[Node, float]:
        """Wall-clock seconds of the bundles and modules that took at least 0.1 ms when they were recorded.

        Single functions, coroutines, generators and nodes of stored traces have none. Work that a GPU does behind the
        program's back counts where the program waits for it.
        """
        return {node: node._extra.seconds for node in self.nodes if node._extra is not None and node._extra.seconds}

    def names(self, given: Mapping[Parameter, str] | None = None) -> dict[Node, str]:
        """A unique, readable name for every node: the given one, else the operator's name and a number.

        Names are made here, not while recording, and do not depend on anything outside this trace.
        """
        from trace_core.names import name_nodes

        return name_nodes(self.nodes, given)

    def replay(self, changes: Mapping[Any, Any] | None = None, until: Node | None = None) -> Node:
        """Run the recorded operators again with new values; returns the new output node, itself traced.

        Args:
            changes: new values of parameters (or of other nodes of the trace). Only what depends on them is run again;
                everything else keeps its recorded value.
            until: the node whose new value is wanted; by default the output.

        The path is the recorded one. Values taken out by ``.value``, ``str`` and f-strings outside of bundles are
        constants of it; objects that are no data (``self``, clients) take part as they are now.

        Raises ReplayError if a truth value, length or number that was taken out of the
        graph would now be another (the workflow might have taken another path), also if an operator's error that was
        caught would now be none; if a value that is needed was too big to be copied and was changed in place since; if
        ``until`` or a key is not in the trace; or for async operators inside a running event loop (use ``areplay``).
        Raises ExecutionError if an operator raises.
        """
        from trace_core.replay import replay

        return replay(self, changes or {}, until)

    async def areplay(self, changes: Mapping[Any, Any] | None = None, until: Node | None = None) -> Node:
        """``replay`` for use inside a running event loop."""
        from trace_core.replay import areplay

        return await areplay(self, changes or {}, until)

    def release(self) -> int:
        """Let go of the tensors inside the trace; returns the number of nodes it was done for.

        While an output is alive, so are the nodes it was computed from, and each holds its value: tensors that autograd
        would have freed after its backward pass are kept. This puts a mark (shape, dtype, device) in their place, at
        every node between the parameters and the output. The output, parameters, inputs, and values that are no tensors
        stay. Reading a released value raises ReleasedError; ``replay`` computes again what it needs. Autograd keeps
        what it needs of its own. Nodes shared with other outputs are released for these as well.
        """
        from trace_core.release import release

        return release(self)

    def render(
        self,
        budget: int | None = None,
        *,
        count: Callable[[str], int] | None = None,
        names: Mapping[Parameter, str] | None = None,
    ) -> str:
        """The trace as a short pseudo-program for an LLM or a person, in at most ``budget`` tokens by ``count``."""
        from trace_core.render import render_traces

        return render_traces([self], budget=budget, count=count, names=names)

    def to_networkx(self) -> MultiDiGraph[str]:
        """A networkx MultiDiGraph: nodes by name with ``op``, ``value``, ``kind``; links with their ``input``."""
        from trace_core.views import to_networkx

        return to_networkx(self)

    def to_mermaid(self, max_nodes: int = 200) -> str:
        """A Mermaid flowchart; of a bigger graph, the nodes nearest the output, with the rest counted."""
        from trace_core.views import to_mermaid

        return to_mermaid(self, max_nodes)

    def _repr_html_(self) -> str:
        from trace_core.views import to_html

        return to_html(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that json can write: nodes, links, values as far as they are data, feedback. See ``from_dict``."""
        from trace_core.serialize import to_dict

        return to_dict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], parameters: Mapping[str, Parameter] | None = None) -> Trace:
        """A trace from ``to_dict`` data. Runs no code.

        Args:
            data: what ``to_dict`` gave.
            parameters: live parameters by name, to stand for the stored ones; others are made anew.

        Such a trace can be rendered and walked; ``replay`` works through operators of plain Python and raises
        ReplayError at a function, whose code is not part of the data. Raises StateError if the data does not fit.
        """
        from trace_core.serialize import from_dict

        return from_dict(data, parameters)

    def __repr__(self) -> str:
        said = self.feedback.summary()
        return f"Trace({len(self.nodes)} nodes, {len(self.parameters)} parameters, feedback: {said!r:.60})"


__all__ = ["Trace", "UnreachedWarning"]
