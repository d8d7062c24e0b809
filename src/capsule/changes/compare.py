"""The upper layer of an overlay beside the directory that it lies over: what is different."""

from __future__ import annotations

import errno
import os
import stat

from capsule.files.guards import IN_GIT, match
from capsule.files.trees.cursor import Cursor, is_whiteout, open_file
from capsule.files.trees.walk import kind_of

from .values import Action, Change

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from capsule.policy.protected import Guard

# More than this takes no system call as one path. Its tree was made to be deep.
LONGEST_PATH = 4096
# What all paths that are listed have together. Also a bound of memory.
_ALL_PATHS = 64 << 20
# A file is compared with the host's if both have the same size, at most this; and so much in all.
COMPARED_FILE = 1 << 20
COMPARED_IN_ALL = 64 << 20

_OPAQUE = "user.overlay.opaque"
_WHITEOUT = "user.overlay.whiteout"


class Protected:
    """Which paths of an overlay are never applied.

    Attributes:
        in_repository: names that are protected directly in a repository, whatever that is called.

    Args:
        guards: as `guards.within` gives them for the lower directory.
    """

    def __init__(self, guards: Sequence[Guard]) -> None:
        self._guards = tuple(guards)
        # What lies deeper (info/attributes) makes git execute nothing that is not configured.
        self.in_repository = frozenset(
            name
            for guard in guards
            if guard.anywhere and guard.name in IN_GIT
            if "/" not in (name := guard.path.removeprefix(".git/"))
        )
        # Nearly no path has one of these in it, and the others need not be compared with all guards.
        self._first = frozenset(guard.path.partition("/")[0] for guard in guards)

    def __call__(self, path: str, kind: str) -> bool:
        """Return whether this path from the overlay's top is one, if that kind of thing is there."""
        if self._first.isdisjoint(path.split("/")):
            return False
        return match(path, self._guards, kind) is not None


def is_repository(*here: Cursor) -> bool:
    """Return whether git takes a directory for a repository; each of these shows a part of it."""

    def has(name: str) -> bool:
        return any(cursor.stat(name) is not None for cursor in here)

    return has("HEAD") and ((has("objects") and has("refs")) or has("commondir"))


class _Directory:
    """One that has still to be looked at.

    Attributes:
        depth: of the directory that holds it.
        name: in that; of the top "".
        path: from the top.
        merged: whether the lower has a directory there.
        opaque: whether the overlay shows nothing of the lower there.
        protected: whether all in it is.
        own: names in it that are, because it is a repository.
    """

    __slots__ = ("depth", "merged", "name", "opaque", "own", "path", "protected")

    def __init__(self, depth: int, name: str, path: str) -> None:
        self.depth = depth
        self.name = name
        self.path = path
        self.merged = True
        self.opaque = False
        self.protected = False
        self.own: frozenset[str] = frozenset()


