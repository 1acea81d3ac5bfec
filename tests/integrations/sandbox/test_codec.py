"""Whatever is made of the allowed types crosses unchanged; nothing else crosses; no bytes can do harm."""

from __future__ import annotations

import contextlib
import datetime
import enum
import math
import threading
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Iterator
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from trace_core.errors import CandidateError, RunnerError
from trace_core.integrations.sandbox import CannotCross, ProcessRunner, ResultRejected, codec, open_sandbox

numpy = pytest.importorskip("numpy")
numpy_strategies = pytest.importorskip("hypothesis.extra.numpy")


@pytest.fixture(scope="module")
def runner() -> Iterator[Any]:
    """The default tier: what holds there is what users get."""
    with open_sandbox(timeout=20.0, memory_mb=512) as made:
        yield made


_text = st.text(st.characters(exclude_categories=()))  # lone surrogates as well
_dtypes = st.one_of(
    numpy_strategies.boolean_dtypes(),
    numpy_strategies.integer_dtypes(),
    numpy_strategies.floating_dtypes(),
    numpy_strategies.complex_number_dtypes(),
    numpy_strategies.datetime64_dtypes(),
    numpy_strategies.timedelta64_dtypes(),
    numpy_strategies.unicode_string_dtypes(),
    numpy_strategies.byte_string_dtypes(),
)
_arrays = numpy_strategies.arrays(
    _dtypes, numpy_strategies.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
)
_hashable = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(min_value=-(2**70), max_value=2**70),
        st.floats(),
        st.complex_numbers(),
        _text,
        st.binary(),
        st.decimals(allow_nan=True).filter(lambda d: not d.is_snan()),  # that one cannot be hashed
        st.datetimes(timezones=st.none() | st.timezones()),
        st.dates(),
        st.times(timezones=st.none() | st.just(datetime.UTC)),
        st.timedeltas(),
        numpy_strategies.from_dtype(numpy.dtype("float64")),
        numpy_strategies.from_dtype(numpy.dtype("int8")),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)),
    max_leaves=4,
)
_values = st.recursive(
    _hashable | _arrays,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(_hashable, inner, max_size=4),
        st.dictionaries(_hashable, inner, max_size=3).map(OrderedDict),
        st.dictionaries(_hashable, inner, max_size=3).map(lambda d: defaultdict(list, d)),
        st.sets(_hashable, max_size=4),
        st.builds(deque, st.lists(inner, max_size=3), st.none() | st.integers(3, 9)),
        st.dictionaries(_hashable, st.integers(), max_size=3).map(Counter),
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Equal, of one type, all the way down; not-a-number is itself."""
    if type(a) is not type(b):
        return False
    if isinstance(a, numpy.ndarray | numpy.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, Decimal):
        return str(a) == str(b)
    if isinstance(a, dict):
        factories = getattr(a, "default_factory", None), getattr(b, "default_factory", None)
        return factories[0] is factories[1] and same(list(a.items()), list(b.items()))
    if isinstance(a, list | tuple | deque):
        limits = getattr(a, "maxlen", None), getattr(b, "maxlen", None)
        return limits[0] == limits[1] and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, set | frozenset):
        left = list(b)
        for item in a:
            match = next((i for i, other in enumerate(left) if same(item, other)), None)
            if match is None:
                return False
            del left[match]
        return not left
    if isinstance(a, datetime.datetime | datetime.time):
        return a.isoformat() == b.isoformat() and a.fold == b.fold
    return bool(a == b)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(_values, max_size=4))
@example([2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**1000])
@example(
    [float("nan"), float("inf"), -0.0, complex("nan"), Decimal("sNaN"), "\ud800", "\U0001f600", "\ud83d\ude00", "\0"]
)
@example([{(1, (2,)): {frozenset({1}): ()}, None: 1, True: 2, 1.5: 3, b"k": 4}, {}, [], (), set(), ((),), [()]])
@example(
    [datetime.datetime(2024, 10, 27, 2, 30, fold=1), datetime.timedelta(-1, 5, 7), datetime.time(23, 59, 59, 999999)]
)
def test_any_value_crosses_and_comes_back(runner: ProcessRunner, candidate: Any, values: list[Any]) -> None:
    source = candidate("def f(value, *, again):\n    return value, again, type(value).__name__")
    calls = [((value,), {"again": value}) for value in values]
    for value, outcome in zip(values, runner.call_many(source, calls, context={}), strict=True):
        first, again, name = outcome.unwrap()
        assert same(first, value)
        assert same(again, value)
        assert name == type(value).__name__


@pytest.mark.parametrize("depth", [1, 150])
def test_depth(run: Any, depth: int) -> None:
    value: Any = 1
    for _ in range(depth):
        value = ([value], {"k": (1,)})[0]
    assert run("def f(x):\n    return x", value) == value


class Mine:
    """An object without fields."""


class MyInt(int):
    pass


class MyText(str):
    pass


class MyDict(dict[str, int]):
    pass


class MyList(list[int]):
    pass


class Zone(datetime.tzinfo):
    def utcoffset(self, when: Any) -> datetime.timedelta:
        return datetime.timedelta(hours=1)


_circle: list[Any] = []
_circle.append(_circle)
_refused: list[Any] = [
    object(),
    Mine(),
    SimpleNamespace(a=1),
    bytearray(b"x"),
    memoryview(b"x"),
    MyInt(3),
    MyText("x"),
    MyDict(a=1),
    MyList([1]),
    iter([1]),
    (n for n in [1]),
    threading.Lock(),
    range(3),
    numpy.array([object()]),
    numpy.zeros(2, dtype=[("a", "i4")]),
    numpy.ma.array([1]),
    datetime.datetime(2024, 1, 1, tzinfo=Zone()),
    defaultdict(lambda: 3),
    _circle,
    codec.msgpack.ExtType(1, b""),
    codec.msgpack.Timestamp(1),
    NotImplemented,
    ...,
]


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(_refused), _values, st.sampled_from(["itself", "list", "tuple", "value", "deep"]))
def test_anything_else_is_refused(runner: ProcessRunner, candidate: Any, thing: Any, other: Any, where: str) -> None:
    value = {
        "itself": lambda: thing,
        "list": lambda: [other, thing],
        "tuple": lambda: (thing, other),
        "value": lambda: {1: other, "key": thing},
        "deep": lambda: deque([{"a": ([thing],)}]),
    }[where]()
    with pytest.raises(CannotCross) as caught:
        runner.call(candidate("def f(x, y=1):\n    return 1"), (1,), {"y": value}, context={})
    assert str(caught.value).startswith("y of f()")
    assert "bool, int, float, complex, str, bytes, list" in str(caught.value)
    assert not isinstance(caught.value, CandidateError)
    assert isinstance(caught.value, RunnerError)


def test_refusal_names_the_place_and_the_type(run: Any) -> None:
    with pytest.raises(CannotCross, match=r"argument 2 of f\(\), at \['jobs'\]\[1\]\['lock'\], is a .*lock"):
        run("def f(x, y): pass", 1, {"jobs": [1, {"lock": threading.Lock()}]})
    with pytest.raises(CannotCross, match=r"a subclass of int; only int itself crosses"):
        run("def f(x): pass", MyInt(3))


@pytest.mark.parametrize(
    "expression",
    [
        "bytearray(b'x')",
        "memoryview(b'x')",
        "range(3)",
        "{'a': [object()]}",
        "IntEnum('E', 'a').a",
        "namedtuple('P', 'x')(1)",
    ],
)
def test_results_are_held_to_the_same_types(run: Any, expression: str) -> None:
    source = f"from collections import namedtuple\nfrom enum import IntEnum\ndef f():\n    return {expression}"
    with pytest.raises(ResultRejected) as caught:
        run(source)
    assert caught.value.reason == "type"


def test_named_tuples_and_enum_members_go_in_as_what_they_are(run: Any) -> None:
    class Colour(enum.Enum):
        RED = "r"

    pair = namedtuple("pair", "left right")(1, [2])
    source = "def f(p, c):\n    return p.left, p.right, p[0], len(p), type(p).__name__, c.value, c.name"
    assert run(source, pair, Colour.RED) == (1, [2], 1, 2, "pair", "r", "RED")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xc6\xff\xff\xff\xff")
@example(b"\x91" * 100_000)
@example(b"\x81\xc0" * 100_000)
@example(b"\xc7\x00\x01")  # a tag alone
@example(b"\x92\x01\xc7\x00\x01")  # a tag that is not first
@example(b"\x93\xc7\x00\x02\x90\x90")  # a set of lists
@example(b"\xd6\xff\x00\x00\x00\x00")  # msgpack's own timestamp
@example(b"\xc7\x10\x23\x00\x0e\x92\xa3<U1\x92\xcf\x40\x00\x00\x00\x00\x00\x00\x00\x04")  # an array of 2**64 characters
def test_no_bytes_do_harm(data: bytes) -> None:
    try:
        value = codec.decode(data, containers_limit=1000)
    except codec.CodecError:
        return
    codec.check(value)  # what comes out is made of the allowed types


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(_values, st.data())
def test_damaged_bytes_do_no_harm(value: Any, data: st.DataObject) -> None:
    packed = bytearray(codec.encode(value))
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(codec.CodecError):
        codec.check(codec.decode(bytes(packed), containers_limit=1000))
