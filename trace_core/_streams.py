"""Bundles of coroutine functions, generators and async generators: the results and items become nodes.

No scope is left open around a ``yield``: the frame of the body is set while the body runs and taken back before an item
is handed out, so that the consumer's own operations are never taken for the body's.
"""

from __future__ import annotations

from types import AsyncGeneratorType, CoroutineType
from typing import TYPE_CHECKING, Any

from trace_core._functions import COROUTINE, GENERATOR
from trace_core._values import ATOMIC
from trace_core.context import Frame, body_frame, current
from trace_core.errors import ReplayError
from trace_core.guards import note_outcome
from trace_core.node import Node, failure, link, unwrap

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Mapping
    from contextvars import Token

    from trace_core.bundle import Bundle
    from trace_core.code import CodeParameter


def start(
    bundle: Bundle, args: tuple[Any, ...], kwargs: Mapping[str, Any], code: CodeParameter | None, whole: bool
) -> Any:
    """What calling such a bundle gives: a coroutine, a generator or an async generator."""
    outer = current.get()
    call_args, kept_args, call_kwargs, kept_kwargs = bundle.unwrap_inputs(args, kwargs)
    frame = body_frame(outer)

    def begin() -> Any:
        fn = bundle.fn if code is None else code.function(frame, bundle)
        return fn(*call_args, **call_kwargs)

    call = _Call(bundle, begin, kept_args, kept_kwargs, frame, outer, whole)
    if bundle._flags & COROUTINE:
        return call.run()
    return call.items() if bundle._flags & GENERATOR else call.async_items()


def adopt(
    bundle: Bundle,
    stream: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    frame: Frame,
    outer: Frame | None,
    whole: bool,
) -> Any:
    """The same for a coroutine, generator or async generator that an ordinary function returned."""
    call = _Call(bundle, lambda: stream, args, kwargs, frame, outer, whole)
    if isinstance(stream, CoroutineType):
        return call.run()
    return call.async_items() if isinstance(stream, AsyncGeneratorType) else call.items()


