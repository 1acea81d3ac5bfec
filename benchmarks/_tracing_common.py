"""The measurements of benchmarks/tracing.py, written once and run by both sides.

Each side wraps its library in a `Side` and calls `serve`: a loop that reads one JSON request per line
(`{"case": "add", "n": 5000}`) and answers with one JSON line. Two such children stay alive next to each other, so the
driver can alternate between them and a slow moment of the machine hits both. Nothing but the standard library is
imported here, because the file runs in two different environments.

Times are CPU seconds of the child (all its threads), never wall-clock time.
"""

from __future__ import annotations

import functools
import gc
import glob
import importlib.util
import inspect
import json
import os
import sys
import tempfile
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from time import process_time
from typing import Any, Protocol

from _tracing_workload import (
    add_margin,
    amount_after,
    document,
    labour_cost,
    long_body,
    paper_cost,
    plus,
    round_up,
    small_body,
)

Answer = dict[str, Any]


class Side(Protocol):
    """What a library must offer to be measured. Nodes and optimizers are the library's own objects."""

    def version(self) -> str: ...

    def node(self, value: object, name: str | None = None) -> Any:
        """A plain leaf."""

    def parameter(self, value: object, name: str) -> Any:
        """A trainable leaf."""

    def value(self, node: Any) -> Any: ...

    def bundle(self, function: Callable[..., Any], *, trainable: bool = False) -> Callable[..., Any]: ...

    def replace_code(self, bundled: Any, source: str) -> None:
        """Give a trainable bundle new source text, as an optimizer would, to be run in this process."""

    def backward(self, output: Any, feedback: str) -> object: ...

    def optimizer(self, parameters: list[Any], answers: Callable[[], dict[str, object]]) -> Any:
        """OptoPrime over `parameters`, with a model that answers at once: `answers()` gives the new value per name."""

    def last_request(self, optimizer: Any) -> tuple[list[dict[str, str]], str]:
        """Messages of the last request to the model, and the JSON schema sent beside them ("" if there was none)."""

    def reset(self) -> None:
        """Forget everything that the library keeps globally."""


# --- measuring ----------------------------------------------------------------------------------------------------


