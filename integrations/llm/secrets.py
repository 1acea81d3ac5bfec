"""Keys kept out of everything that can be printed, logged or stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable

MASK = "***"
_SHORTEST = 6  # shorter strings ("none", "x") are placeholders; masking them would garble ordinary words


class Secret:
    """A string whose repr, str and pickle do not show it."""

    __slots__ = ("_reveal",)

    def __init__(self, value: str) -> None:
        self._reveal: Callable[[], str] = lambda: value

    def reveal(self) -> str:
        """The secret itself: only to be handed to the client library."""
        return self._reveal()

    def __repr__(self) -> str:
        return f"Secret({MASK!r})"

    __str__ = __repr__

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a Secret is not pickled: the process that needs the key reads it from its own environment")


def scrub_bytes(raw: bytes, secrets: Iterable[Secret | None]) -> bytes:
    """``scrub`` for a body as it came, before anything is cut from it."""
    for secret in secrets:
        value = secret.reveal() if secret is not None else ""
        if len(value) >= _SHORTEST:
            raw = raw.replace(value.encode(), MASK.encode())
    return raw


def scrub(text: str, secrets: Iterable[Secret | None]) -> str:
    """``text`` with every secret replaced: servers like to echo a refused key in their error message."""
    for secret in secrets:
        value = secret.reveal() if secret is not None else ""
        if len(value) >= _SHORTEST:
            text = text.replace(value, MASK)
    return text
