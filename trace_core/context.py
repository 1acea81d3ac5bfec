"""What is true for the code that runs now: tracing on or off, candidate values, reads to be collected.

One ContextVar holds one frame that is replaced as a whole, so threads and tasks never see each other's scope.
``None`` means the ordinary case (tracing, no overlay, nothing to collect) and keeps that path fast.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from trace_core.errors import ParameterError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trace_core.node import Node
    from trace_core.parameter import Parameter


class Frame:
    """Scope of the running code.

    Attributes:
        tracing: False inside ``no_trace``: results are nodes without history.
        overlay: stands for what is read: candidate versions of parameters, replacements of nodes during a replay.
        reads: inside an operator's body, every node read there in order; None outside of bodies.
        made: nodes that came to be inside the body: links within, not dependencies of the operator. None if none did.
    """

    __slots__ = ("made", "overlay", "reads", "tracing")

    def __init__(
        self,
        tracing: bool,
        overlay: Mapping[Node, Node] | None,
        reads: dict[Node, None] | None = None,
        made: set[Node] | None = None,
    ) -> None:
        self.tracing = tracing
        self.overlay = overlay
        self.reads = reads
        self.made = made

    def note_made(self, node: Node) -> None:
        """Remember that a node came to be inside."""
        if self.made is None:
            self.made = set()
        self.made.add(node)

    def external_reads(self) -> tuple[Node, ...]:
        """What the body depends on from outside, in order of first reading."""
        if not self.reads:
            return ()
        reads, made = tuple(self.reads), self.made  # a copy at once: a thread the body left behind may still add to it
        return reads if not made else tuple([node for node in reads if node not in made])


current: ContextVar[Frame | None] = ContextVar("trace_core.frame", default=None)


def body_frame(outer: Frame | None) -> Frame:
    """The frame for an operator's body: inherits tracing and overlay, collects its own reads."""
    if outer is None:
        return Frame(True, None, {})
    return Frame(outer.tracing, outer.overlay, {})


class _ScopeFrame(Frame):
    """A frame that knows what it replaced, so that one scope object can be open in several threads at once."""

    __slots__ = ("before",)
    before: Frame | None


class _Scope:
    """A context manager that replaces the frame; may be entered again, also from other threads and tasks."""

    __slots__ = ()

    def _frame(self, outer: Frame | None) -> _ScopeFrame:
        raise NotImplementedError

    def __enter__(self) -> None:
        outer = current.get()
        frame = self._frame(outer)
        frame.before = outer
        current.set(frame)

    def __exit__(self, *exc: object) -> None:
        frame = current.get()
        if isinstance(frame, _ScopeFrame):
            current.set(frame.before)


class no_trace(_Scope):  # noqa: N801 - reads as a keyword, like torch.no_grad
    """``with tc.no_trace():`` results are plain leaves, nothing can go backward from them. Nests; per context."""

    __slots__ = ()

    def _frame(self, outer: Frame | None) -> _ScopeFrame:
        if outer is None:
            return _ScopeFrame(False, None)
        return _ScopeFrame(False, outer.overlay, outer.reads, outer.made)


class using(_Scope):  # noqa: N801 - reads as a keyword
    """``with tc.using({parameter: candidate}):`` reads of the parameter give the candidate here, and only here.

    The shared parameter is untouched, so many candidates can be evaluated at once in threads or tasks. An inner
    ``using`` wins over an outer one. Raises ParameterError at once if a candidate violates its parameter's constraint.
    """

    __slots__ = ("_candidates",)

    def __init__(self, candidates: Mapping[Parameter, Any]) -> None:
        for key in candidates:
            if not hasattr(type(key), "_candidate"):
                raise ParameterError(
                    f"using expects {{parameter: value}}, got a key of type {type(key).__name__}: {key!r:.80}"
                )
        self._candidates: Mapping[Node, Node] = {p: p._candidate(value) for p, value in candidates.items()}

    def _frame(self, outer: Frame | None) -> _ScopeFrame:
        if outer is None:
            return _ScopeFrame(True, self._candidates)
        overlay = {**outer.overlay, **self._candidates} if outer.overlay else self._candidates
        return _ScopeFrame(outer.tracing, overlay, outer.reads, outer.made)


class substituting(_Scope):  # noqa: N801 - sibling of ``using``, for replays
    """Reads of the given nodes and parameters give replacement nodes. Internal: replay pins what a body reads."""

    __slots__ = ("_overlay",)

    def __init__(self, overlay: Mapping[Node, Node]) -> None:
        self._overlay = overlay

    def _frame(self, outer: Frame | None) -> _ScopeFrame:
        if outer is None:
            return _ScopeFrame(True, self._overlay)
        return _ScopeFrame(True, {**(outer.overlay or {}), **self._overlay}, outer.reads, outer.made)
