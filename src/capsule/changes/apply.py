"""Doing to a directory of the host what was done to an overlay over it."""

from __future__ import annotations

import errno
import os
import stat

from capsule.files.trees.cursor import Cursor, change_mode, open_file
from capsule.files.trees.walk import kind_of

from .compare import is_repository
from .values import Action

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .values import Change

_MODE = 0o777
_CHUNK = 1 << 24
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_HANDLE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Applier:
    """Goes along the upper layer and the lower directory at once; see `Layer.apply`.

    Args:
        upper: at the top of the layer.
        lower: at the top of the directory of the host.
        protected: asked for a path from the top, and what stands there, whether it stays as it is.
        in_repository: names that stay as they are directly in a repository.
    """

    def __init__(
        self,
        upper: Cursor,
        lower: Cursor,
        protected: Callable[[str, str], bool],
        in_repository: frozenset[str] = frozenset(),
    ) -> None:
        self._upper = upper
        self._lower = lower
        self._protected = protected
        self._in_repository = in_repository
        # Directories that are writable for as long as things are put into them.
        self._modes: list[tuple[list[str], int]] = []

    def run(self, changes: Iterable[tuple[Change, str]]) -> tuple[Change, ...]:
        """Apply changes, each with its path from the top, in the order of these paths."""
        applied = []
        try:
            for change, path in changes:
                if not change.protected and self._apply(change, path):
                    applied.append(change)
        except BaseException:
            try:
                self._set_modes()
            except OSError:
                pass  # what failed first is what the caller has to know
            raise
        self._set_modes()
        return tuple(applied)

    def _apply(self, change: Change, path: str) -> bool:
        """Return whether it was done: what is not wanted on the host is left out."""
        names = path.split("/") if path else []
        try:
            if not names:
                return self._change_top(change.mode)
            self._lower.go(names[:-1])
            if change.action is Action.DELETED:
                return self._remove(names[-1], path)
            self._upper.go(names[:-1])
            return self._put(change, path, names[-1])
        except OSError as error:
            raise OSError(error.errno, error.strerror, change.path) from error

    def _put(self, change: Change, path: str, name: str) -> bool:
        if change.type == "directory":
            return self._put_directory(change, path, name)
        if change.type == "file":
            return self._put_file(change, path, name)
        if change.type == "symlink":
            return self._put_link(path, name)
        return False

    def _change_top(self, mode: int) -> bool:
        self._lower.go([])
        self._permit(self._lower.fd, [], mode)
        return True

    # --- directories

    def _put_directory(self, change: Change, path: str, name: str) -> bool:
        was = self._lower.stat(name)
        if was is None or not stat.S_ISDIR(was.st_mode):
            if was is not None:
                os.unlink(name, dir_fd=self._lower.fd)
            os.mkdir(name, 0o700, dir_fd=self._lower.fd)
        handle = os.open(name, _HANDLE | os.O_DIRECTORY, dir_fd=self._lower.fd)
        try:
            if was is None or not stat.S_ISDIR(was.st_mode):
                self._give(handle, was)
            self._permit(handle, path.split("/"), change.mode)
        finally:
            os.close(handle)
        return True

    def _permit(self, handle: int, names: list[str], mode: int) -> None:
        """Give a directory its mode, but what its owner needs to fill it with until the end."""
        # Its set-group-ID and sticky bits are the host's: neither added nor taken away.
        special = stat.S_IMODE(os.fstat(handle).st_mode) & ~_MODE
        mode = special | (mode & _MODE)
        change_mode(handle, mode | 0o700)
        if mode & 0o700 != 0o700:
            self._modes.append((names, mode))

    def _set_modes(self) -> None:
        # Deepest first: one that was closed could not be gone through.
        while self._modes:
            names, mode = self._modes.pop()
            self._lower.go(names)
            change_mode(self._lower.fd, mode)

    # --- files and links

    def _put_file(self, change: Change, path: str, name: str) -> bool:
        source = open_file(self._upper.fd, name, open_up=True)
        temporary = _unused_name()
        try:
            target = os.open(temporary, _NEW, 0o600, dir_fd=self._lower.fd)
            try:
                _copy(source, target)
                self._give(target, self._lower.stat(name))
                os.fchmod(target, change.mode & _MODE)
                done = self._replace(temporary, name, path)
            except BaseException:
                self._discard(temporary)
                raise
            finally:
                os.close(target)
        finally:
            os.close(source)
        return done

    def _put_link(self, path: str, name: str) -> bool:
        text = os.readlink(name, dir_fd=self._upper.fd)
        if not stays_below(text, path.count("/")):
            return False
        temporary = _unused_name()
        os.symlink(text, temporary, dir_fd=self._lower.fd)
        try:
            handle = os.open(temporary, _HANDLE, dir_fd=self._lower.fd)
            try:
                self._give(handle, self._lower.stat(name))
            finally:
                os.close(handle)
            return self._replace(temporary, name, path)
        except BaseException:
            self._discard(temporary)
            raise

    def _replace(self, temporary: str, name: str, path: str) -> bool:
        """Rename it over what is there. Of a directory that holds something protected nothing goes."""
        there = self._lower.stat(name)
        if there is not None and stat.S_ISDIR(there.st_mode) and not self._remove(name, path):
            self._discard(temporary)
            return False
        fd = self._lower.fd
        os.rename(temporary, name, src_dir_fd=fd, dst_dir_fd=fd)
        return True

    def _discard(self, temporary: str) -> None:
        try:
            os.unlink(temporary, dir_fd=self._lower.fd)
        except FileNotFoundError:
            pass  # interrupted when it had its name already

    def _give(self, handle: int, was: os.stat_result | None) -> None:
        """Nothing becomes root's because root called: it goes to whom the place belongs."""
        if os.geteuid() == 0:
            owner = was or os.fstat(self._lower.fd)
            if (owner.st_uid, owner.st_gid) != (0, 0):
                # Not fchown(2), which refuses what was opened with O_PATH. A link itself is changed.
                os.chown(f"/proc/self/fd/{handle}", owner.st_uid, owner.st_gid)

    # --- deletions

    def _remove(self, name: str, path: str) -> bool:
        """Remove what is there. Whether nothing protected was in it, and so nothing is left."""
        was = self._lower.stat(name)
        if was is None:
            return True
        if self._protected(path, kind_of(was.st_mode)) or name in self._own_names(self._lower):
            return False
        if not stat.S_ISDIR(was.st_mode):
            os.unlink(name, dir_fd=self._lower.fd)
            return True
        top = os.open(name, _HANDLE | os.O_DIRECTORY, dir_fd=self._lower.fd)
        try:
            with Cursor(top, open_up=True) as cursor:
                is_empty = self._empty(cursor, path)
        finally:
            os.close(top)
        if is_empty:
            os.rmdir(name, dir_fd=self._lower.fd)
        return is_empty

    def _empty(self, cursor: Cursor, path: str) -> bool:
        """Remove all below, without a call for each level. Whether that was all."""
        device = os.fstat(cursor.fd).st_dev
        levels = [(_names(cursor), path, self._own_names(cursor), True)]
        while True:
            names, above, own, is_empty = levels[-1]
            name = next(names, None)
            if name is None:
                levels.pop()
                if not levels:
                    return is_empty
                is_empty = _leave(cursor, is_empty=is_empty) and levels[-1][3]
                levels[-1] = (*levels[-1][:3], is_empty)
                continue
            was = cursor.stat(name)
            here = f"{above}/{name}"
            if was is None:
                continue
            if name in own or self._protected(here, kind_of(was.st_mode)):
                levels[-1] = (names, above, own, False)
            elif not stat.S_ISDIR(was.st_mode):
                os.unlink(name, dir_fd=cursor.fd)
            elif was.st_dev != device:
                raise OSError(errno.EXDEV, "another file system is mounted in it")
            else:
                cursor.down(name)
                levels.append((_names(cursor), here, self._own_names(cursor), True))

    def _own_names(self, cursor: Cursor) -> frozenset[str]:
        """The names that stay in this directory; asked before anything in it is removed."""
        own = self._in_repository
        return own if own and is_repository(cursor) else frozenset()


