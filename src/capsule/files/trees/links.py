"""Where a link in a tree leads, as far as that lies in the tree; nothing outside of it is touched."""

from __future__ import annotations

import errno
import os

from .cursor import Way
from .walk import kind_of

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# There is no such thing: also where the file system could not have a thing of that name.
_NOTHING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)


def is_nothing(error: OSError) -> bool:
    """Return whether it says that nothing is there; what could not be opened may be."""
    if error.errno in EXHAUSTED:
        raise error
    return error.errno in _NOTHING


def identify(directory: int, name: str) -> tuple[str, str]:
    """(What tells this from all else that could stand there, its kind); of a link its text alone.

    Raises:
        OSError: there is nothing.
    """
    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    kind = kind_of(found.st_mode)
    if kind == "symlink":
        return f"link:{os.readlink(name, dir_fd=directory)}", kind
    return f"{found.st_dev}:{found.st_ino}", kind


# As the kernel has it.
_MOST_HOPS = 40
# Directories opened for one link, and for all: who makes links can make them long.
_LINK_OPENS = 1_000
_ALL_OPENS = 100_000


class Links:
    """Finds out what links lead to, as far as that lies in the tree.

    A link of the tree can name a place in it where nothing is, or that another link of the tree
    leads on from: what is made there is what the link stands for. Nothing is asked about what lies
    outside. There the way could lead to a network file system, and the text is the command's.
    """

    def __init__(self, top: int, tree: str, *, open_up: bool) -> None:
        self._top = top
        self._tree = [name for name in tree.split("/") if name]
        self._open_up = open_up
        self._opens = _ALL_OPENS

    def follow(self, link: str, text: str) -> str:
        """A NUL and what a link leads to, or where it leaves the tree; "" if there is nothing."""
        try:
            there = self._follow([*self._tree, *link.split("/")[:-1]], text)
        except OSError as error:
            return "" if is_nothing(error) else f"\0{errno.errorcode.get(error.errno or 0, '')}"
        return f"\0{there}"

    def _follow(self, here: list[str], text: str) -> str:
        """Go as the kernel goes, but by names: in those that are behind there is no link.

        Raises:
            OSError: there is nothing, or that cannot be found out.
        """
        waiting = _turn(here, text)
        hops, opens = 1, 0
        while waiting:
            name = waiting.pop()
            if name in ("", "."):
                continue
            if name == "..":
                del here[-1:]
                continue
            here.append(name)
            if not self._is_on_the_way(here):
                return "/" + "/".join(here + waiting[::-1])
            opens += len(here)
            if len(here) <= len(self._tree):
                continue
            identity, kind = self._at(here, opens)
            if kind == "symlink":
                here.pop()
                waiting += _turn(here, identity.removeprefix("link:"))
                hops += 1
            if hops > _MOST_HOPS or (waiting and kind not in ("symlink", "directory")):
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return self._at(here, opens)[0] if len(here) > len(self._tree) else "/" + "/".join(here)

    def _is_on_the_way(self, here: list[str]) -> bool:
        """Return whether it is the tree's top, or above it, or below it."""
        return all(one == other for one, other in zip(here, self._tree, strict=False))

    def _at(self, here: list[str], opens: int) -> tuple[str, str]:
        """As `identify`, of a path in the tree without links above its last component."""
        *folder, name = here[len(self._tree) :]
        self._opens -= len(folder) + 1
        if opens > _LINK_OPENS or self._opens < 0:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
        with Way(self._top, "/".join(folder), open_up=self._open_up) as way:
            return identify(way.fd, name)


def _turn(here: list[str], text: str) -> list[str]:
    """The names that a link's text adds to the way, the first one last; an absolute one leads back."""
    if text.startswith("/"):
        here.clear()
    return text.split("/")[::-1]
