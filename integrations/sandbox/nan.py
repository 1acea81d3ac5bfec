"""Finds what is not a number in plain data: comparisons with it are silently false, and a metric would go on."""

from __future__ import annotations

import math
import sys
from decimal import Decimal
from typing import Any

_NO_NUMBERS = frozenset({str, bytes, int, bool, type(None)})


def where_nan(value: Any) -> str | None:
    """The path to the first not-a-number in a decoded value, such as ``[3]['loss']``; None if there is none.

    Looked at are floats, complex numbers, decimals, and arrays and tensors of them; infinity is a number here.
    """
    kind = type(value)
    if kind is float or kind is complex:
        return None if value == value else ""
    if kind is Decimal:
        return "" if value.is_nan() else None
    if kind in _NO_NUMBERS:
        return None
    if isinstance(value, dict):
        return _in_dict(value)
    if isinstance(value, list | tuple | set | frozenset) or hasattr(value, "appendleft"):
        return _in_items(value)
    return "" if _in_array(value) else None


def _in_items(items: Any) -> str | None:
    kinds = set(map(type, items))
    if kinds <= _NO_NUMBERS or (kinds == {float} and not math.isnan(sum(items))):  # long lists, at the speed of C
        return None
    for index, item in enumerate(items):
        found = where_nan(item)
        if found is not None:
            return f" (an element){found}" if isinstance(items, set | frozenset) else f"[{index}]{found}"
    return None


def _in_dict(mapping: dict[Any, Any]) -> str | None:
    for key, item in mapping.items():
        if where_nan(key) is not None:
            return " (a key)"
        found = where_nan(item)
        if found is not None:
            return f"[{key!r:.60}]{found}"
    return None


def _in_array(value: Any) -> bool:
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
        return value.dtype.kind in "fc" and bool(numpy.isnan(value).any())
    if torch is not None and isinstance(value, torch.Tensor):
        return bool(torch.isnan(value).any())
    return False


__all__ = ["where_nan"]
