"""Errors are nodes that feedback flows back from (behaviours 11 and 12)."""

from __future__ import annotations

import errno
import pickle
from typing import Any

import pytest

import trace_core as tc


class NeedsArguments(Exception):
    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason

    def summary(self) -> str:
        return f"{self.code}!"


class OddText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def fail_with(error: BaseException) -> tc.Bundle:
    @tc.bundle
    def failing(x: int) -> int:
        raise error

    return failing


def helper(value: int) -> float:
    half = value / 2
    return half / 0


def test_the_error_node_has_the_inputs_and_the_code_as_parents() -> None:
    @tc.bundle(trainable=True, isolation="inline")
    def divide(x: int) -> float:
        return helper(x)

    p = tc.node(4, trainable=True, name="p")
    with pytest.raises(ZeroDivisionError) as caught:
        divide(p)
    error = caught.value
    assert isinstance(error, tc.ExecutionError)
    assert error.exception_node is error.node
    assert isinstance(error.node, tc.ExceptionNode)
    assert isinstance(error.exception, ZeroDivisionError)
    trace = error.node.backward("fix it")
    assert set(trace.parameters) == {p, divide.code}
    assert trace.error == str(error)


def test_the_text_marks_the_failing_line_in_every_frame() -> None:
    @tc.bundle
    def outer(x: int) -> float:
        doubled = x * 2
        return helper(doubled)

    with pytest.raises(tc.ExecutionError) as caught:
        outer(1)
    text = str(caught.value)
    assert "ZeroDivisionError: float division by zero" in text
    marked = [line for line in text.splitlines() if line.startswith("-->")]
    assert [line.split("|")[1].strip() for line in marked] == ["return helper(doubled)", "return half / 0"]
    assert "trace_core" not in text


def test_lines_are_counted_from_def() -> None:
    @tc.bundle
    # a comment between
    def decorated(x: int) -> int:
        raise ValueError(x)

    with pytest.raises(tc.ExecutionError, match="line 2"):
        decorated(1)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (AssertionError(), "assertion failed"),
        (ValueError(), "ValueError"),
        (KeyError("missing"), "'missing'"),
        (NeedsArguments(3, reason="why"), "3: why"),
        (OSError(errno.ENOENT, "gone", "file.txt"), "file.txt"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "bad"),
        (StopIteration(5), "StopIteration"),
        (OddText(), "OddText"),
        (ExceptionGroup("group", [ValueError("one")]), "group"),
        (SyntaxError("bad syntax"), "bad syntax"),
        (RecursionError("deep"), "deep"),
        (MemoryError(), "MemoryError"),
        (NotImplementedError(), "NotImplementedError"),
        (ImportError("no", name="lib"), "no"),
    ],
)
def test_every_exception_becomes_feedback(error: Exception, words: str) -> None:
    p = tc.node(1, trainable=True)
    with pytest.raises(tc.ExecutionError) as caught:
        fail_with(error)(p)
    assert words in str(caught.value)
    assert caught.value.exception is error
    trace = caught.value.node.backward("")
    assert trace.parameters == [p]
    assert words in trace.render()


@pytest.mark.parametrize("kind", [ValueError, KeyError, ZeroDivisionError, NotImplementedError])
def test_except_clauses_of_the_original_kind_still_catch(kind: type[Exception]) -> None:
    with pytest.raises(kind):
        fail_with(kind("x"))(1)


def test_fields_of_the_original_exception() -> None:
    with pytest.raises(NeedsArguments) as caught:
        fail_with(NeedsArguments(3, reason="why"))(1)
    assert (caught.value.code, caught.value.reason, caught.value.summary()) == (3, "why", "3!")
    with pytest.raises(OSError, match="gone") as os_error:
        fail_with(OSError(errno.ENOENT, "gone", "f"))(1)
    assert (os_error.value.errno, os_error.value.filename) == (errno.ENOENT, "f")
    with pytest.raises(UnicodeDecodeError) as unicode_error:
        fail_with(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"))(1)
    assert unicode_error.value.reason == "bad"
    with pytest.raises(ImportError) as import_error:
        fail_with(ImportError("no", name="lib"))(1)
    assert import_error.value.name == "lib"
    with pytest.raises(KeyError, match="missing"):
        tc.node({"a": 1})["missing"]
    with pytest.raises(AttributeError, match="'str' object has no attribute 'nothing'") as attribute_error:
        tc.node("text").nothing  # noqa: B018
    assert isinstance(attribute_error.value, tc.ExecutionError)
    assert attribute_error.value.name == "nothing"


def test_errors_can_be_pickled() -> None:
    for error in (ValueError("x"), NeedsArguments(1, reason="r"), SyntaxError("s")):
        with pytest.raises(tc.ExecutionError) as caught:
            fail_with(error)(1)
        if isinstance(error, NeedsArguments):
            continue  # cannot be pickled by itself either
        twin = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - made here
        again = pickle.loads(pickle.dumps(twin))  # noqa: S301 - made here
        assert isinstance(again, tc.ExecutionError)
        assert str(again) == str(caught.value)
        assert type(again.exception) is type(error)


def test_an_error_through_several_bundles_stays_one_error() -> None:
    p, q = tc.node(1, trainable=True), tc.node(2, trainable=True)

    @tc.bundle
    def inner(x: int) -> int:
        raise KeyError("deep inside")

    @tc.bundle
    def outer(x: int, y: int) -> Any:
        return inner(x)

    with pytest.raises(KeyError) as caught:
        outer(p, q)
    assert isinstance(caught.value.exception, KeyError)
    assert not isinstance(caught.value.exception, tc.ExecutionError)
    text = str(caught.value)
    assert text.count("KeyError: 'deep inside'") == 1
    marked = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("-->")]
    assert marked == ['raise KeyError("deep inside")', "return inner(x)"]
    assert set(caught.value.node.backward("x").parameters) == {p, q}


