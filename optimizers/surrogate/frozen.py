"""Random numbers as they are: what is run for a comparison leaves no mark, and each comparison sees the same ones."""

from __future__ import annotations

import random
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trace_core._lazy import require

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def frozen() -> Iterator[None]:
    """Put the states of torch's, numpy's and Python's generators back at the end.

    Runs one after another inside of such scopes draw the same numbers, so their difference is that of their inputs.
    """
    torch, numpy = require("torch", extra="torch"), sys.modules.get("numpy")
    python_state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy is not None else None
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
        try:
            yield
        finally:
            random.setstate(python_state)
            if numpy is not None and numpy_state is not None:
                numpy.random.set_state(numpy_state)
