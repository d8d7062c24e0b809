"""A place in a directory tree that others may write to, moved step by step without following a link."""

from __future__ import annotations

import errno
import os
import stat

from .walk import kind_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_PASS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

# What a way is for: permissions of the owner's for the directory where it ends.
SEARCH = stat.S_IXUSR
LIST = stat.S_IRUSR | stat.S_IXUSR
WRITE = stat.S_IWUSR | stat.S_IXUSR


def is_whiteout(info: os.stat_result) -> bool:
    """Return whether it is the device 0:0, with which an overlay says that something was deleted."""
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def change_mode(fd: int, mode: int) -> None:
    """chmod(2) of what a descriptor is, also one that was opened with O_PATH: not of a link."""
    os.chmod(f"/proc/self/fd/{fd}", mode)


def open_directory(path: str) -> int:
    """Open a directory by its absolute path, component by component.

    Raises:
        OSError: of these, NotADirectoryError also if a component is a symbolic link.
    """
    fd = os.open("/", _PASS)
    for name in path.split("/"):
        if name:
            try:
                below = os.open(name, _PASS, dir_fd=fd)
            except OSError as error:
                raise OSError(error.errno, error.strerror, path) from None
            finally:
                os.close(fd)
            fd = below
    return fd


def open_file(directory: int, name: str, *, open_up: bool = False) -> int:
    """Open a regular file in a directory for reading; nothing else can be opened, nor acts.

    Args:
        directory: a descriptor.
        name: of the file.
        open_up: give the caller, for this moment, permission to read a file that is the caller's own.

    Raises:
        OSError: ELOOP for a symbolic link, EISDIR for a directory, EINVAL for anything else.
    """
    handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        info = os.fstat(handle)
        if is_whiteout(info):
            raise FileNotFoundError(errno.ENOENT, "deleted", name)
        if not stat.S_ISREG(info.st_mode):
            kind = kind_of(info.st_mode)
            codes = {"symlink": errno.ELOOP, "directory": errno.EISDIR}
            code = codes.get(kind, errno.EINVAL)
            raise OSError(code, f"not a regular file but a {kind}", name)
        mode = stat.S_IMODE(info.st_mode)
        if not open_up or mode & stat.S_IRUSR or info.st_uid != os.geteuid():
            return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
        change_mode(handle, mode | stat.S_IRUSR)
        try:
            return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            change_mode(handle, mode)
    finally:
        os.close(handle)


class Way:
    """The way from a tree's top down to one directory in it, over no link.

    A directory that is the caller's own and closed to it, as whoever ran as the caller may have left
    it, can be opened up for as long as this lasts; it gets its mode back. One that is open is not
    touched, not even its times.

    Attributes:
        fd: the directory where the way ends, opened with O_PATH.
    """

    def __init__(self, top: int, path: str = "", need: int = SEARCH, *, open_up: bool = False) -> None:
        """Go there.

        Args:
            top: descriptor of a directory, which stays the caller's and open.
            path: from there, without empty components, ``.`` and ``..``; empty for *top* itself.
            need: `SEARCH`, `LIST` or `WRITE`; the directories on the way are searched.
            open_up: give the caller these permissions where it lacks them and can.

        Raises:
            OSError: a directory is missing, or a link (ENOTDIR), or may not be searched.
        """
        self._open_up = open_up
        # What gets its mode back, and that mode.
        self._opened: list[tuple[int, int]] = []
        self.fd = os.dup(top)
        try:
            self._permit(SEARCH)
            for name in path.split("/") if path else ():
                self.down(name)
            self._permit(need)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Way:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def down(self, name: str) -> None:
        """Go one directory further."""
        below = os.open(name, _PASS, dir_fd=self.fd)
        os.close(self.fd)
        self.fd = below
        self._permit(SEARCH)

    def close(self) -> None:
        """Give the directories their modes back, the last one first."""
        os.close(self.fd)
        while self._opened:
            fd, mode = self._opened.pop()
            _try_mode(fd, mode)
            os.close(fd)

    def _permit(self, need: int) -> None:
        if not self._open_up:
            return
        info = os.fstat(self.fd)
        mode = stat.S_IMODE(info.st_mode)
        if mode & need != need and info.st_uid == os.geteuid():
            self._opened.append((os.dup(self.fd), mode))
            _try_mode(self.fd, mode | need)


