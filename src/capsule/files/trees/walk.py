"""Looking through directory trees that others may write to, while they do.

A tree is walked by descriptors, component by component, and no symbolic link in it is ever followed,
so that what is read lies in the tree whatever is renamed meanwhile. Nothing is opened but directories:
a FIFO cannot block and a device cannot act.
"""

from __future__ import annotations

import errno
import os

from capsule.base.signals import breathe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST = _DIRECTORY | os.O_RDONLY | os.O_NONBLOCK
_PASS = _DIRECTORY | os.O_PATH

# The directories used last stay open: a tree of one branch, however deep, costs one open(2) a level.
_OPEN_AT_ONCE = 32
# In a tree of many deep branches each directory has to be reached from the top. A tree that needs
# more of that than this for each entry was made to be slow.
_OPENED_PER_ENTRY = 32

_FORMAT = 0o170000
_KINDS = {
    0o040000: "directory",
    0o100000: "file",
    0o120000: "symlink",
    0o140000: "socket",
    0o010000: "fifo",
    0o020000: "device",
    0o060000: "device",
}

# It was there a moment ago: it was removed, or something else was put in its place.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class TooMany(Exception):
    """A tree has more entries than were to be looked at, or too many that lie too deep.

    Attributes:
        most: how many were to be looked at.
    """

    def __init__(self, most: int) -> None:
        super().__init__(f"more than {most} entries")
        self.most = most


class Entry:
    """Something in a tree.

    Attributes:
        above: the directory that holds it, or None for the top.
        name: its own name, as os.fsdecode gives it: any bytes but NUL and "/".
        kind: "directory", "file", "symlink", "socket", "fifo", "device" or, if that cannot be
            found out, "unknown".
        depth: 1 directly in the tree's top.
        closed: it is a directory that was to be entered, and the caller may not.
    """

    __slots__ = ("above", "closed", "depth", "kind", "name")

    def __init__(self, above: Entry | None, name: str, kind: str, depth: int) -> None:
        self.above = above
        self.name = name
        self.kind = kind
        self.depth = depth
        self.closed = False

    @property
    def path(self) -> str:
        """From the top, with no slash in front. Made anew each time: it may be megabytes long."""
        names = [self.name]
        above = self.above
        while above is not None:
            names.append(above.name)
            above = above.above
        names.reverse()
        return "/".join(names)

    def __repr__(self) -> str:
        return f"<{self.kind} {self.path!r}{', closed' if self.closed else ''}>"


def entries(
    top: str | int,
    *,
    most: int,
    deepest: int | None = None,
    enter: Callable[[str], bool] | None = None,
) -> Iterator[Entry]:
    """All that lies in a tree, breadth first: what is near the top comes before what is deep.

    A directory that cannot be entered is given with `Entry.closed`; in the rare case that this shows
    only later, for a second time. What vanishes meanwhile is left out.

    Args:
        top: a path, whose last component is no link, or a descriptor, which stays open.
        most: how many entries are looked at.
        deepest: how many levels; 1 for what lies directly in *top*.
        enter: asked with the path of each directory whether to look into it.

    Raises:
        TooMany: there are more than *most*. So many have been given before.
        OSError: *top* cannot be read, or no more descriptors can be opened.
    """
    tree = _Tree(top, most)
    try:
        waiting: list[Entry | None] = [None]
        while waiting:
            later: list[Entry | None] = []
            for directory in waiting:
                breathe()
                for entry in tree.look_into(directory):
                    if entry.kind == "directory" and _is_wanted(entry, deepest, enter):
                        tree.check(entry)
                        if not entry.closed:
                            later.append(entry)
                    yield entry
                tree.stop_if_spent()
                if directory is not None and directory.closed:
                    yield directory
            waiting = later
    finally:
        tree.close()


def open_beneath(top: int, path: str, flags: int) -> int:
    """Open what lies in a tree, with no symbolic link on the way or at the end of it.

    Args:
        top: descriptor of a directory.
        path: from there, any length; empty for the directory itself.
        flags: of open(2). O_NOFOLLOW and O_CLOEXEC are added.

    Raises:
        ValueError: the path has an empty component, ``.`` or ``..``.
        OSError: a component is missing, a link (ELOOP, on the way ENOTDIR), or cannot be searched.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    if not path:
        return os.open(".", flags, dir_fd=top)
    folder, name = _holder(top, path)
    try:
        return os.open(name, flags, dir_fd=folder)
    finally:
        os.close(folder)


def stat_beneath(top: int, path: str) -> os.stat_result:
    """lstat(2) what lies in a tree, with no symbolic link on the way. Otherwise as `open_beneath`."""
    if not path:
        return os.stat(top)
    folder, name = _holder(top, path)
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    finally:
        os.close(folder)


def kind_of(mode: int) -> str:
    """The word of `Entry.kind` for st_mode."""
    return _KINDS.get(mode & _FORMAT, "unknown")


def _holder(top: int, path: str) -> tuple[int, str]:
    """(A new descriptor of the directory that holds the path's last component, that component)."""
    *parts, name = path.split("/")
    if not name or name in (".", "..") or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"not a path in a tree: {path!r}")
    return _descend(top, parts, _PASS), name


