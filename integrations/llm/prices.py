"""What tokens cost: by prices the user gives, else by the table that litellm ships, else unknown.

The table is read as a file: litellm itself, which takes seconds to import, is not loaded for it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from trace_core.integrations.llm.errors import BadRequest

if TYPE_CHECKING:
    from trace_core.integrations.llm.protocol import Usage

_COLUMNS = ("input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost")
_TIER = re.compile(r"input_cost_per_token_above_(\d+)k_tokens")
_TABLE = "model_prices_and_context_window_backup.json"


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs, in US dollars for a million tokens.

    Attributes:
        prompt: of the prompt.
        completion: of the answer.
        cached: of the part of the prompt that the server had cached; None = as much as the rest.
        long: (tokens, price): requests with longer prompts cost that price instead.
    """

    prompt: float
    completion: float
    cached: float | None = None
    long: tuple[int, Price] | None = None

    def __post_init__(self) -> None:
        for amount in (self.prompt, self.completion, self.cached):
            if amount is not None and not (math.isfinite(amount) and amount >= 0):
                raise BadRequest(f"a price is a number of dollars from 0 for a million tokens, got {amount!r}")

    def of(self, usage: Usage) -> float | None:
        """Dollars for ``usage``; None where the server did not say how many tokens it was."""
        if usage.prompt_tokens is None or usage.completion_tokens is None:
            return None
        if self.long is not None and usage.prompt_tokens > self.long[0]:
            return self.long[1].of(usage)
        cached = min(usage.cached_tokens or 0, usage.prompt_tokens)
        cheap = self.prompt if self.cached is None else self.cached
        paid = (usage.prompt_tokens - cached) * self.prompt + cached * cheap + usage.completion_tokens * self.completion
        return paid / 1e6


Prices: TypeAlias = Mapping[str, Price]
PriceOf: TypeAlias = Callable[[str], "tuple[float, float] | None"]


def find_price(model: str, prices: Prices | None = None) -> Price | None:
    """The price of ``model``: from ``prices``, else from litellm's table if litellm is installed; None = unknown.

    A name with a provider in front ("anthropic/claude-haiku-4-5") is looked up with and without it.
    """
    if prices is not None:
        for name in _names(model):
            if name in prices:
                return prices[name]
    if model == "local" or model.startswith("local:"):
        return Price(0.0, 0.0)
    provider, _, bare = model.partition("/")
    row = _table().get(model)
    if row is None and bare:
        row = _table().get(bare)
        if row is not None and row.get("litellm_provider") != provider:
            return None  # the same name at somebody else's
    return None if row is None else _row_price(row)


def price_of(model: str, prices: Prices | None = None) -> tuple[float, float] | None:
    """Dollars for one prompt token and for one token of the answer; None = unknown. See ``find_price``."""
    found = find_price(model, prices)
    return None if found is None else (found.prompt / 1e6, found.completion / 1e6)


def cost_of(model: str, usage: Usage, prices: Prices | None = None) -> float | None:
    """Dollars for ``usage`` of ``model``; None where the price or the number of tokens is unknown."""
    found = find_price(model, prices)
    return None if found is None else found.of(usage)


def _names(model: str) -> list[str]:
    provider, _, rest = model.partition("/")
    return [model, rest] if provider and rest else [model]


@cache
def _table() -> Mapping[str, Mapping[str, object]]:
    """litellm's table; empty without litellm, or if its form is not the known one."""
    try:
        spec = find_spec("litellm")
    except (ImportError, ValueError):
        return {}
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        try:
            rows = json.loads(Path(folder, _TABLE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(rows, dict):
            return {name: row for name, row in rows.items() if isinstance(row, dict) and name != "sample_spec"}
    return {}


def _row_price(row: Mapping[str, object], suffix: str = "") -> Price | None:
    prompt, completion, cached = (row.get(f"{name}{suffix}") for name in _COLUMNS)
    if not isinstance(prompt, int | float) or not isinstance(completion, int | float):
        return None
    long = None
    tiers = sorted(int(found[1]) for name in row if (found := _TIER.fullmatch(name))) if not suffix else []
    if tiers:  # dearer above so many thousand tokens; of several steps the first is the one known here
        dearer = _row_price(row, f"_above_{tiers[0]}k_tokens")
        long = (1000 * tiers[0], dearer) if dearer is not None and len(set(tiers)) == 1 else None
        if long is None:
            return None  # steps of another kind: rather unknown than too low
    cheap = round(1e6 * cached, 9) if isinstance(cached, int | float) else None
    return Price(round(1e6 * prompt, 9), round(1e6 * completion, 9), cheap, long)