class ItemOperator:
    """The n-th item of a generator: an operator of its own, so that an item can be computed again."""

    __slots__ = ("bundle", "description", "index", "name", "sent")

    def __init__(self, bundle: Bundle, index: int, sent: bool) -> None:
        self.bundle = bundle
        self.index = index
        self.name = bundle.name
        self.description = bundle.description
        self.sent = sent

    def rerun(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run the generator again up to this item."""
        from itertools import islice

        items = self.bundle.rerun(args, kwargs)
        if self.sent or not hasattr(items, "__next__"):
            if hasattr(items, "close"):
                items.close()
            raise ReplayError(
                f"{self.name}: items of async generators, and of those that were sent values, cannot be replayed"
            )
        found = list(islice(items, self.index, self.index + 1))
        items.close()
        if not found:
            raise ReplayError(f"{self.name}: the generator now ends before item {self.index}")
        return found[0]

    def input_names(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """The generator function's own names."""
        return self.bundle.input_names(args, kwargs)


class _ItemCount(ItemOperator):
    """How many items a generator gave before it ended; asked again, it looks for one more at most."""

    __slots__ = ()

    def rerun(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run the generator again and count."""
        from itertools import islice

        items = self.bundle.rerun(args, kwargs)
        count = sum(1 for _ in islice(items, self.index + 1))
        items.close()
        return Node(count)


class _Call:
    """One call of an async or generator function, with its recorded inputs."""

    def __init__(
        self,
        bundle: Bundle,
        begin: Callable[[], Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        frame: Frame,
        outer: Frame | None,
        whole: bool,
    ) -> None:
        self.bundle = bundle
        self.begin = begin
        self.args = args
        self.kwargs = kwargs
        self.frame = frame
        self.outer = outer
        self.whole = whole
        self.index = 0
        self.sent = False

    def _failed(self, error: Exception, op: Any) -> Exception:
        if not self.bundle.catch:
            return error
        return failure(op, self.args, self.kwargs, self.frame.external_reads(), error, self.outer)

    async def run(self) -> Any:
        """The coroutine: awaits the body, then records."""
        token = current.set(self.frame)
        try:
            result = self.begin()
            if hasattr(result, "__await__"):  # proposed code may have become an ordinary function
                result = await result
            inner = None
            if type(result) not in ATOMIC:
                result, inner = unwrap(result)
        except Exception as error:
            failed = self._failed(error, self.bundle)
            if failed is error:
                raise
            raise failed from error
        finally:
            _reset(token)
        return self.bundle.record(result, inner, self.args, self.kwargs, self.frame, self.outer, self.whole)

    def _item(self, value: Any) -> Node:
        plain = value if type(value) in ATOMIC else unwrap(value)[0]
        op: Any = ItemOperator(self.bundle, self.index, self.sent)
        return link(plain, op, self.args, self.kwargs, self.frame.external_reads(), self.outer)

    def _note_end(self) -> None:
        """How often a loop over the items went round is a decision of the recorded path."""
        if self.sent or (self.outer is not None and (self.outer.reads is not None or not self.outer.tracing)):
            return
        count: Any = _ItemCount(self.bundle, self.index, self.sent)
        count.name = f"number of items of {self.bundle.name}"
        ended = link(self.index, count, self.args, self.kwargs, self.frame.external_reads(), None)
        note_outcome(ended, count, "int", self.index)

    def _item_failed(self, error: Exception) -> Exception:
        return self._failed(error, ItemOperator(self.bundle, self.index, self.sent))

    def _plain(self, sent: Any) -> Any:
        self.sent = True
        return unwrap(sent)[0]

    def items(self) -> Generator[Any, Any, Any]:
        """The generator: each item a node; ``send``, ``throw``, ``close`` and the return value work as usual."""
        sent: Any = None
        thrown: BaseException | None = None
        generator: Any = None
        try:
            while True:
                token = current.set(self.frame)
                try:
                    if generator is None:
                        generator = iter(self.begin())
                    if thrown is not None:
                        value = generator.throw(thrown)
                    else:
                        value = next(generator) if sent is None else generator.send(self._plain(sent))
                    node = self._item(value)
                except StopIteration as end:
                    self._note_end()
                    return end.value
                except Exception as error:
                    failed = self._item_failed(error)
                    if error is thrown or failed is error:
                        raise
                    raise failed from error
                finally:
                    _reset(token)
                sent, thrown = None, None
                try:
                    sent = yield node
                except GeneratorExit:
                    raise
                except BaseException as error:  # noqa: BLE001 - handed on to the body, as ``yield from`` would
                    thrown = error
                self.index += 1
        finally:
            if generator is not None and hasattr(generator, "close"):
                generator.close()

    async def async_items(self) -> AsyncGenerator[Any, Any]:
        """The async generator: each item a node; ``asend``, ``athrow`` and ``aclose`` work as in the plain one."""
        sent: Any = None
        thrown: BaseException | None = None
        generator: Any = None
        try:
            while True:
                token = current.set(self.frame)
                try:
                    if generator is None:
                        generator = aiter(self.begin())
                    if thrown is not None:
                        value = await generator.athrow(thrown)
                    else:
                        value = await (anext(generator) if sent is None else generator.asend(self._plain(sent)))
                    node = self._item(value)
                except StopAsyncIteration:
                    return
                except Exception as error:
                    failed = self._item_failed(error)
                    if error is thrown or failed is error:
                        raise
                    raise failed from error
                finally:
                    _reset(token)
                sent, thrown = None, None
                try:
                    sent = yield node
                except GeneratorExit:
                    raise
                except BaseException as error:  # noqa: BLE001 - handed on to the body
                    thrown = error
                self.index += 1
        finally:
            if generator is not None and hasattr(generator, "aclose"):
                await generator.aclose()


def _reset(token: Token[Frame | None]) -> None:
    """Take the body's frame back. A coroutine dropped half-way is closed in a context that never had it."""
    try:
        current.reset(token)
    except ValueError:
        return
