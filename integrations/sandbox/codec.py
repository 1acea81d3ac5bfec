"""Plain data as bytes and back: msgpack with an allow-list of exact types. Nothing that is read can run code.

Stand-alone: the worker loads this file by its path, without the package around it. What msgpack has no form for is a
list that opens with a tag (tuples, sets, dates) or an extension value (big integers, arrays). ``check`` walks a value
before it is packed, looks at exact types only and knows where in the value the trouble is.
"""

from __future__ import annotations

import datetime
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

import msgpack

if TYPE_CHECKING or __package__:
    from trace_core.integrations.sandbox import arrays
else:
    arrays = sys.modules["_sandbox_arrays"]  # put there by the worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from trace_core.integrations.sandbox.blobs import Region, Store

ALLOWED = (
    "None, bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, deque, OrderedDict, Counter, "
    "defaultdict (of a builtin type), Decimal, datetime, date, time, timedelta, numpy.ndarray, numpy scalars, "
    "torch.Tensor (on the CPU, without requires_grad)"
)
CodecError = arrays.CodecError
MAX_DEPTH = 200
MAX_CONTAINERS = 2_000_000  # an empty dict is one byte on the wire and 64 in memory: lengths alone do not bound memory

ATOMS: frozenset[type] = frozenset({type(None), bool, int, float, complex, str, bytes, Decimal})
_DATES: frozenset[type] = frozenset({datetime.datetime, datetime.date, datetime.time, datetime.timedelta})
_SEQUENCES: frozenset[type] = frozenset({list, tuple, set, frozenset, deque})
_MAPPINGS: frozenset[type] = frozenset({dict, OrderedDict, Counter, defaultdict})
_FACTORIES: dict[str, Any] = {kind.__name__: kind for kind in (list, dict, set, int, float, str, tuple, bool, bytes)}

TUPLE, SET, FROZENSET, DEQUE, ORDERED, COUNTER, DEFAULT, DATETIME, DATE, TIME, TIMEDELTA = range(1, 12)
BIG_INT, COMPLEX, DECIMAL = range(32, 35)  # those of arrays come next
REFERENCE = 64  # first code that is free for the caller's own extensions


