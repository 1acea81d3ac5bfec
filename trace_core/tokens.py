"""Counting tokens without a tokenizer: an estimate that errs on the high side."""

from __future__ import annotations

import re

# What byte-pair tokenizers split on: runs of letters, digits (at most three a token), spaces, single other characters.
_PIECES = re.compile(r"[A-Za-z]+|[0-9]{1,3}|\s+|[^\sA-Za-z0-9]")


def estimate_tokens(text: str) -> int:
    """A conservative number of tokens of ``text`` for today's byte-pair tokenizers.

    A word of up to five letters counts as one token and a longer one as one per four letters, up to three digits as
    one, a run of whitespace as one per four characters beyond the single space that belongs to a word, other ASCII
    characters as one each, others by their UTF-8 bytes. On English and on code this lies above the real figure; the
    exact figure needs the model's own tokenizer.
    """
    total = 0
    for piece in _PIECES.findall(text):
        first = piece[0]
        if first.isspace():
            total += 0 if piece == " " else 1 + len(piece) // 4
        elif first.isascii():
            length = len(piece)
            total += 1 if length <= 5 or not first.isalpha() else (length + 3) // 4
        else:
            total += max(1, len(piece.encode("utf-8", "replace")) // 2)
    return total
