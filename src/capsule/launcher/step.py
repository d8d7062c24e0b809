"""What a step is, how it is written for the launcher and shown to people."""

from __future__ import annotations

from capsule.base.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, ClassVar

# mount_setattr(2) and fsmount(2)
READ_ONLY = 0x1
NO_SUID = 0x2
NO_DEV = 0x4
NO_EXEC = 0x8

# clone(2)
NAMESPACES = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}

VERSION = "capsule-plan 1"


class Step(tuple):  # type: ignore[type-arg]
    """One thing that the launcher does. Subclasses name it; the values are the tuple's.

    Attributes:
        word: its name in the plan.
        signature: a letter an argument: p absolute path, s word, n number; * any number of words.
        text: what `describe` prints, a format string for the arguments.
        path_at: which argument is the path that an error is about, or None.
    """

    __slots__ = ()
    word: ClassVar[str]
    signature: ClassVar[str] = ""
    text: ClassVar[str]
    path_at: ClassVar[int | None] = None

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

    def words(self) -> Iterable[str]:
        """The arguments, as the launcher reads them."""
        return map(str, self[: len(self.signature)])

    def describe(self) -> str:
        """The step in words, on one line whatever is in a name."""
        return self.text.format(*map(show, self))

    @property
    def path(self) -> str | None:
        """The path that an error of this step is about."""
        return None if self.path_at is None else str(self[self.path_at])


def show(value: object) -> object:
    """Text that cannot break out of its line or into the terminal."""
    return printable(value) if isinstance(value, str) else value


def encode(steps: Iterable[Step]) -> bytes:
    """The plan as the launcher reads it: NUL-separated words, a version first."""
    return VERSION.encode() + b"\0" + encode_more(steps)


def encode_more(steps: Iterable[Step]) -> bytes:
    """Further steps of a plan."""
    words: list[str] = []
    for step in steps:
        arguments = list(step.words())
        words += (step.word, str(len(arguments)), *arguments)
    words.append("")
    return "\0".join(words).encode("utf-8", "surrogateescape")


def describe_attributes(attributes: int) -> str:
    """Mount attributes in words."""
    names = {READ_ONLY: "read-only", NO_SUID: "nosuid", NO_DEV: "nodev", NO_EXEC: "noexec"}
    return ", ".join(name for bit, name in names.items() if attributes & bit) or "as it is"
