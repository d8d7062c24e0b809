"""File descriptors that have an owner, and files that are read at each start."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


CHUNK = 1 << 16


class Descriptors:
    """Descriptors that are closed when the block ends, whatever happens in it.

    Args:
        owner: (uid, gid) to give new pipes to, if not to the caller.
    """

    def __init__(self, owner: tuple[int, int] | None = None) -> None:
        self.owned: list[int] = []
        self._owner = owner

    def own(self, fd: int) -> int:
        """Close this one too."""
        self.owned.append(fd)
        return fd

    def pipe(self) -> tuple[int, int]:
        """(Reading end, writing end), both close-on-exec."""
        read, write = map(self.own, os.pipe())
        self.give(read)
        return read, write

    def give(self, fd: int) -> None:
        """Give a pipe to the owner, or else who is not root inside could not open /dev/stdout.

        Only one without a name: nobody else opens that anew.
        """
        if self._owner is not None and os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:"):
            try:
                os.fchown(fd, *self._owner)
            except PermissionError:
                pass  # root without CAP_CHOWN: what is open works all the same

    def keep(self, fds: Iterable[int]) -> None:
        """Give these away: they have another owner now."""
        for fd in fds:
            self.owned.remove(fd)

    def __enter__(self) -> Descriptors:
        return self

    def __exit__(self, *_exception: object) -> None:
        for fd in self.owned:
            os.close(fd)


class Kept:
    """Descriptors that are held for long. Somebody may close them, and others get their numbers."""

    fds: tuple[int, ...] = ()  # so that what could not be made can be closed

    def __init__(self, fds: Iterable[int]) -> None:
        self.fds = tuple(fds)
        self._own = {fd: identity(fd) for fd in self.fds}

    def are_ours(self) -> bool:
        """Return whether they still are what they were."""
        return {fd: identity(fd) for fd in self.fds} == self._own

    def close(self) -> None:
        """Close them. What else has these numbers by now is left alone."""
        for fd in self.fds:
            # One step: of two threads that are here at once one has it. A weak reference still leads to
            # an object whose __del__ runs.
            own = self._own.pop(fd, None)
            if own is not None and identity(fd) == own:
                os.close(fd)


def identity(path: str | int, *, follow: bool = True) -> tuple[int, int] | None:
    """Return (device, inode) of what lies at a path, or of a descriptor; None if it is not there."""
    try:
        found = os.stat(path, follow_symlinks=follow)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def read_file(path: str, most: int | None = None) -> bytes:
    """Return what a file holds, or its beginning. A fifth of the time of `open`, which a start feels.

    Raises:
        OSError: as open(2) and read(2). A FIFO without a writer reads as empty.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        # One more than there is, so that nothing is copied; of what /proc has, nobody knows the size.
        size = os.fstat(fd).st_size
        piece = max(CHUNK, size + 1)
        found = b""
        while more := os.read(fd, piece if most is None else min(piece, most - len(found))):
            found += more
            if len(found) == size:
                break
        return found
    finally:
        os.close(fd)
