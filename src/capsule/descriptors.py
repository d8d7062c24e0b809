"""File descriptors that have an owner."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Descriptors:
    """Descriptors that are closed when the block ends, whatever happens in it."""

    def __init__(self) -> None:
        self.owned: list[int] = []

    def own(self, fd: int) -> int:
        """Close this one too."""
        self.owned.append(fd)
        return fd

    def pipe(self) -> tuple[int, int]:
        """(Reading end, writing end), both close-on-exec."""
        read, write = os.pipe()
        return self.own(read), self.own(write)

    def keep(self, fds: Iterable[int]) -> None:
        """Give these away: they have another owner now."""
        for fd in fds:
            self.owned.remove(fd)

    def __enter__(self) -> Descriptors:
        return self

    def __exit__(self, *_exception: object) -> None:
        for fd in self.owned:
            os.close(fd)
