"""What a failed request of the language model means for a proposal, and for the run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from trace_core.integrations.llm.errors import (
    ContextTooLong,
    Deadline,
    LLMError,
    Refused,
    Transient,
    Truncated,
    Unavailable,
    Unusable,
    WaitTooLong,
)
from trace_core.optimizers.base import OptimizerError, Proposal

if TYPE_CHECKING:
    from collections.abc import Callable

    from trace_core.optimizers.llm.base import LLMOptimizer

SHRINKS = 2
"""How often a prompt that the server finds too long is made shorter."""

_LEAST_BUDGET = 200
_log = logging.getLogger(__name__)


def failed(error: LLMError) -> Proposal:
    """An empty proposal that says why, and what the failed requests used."""
    spent = error.completion if isinstance(error, Unusable) else None
    return Proposal(
        {},
        reason=f"{type(error).__name__}: {error}",
        attempts=max(1, error.attempts),
        prompt_tokens=spent.usage.prompt_tokens if spent else None,
        completion_tokens=spent.usage.completion_tokens if spent else None,
        cost=spent.cost if spent else None,
        error=error,
    )


def is_outage(error: LLMError) -> bool:
    """Whether the model could not be had at all; an answer that is refused, cut or of no use is not that."""
    if isinstance(error, Refused | ContextTooLong | Truncated):
        return False
    return not (isinstance(error, Unusable) and error.completion is not None)


def is_no_result(error: BaseException) -> bool:
    """Whether an evaluation that ended with ``error`` says nothing of what was evaluated.

    A Deadline may be the fault of a prompt that makes the model go on forever, so it counts as a result.
    """
    return isinstance(error, Transient) and not isinstance(error, Deadline)


class Outages:
    """Counts how often in a row the model could not be had, for each thing it is needed for."""

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise OptimizerError(f"max_outages must be at least 1, got {limit}")
        self.limit = limit
        self.in_a_row: dict[str, int] = {}

    def count(self, what: str, error: BaseException | None) -> None:
        """Note how one attempt at a ``what`` ended; None: the model answered.

        Raises Unavailable when there were too many in a row, and a WaitTooLong at once.
        """
        if not isinstance(error, LLMError) or not is_outage(error):
            self.in_a_row[what] = 0
            return
        if isinstance(error, WaitTooLong):
            raise error
        self.in_a_row[what] = self.in_a_row.get(what, 0) + 1
        if self.in_a_row[what] >= self.limit:
            raise Unavailable(
                f"no {what} could be had from the language model {self.limit} times in a row, so the run stops; the "
                f"best so far is kept. The last error: {type(error).__name__}: {error}",
                status=error.status,
            ) from error


def with_shorter_prompts(optimizer: LLMOptimizer, propose: Callable[[], list[Proposal]]) -> list[Proposal]:
    """``propose``; while the server finds the prompt too long, again with half of it, at most twice.

    What helped is kept as the optimizer's ``max_prompt_tokens``. Raises the server's ContextTooLong if nothing did.
    """
    usual, refusal, requests = optimizer.max_prompt_tokens, None, 0
    for _ in range(1 + SHRINKS):
        try:
            made = propose()
        except ContextTooLong as error:
            if not error.attempts:  # it was this library that refused, before sending: less room cannot help
                refusal = refusal or error
                break
            refusal, requests = error, requests + error.attempts
            size = min(optimizer.max_prompt_tokens, optimizer.prompt_size)
            optimizer.max_prompt_tokens = max(_LEAST_BUDGET, size // 2)
        except LLMError:
            optimizer.max_prompt_tokens = usual
            raise
        else:
            if refusal is not None:
                _log.warning("the prompt was too long for the model: from now on max_prompt_tokens=%d", size // 2)
                made[0].attempts += requests
            return made
    optimizer.max_prompt_tokens = usual
    if refusal is None:
        raise LLMError("no request was made")
    refusal.attempts = max(refusal.attempts, requests)
    raise refusal