def _descend(top: int, parts: list[str], flags: int) -> int:
    """A new descriptor of the directory that the parts lead to; with these flags at the end."""
    fd = os.open(".", _PASS, dir_fd=top)
    last = len(parts) - 1
    try:
        for number, part in enumerate(parts):
            below = os.open(part, flags if number == last else _PASS, dir_fd=fd)
            os.close(fd)
            fd = below
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_wanted(entry: Entry, deepest: int | None, enter: Callable[[str], bool] | None) -> bool:
    return (deepest is None or entry.depth < deepest) and (enter is None or enter(entry.path))


def _kind(item: os.DirEntry[str]) -> str:
    """Return what lstat(2) says of what is no file, directory or link. "" if it is gone."""
    try:
        return kind_of(item.stat(follow_symlinks=False).st_mode)
    except OSError as error:
        return "" if error.errno in _GONE else "unknown"


class _Tree:
    """The descriptors of a walk, and what it may still spend."""

    def __init__(self, top: str | int, most: int) -> None:
        self._most = most
        self._entries = most
        self._opens = (most + 1) * _OPENED_PER_ENTRY
        # In the order of their last use.
        self._open: dict[Entry, int] = {}
        if isinstance(top, str):
            self._top = os.open(top, _LIST)
        else:
            self._top = os.open(".", _LIST, dir_fd=top)

    def close(self) -> None:
        for fd in (self._top, *self._open.values()):
            os.close(fd)
        self._open.clear()

    def look_into(self, directory: Entry | None) -> list[Entry]:
        """Return what lies in a directory, up to one entry too many. It may turn out to be closed."""
        found: list[Entry] = []
        try:
            fd = self._top if directory is None else self._reach(directory)
            with os.scandir(fd) as items:
                self._read(items, directory, found)
        except OSError as error:
            if directory is None or error.errno in _EXHAUSTED:
                raise
            directory.closed = error.errno not in _GONE
        return found

    def _read(
        self, items: Iterator[os.DirEntry[str]], directory: Entry | None, found: list[Entry]
    ) -> None:
        depth = 1 if directory is None else directory.depth + 1
        for item in items:
            # Mostly the directory itself says it, and nothing is asked of the kernel.
            if item.is_file(follow_symlinks=False):
                kind = "file"
            elif item.is_dir(follow_symlinks=False):
                kind = "directory"
            elif item.is_symlink():
                kind = "symlink"
            else:
                kind = _kind(item)
                if not kind:
                    continue
            self._entries -= 1
            if self._entries < 0:
                break
            found.append(Entry(directory, item.name, kind, depth))

    def stop_if_spent(self) -> None:
        if self._entries < 0 or self._opens < 0:
            raise TooMany(self._most)

    def check(self, entry: Entry) -> None:
        """Find out whether a directory can be entered, while the one that holds it is listed."""
        fd = self._top if entry.above is None else self._open[entry.above]
        how = os.R_OK | os.X_OK
        try:
            may = os.access(entry.name, how, dir_fd=fd, effective_ids=True, follow_symlinks=False)
        except OSError:
            may = False
        entry.closed = not may

    def _reach(self, directory: Entry) -> int:
        """A descriptor of the directory that can be listed, by way of the nearest one that is open."""
        above, names = directory.above, [directory.name]
        while above is not None and above not in self._open:
            names.append(above.name)
            above = above.above
        self._opens -= len(names)
        self.stop_if_spent()
        fd = self._top if above is None else self._touch(above)
        names.reverse()
        holder = directory.above
        if holder is not None and above is not holder:
            # Its other directories come next.
            fd = self._keep(holder, _descend(fd, names[:-1], _PASS))
        return self._keep(directory, os.open(names[-1], _LIST, dir_fd=fd))

    def _touch(self, directory: Entry) -> int:
        fd = self._open.pop(directory)
        self._open[directory] = fd
        return fd

    def _keep(self, directory: Entry, fd: int) -> int:
        self._open[directory] = fd
        if len(self._open) > _OPEN_AT_ONCE:
            os.close(self._open.pop(next(iter(self._open))))
        return fd
