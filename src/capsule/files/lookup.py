"""Where a path of the host leads, and what is there: looked up with the caller's rights.

An earlier program may have written where this one's sources lie. A symbolic link is followed only where
it cannot be of such a program's making, and what is found has a path without links, which the launcher
opens as such: who swaps a part of it for a link later gets nothing shown.
"""

from __future__ import annotations

import errno
import os
import stat

from capsule.base.errors import PolicyError
from capsule.base.text import is_below
from capsule.host.ids import has_initial_ids
from capsule.policy.mounts import CONTENT_SIZE, MountKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from capsule.policy.mounts import Mount

_LONGEST_CHAIN = 40
_MISSING = (errno.ENOENT, errno.ENOTDIR)


class Place:
    """Where a path leads.

    Attributes:
        path: without a link in it, as far as it could be followed.
        stat: what lstat(2) says, or None.
        error: why it could not be followed to its end, or 0.
        last_link: the link that its last component is, or "".
    """

    __slots__ = ("error", "last_link", "path", "stat")

    def __init__(self, path: str, found: os.stat_result | None, error: int, last_link: str) -> None:
        self.path = path
        self.stat = found
        self.error = error
        self.last_link = last_link

    @property
    def is_missing(self) -> bool:
        """Whether there is nothing, and not something that the caller may not see."""
        return self.error in _MISSING

    @property
    def kind(self) -> int:
        """The file type of stat(2), or 0."""
        return 0 if self.stat is None else stat.S_IFMT(self.stat.st_mode)


def trusts_root(uid: int, *, host_root: bool) -> bool:
    """Return whether only others than a capsule's command can act as uid 0 of the host.

    In a container's user namespace its root is an ordinary caller, whose command has the same id.
    """
    if host_root:
        return False
    return uid != 0 or has_initial_ids(unsure=False)


def follow(path: str, what: str, *, trusted: bool) -> Place:
    """Follow a normal absolute path component by component.

    Args:
        path: the path.
        what: for whom: the beginning of an error's message.
        trusted: whether root's links may be followed; see `trusts_root`.

    Raises:
        PolicyError: there is a symbolic link that a program may have put there.
    """
    here, last_link, hops = "", "", 0
    left = _reversed_parts(path)
    top = os.lstat("/")
    safe = trusted and _is_roots(top)
    found = top
    while left:
        name = left.pop()
        if name == "..":
            here = os.path.dirname(here).rstrip("/")
            found = os.lstat(here or "/")
            continue
        place = f"{here}/{name}"
        try:
            found = os.lstat(place)
        except OSError as error:
            rest = "/".join([place, *reversed(left)])
            return Place(rest, None, error.errno or errno.EIO, last_link)
        if not stat.S_ISLNK(found.st_mode):
            here = place
            safe = safe and _is_roots(found)
            continue
        target = os.readlink(place)
        if not safe or found.st_uid != 0:
            raise _planted(path, place, target, what)
        if not left and not last_link:
            last_link = place
        hops += 1
        if hops > _LONGEST_CHAIN:
            return Place(place, None, errno.ELOOP, last_link)
        left += _reversed_parts(target)
        if target.startswith("/"):
            here, safe = "", trusted and _is_roots(top)
    return Place(here or "/", found, 0, last_link)


def _reversed_parts(path: str) -> list[str]:
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _is_roots(found: os.stat_result) -> bool:
    """Return whether only root can replace what lies in a directory."""
    mode = found.st_mode
    return found.st_uid == 0 and (not mode & 0o022 or bool(mode & stat.S_ISVTX))


def _planted(path: str, link: str, target: str, what: str) -> PolicyError:
    message = f"{what}: {link} is a symbolic link to {target}; an earlier program may have put it there"
    try:
        real = os.path.realpath(path)
    except OSError:
        real = target
    hint = f"name {real} itself if you mean it"
    return PolicyError(message, field=what.partition(":")[0], value=path, hint=hint)


def read_file(place: Place, what: str, left: int) -> bytes:
    """The content of a regular file, at most *left* bytes.

    Raises:
        PolicyError: it cannot be read, or is too large.
    """
    try:
        data, size = read_some(place.path, left + 1)
    except OSError as error:
        message = f"{what}: cannot read {place.path}: {error.strerror}"
        hint = "name a regular file that you may read"
        raise PolicyError(message, field="mounts", value=place.path, hint=hint) from None
    if len(data) > left:
        hint = "show it with read_only (--ro) instead, which copies nothing"
        message = f"{what}: {place.path} has {max(size, len(data))} bytes; all copied files together"
        message += f" may have {CONTENT_SIZE >> 20} MiB"
        raise PolicyError(message, field="mounts", value=size, hint=hint)
    return data


def read_some(path: str, most: int) -> tuple[bytes, int]:
    """(The beginning of a regular file, its size). Through no link, and waiting for nobody."""
    from capsule.files.trees.walk import open_beneath

    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = open_beneath(root, path[1:], os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    finally:
        os.close(root)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file any more")
        data = bytearray()
        # A file may grow, and one of a pseudo file system has no size.
        while len(data) < most and (part := os.read(fd, most - len(data))):
            data += part
        return bytes(data), found.st_size
    finally:
        os.close(fd)


def _is_of_devices(place: Place) -> bool:
    """Return whether a directory is part of /dev itself (not of /dev/shm), and holds only devices."""
    assert place.stat is not None
    if not is_below(place.path, "/dev") or place.path == "/dev":
        return False
    if place.stat.st_dev != os.stat("/dev").st_dev:
        return False
    kinds = (stat.S_ISCHR, stat.S_ISBLK, stat.S_ISDIR, stat.S_ISLNK)
    with os.scandir(place.path) as entries:
        modes = [entry.stat(follow_symlinks=False).st_mode for entry in entries]
    return all(any(kind(mode) for kind in kinds) for mode in modes)


def check_kind(mount: Mount, place: Place, what: str) -> None:
    """Refuse what a mount of this kind cannot show, or what gives away more than its name says.

    Raises:
        PolicyError: that is so.
    """
    kind, path = place.kind, place.path
    wrong = hint = ""
    if mount.kind is MountKind.OVERLAY and kind != stat.S_IFDIR:
        wrong, hint = (
            "is not a directory",
            "show it with read_only (--ro) or copy it with file (--file)",
        )
    elif mount.kind is MountKind.DEVICE:
        if kind == stat.S_IFDIR and not _is_of_devices(place):
            wrong = "is not a directory below /dev with nothing but devices in it"
            hint = "name the device nodes, or show it with --ro or --rw"
        elif kind not in (stat.S_IFDIR, stat.S_IFCHR, stat.S_IFBLK):
            wrong, hint = "is not a device", "show it with read_only (--ro)"
    elif mount.kind is MountKind.FILE and kind != stat.S_IFREG:
        wrong, hint = "is not a regular file", "only those can be copied: show it with another mount"
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        wrong, hint = "is a device", "show it with device (--dev) if you mean it"
    elif kind == stat.S_IFSOCK and place.last_link:
        wrong = f"is a socket behind the symbolic link {place.last_link}"
        hint = f"name {path} itself if you mean it"
    if wrong:
        message = f"{what}: {path} {wrong}"
        raise PolicyError(message, field="mounts", value=mount.source, hint=hint)
