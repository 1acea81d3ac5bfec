"""A candidate with its examples as one message, and what has to come with it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trace_core.integrations.sandbox import codec
from trace_core.integrations.sandbox.blobs import AVAILABLE, Store
from trace_core.integrations.sandbox.launch import import_path
from trace_core.integrations.sandbox.pack import Packer
from trace_core.integrations.sandbox.source import needs_of
from trace_core.integrations.sandbox.things import is_library, loaded_packages, own_modules

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trace_core.integrations.sandbox.launch import Settings
    from trace_core.integrations.sandbox.runner import Code

# Loaded once in the worker when a source mentions them, so that not every call imports them anew. Only modules whose
# import does nothing but define things: which ones are named here is up to code that an LLM wrote.
_HARMLESS = """
    abc array asyncio base64 bisect calendar cmath collections contextlib copy csv dataclasses datetime decimal difflib
    enum fractions functools hashlib heapq html inspect io itertools json logging math numbers operator pprint queue
    random re secrets statistics string struct textwrap threading time traceback types typing unicodedata urllib.parse
    uuid warnings zlib numpy torch
"""
HEAD = 16 * 1024  # bytes that an answer may take besides its value
_SAFE_TO_PRELOAD = frozenset(_HARMLESS.split())


class Tally:
    """Counts the bytes of all answers to a request, over all processes that it takes.

    Each result has a limit of its own, but many of them together could fill this side's memory.
    """

    def __init__(self, limit: int) -> None:
        self._left = limit

    def exceeded(self, size: int) -> bool:
        """Whether that was too much."""
        self._left -= size
        return self._left < 0


@dataclass(frozen=True)
class Request:
    """One candidate with its examples, encoded."""

    head: dict[str, Any]
    calls: list[bytes]
    preload: tuple[str, ...]
    store: Store  # big arrays
    tally: Tally
    timeout: float  # seconds for each example
    readable: tuple[str, ...] = ()  # files of the user's own modules
    tools: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    def body(self, start: int, settings: Settings) -> bytes:
        """The message for the examples from ``start`` on."""
        limits = {"cpu": settings.cpu, "max_result": settings.result_bytes}
        # the path with every call: a worker lives long, and the program may have changed it since
        return codec.pack({**self.head, **limits, "path": import_path(), "calls": self.calls[start:]})


def pack_request(
    code: Code,
    calls: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]],
    context: Mapping[str, Any],
    settings: Settings,
    tools: Mapping[str, Callable[..., Any]],
    use_store: bool = False,
) -> Request:
    """Encode a candidate and its examples. Raises CannotCross for an argument that is not data."""
    needs = needs_of(code.source)
    store = Store(enabled=use_store and AVAILABLE)
    packer = Packer(needs.attributes, store, tools)
    packed = [packer.arguments(code, args, kwargs) for args, kwargs in calls]
    # a name that the source binds itself is its own; what surrounds the old function must not be in its way
    names = {name: packer.name(name, value) for name, value in context.items() if name not in needs.defines}
    names.update({name: packer.name(name, tool) for name, tool in tools.items() if name not in needs.defines})
    packer.finish()
    store.seal()
    imported = {name.partition(".")[0] for name in packer.imported}
    allowed = None if settings.imports is None else sorted((imported | loaded_packages()) - settings.imports)
    modules = own_modules() if settings.jail is not None and packer.needs_own_modules(needs.imports) else {}
    head = {
        "source": code.source,
        "name": code.name,
        "filename": code.filename,
        "is_async": bool(code.is_async),
        "context": names,
        "table": packer.table,
        "imports": allowed,
        "modules": modules,
        "tools": bool(tools),
    }
    mentioned = needs.imports | packer.mentioned
    preload = {name for name in mentioned if name in _SAFE_TO_PRELOAD or (name in sys.modules and is_library(name))}
    preload |= store.used | packer.modules | ({"asyncio"} if code.is_async else set())
    tally = Tally(settings.hoard_bytes + len(calls) * HEAD)
    own = tuple(modules.values())
    return Request(head, packed, tuple(sorted(preload)), store, tally, settings.timeout, own, tools)


__all__ = ["Request", "pack_request"]