class Comparison:
    """An upper layer beside the lower directory, depth first, one directory after the other."""

    def __init__(self, upper: Cursor, lower: Cursor, at: str, protected: Protected, most: int) -> None:
        self.changes: list[Change] = []
        self._upper = upper
        self._lower = lower
        self._at = at.rstrip("/")
        self._protected = protected
        self._most = most
        self._looked_at = 0
        self._characters = 0
        self._to_compare = COMPARED_IN_ALL
        self._waiting: list[_Directory] = []
        self._complete = True
        # More is neither looked at nor listed.
        self._is_full = False

    def run(self) -> bool:
        """Look at everything. Whether that was possible."""
        self._compare_top()
        self._waiting = [_Directory(0, "", "")]
        while self._waiting and not self._is_full:
            directory = self._waiting.pop()
            try:
                self._enter(directory)
                self._look(directory)
            except OSError as error:
                # Too few descriptors or no memory is no property of the tree.
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                    raise
                self._complete = False
        return self._complete and not self._is_full

    def _compare_top(self) -> None:
        there = stat.S_IMODE(os.fstat(self._lower.fd).st_mode)
        if self._upper.mode() != there:
            self._add(Change(self._at or "/", Action.MODIFIED, "directory", self._upper.mode()))

    def _enter(self, directory: _Directory) -> None:
        self._upper.rise(directory.depth)
        self._lower.rise(directory.depth)
        if directory.name:
            self._upper.down(directory.name)
            if directory.merged:
                self._lower.down(directory.name)

    def _look(self, directory: _Directory) -> None:
        fd = self._upper.open_list()
        try:
            if not directory.opaque:
                directory.opaque = _attribute(fd, _OPAQUE) == b"y"
            names = self._list(fd)
        finally:
            os.close(fd)
        directory.own = self._own_names(directory, names)
        entries = [self._entry(directory, name) for name in names]
        if directory.opaque and directory.merged and not self._is_full:
            self._find_uncovered(directory, set(names))
        self._waiting += [entry for entry in reversed(entries) if entry is not None]

    def _own_names(self, directory: _Directory, names: list[str]) -> frozenset[str]:
        """The names that are protected here alone.

        What the lower has counts even if the upper deletes it: that need not be applied as well.
        """
        own = self._protected.in_repository
        if own.isdisjoint(names) and not (directory.opaque and directory.merged):
            return frozenset()
        here = (self._upper, self._lower) if directory.merged else (self._upper,)
        return own if is_repository(*here) else frozenset()

    def _list(self, fd: int) -> list[str]:
        """The names in a directory: ordered, and at most so many as may still be looked at."""
        names: list[str] = []
        with os.scandir(fd) as entries:
            for entry in entries:
                self._looked_at += 1
                if self._looked_at > self._most:
                    self._is_full = True
                    break
                names.append(entry.name)
        return sorted(names)

    def _entry(self, directory: _Directory, name: str) -> _Directory | None:
        """Compare one name. A directory is returned, to be looked into later."""
        now = self._upper.stat(name)
        if now is None:
            return None  # somebody else has removed it
        was = self._lower.stat(name) if directory.merged else None
        path = f"{directory.path}/{name}" if directory.path else name
        if len(os.fsencode(path)) >= LONGEST_PATH:
            self._complete = False
            return None
        if self._is_whiteout(name, now):
            if was is not None:
                self._delete(path, was, protected=directory.protected or name in directory.own)
            return None
        kind = kind_of(now.st_mode)
        protected = name in directory.own or self._is_protected(path, now, was, directory)
        if was is None:
            self._list_change(path, Action.ADDED, now, protected=protected)
        elif kind != kind_of(was.st_mode) or self._differs(name, now, was):
            self._list_change(path, Action.MODIFIED, now, protected=protected)
        if kind != "directory":
            return None
        below = _Directory(directory.depth + bool(directory.name), name, path)
        below.merged = was is not None and kind_of(was.st_mode) == "directory"
        below.opaque = directory.opaque
        below.protected = protected
        return below

    def _find_uncovered(self, directory: _Directory, names: set[str]) -> None:
        """Take in what the lower has in an opaque directory and the upper has not."""
        fd = self._lower.open_list()
        try:
            there = self._list(fd)
        finally:
            os.close(fd)
        for name in there:
            was = None if name in names else self._lower.stat(name)
            if was is not None:
                path = f"{directory.path}/{name}" if directory.path else name
                self._delete(path, was, protected=directory.protected or name in directory.own)

    def _delete(self, path: str, was: os.stat_result, *, protected: bool) -> None:
        guarded = protected or self._protected(path, kind_of(was.st_mode))
        self._list_change(path, Action.DELETED, was, protected=guarded)

    def _is_protected(
        self, path: str, now: os.stat_result, was: os.stat_result | None, directory: _Directory
    ) -> bool:
        if directory.protected or self._protected(path, kind_of(now.st_mode)):
            return True
        return was is not None and self._protected(path, kind_of(was.st_mode))

    def _list_change(self, path: str, action: Action, info: os.stat_result, *, protected: bool) -> None:
        kind = kind_of(info.st_mode)
        size = info.st_size if kind in ("file", "symlink") else 0
        mode = stat.S_IMODE(info.st_mode)
        self._add(Change(f"{self._at}/{path}", action, kind, mode, size, protected))

    def _add(self, change: Change) -> None:
        self._characters += len(change.path)
        if len(self.changes) >= self._most or self._characters > _ALL_PATHS:
            self._is_full = True
        else:
            self.changes.append(change)

    def _is_whiteout(self, name: str, info: os.stat_result) -> bool:
        """A deletion is a device 0:0; or, where such cannot be made, an empty file with a mark."""
        if not stat.S_ISREG(info.st_mode) or info.st_size:
            return is_whiteout(info)
        return _attribute(f"/proc/self/fd/{self._upper.fd}/{name}", _WHITEOUT) is not None

    def _differs(self, name: str, now: os.stat_result, was: os.stat_result) -> bool:
        """Return whether two of one kind are different. What is not compared is."""
        kind = kind_of(now.st_mode)
        if kind == "symlink":
            texts = [os.readlink(name, dir_fd=cursor.fd) for cursor in (self._upper, self._lower)]
            return texts[0] != texts[1]
        if stat.S_IMODE(now.st_mode) != stat.S_IMODE(was.st_mode):
            return True
        if kind != "file":
            return False
        if now.st_size != was.st_size or now.st_size > min(COMPARED_FILE, self._to_compare):
            return True
        self._to_compare -= now.st_size
        try:
            return not self._is_same_content(name, now.st_size)
        except OSError:
            return True

    def _is_same_content(self, name: str, size: int) -> bool:
        with (
            os.fdopen(open_file(self._upper.fd, name, open_up=True), "rb") as here,
            os.fdopen(open_file(self._lower.fd, name), "rb") as there,
        ):
            return here.read(size + 1) == there.read(size + 1)


def _attribute(file: int | str, name: str) -> bytes | None:
    try:
        return os.getxattr(file, name, follow_symlinks=isinstance(file, int))
    except OSError:
        return None
