"""Text for people, on one line and no longer than it needs to be; and paths as text."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_LONGEST_VALUE = 40


def printable(text: str) -> str:
    """Text on one line that says nothing to a terminal: all else in it is escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(value: object) -> str:
    """A value for a message, not longer than it needs to be recognised."""
    try:
        text = repr(value)
    except ValueError:
        text = "a very large number"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def listed(names: list[str], what: str) -> str:
    """The first names of a list, and how many more there are."""
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more {what}" if more > 0 else "")


_UNITS = ((1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K"))


def describe_size(size: int) -> str:
    """Bytes in the largest unit that needs no fraction."""
    for unit, name in _UNITS:
        if size and size % unit == 0:
            return f"{size // unit}{name}"
    return str(size)


def round_size(size: int) -> str:
    """Bytes to four digits: of what was measured, a few pages more or less say nothing."""
    for unit, name in _UNITS:
        if size >= unit:
            return f"{size / unit:.4g}{name}"
    return str(size)


# --- normal absolute paths: nothing is looked up ------------------------------------------------


def is_below(path: str, top: str) -> bool:
    """Return whether a path is *top* or lies below it. Both are normal and absolute."""
    return path == top or path.startswith(top.rstrip("/") + "/")


def above(place: str) -> Iterator[str]:
    """The place and all above it, but for the root."""
    while place not in ("/", ""):
        yield place
        place = os.path.dirname(place)