class NotPlain(TypeError):
    """A value that cannot be sent. ``path`` leads to it, ``what`` says what it is."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what
        self.steps: list[str] = []

    @property
    def path(self) -> str:
        """Where it was found, such as ``[3]['name']``; empty for the value itself."""
        return "".join(reversed(self.steps))


def type_name(value: Any) -> str:
    """``module.Class`` of a value, without the module for builtins."""
    kind = type(value)
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


def check(value: Any, extra: Callable[[Any], Any] | None = None, depth: int = 0) -> None:
    """Raise NotPlain unless ``value`` can be encoded. ``extra(x)`` is asked about other types: None means no."""
    kind = type(value)
    if kind in ATOMS:
        return
    if kind in _SEQUENCES:
        _check_items(value, extra, depth, kind)
    elif kind in _MAPPINGS:
        _check_mapping(value, extra, depth, kind)
    elif kind in _DATES:
        _check_zone(value)
    elif not arrays.is_numpy(value) and not arrays.is_tensor(value) and (extra is None or extra(value) is None):
        raise NotPlain(_describe(value))


def _check_items(value: Any, extra: Callable[[Any], Any] | None, depth: int, kind: type) -> None:
    if depth >= MAX_DEPTH:
        raise NotPlain(f"nested deeper than {MAX_DEPTH} levels, or a container that holds itself")
    if ATOMS.issuperset(map(type, value)):  # the common case, at the speed of C
        return
    for index, item in enumerate(value):
        if type(item) not in ATOMS:
            try:
                check(item, extra, depth + 1)
            except NotPlain as error:
                error.steps.append(" (an element)" if kind is set or kind is frozenset else f"[{index}]")
                raise


def _check_mapping(value: Any, extra: Callable[[Any], Any] | None, depth: int, kind: type) -> None:
    if depth >= MAX_DEPTH:
        raise NotPlain(f"nested deeper than {MAX_DEPTH} levels, or a container that holds itself")
    if kind is defaultdict and value.default_factory is not None:
        factory = value.default_factory
        if _FACTORIES.get(getattr(factory, "__name__", "")) is not factory:
            raise NotPlain("a defaultdict whose factory is not a builtin type (send dict(value) instead)")
    if not ATOMS.issuperset(map(type, value)):
        for key in value:
            try:
                check(key, extra, depth + 1)
            except NotPlain as error:
                error.steps.append(" (a key)")
                raise
    if not ATOMS.issuperset(map(type, value.values())):
        for key, item in value.items():
            if type(item) not in ATOMS:
                try:
                    check(item, extra, depth + 1)
                except NotPlain as error:
                    error.steps.append(f"[{_short(key)}]")
                    raise


def _short(key: Any) -> str:
    text = repr(key)
    return text if len(text) <= 60 else text[:57] + "..."


def _describe(value: Any) -> str:
    kind, name = type(value), type_name(value)
    for base in (*ATOMS, *_SEQUENCES, *_MAPPINGS, *_DATES):
        if issubclass(kind, base) and base is not type(None):
            return f"a {name} (a subclass of {base.__name__}; only {base.__name__} itself crosses)"
    if kind.__name__ == "ndarray" and kind.__module__ == "numpy":
        return f"a {name} of dtype {value.dtype}"
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "Tensor") and isinstance(value, torch.Tensor):
        return arrays.describe_tensor(value, name)
    return f"a {name}"


def _check_zone(value: Any) -> None:
    zone = getattr(value, "tzinfo", None)
    if zone is not None and type(zone) is not datetime.timezone and not _zone_key(zone):
        raise NotPlain(f"a {type(value).__name__} with a time zone of type {type_name(zone)}")


def _zone_key(zone: Any) -> str | None:
    zoneinfo = sys.modules.get("zoneinfo")
    return zone.key if zoneinfo is not None and type(zone) is zoneinfo.ZoneInfo else None


# --- packing -------------------------------------------------------------------------------------------------------

_TAGS = {code: msgpack.ExtType(code, b"") for code in range(TUPLE, TIMEDELTA + 1)}
_PLAIN_SEQUENCES: dict[type, int] = {tuple: TUPLE, set: SET, frozenset: FROZENSET}
_PAIRED: dict[type, int] = {OrderedDict: ORDERED, Counter: COUNTER}


def encode(value: Any, extra: Callable[[Any], Any] | None = None) -> bytes:
    """The bytes of a value. Raises NotPlain. ``extra`` turns other types into ``msgpack.ExtType``, or None: refused."""
    check(value, extra)
    return pack(value, extra)


def pack(value: Any, extra: Callable[[Any], Any] | None = None, store: Store | None = None) -> bytes:
    """``encode`` for a value that ``check`` has seen. Big arrays are put into ``store``."""

    def default(item: Any) -> Any:
        made = None if store is None else arrays.replace_big(item, store)
        if made is None:
            made = _replace(item)
        if made is None and extra is not None:
            made = extra(item)
        if made is None:
            raise NotPlain(_describe(item))
        return made

    packer = msgpack.Packer(default=default, strict_types=True, use_bin_type=True, unicode_errors="surrogatepass")
    try:
        packed: bytes = packer.pack(value)
    except ValueError as error:  # the packer's own limits: 2**32 - 1 bytes in one string, depth
        raise NotPlain(f"too big or too deep to send ({error})") from error
    return packed


def _replace(item: Any) -> Any:
    kind = type(item)
    if kind in _PLAIN_SEQUENCES:
        return [_TAGS[_PLAIN_SEQUENCES[kind]], *item]
    if kind is int:
        return msgpack.ExtType(BIG_INT, item.to_bytes(item.bit_length() // 8 + 1, "big", signed=True))
    if kind is complex:
        return msgpack.ExtType(COMPLEX, msgpack.packb((item.real, item.imag)))
    if kind is Decimal:
        return msgpack.ExtType(DECIMAL, str(item).encode())
    if kind is deque:
        return [_TAGS[DEQUE], item.maxlen, *item]
    if kind in _PAIRED:
        return [_TAGS[_PAIRED[kind]], *(part for pair in item.items() for part in pair)]
    if kind is defaultdict:
        factory = item.default_factory
        name = None if factory is None else factory.__name__
        return [_TAGS[DEFAULT], name, *(part for pair in item.items() for part in pair)]
    if kind in _DATES:
        return _replace_date(item, kind)
    if arrays.is_numpy(item):
        return arrays.replace_array(item)
    if arrays.is_tensor(item):
        return arrays.replace_tensor(item)
    return None


def _replace_date(item: Any, kind: type) -> list[Any]:
    if kind is datetime.timedelta:
        return [_TAGS[TIMEDELTA], item.days, item.seconds, item.microseconds]
    if kind is datetime.date:
        return [_TAGS[DATE], item.year, item.month, item.day]
    clock = (item.hour, item.minute, item.second, item.microsecond, item.fold, _replace_zone(item.tzinfo))
    if kind is datetime.time:
        return [_TAGS[TIME], *clock]
    return [_TAGS[DATETIME], item.year, item.month, item.day, *clock]


def _replace_zone(zone: Any) -> Any:
    if type(zone) is datetime.timezone:
        return zone.utcoffset(None) // datetime.timedelta(microseconds=1)
    return None if zone is None else _zone_key(zone)


# --- unpacking -----------------------------------------------------------------------------------------------------


class _Tag:
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        self.code = code


def decode(
    data: Any,
    extra: Callable[[int, bytes], Any] | None = None,
    containers_limit: int | None = None,
    region: Region | None = None,
) -> Any:
    """The value in ``data``. Raises CodecError for anything that ``encode`` would not have written.

    ``region`` is where arrays lie that were put into a store.
    """
    limit = sys.maxsize if containers_limit is None else containers_limit
    tags = containers = 0

    def on_extension(code: int, payload: bytes) -> Any:
        nonlocal tags
        if TUPLE <= code <= TIMEDELTA and not payload:
            tags += 1
            return _Tag(code)
        if code in _LEAVES:
            return _LEAVES[code](payload)
        if code == arrays.STORED and region is not None:
            return arrays.rebuild_stored(payload, region)
        if extra is not None and code >= REFERENCE:
            return extra(code, payload)
        raise CodecError(f"unknown extension {code}")

    def on_list(items: list[Any]) -> Any:
        nonlocal tags, containers
        containers += 1
        if containers > limit:
            raise CodecError(f"more than {limit} containers in one value")
        if items and type(items[0]) is _Tag:
            tags -= 1
            return _rebuild(items[0].code, items)
        return items

    def on_dict(mapping: dict[Any, Any]) -> dict[Any, Any]:
        nonlocal containers
        containers += 1
        if containers > limit:
            raise CodecError(f"more than {limit} containers in one value")
        return mapping

    try:
        value = msgpack.unpackb(
            data,
            ext_hook=on_extension,
            list_hook=on_list,
            object_hook=on_dict,
            strict_map_key=False,
            unicode_errors="surrogatepass",
            raw=False,
            timestamp=1,
        )
    except CodecError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        InvalidOperation,
        LookupError,
        TypeError,
        ValueError,
        RecursionError,
        msgpack.UnpackException,
    ) as error:
        raise CodecError(f"not an encoded value: {type(error).__name__}: {error}") from error
    if tags:  # a tag anywhere but at the start of a list would come out as one of our own objects
        raise CodecError("a tag outside its place")
    return value


def _rebuild(code: int, items: list[Any]) -> Any:
    if code == TUPLE:
        return tuple(items[1:])
    if code == SET:
        return set(items[1:])
    if code == FROZENSET:
        return frozenset(items[1:])
    if code == DEQUE:
        return deque(items[2:], items[1])
    if code == ORDERED:
        return OrderedDict(zip(items[1::2], items[2::2], strict=True))
    if code == COUNTER:
        return Counter(dict(zip(items[1::2], items[2::2], strict=True)))
    if code == DEFAULT:
        factory = None if items[1] is None else _FACTORIES[items[1]]
        return defaultdict(factory, zip(items[2::2], items[3::2], strict=True))
    if code == TIMEDELTA:
        return datetime.timedelta(days=items[1], seconds=items[2], microseconds=items[3])
    if code == DATE:
        return datetime.date(*items[1:])
    *numbers, fold, zone = items[1:]
    kind: Any = datetime.datetime if code == DATETIME else datetime.time
    return kind(*numbers, tzinfo=_rebuild_zone(zone), fold=fold)


def _rebuild_zone(zone: Any) -> datetime.tzinfo | None:
    if zone is None:
        return None
    if type(zone) is int:
        return datetime.timezone(datetime.timedelta(microseconds=zone)) if zone else datetime.UTC
    import zoneinfo

    return zoneinfo.ZoneInfo(zone)


_LEAVES: dict[int, Callable[[bytes], Any]] = {
    BIG_INT: lambda payload: int.from_bytes(payload, "big", signed=True),
    COMPLEX: lambda payload: complex(*msgpack.unpackb(payload)),
    DECIMAL: lambda payload: Decimal(payload.decode()),
    arrays.ARRAY: arrays.rebuild_array,
    arrays.SCALAR: lambda payload: arrays.rebuild_array(payload)[()],
    arrays.TENSOR: arrays.rebuild_tensor,
}
