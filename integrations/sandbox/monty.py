"""``MontyRunner``: proposed code in Monty, an interpreter for a part of Python. Extra ``monty``; every system.

Monty has no files, no network, no processes and only a few modules: what the code may reach is what it is given.
It runs in a worker process of its own, so that a crash of it is no crash here.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from trace_core._lazy import require
from trace_core.errors import CandidateError, RunnerError
from trace_core.integrations.sandbox import codec
from trace_core.integrations.sandbox.candidate import headline, shown
from trace_core.integrations.sandbox.errors import (
    CandidateException,
    CandidateSyntaxError,
    CannotCross,
    Crash,
    Memory,
    PolicyViolation,
    ResultRejected,
    Timeout,
)
from trace_core.integrations.sandbox.report import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Self

    from trace_core.integrations.sandbox.runner import Code

MEBIBYTE = 1024 * 1024
_DENIED = frozenset({"PermissionError", "ModuleNotFoundError"})


class MontyRunner:
    """Runs proposed code in a part of Python: functions, closures, data, ``re``, ``json``, ``math``; no libraries.

    Arguments, and what the code uses of its surroundings, must be plain data; helpers belong into the source itself.

    Args:
        timeout: seconds of execution per call.
        memory_mb: MiB that a call may use.
        max_result_bytes: bytes of one encoded result.
        tools: functions of this process that the code may call by name. They run here, unprotected.

    Safe for use from many threads. Raises MissingExtra if the package is not there.
    """

    tier = "monty"

    def __init__(
        self,
        *,
        timeout: float = 10.0,
        memory_mb: int = 256,
        max_result_bytes: int = 32 * MEBIBYTE,
        tools: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        self._monty = require("pydantic_monty", extra="monty")
        self._timeout, self._memory_mb, self._max_result = timeout, memory_mb, max_result_bytes
        self._tools = dict(tools or {})
        self._lock = threading.Lock()
        self._pool: Any = None
        self._closed = False

    def call(self, code: Code, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, context: Mapping[str, Any]) -> Any:
        """Call the function and return its result. Raises CandidateError, CannotCross, RunnerError."""
        return self.call_many(code, [(args, kwargs)], context=context)[0].unwrap()

    def call_many(
        self, code: Code, calls: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]], *, context: Mapping[str, Any]
    ) -> list[Outcome]:
        """Call the function on many examples, each in a session of its own; one Outcome for each."""
        given = {name: value for name, value in context.items() if _is_plain(value)}
        tools = {**self._tools, **(getattr(code, "tools", None) or {})}
        outcomes = []
        for args, kwargs in calls:
            if not (_is_plain(args) and _is_plain(dict(kwargs))):
                raise CannotCross(f"an argument of {code.name}() is no plain data; what can be sent: {codec.ALLOWED}")
            started = time.perf_counter()
            try:
                value = self._run(code, list(args), dict(kwargs), given, tools)
                outcomes.append(Outcome(value, seconds=time.perf_counter() - started))
            except CandidateError as error:
                outcomes.append(Outcome(error=error, seconds=time.perf_counter() - started))
        return outcomes

    def describe(self) -> dict[str, Any]:
        """What protects this process, tried just now: a file, a module and a program that are refused."""
        layers = {"own process": True}
        for name, source in (
            ("filesystem", "def look():\n    return open('/etc/hostname').read()"),
            ("network", "def look():\n    import socket"),
            ("starting programs", "def look():\n    import subprocess"),
        ):
            try:
                self.call(_Probe(source), (), {}, context={})
                layers[name] = False
            except CandidateError:
                layers[name] = True
        return {
            "tier": "monty",
            "security_boundary": all(layers.values()),
            "layers": tuple(name for name, present in layers.items() if present),
            "absent": tuple(name for name, present in layers.items() if not present),
            "timeout_seconds": self._timeout,
            "memory_mb": self._memory_mb,
        }

    def close(self) -> None:
        """End the workers."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def _workers(self) -> Any:
        with self._lock:
            if self._closed:
                raise RunnerError("this MontyRunner is closed")
            if self._pool is None:
                self._pool = self._monty.Monty().__enter__()
            return self._pool

    def _run(self, code: Code, args: list[Any], kwargs: dict[str, Any], given: Any, tools: Any) -> Any:
        limits = {"max_feed_duration_secs": self._timeout, "max_memory": self._memory_mb * MEBIBYTE}
        # what Monty has no form for comes back as its text: so the type is asked for there
        call = f"result_ = {'await ' if code.is_async else ''}{code.name}(*args_, **kwargs_)"
        call += "\n(type(result_).__name__, result_)"
        try:
            with self._workers().checkout(limits=limits) as session:
                session.feed_run(code.source, inputs=given, external_lookup=tools)
                kind, value = session.feed_run(call, inputs={"args_": args, "kwargs_": kwargs}, external_lookup=tools)
        except self._monty.MontySyntaxError as error:
            raise CandidateSyntaxError(self._text(code, headline("SyntaxError", str(error)), error)) from None
        except self._monty.MontyRuntimeError as error:
            raise self._failure(code, error) from None
        except self._monty.MontyCrashedError as error:
            raise Crash(f"(in {code.name}) crashed the interpreter that ran it") from error
        except self._monty.MontyConversionError as error:
            raise ResultRejected(f"(in {code.name}) the result cannot come back: {error}") from None
        except self._monty.MontyError as error:
            raise RunnerError(f"Monty failed: {error}") from error
        if isinstance(value, str) and kind != "str":
            raise ResultRejected(f"(in {code.name}) the result cannot come back: it is a {kind}. Return plain data.")
        try:
            size = len(codec.encode(value))
        except codec.NotPlain as error:
            raise ResultRejected(
                f"(in {code.name}) the result cannot come back: it is {error.what}. Return plain data made of "
                f"{codec.ALLOWED}."
            ) from None
        if size > self._max_result:
            text = f"(in {code.name}) the result takes {size} bytes; at most {self._max_result}"
            raise ResultRejected(text, reason="size")
        return value

    def _failure(self, code: Code, error: Any) -> CandidateError:
        raised = error.exception()
        name, message = type(raised).__name__, str(raised)
        text = self._text(code, headline(name, message), error)
        if name == "TimeoutError" and "time limit" in message:
            return Timeout(text, limit="wall", seconds=self._timeout)
        if name == "MemoryError":
            return Memory(text)
        if name in _DENIED:
            return PolicyViolation(text, what=headline(name, message))
        return CandidateException(text, exception_type=name, exception_message=message)

    def _text(self, code: Code, what: str, error: Any) -> str:
        lines = code.source.splitlines(keepends=True)
        frames = error.traceback() if hasattr(error, "traceback") else []
        steps = [(frame.function_name or "", frame.line) for frame in frames if frame.filename.endswith("-0>")]
        return "\n".join(
            [f"(in {code.name}) {what}", *shown([(code.filename, *step) for step in steps], {code.filename: lines})]
        )


class _Probe:
    name, filename, is_async = "look", "<probe>", False

    def __init__(self, source: str) -> None:
        self.source = source


def _is_plain(value: Any) -> bool:
    try:
        codec.check(value)
    except codec.NotPlain:
        return False
    return True


__all__ = ["MontyRunner"]
