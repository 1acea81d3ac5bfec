"""``InlineRunner``: no sandbox. Proposed code runs in this very process, for debugging and for code that is trusted."""

from __future__ import annotations

import ast
import time
from typing import TYPE_CHECKING, Any

from trace_core.errors import CandidateError
from trace_core.integrations.sandbox.candidate import explain
from trace_core.integrations.sandbox.launch import Settings
from trace_core.integrations.sandbox.report import Outcome, Reporter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    from trace_core.integrations.sandbox.runner import Code


class InlineRunner:
    """Runs proposed code here. It can do whatever your program can, and nothing ends it.

    Values are handed over as they are, not as copies. Must be asked for by name.
    """

    tier = "inline"

    def call(self, code: Code, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, context: Mapping[str, Any]) -> Any:
        """Call the function and return its result. Raises CandidateError if the code raises."""
        return self.call_many(code, [(args, kwargs)], context=context)[0].unwrap()

    def call_many(
        self, code: Code, calls: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]], *, context: Mapping[str, Any]
    ) -> list[Outcome]:
        """Call the function on many examples; one Outcome for each."""
        files = {code.filename: code.source.splitlines(keepends=True)}
        space: dict[str, Any] = {**context, **(getattr(code, "tools", None) or {}), "__name__": "candidate_code"}
        try:
            exec(compile(ast.parse(code.source, code.filename), code.filename, "exec"), space)  # noqa: S102 - asked for
            function = space[code.name]
        except Exception as error:  # noqa: BLE001 - whatever the code raises is its outcome
            return [Outcome(error=self._failure(code, error, files)) for _ in calls]
        return [self._one(code, function, args, kwargs, files) for args, kwargs in calls]

    def describe(self) -> dict[str, Any]:
        """That nothing protects this process."""
        return {"tier": "inline", "security_boundary": False, "layers": (), "absent": ("everything",)}

    def close(self) -> None:
        """Nothing to let go of."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def _one(
        self, code: Code, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], files: dict[str, list[str]]
    ) -> Outcome:
        started = time.perf_counter()
        try:
            value = function(*args, **kwargs)
            if code.is_async:
                import asyncio

                value = asyncio.run(_finish(value))
        except Exception as error:  # noqa: BLE001 - whatever the code raises is its outcome
            return Outcome(error=self._failure(code, error, files), seconds=time.perf_counter() - started)
        return Outcome(value, seconds=time.perf_counter() - started)

    def _failure(self, code: Code, error: Exception, files: dict[str, list[str]]) -> CandidateError:
        return Reporter(code.name, _NO_LIMITS).failure(explain(error, files))


_NO_LIMITS = Settings(timeout=0, cpu=0, memory_mb=0, output_bytes=0, result_bytes=0)


async def _finish(awaitable: Any) -> Any:
    return await awaitable


__all__ = ["InlineRunner"]
