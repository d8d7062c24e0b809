"""Patterns of paths: pure, and made by hand, since importing `re` costs as much as a start may take.

``*`` is any text within a name, ``?`` one character, ``[abc]``, ``[a-z]`` one of these, ``[!abc]`` none
of them, ``**`` as a whole component any number of directories. A leading dot is nothing special. Names
are as os.fsdecode gives them: a byte that is not UTF-8 is one character.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

_MAGIC = frozenset("*?[")


class _OneOf:
    """One character: of these ranges, or of none of them."""

    __slots__ = ("negated", "ranges")

    def __init__(self, ranges: tuple[tuple[str, str], ...], *, negated: bool) -> None:
        self.ranges = ranges
        self.negated = negated

    def __contains__(self, character: str) -> bool:
        return any(a <= character <= b for a, b in self.ranges) is not self.negated


_ANY = _OneOf((), negated=True)

# Of a name: None is a run of any characters. Of a path: None is any number of components.
if TYPE_CHECKING:
    Token = str | _OneOf | None
    Part = str | tuple[Token, ...] | None


class Pattern:
    """A pattern that paths from the root are matched with.

    A relative one matches the end of a path, from whichever component on.

    Attributes:
        text: as it was given.
        prefix: the path that it cannot match outside of; "/" if there is none but the root.
        depth: the number of components of each path that it matches, or None if that varies.
    """

    __slots__ = ("_last", "_parts", "depth", "prefix", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        words = [word for word in text.split("/") if word not in ("", ".")]
        if words[-1:] == ["**"]:
            # What lies below a directory, not the directory itself.
            words.append("*")
        if not text.startswith("/"):
            words.insert(0, "**")
        self._parts = tuple(map(_part, words))
        self._last = self._parts[-1] if self._parts else ""
        self.depth = None if None in self._parts else len(words)
        self.prefix = "/" + "/".join(_plain_start(self._parts))

    def may_match(self, name: str) -> bool:
        """Return whether a path with this last component can match. Cheap, and mostly says no."""
        return _fits_name(self._last, name)

    def matches(self, path: str) -> bool:
        """Return whether it matches the normal absolute path."""
        return _fits(self._parts, path.split("/")[1:], _fits_name)


def _part(word: str) -> Part:
    if word == "**":
        return None
    return word if _MAGIC.isdisjoint(word) else _tokens(word)


def _plain_start(parts: tuple[Part, ...]) -> list[str]:
    """The components, but for the last one, before the first that is no plain name."""
    names: list[str] = []
    for part in parts[:-1]:
        if not isinstance(part, str):
            break
        names.append(part)
    return names


def _tokens(word: str) -> tuple[Token, ...]:
    tokens: list[Token] = []
    at = 0
    while at < len(word):
        piece: Token = word[at]
        after = at + 1
        if piece == "*":
            piece = None
        elif piece == "?":
            piece = _ANY
        elif piece == "[":
            piece, after = _one_of(word, at)
        tokens.append(piece)
        at = after
    return tuple(tokens)


def _one_of(word: str, at: int) -> tuple[Token, int]:
    """(What the bracket at this place means, the place after it). Not closed, it is a character."""
    start = at + 1
    negated = word[start : start + 1] == "!"
    start += negated
    # A closing bracket in the first place is one of the characters.
    end = word.find("]", start + 1)
    if end < 0:
        return "[", at + 1
    ranges: list[tuple[str, str]] = []
    inside = word[start:end]
    while inside:
        if len(inside) > 2 and inside[1] == "-":
            ranges.append((inside[0], inside[2]))
            inside = inside[3:]
        else:
            ranges.append((inside[0], inside[0]))
            inside = inside[1:]
    return _OneOf(tuple(ranges), negated=negated), end + 1


def _fits_name(part: Part, name: str) -> bool:
    if isinstance(part, str):
        return part == name
    return part is None or _fits(part, name, _fits_character)


def _fits_character(token: Token, character: str) -> bool:
    return character == token if isinstance(token, str) else token is None or character in token


def _fits(pattern: Sequence[Any], text: Sequence[str], fits: Callable[[Any, str], bool]) -> bool:
    """Return whether each item of the text fits its own of the pattern; None stands for any number.

    Only the last None is ever tried again, so that no pattern takes longer than the two lengths
    multiplied.
    """
    here = there = 0
    wild, resume = -1, 0
    while there < len(text):
        if here < len(pattern) and pattern[here] is None:
            wild, resume = here, there
            here += 1
        elif here < len(pattern) and fits(pattern[here], text[there]):
            here += 1
            there += 1
        elif wild >= 0:
            resume += 1
            here, there = wild + 1, resume
        else:
            return False
    return all(item is None for item in pattern[here:])
