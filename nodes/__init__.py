"""Node kinds for one job each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trace_core.nodes.llm import LLMCall

__all__ = ["LLMCall"]


def __getattr__(name: str) -> Any:
    if name == "LLMCall":
        from trace_core.nodes.llm import LLMCall

        return LLMCall
    raise AttributeError(f"module 'trace_core.nodes' has no attribute {name!r}")
