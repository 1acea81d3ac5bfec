"""Values as short text for a person or an LLM."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from trace_core._values import ByReference, is_ndarray, is_tensor

if TYPE_CHECKING:
    from trace_core.node import Node

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def elide(text: str, max_chars: int) -> str:
    """``text`` with its middle left out, and said so, if it is longer than ``max_chars``."""
    if len(text) <= max_chars:
        return text
    note = f" …({len(text):,} characters)… "
    room = max_chars - len(note)
    if room < 8:
        return text[: max(1, max_chars - 1)] + "…"
    head = (room * 2 + 2) // 3
    return text[:head] + note + text[len(text) - (room - head) :]


def render_value(value: Any, max_chars: int = 2000) -> str:
    """``value`` as text of at most about ``max_chars`` characters; long ones keep their head and tail.

    Texts of several lines stand in triple quotes; arrays and tensors are summed up by shape, type and statistics;
    objects without a text of their own by their type.
    """
    if isinstance(value, str):
        return _text(value, max_chars)
    if isinstance(value, BaseException):
        from trace_core.tracebacks import headline

        return elide(headline(value), max_chars)
    if is_ndarray(value) or is_tensor(value):
        return elide(summarize_array(value), max_chars)
    return elide(_compact(value, max_chars), max_chars)


def _text(value: str, max_chars: int) -> str:
    shown = elide(value, max_chars)
    if "\n" in shown:
        return f'"""{shown}"""' if '"""' not in shown else f"'''{shown}'''"
    return repr(shown) if "\\" not in shown else f'"{shown}"'


def _compact(value: Any, max_chars: int, depth: int = 0) -> str:
    """A repr that stops building text once there is enough of it."""
    kind = type(value)
    if kind in _BRACKETS and value:
        if depth >= _DEPTH:
            return "…"
        open_, close = _BRACKETS[kind]
        shown: list[str] = []
        room = max_chars
        for item in value.items() if kind is dict else value:
            if room <= 0:
                break
            if kind is dict:
                text = f"{_nested(item[0], 60, depth)}: {_nested(item[1], room, depth)}"
            else:
                text = _nested(item, room, depth)
            shown.append(text)
            room -= len(text) + 2
        rest = len(value) - len(shown)
        inside = ", ".join(shown) + (f", …{rest:,} more" if rest else "," if kind is tuple and len(value) == 1 else "")
        return f"{open_}{inside}{close}"
    if isinstance(value, str):
        return repr(elide(value, max_chars))
    if kind is int and value.bit_length() > 4000:  # Python refuses to print very long integers
        return f"<int of {value.bit_length()} bits>"
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - a repr is user code; rendering must not fail for it
        return f"<{kind.__name__}, whose repr raised {type(error).__name__}>"
    return _ADDRESS.sub("", text)


_BRACKETS: dict[Any, Any] = {list: "[]", tuple: "()", set: "{}", dict: "{}", frozenset: ("frozenset({", "})")}
_DEPTH = 8


def _nested(value: Any, max_chars: int, depth: int) -> str:
    if is_ndarray(value) or is_tensor(value):
        return summarize_array(value)
    return elide(_compact(value, max_chars, depth + 1), max(16, max_chars))


class Changed:
    """A value that was too big to be copied when recorded, and was changed later: what it was is lost."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"{render_value(self.value, 200)} (changed in place since it was used)"


def now_and_then(node: Node) -> Any:
    """The recorded value; where it was too big to be copied and is seen to have changed since, Changed says so."""
    if isinstance(node._snap, ByReference) and node._snap.changed(node._value):
        return Changed(node._value)
    return node.recorded


def same_value(left: Any, right: Any) -> bool:
    """Whether two values are of one type and equal; False where that cannot be said."""
    if left is right:
        return True
    if type(left) is not type(right):
        return False
    try:
        same = left == right
        return bool(same.all()) if hasattr(same, "all") else bool(same)
    except Exception:  # noqa: BLE001 - __eq__ is user code, or arrays in a list; rendering must not fail for it
        return False


def size_of(value: Any) -> int:
    """About how long the whole text of a value would be; looks only at the surface."""
    return (
        len(value) * (1 if isinstance(value, str | bytes) else 4)
        if isinstance(value, str | bytes | list | tuple | dict | set)
        else 8
    )


def summarize_array(value: Any) -> str:
    """Shape, type and, for numbers, statistics and a few values of an array or tensor."""
    from trace_core.summaries import summarize

    return summarize(value, lambda item: elide(_compact(item, 40), 40))
