"""Files of the host that can be reached in more than one way: through several directories, or names.

Directories are compared by device and inode, too: a mount of the host can show one at a second path.
"""

from __future__ import annotations

import os
import stat

from capsule.base.text import above, listed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    Identity = tuple[int, int] | str


class Overlaps:
    """Directories of the host, named by their number in what they were given as.

    Args:
        tops: their paths, without a symbolic link in them.
    """

    def __init__(self, tops: Iterable[str]) -> None:
        self._tops: dict[Identity, list[int]] = {}
        self._identities: dict[str, Identity] = {}
        # Of directories: many files are asked for that lie in the same ones.
        self._known: dict[str, list[tuple[int, str]]] = {}
        for number, path in enumerate(tops):
            self._tops.setdefault(self._identity(path), []).append(number)

    def showing(self, path: str) -> list[tuple[int, str]]:
        """(Number, path below its top) of each that shows a path of the host, but not as its top.

        The path has no symbolic link in it, but for its last component.
        """
        if path == "/":
            return []
        directory, name = os.path.split(path)
        if directory not in self._known:
            self._known[directory] = list(self._holding(directory))
        return [(number, f"{below}{name}") for number, below in self._known[directory]]

    def holding(self, path: str) -> list[int]:
        """The numbers of those that show a path of the host, also as their top."""
        as_top = self._tops.get(self._identity(path), ())
        return [*as_top, *(number for number, _ in self.showing(path))]

    def _holding(self, directory: str) -> Iterator[tuple[int, str]]:
        for top in (*above(directory), "/"):
            for number in self._tops.get(self._identity(top), ()):
                below = directory[len(top.rstrip("/")) + 1 :]
                yield number, f"{below}/" if below else ""

    def _identity(self, path: str) -> Identity:
        if path not in self._identities:
            try:
                found = os.lstat(path)
                self._identities[path] = (found.st_dev, found.st_ino)
            except OSError:
                # Not there yet, or not to be seen: then the path is all that is known.
                self._identities[path] = path
        return self._identities[path]


def lies_in(path: str, top: str) -> bool:
    """Return whether a path of the host is *top* or lies below it. Neither has a link in it."""
    return bool(Overlaps([top]).holding(path))


def linked_files(hidden: Sequence[str]) -> list[str]:
    """A note on hidden files of the host that have other names: under those they can be read."""
    linked = [path for path in hidden if _has_other_names(path)]
    if not linked:
        return []
    names = listed(linked, "files")
    return [f"hide: hard links: what is hidden has other names, under which it may be shown: {names}"]


def _has_other_names(path: str) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_nlink > 1
