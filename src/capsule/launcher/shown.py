"""The arguments of steps, for people: nothing in a name breaks out of its line or into the terminal."""

from __future__ import annotations

from capsule.base.text import describe_size, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


# mount_setattr(2): bits 0 to 3.
_ATTRIBUTES = ("read-only", "nosuid", "nodev", "noexec")


def describe_attributes(attributes: int) -> str:
    """Mount attributes in words."""
    names = (name for bit, name in enumerate(_ATTRIBUTES) if attributes >> bit & 1)
    return ", ".join(names) or "as it is"


_FORMATS: dict[str, Callable[[Any], str]] = {
    "attributes": describe_attributes,
    "length": lambda text: str(len(text.encode("utf-8", "surrogateescape"))),
    "list": lambda words: ", ".join(map(printable, words)),
    "pairs": lambda digits: str(len(digits) // 2),
    "seconds": lambda microseconds: f"{microseconds / 1e6:g}",
    "size": describe_size,
    "words": lambda words: " ".join(printable(word) or "''" for word in words),
}


class Shown:
    """An argument, with formats of its own beside those of its type.

    ``attributes`` of a mount, ``size`` in bytes, ``seconds`` of microseconds, ``length`` of text in
    bytes, ``pairs`` of hexadecimal digits, ``list`` and ``words`` of a tuple.
    """

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __format__(self, how: str) -> str:
        if how in _FORMATS:
            return _FORMATS[how](self._value)
        return printable(format(self._value, how))
