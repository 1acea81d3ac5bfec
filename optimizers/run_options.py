"""Options of commands that run an optimization, and what they mean: budget, models, limits, prices, cassette.

A command takes a group of options by its decorator, and gives their values, a mapping by name, to the function beside.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from trace_core._target import CliError
from trace_core.integrations.accounting import account
from trace_core.integrations.llm.prices import Price, price_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from trace_core.integrations.budget import Budget
    from trace_core.integrations.llm.cassette import Cassette
    from trace_core.integrations.llm.limits import RateLimiter
    from trace_core.integrations.llm.protocol import LLM

    C = TypeVar("C", bound=Callable[..., Any])

BUDGET = ("usd", "tokens", "calls", "metric_calls")
_ABOVE_0 = click.FloatRange(min=0, min_open=True)
_MODES = ("replay", "record", "extend")


def budget_options(command: C) -> C:
    """``--usd``, ``--tokens``, ``--calls`` and ``--metric-calls``."""
    return _options(
        command,
        click.option("--usd", default=None, type=click.FloatRange(min=0), help="Budget of the run: dollars."),
        click.option(
            "--tokens", default=None, type=click.IntRange(min=0), help="Budget: tokens of all language models."
        ),
        click.option("--calls", default=None, type=click.IntRange(min=0), help="Budget: requests to language models."),
        click.option("--metric-calls", default=None, type=click.IntRange(min=0), help="Budget: examples evaluated."),
    )


def budget_of(options: Mapping[str, Any]) -> Budget | None:
    """The budget that the options ask for; None for none."""
    from trace_core.integrations.budget import Budget

    limits = {name: options.get(name) for name in BUDGET}
    return Budget(**limits) if any(limit is not None for limit in limits.values()) else None


def model_options(command: C) -> C:
    """``--cassette``, ``--cassette-mode``, ``--rpm``, ``--tpm``, ``--price-in``, ``--price-out`` and ``--prices``."""
    a_file = click.Path(dir_okay=False)
    return _options(
        command,
        click.option("--cassette", default=None, type=a_file, help="File of recorded requests and answers."),
        click.option(
            "--cassette-mode",
            default=None,
            type=click.Choice(_MODES),
            help="replay: only what it holds, no key needed; record: anew; extend: ask what it lacks [replay].",
        ),
        click.option("--rpm", default=None, type=_ABOVE_0, help="At most so many requests a minute."),
        click.option("--tpm", default=None, type=_ABOVE_0, help="At most so many tokens a minute."),
        click.option(
            "--price-in", default=None, type=click.FloatRange(min=0), help="Dollars for a million prompt tokens."
        ),
        click.option(
            "--price-out", default=None, type=click.FloatRange(min=0), help="Dollars for a million answer tokens."
        ),
        click.option(
            "--prices",
            default=None,
            type=a_file,
            help='JSON file of prices by model: {"MODEL": {"prompt": 0.5, "completion": 1.5}}.',
        ),
    )


def _options(command: C, *options: Callable[[C], C]) -> C:
    for option in reversed(options):
        command = option(command)
    return command


class Models:
    """Language models by their names, as the options want them: one object for each name, wherever it is asked for.

    Args:
        options: values of ``model_options``.

    Raises CliError for options that do not fit together, a price file or a cassette that cannot be used.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        from trace_core.integrations.llm.cassette import Cassette
        from trace_core.integrations.llm.limits import RateLimiter

        file, mode = options.get("cassette"), options.get("cassette_mode")
        if mode is not None and file is None:
            raise CliError(f"--cassette-mode {mode} needs --cassette FILE")
        self._cassette: Cassette | None = Cassette(file, mode or "replay") if file is not None else None
        rpm, tpm = options.get("rpm"), options.get("tpm")
        self._limiter: RateLimiter | None = RateLimiter(rpm, tpm) if rpm is not None or tpm is not None else None
        self._prices, self._price = prices_of(options)
        self._made: dict[str | None, LLM] = {}

    def get(self, name: str | None) -> LLM:
        """The model called ``name``; None for the default one."""
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str | None) -> LLM:
        from trace_core.integrations.llm.cassette import Recorded
        from trace_core.integrations.llm.limits import Limited
        from trace_core.integrations.llm.resolve import resolve_llm, resolving

        with resolving(None):
            if self._cassette is not None and self._cassette.mode == "replay":
                return Recorded(name, self._cassette)
            llm = resolve_llm(name, prices=self._known)
            if self._limiter is not None:
                llm = Limited(llm, limiter=self._limiter)
            return llm if self._cassette is None else Recorded(llm, self._cassette)

    @property
    def _known(self) -> Mapping[str, Price] | None:
        if self._price is None:
            return self._prices or None
        return _Otherwise(self._prices, self._price)

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """Names of models inside, in the user's workflow and metric too, mean those of ``get``."""
        from trace_core.integrations.llm.resolve import resolving

        known = self._known
        with resolving(self.get), account(price=None if known is None else lambda model: price_of(model, known)):
            yield

    def check_held(self, *roots: Any) -> None:
        """Raise CliError for a model object in the workflow or metric that a cassette or a limit would not reach."""
        if self._cassette is None and self._limiter is None:
            return
        from trace_core.integrations.relay.held import held_models

        ours = {id(llm) for llm in self._made.values()}
        for llm in held_models(*roots):
            if id(llm) not in ours:
                what = "--cassette" if self._cassette is not None else "--rpm and --tpm"
                raise CliError(
                    f"{what} would not reach the model object {llm!r} in your code: give it by its name there, such as "
                    "LLMCall('openai/MODEL'), or wrap it yourself"
                )


class _Otherwise(dict[str, Price]):
    """Prices by name, and one for every other name."""

    def __init__(self, known: Mapping[str, Price], other: Price) -> None:
        super().__init__(known)
        self._other = other

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> Price:
        return self._other


def prices_of(options: Mapping[str, Any]) -> tuple[dict[str, Price], Price | None]:
    """(prices by model, the price of all others) that the options give.

    Raises CliError for one of ``--price-in`` and ``--price-out`` alone, and a file that holds no prices.
    """
    prompt, completion = options.get("price_in"), options.get("price_out")
    if (prompt is None) != (completion is None):
        missing = "--price-out" if completion is None else "--price-in"
        raise CliError(f"--price-in and --price-out are given together: {missing} is missing")
    other = None if prompt is None or completion is None else Price(prompt, completion)
    file = options.get("prices")
    if file is None:
        return {}, other
    try:
        data = json.loads(Path(file).read_text(encoding="utf-8"))
        return {model: Price(**price) for model, price in data.items()}, other
    except OSError as error:
        raise CliError(f"--prices: the file {file} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise CliError(
            f'--prices: {file} must hold {{"MODEL": {{"prompt": DOLLARS, "completion": DOLLARS}}}} for a million '
            f"tokens: {error}"
        ) from error
