"""What a step is: a tuple of arguments; `encode` writes it for the launcher, `describe` for people."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, ClassVar

VERSION = "capsule-plan 1"


class Step(tuple):  # type: ignore[type-arg]
    """One thing that the launcher does. Subclasses name it; the values are the tuple's.

    Attributes:
        word: its name in the plan.
        signature: a letter an argument: p absolute path, s word, n number; * any number of words.
        text: what `describe` prints, a format string for the arguments; see `shown.Shown`.
        path_at: which argument is the path that an error is about, or None.
    """

    __slots__ = ()
    word: ClassVar[str]
    signature: ClassVar[str]
    text: ClassVar[str]
    path_at: ClassVar[int | None]

    def __init_subclass__(cls, word: str, signature: str = "", text: str = "") -> None:
        cls.word, cls.signature = word, signature
        if text:
            cls.text = text
        cls.path_at = signature.index("p") if "p" in signature else None

    def __new__(cls, *values: Any) -> Step:
        """Take the arguments one by one."""
        return tuple.__new__(cls, values)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and tuple.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = tuple.__hash__

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self))})"

    def words(self) -> Sequence[str]:
        """The arguments, as the launcher reads them."""
        return [*map(str, self[: len(self.signature)])]

    def describe(self) -> str:
        """The step in words, on one line whatever is in a name."""
        from .shown import Shown  # a run that succeeds describes nothing

        return self.text.format(*map(Shown, self))

    @property
    def path(self) -> str | None:
        """The path that an error of this step is about."""
        return None if self.path_at is None else str(self[self.path_at])


def encode(steps: Iterable[Step]) -> bytes:
    """The plan as the launcher reads it: NUL-separated words, a version first."""
    return VERSION.encode() + b"\0" + encode_more(steps)


def encode_more(steps: Iterable[Step]) -> bytes:
    """Further steps of a plan."""
    words: list[str] = []
    for step in steps:
        arguments = step.words()
        words += (step.word, str(len(arguments)), *arguments)
    words.append("")
    return "\0".join(words).encode("utf-8", "surrogateescape")
