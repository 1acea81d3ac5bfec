"""Measurements in several processes of one thread each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any

Row = dict[str, Any]


def rows_of(task: Callable[..., Row], arguments: list[tuple[Any, ...]], jobs: int = 1) -> Iterator[Row]:
    """The rows that ``task`` gives for each of ``arguments``, in their order, each as soon as it is there."""
    if jobs == 1:
        yield from (task(*each) for each in arguments)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(_call, [(task, each) for each in arguments])


def _call(work: tuple[Callable[..., Row], tuple[Any, ...]]) -> Row:
    task, arguments = work
    return task(*arguments)
