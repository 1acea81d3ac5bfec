"""Text on a page: nothing of it is taken for markup, nothing of it is invisible, none of it is a secret."""

from __future__ import annotations

import difflib
import html
import os
import re
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from trace_core.integrations.llm.secrets import Secret, scrub
from trace_core.values import elide, render_value

if TYPE_CHECKING:
    from collections.abc import Sequence

# What changes the order or the meaning of the text around it without being seen. Joiners stay: scripts need them.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)\Z", re.IGNORECASE)
_LONGEST_LINE = 400  # words; comparing longer lines word by word takes too long


def visible(text: str) -> str:
    """``text`` with every character that would act unseen replaced by its number."""
    if text.isprintable():
        return text
    text = text.replace("\r\n", "\n")
    return _SURROGATE.sub("\ufffd", _UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text))


def esc(text: str) -> str:
    """For an element's content or an attribute in double quotes."""
    return html.escape(visible(text))


def shown(value: Any) -> str:
    """A parameter's value as text: strings as they are."""
    return value if isinstance(value, str) else render_value(value)


def clean(value: Any, secrets: Sequence[Secret]) -> Any:
    """Plain data with the secrets in its strings masked."""
    if isinstance(value, str):
        return scrub(value, secrets) if secrets else value
    if type(value) in (list, tuple):
        return type(value)(clean(item, secrets) for item in value)
    if type(value) is dict:
        return {clean(key, secrets): clean(item, secrets) for key, item in value.items()}
    return value


def environment_secrets() -> list[Secret]:
    """What the environment holds under names of keys, tokens and passwords: it never belongs on a page."""
    return [Secret(value) for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= 8]


def room_for(texts: Sequence[str], total: int) -> int:
    """How many characters each text may have at most, so that all of them together take about ``total`` bytes.

    Short ones are kept whole, and what they leave is shared by the long ones.
    """
    sizes = sorted((len(esc(text).encode()), len(text)) for text in texts)
    left = total
    for number, (size, length) in enumerate(sizes):
        share = left / (len(sizes) - number)
        if size > share:
            return max(200, int(share * length / size))
        left -= size
    return max((length for _, length in sizes), default=0)


def block(text: str, room: int) -> str:
    """Preformatted text."""
    return f"<pre>{esc(elide(text, room))}</pre>"


def diff_block(old: Any, new: Any, room: int) -> str:
    """What changed from one value to another: lines, and in lines that were replaced the words. Empty for no change."""
    before, after = (elide(shown(value), room).splitlines() for value in (old, new))
    if before == after:
        return ""
    rows: list[str] = []
    for group in difflib.SequenceMatcher(None, before, after, autojunk=False).get_grouped_opcodes(2):
        if rows:
            rows.append('<span class="gap">⋯</span>')
        for kind, a, b, c, d in group:
            if kind == "equal":
                rows += [f"<span>{esc(line)}</span>" for line in before[a:b]]
                continue
            pairs = [_words(x, y) for x, y in zip_longest(before[a:b], after[c:d])]
            rows += [f"<del>{x}</del>" for x, _ in pairs if x is not None]
            rows += [f"<ins>{y}</ins>" for _, y in pairs if y is not None]
    return f'<pre class="diff">{"".join(rows)}</pre>'


def _words(old: str | None, new: str | None) -> tuple[str | None, str | None]:
    """Two lines with the words marked that are only in one of them."""
    if old is None or new is None:
        return (None if old is None else esc(old)), (None if new is None else esc(new))
    left, right = (re.findall(r"\w+|\s+|[^\w\s]", line) for line in (old, new))
    if max(len(left), len(right)) > _LONGEST_LINE:
        return esc(old), esc(new)
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    if matcher.ratio() < 0.3:  # two different sentences: marks on chance words would only distract
        return esc(old), esc(new)
    out: tuple[list[str], list[str]] = [], []
    for kind, a, b, c, d in matcher.get_opcodes():
        for parts, words in zip(out, (left[a:b], right[c:d]), strict=True):
            if words:
                text = esc("".join(words))
                parts.append(text if kind == "equal" else f"<b>{text}</b>")
    return "".join(out[0]), "".join(out[1])