def _leave(cursor: Cursor, *, is_empty: bool) -> bool:
    """Go up, and remove the directory that was left if there is nothing in it."""
    name = cursor.names[-1]
    cursor.up()
    if is_empty:
        os.rmdir(name, dir_fd=cursor.fd)
    return is_empty


def _names(cursor: Cursor) -> Iterator[str]:
    fd = cursor.open_list()
    try:
        return iter(os.listdir(fd))
    finally:
        os.close(fd)


def _unused_name() -> str:
    return f".capsule-{os.urandom(8).hex()}"


def stays_below(text: str, depth: int) -> bool:
    """Return whether a link's text cannot lead out of the tree, so many directories below the top.

    ".." may stand only at the beginning, where it is the link's own directory that is left: behind the
    name of another link it would lead out of where that one leads to.
    """
    names = [name for name in text.split("/") if name not in ("", ".")]
    ups = 0
    while ups < len(names) and names[ups] == "..":
        ups += 1
    return not text.startswith("/") and ups <= depth and ".." not in names[ups:]


def _copy(source: int, target: int) -> None:
    """Copy the content; holes stay holes, so that it takes no more room than in the layer."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    start = 0
    while start < size:
        try:
            start = os.lseek(source, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # a hole up to the end
            raise
        end = min(size, os.lseek(source, start, os.SEEK_HOLE))
        os.lseek(target, start, os.SEEK_SET)
        while start < end:
            count = os.sendfile(target, source, start, min(_CHUNK, end - start))
            if not count:
                return  # somebody has made it shorter meanwhile
            start += count