def test_a_returned_exception_is_a_value() -> None:
    p = tc.node(1, trainable=True)
    result = tc.bundle(lambda x: ValueError("returned"))(p)
    assert isinstance(result.value, ValueError)
    assert "ValueError: returned" in result.backward("why").render()


def test_wrong_unpacking() -> None:
    p = tc.node(1, trainable=True)
    nothing = tc.bundle(lambda x: None)(p)
    with pytest.raises(TypeError) as caught:
        _a, _b = nothing
    assert isinstance(caught.value, tc.ExecutionError)
    assert caught.value.node.backward("x").parameters == [p]


def test_operators_fail_with_a_node_too() -> None:
    p = tc.node(1, trainable=True)
    with pytest.raises(TypeError) as caught:
        p + "a"
    assert caught.value.node.backward("x").parameters == [p]
    with pytest.raises(ZeroDivisionError):
        tc.node(1) / 0
    with pytest.raises(IndexError):
        tc.node([1])[5]


def test_syntax_errors_in_proposed_code() -> None:
    @tc.bundle(trainable=True, isolation="inline")
    def f(x: int) -> int:
        return x

    with pytest.raises(tc.ParameterError, match=r"syntax error in line 2.*retrun"):
        f.code.update("def f(x):\n    retrun x\n")
    f.code.update("def f(x):\n    return eval('1 +')\n")
    with pytest.raises(tc.ExecutionError, match="SyntaxError") as caught:
        f(1)
    assert caught.value.node.backward("x").parameters == [f.code]


def test_catch_false_lets_the_exception_through_and_leaves_nothing() -> None:
    p = tc.node(1, trainable=True)
    error = KeyError("raw")

    @tc.bundle(catch=False)
    def failing(x: int) -> int:
        p.value  # noqa: B018
        raise error

    with pytest.raises(KeyError) as caught:
        failing(p)
    assert caught.value is error
    assert p.feedback == []
    result = tc.bundle(lambda x: x)(tc.node(1))
    assert list(result.inputs) == ["x"]
    with pytest.warns(tc.UnreachedWarning):
        result.backward("x")


@pytest.mark.parametrize("catch", [True, False])
async def test_async_and_generator_errors(catch: bool) -> None:
    p = tc.node(1, trainable=True)

    @tc.bundle(catch=catch)
    async def failing(x: int) -> int:
        raise KeyError("async")

    @tc.bundle(catch=catch)
    def items(x: int) -> Any:
        yield x
        raise KeyError("item")

    @tc.bundle(catch=catch)
    async def async_items(x: int) -> Any:
        yield x
        raise KeyError("item")

    with pytest.raises(KeyError) as caught:
        await failing(p)
    assert isinstance(caught.value, tc.ExecutionError) == catch
    generator = items(p)
    next(generator)
    with pytest.raises(KeyError) as caught:
        next(generator)
    assert isinstance(caught.value, tc.ExecutionError) == catch
    if catch:
        assert caught.value.node.backward("x").parameters == [p]
    async_generator = async_items(p)
    await anext(async_generator)
    with pytest.raises(KeyError) as caught:
        await anext(async_generator)
    assert isinstance(caught.value, tc.ExecutionError) == catch


def test_base_exceptions_pass() -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        fail_with(KeyboardInterrupt())(1)
    assert not isinstance(caught.value, tc.ExecutionError)
    assert (tc.node(1) + 1).value == 2


def test_every_exception_has_one_root() -> None:
    import trace_core.errors as errors

    kinds = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, Exception)]
    assert all(issubclass(kind, tc.TraceCoreError) for kind in kinds)