def _try_mode(fd: int, mode: int) -> None:
    """Change it, or leave it: whoever needs the permission finds out that it is not there."""
    try:
        change_mode(fd, mode)
    except OSError:
        pass


class Cursor:
    """A directory in a tree, and the way back to its top. Holds one descriptor, however deep it is.

    Attributes:
        fd: the directory where this is, opened with O_PATH.
        names: the way to there from the top.
    """

    def __init__(self, top: int, *, open_up: bool = False) -> None:
        """Start at the top.

        Args:
            top: descriptor of the top, which stays the caller's and open.
            open_up: give the caller permission for the directories on the way that are the caller's
                own; each gets its mode back when it is left.
        """
        self.fd = os.dup(top)
        self.names: list[str] = []
        self._top = top
        self._open_up = open_up
        # Of the directories above: device, inode, and the mode that it gets back, or -1.
        self._above: list[tuple[int, int, int]] = []
        self._mode = self._permit()

    def __enter__(self) -> Cursor:
        return self

    def __exit__(self, *_exception: object) -> None:
        """Leave all directories, even where going up fails because others rearrange the tree."""
        try:
            while self.names:
                self.up()
        except OSError:
            pass
        finally:
            self._restore()
            os.close(self.fd)

    def down(self, name: str) -> None:
        """Enter a directory. A symbolic link is none."""
        fd = os.open(name, _PASS, dir_fd=self.fd)
        info = os.fstat(self.fd)
        self._above.append((info.st_dev, info.st_ino, self._mode))
        os.close(self.fd)
        self.fd = fd
        self.names.append(name)
        self._mode = self._permit()

    def up(self) -> None:
        """Go to the directory above.

        Raises:
            OSError: ESTALE, somebody has moved directories: this one is in the tree no more.
        """
        device, inode, mode = self._above[-1]
        parent = self._parent()
        info = os.fstat(parent)
        if (info.st_dev, info.st_ino) != (device, inode):
            os.close(parent)
            raise OSError(errno.ESTALE, "moved while it was looked at", "/".join(self.names))
        self._restore()
        os.close(self.fd)
        self._above.pop()
        self.names.pop()
        self.fd = parent
        self._mode = mode

    def rise(self, depth: int) -> None:
        """Go up until so many levels below the top."""
        while len(self.names) > depth:
            self.up()

    def go(self, names: Sequence[str]) -> None:
        """Go to the directory of that path from the top, over the directory that both ways share."""
        shared = 0
        for here, there in zip(self.names, names, strict=False):
            if here != there:
                break
            shared += 1
        self.rise(shared)
        for name in names[shared:]:
            self.down(name)

    def mode(self) -> int:
        """The permission bits that this directory has, or had before this opened it up."""
        return self._mode if self._mode >= 0 else stat.S_IMODE(os.fstat(self.fd).st_mode)

    def open_list(self) -> int:
        """A new descriptor of the directory, to be read and for its attributes."""
        return os.open(".", _READ | os.O_DIRECTORY, dir_fd=self.fd)

    def stat(self, name: str) -> os.stat_result | None:
        """Return what stands under a name here, not what it may be a link to; None if nothing."""
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _parent(self) -> int:
        try:
            return os.open("..", _PASS, dir_fd=self.fd)
        except PermissionError:
            # This one may not be searched, and so not even left. Down from the top it is then.
            fd = os.dup(self._top)
            for name in self.names[:-1]:
                above = fd
                try:
                    fd = os.open(name, _PASS, dir_fd=above)
                finally:
                    os.close(above)
            return fd

    def _permit(self) -> int:
        """Make this directory readable, searchable and writable. The mode that it had, or -1."""
        info = os.fstat(self.fd)
        mode = stat.S_IMODE(info.st_mode)
        if not self._open_up or mode & 0o700 == 0o700 or info.st_uid != os.geteuid():
            return -1
        try:
            change_mode(self.fd, mode | 0o700)
        except OSError:
            return -1  # it stays closed, and whoever looks into it finds that out
        return mode

    def _restore(self) -> None:
        if self._mode >= 0:
            change_mode(self.fd, self._mode)
            self._mode = -1
