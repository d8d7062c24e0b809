"""Normal absolute paths as text: nothing is looked up."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def is_below(path: str, top: str) -> bool:
    """Return whether a path is *top* or lies below it. Both are normal and absolute."""
    return path == top or path.startswith(top.rstrip("/") + "/")


def above(place: str) -> Iterator[str]:
    """The place and all above it, but for the root."""
    while place not in ("/", ""):
        yield place
        place = os.path.dirname(place)