def rss_mb() -> float:
    """Resident memory of this process in MB (1e6 bytes), as the kernel counts it now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _per_op(start: float, n: int) -> Answer:
    return {"value": (process_time() - start) / n}


def _chain(side: Side, n: int) -> tuple[Any, Any]:
    """x + one + one + ...: n operators behind one parameter, every intermediate reachable from the output."""
    x, one = side.parameter(0, "x"), side.node(1, "one")
    y = x
    for _ in repeat(None, n):
        y = y + one
    return x, y


def _start() -> float:
    gc.collect()
    return process_time()


def _prime(bundled: Callable[[Any], Any], x: Any) -> None:
    for _ in repeat(None, 3):
        bundled(x)


class Cases:
    """One method per figure; each takes the size `n` and returns `{"value": figure}` (seconds, MB) or a prompt."""

    def __init__(self, side: Side, scratch: Path) -> None:
        self.side = side
        self.long_body = functools.cache(lambda lines: long_body(lines, scratch))

    def about(self, n: int) -> Answer:
        return {"value": self.side.version(), "python": sys.version.split()[0]}

    # per operation

    def add(self, n: int) -> Answer:
        x, y = self.side.node(3, "x"), self.side.node(4, "y")
        x + y
        start = _start()
        for _ in repeat(None, n):
            x + y
        return _per_op(start, n)

    def add_parameter(self, n: int) -> Answer:
        x, y = self.side.parameter(3, "x"), self.side.node(4, "y")
        x + y
        start = _start()
        for _ in repeat(None, n):
            x + y
        return _per_op(start, n)

    def plain_call(self, n: int) -> Answer:
        start = _start()
        for _ in repeat(None, n):
            plus(3, 4)
        return _per_op(start, n)

    def bundle_call(self, n: int) -> Answer:
        bundled = self.side.bundle(plus)
        x, y = self.side.parameter(3, "x"), self.side.node(4, "y")
        bundled(x, y)
        start = _start()
        for _ in repeat(None, n):
            bundled(x, y)
        return _per_op(start, n)

    def trainable_small(self, n: int) -> Answer:
        return self._trainable(small_body, n, new_code=False)

    def trainable_long(self, n: int) -> Answer:
        return self._trainable(self.long_body(100), n, new_code=False)

    def trainable_small_new(self, n: int) -> Answer:
        return self._trainable(small_body, n, new_code=True)

    def trainable_long_new(self, n: int) -> Answer:
        return self._trainable(self.long_body(100), n, new_code=True)

    def _trainable(self, function: Callable[[int], int], n: int, *, new_code: bool) -> Answer:
        bundled = self.side.bundle(function, trainable=True)
        x = self.side.node(3, "x")
        step = 1
        if new_code:
            step = 2
            self.side.replace_code(bundled, inspect.getsource(function).replace("return x + 1", "return x + 2"))
        if self.side.value(bundled(x)) != 3 + step:
            raise ValueError(f"{function.__name__}: the code that should run did not run")
        _prime(bundled, x)
        start = _start()
        for _ in repeat(None, n):
            bundled(x)
        return _per_op(start, n)

    # whole passes

    def backward(self, n: int) -> Answer:
        _x, y = _chain(self.side, n)
        start = _start()
        kept = self.side.backward(y, "The number should be larger.")
        seconds = process_time() - start
        del kept
        return {"value": seconds}

    def step(self, n: int) -> Answer:
        """Two steps of an optimizer over n parameters that all reach the output; the model proposes values for all."""
        parameters = [self.side.parameter(k, f"p{k}") for k in range(n)]
        shift = [1]
        optimizer = self.side.optimizer(parameters, lambda: {f"p{k}": k + shift[0] for k in range(n)})
        steps: list[float] = []
        backward = 0.0
        for number in (1, 2):
            shift[0] = number
            total = parameters[0]
            for parameter in parameters[1:]:
                total = total + parameter
            optimizer.zero_feedback()
            start = _start()
            optimizer.backward(total, "The total should be larger.")
            middle = process_time()
            optimizer.step()
            steps.append(process_time() - middle)
            backward = middle - start
            wrong = [k for k, p in enumerate(parameters) if self.side.value(p) != k + number]
            if wrong:
                raise ValueError(f"{len(wrong)} of {n} parameters did not get the proposed value, e.g. p{wrong[0]}")
        return {"value": steps[1], "first": steps[0], "backward": backward}

    # memory; meant for a fresh child

    def rss_growth(self, n: int) -> Answer:
        """Growth while n results are made from a living parameter and dropped at once."""
        x, y = self.side.parameter(3, "x"), self.side.node(4, "y")
        for _ in repeat(None, 1000):  # first use of the code paths, and the allocator's first pools
            x + y
        gc.collect()
        before = rss_mb()
        for _ in repeat(None, n):
            x + y
        gc.collect()
        return {"value": rss_mb() - before}

    def chain_memory(self, n: int) -> Answer:
        """Memory of Python objects held by a kept chain: once recorded, and after a backward pass through it."""
        warm = self.side.backward(_chain(self.side, 3)[1], "warm")
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        x, y = _chain(self.side, n)
        gc.collect()
        recorded = tracemalloc.get_traced_memory()[0] - before
        kept = self.side.backward(y, "The number should be larger.")
        gc.collect()
        after = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        del x, y, kept, warm
        return {"value": after / 1e6, "recorded": recorded / 1e6}

    # prompts

    def prompt_5_ops(self, n: int) -> Answer:
        """A quote for one print job: five operators; a margin of 0.4 gives the price asked for."""
        side = self.side
        paper, labour = side.bundle(paper_cost), side.bundle(labour_cost)
        margin_on, rounded = side.bundle(add_margin), side.bundle(round_up)
        parameters = sheet, rate, margin = self._prices()
        cost = paper(side.node(500, "sheets"), sheet) + labour(side.node(3.0, "hours"), rate)
        quote = rounded(margin_on(cost, margin), side.node(0.5, "step"))
        feedback = (
            f"The quote is {side.value(quote):.2f}. The market bears 231.00 for this job, so that is what the quote "
            "should be. The price of a sheet and the hourly rate are fixed by contract: leave them as they are."
        )
        return self._prompt(parameters, quote, feedback, {"margin": 0.4})

    def prompt_20_ops(self, n: int) -> Answer:
        """Four print jobs through the same operators: twenty in all; a margin of 0.09 meets the wish."""
        side = self.side
        paper, labour, margin_on = side.bundle(paper_cost), side.bundle(labour_cost), side.bundle(add_margin)
        parameters = sheet, rate, margin = self._prices()
        total = side.node(25.0, "delivery")
        for sheets, hours in ((500, 3.0), (1200, 4.5), (80, 1.0), (3000, 9.5)):
            cost = paper(side.node(sheets, "sheets"), sheet) + labour(side.node(hours, "hours"), rate)
            total = total + margin_on(cost, margin)
        feedback = (
            f"The order of four jobs is quoted at {side.value(total):.2f}. A competitor offers 1400.00; quote at most "
            "that and at least 1390.00. The price of a sheet and the hourly rate are fixed by contract: leave them as "
            "they are."
        )
        return self._prompt(parameters, total, feedback, {"margin": 0.09})

    def prompt_50_kb(self, n: int) -> Answer:
        """One operator on a document of 50 kB; the line that solves the task is its last one."""
        side = self.side
        find = side.bundle(amount_after)
        marker = side.parameter("Subtotal:", "marker")
        found = find(side.node(document(50_000), "document"), marker)
        feedback = (
            f"The answer {side.value(found)!r} is the sum before tax. What the customer has to pay is stated in the "
            "last line of the document; the marker must be the label that stands there."
        )
        return self._prompt([marker], found, feedback, {"marker": "Amount payable:"})

    def _prices(self) -> list[Any]:
        start = {"price_per_sheet": 0.15, "hourly_rate": 30.0, "margin": 0.2}
        return [self.side.parameter(value, name) for name, value in start.items()]

    def _prompt(self, parameters: list[Any], output: Any, feedback: str, new: dict[str, object]) -> Answer:
        optimizer = self.side.optimizer(parameters, lambda: new)
        optimizer.zero_feedback()
        optimizer.backward(output, feedback)
        optimizer.step()
        messages, schema = self.side.last_request(optimizer)
        values = [self.side.value(p) for p in parameters]
        missing = [v for v in new.values() if v not in values]
        if missing:
            raise ValueError(f"the proposed value {missing[0]!r} was not applied: parameters hold {values!r}")
        return {"messages": messages, "schema": schema}


def count_tokens(texts: list[str]) -> list[int]:
    """Tokens of each text by cl100k_base, read from the file that litellm's wheel carries (no network).

    Raises LookupError where litellm, tiktoken or that file is missing.
    """
    spec = importlib.util.find_spec("litellm")  # finds the folder without running the package
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("tiktoken") is None:
        raise LookupError("litellm and tiktoken are not installed in this environment")
    digest = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"  # tiktoken's cache name: SHA-1 of the address of cl100k_base
    found = glob.glob(f"{spec.submodule_search_locations[0]}/**/{digest}", recursive=True)
    if not found:
        raise LookupError("this litellm carries no cl100k_base file")
    os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(found[0]).parent)
    import tiktoken

    encoding = tiktoken.get_encoding("cl100k_base")
    return [len(encoding.encode(text, disallowed_special=())) for text in texts]


# --- the child's loop ---------------------------------------------------------------------------------------------


def serve(make_side: Callable[[], Side]) -> None:
    """Answer requests until stdin closes. A request that fails is answered with its error, and the loop goes on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints goes to stderr; the answers' channel stays clean
    with tempfile.TemporaryDirectory(prefix="bench-tracing-") as scratch:
        cases: Cases | None = None
        for request in _requests():
            try:
                if request["case"] == "count_tokens":
                    answer: Answer = {"value": count_tokens(request["texts"])}
                else:
                    if cases is None:
                        cases = Cases(make_side(), Path(scratch))
                    answer = getattr(cases, request["case"])(request["n"])
            except Exception as error:  # noqa: BLE001 - reported to the driver, which shows it in the table
                traceback.print_exc()
                answer = {"error": f"{type(error).__name__}: {error}"}
            if cases is not None:
                cases.side.reset()
            gc.collect()
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def _requests() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        if line.strip():
            yield json.loads(line)
