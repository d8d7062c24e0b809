"""The directory that keeps an overlay's upper layer: whose it is, what is in it, who uses it.

It holds a marker that says over which directory the layer lies, and two directories of overlayfs: the
layer itself and one to work in. The kernel empties what lies there under the names that it uses, so a
directory with anything else in it is refused.
"""

from __future__ import annotations

import errno
import os
import stat

from capsule.base.errors import PolicyError
from capsule.base.text import printable
from capsule.files.trees.aliases import lies_in
from capsule.files.trees.cursor import change_mode, open_directory
from capsule.host.ids import NOBODY

from .lookup import follow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from capsule.policy.mounts import Mount

# Says in a directory that keeps an upper layer over which directory that lies.
_MARKER = "capsule-layer"
# Of overlayfs; its own directory lies in the second.
_UPPER, _WORK = "upper", "work"
_LONGEST_MARKER = 4097


def keep_directory(mount: Mount, lower: str, what: str, uid: int, *, trusted: bool) -> str:
    """The directory that keeps an overlay's upper layer, without links. Nothing is made.

    Args:
        mount: the overlay.
        lower: path of its lower directory, without a link in it.
        what: the beginning of an error's message.
        uid: the caller.
        trusted: as for `follow`.

    Raises:
        PolicyError: it is a link, another's, open to others, holds other things, or cannot be made.
    """
    path = mount.keep
    above = follow(os.path.dirname(path), what, trusted=trusted)
    place = f"{above.path.rstrip('/')}/{os.path.basename(path)}"
    if above.kind == stat.S_IFDIR and not os.path.lexists(place):
        return place
    try:
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot_keep(what, place, error) from None
    try:
        _check_owner(os.fstat(fd), path, what, uid)
        if os.listdir(fd):
            check_marker(fd, place, lower, what)
    finally:
        os.close(fd)
    return place


def _check_owner(found: os.stat_result, path: str, what: str, uid: int) -> None:
    foreign = found.st_uid not in _owners(uid)
    if foreign or found.st_mode & 0o022:
        why = f"belongs to uid {found.st_uid}" if foreign else "can be written to by others"
        hint = "name a directory that only you can write to"
        message = f"{what}: cannot keep its upper layer in {path}, which {why}"
        raise PolicyError(message, field="mounts", value=path, hint=hint)


def _owners(uid: int) -> tuple[int, ...]:
    """Whose such a directory may be: one of root's is given to whom root's capsules run as."""
    return (uid, NOBODY) if uid == 0 else (uid,)


def check_kept(kept: str, apart: list[str], what: str) -> None:
    """An upper layer must be out of the reach of all but its overlay.

    Raises:
        PolicyError: it overlaps a lower or an upper layer, or what the command can write to.
    """
    for other in apart:
        if lies_in(kept, other) or lies_in(other, kept):
            hint = "keep it in a directory that no mount shows"
            message = f"{what}: its upper layer in {kept} overlaps {other}"
            raise PolicyError(message, field="mounts", value=kept, hint=hint)


def check_lower(lower: str, writable: list[str], what: str) -> None:
    """Refuse a lower directory that can be written to: its changes are in no layer.

    Raises:
        PolicyError: it overlaps what the command can write to.
    """
    for path in writable:
        is_inner = lies_in(lower, path)
        if is_inner or lies_in(path, lower):
            verb = "lies in" if is_inner else "holds"
            message = f"{what}: its lower directory {lower} {verb} {path}, which is writable"
            hint = "show only one of them, or that one read-only (--ro)"
            raise PolicyError(message, field="mounts", value=lower, hint=hint)


def check_marker(kept: int, path: str, lower: str, what: str) -> None:
    """Check that a directory keeps an upper layer of this lower directory.

    The kernel empties what lies in a directory for a layer under the names that it uses.

    Args:
        kept: a descriptor of the directory.
        path: its path.
        lower: the path of the lower directory.
        what: the beginning of an error's message.

    Raises:
        PolicyError: it does not.
    """
    found = _marker(kept)
    if found == os.fsencode(lower) + b"\n":
        return
    why = "which holds other things"
    if found is not None:
        other = os.fsdecode(found).removesuffix("\n")
        why = f"which keeps a layer of {printable(other)}"
    message = f"{what}: cannot keep its upper layer in {printable(path)}, {why}"
    raise PolicyError(message, field="mounts", value=path, hint="name an empty directory")


def _marker(kept: int) -> bytes | None:
    """Return what the marker in such a directory says; None if there is none of the caller's making."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(_MARKER, flags, dir_fd=kept)
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        ours = found.st_uid in _owners(os.geteuid())
        is_marker = ours and found.st_mode == stat.S_IFREG | 0o600
        return os.read(fd, _LONGEST_MARKER) if is_marker else None
    finally:
        os.close(fd)


def lock(kept: str, lower: str) -> int:
    """A descriptor of the directory that keeps a layer: as long as it is open, that is reserved.

    Raises:
        PolicyError: it cannot be made or opened, or is in use.
    """
    what = f"mounts: overlay {printable(lower)}"
    try:
        fd = _open_kept(kept)
    except OSError as error:
        raise _cannot_keep(what, kept, error) from None
    try:
        reserve(fd, kept, what)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _cannot_keep(what: str, path: str, error: OSError) -> PolicyError:
    why = error.strerror
    if error.errno in (errno.ELOOP, errno.ENOTDIR) and os.path.islink(path):
        why = "it is a symbolic link"
    hint = "name a directory of your own, or one to be made in a directory that exists"
    message = f"{what}: cannot keep its upper layer in {printable(path)}: {why}"
    return PolicyError(message, field="mounts", value=path, hint=hint)


def _open_kept(kept: str) -> int:
    """Open a directory that keeps a layer, made if it is missing; no link is followed."""
    parent, name = os.path.split(kept)
    above = open_directory(parent)
    try:
        try:
            os.mkdir(name, 0o700, dir_fd=above)
        except FileExistsError:
            pass
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=above)
    finally:
        os.close(above)


def reserve(kept: int, path: str, what: str) -> None:
    """Keep others from a directory that keeps a layer: flock(2), which ends with the descriptor.

    A layer that two overlays write to is undefined, and so is what is read of it meanwhile.

    Raises:
        PolicyError: a capsule uses it, or a layer that is open.
    """
    import fcntl

    try:
        fcntl.flock(kept, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        message = f"{what}: another capsule, or an open layer, uses {printable(path)}"
        hint = "wait for the end of it, or keep the layer in another directory"
        raise PolicyError(message, field="mounts", value=path, hint=hint) from None


def take(fd: int, kept: str, lower: str, owner: tuple[int, int] | None) -> None:
    """An empty directory is given to the command and marked; another one has to be so marked.

    Raises:
        PolicyError: it is not, or cannot be.
    """
    what = f"mounts: overlay {printable(lower)}"
    try:
        if os.listdir(fd):
            check_marker(fd, kept, lower, what)
        else:
            _mark(fd, lower, owner)
    except OSError as error:
        raise _cannot_keep(what, kept, error) from None


def _mark(fd: int, lower: str, owner: tuple[int, int] | None) -> None:
    if owner is not None and os.fstat(fd).st_uid == 0:
        os.fchown(fd, *owner)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    marker = os.open(_MARKER, flags, 0o600, dir_fd=fd)
    try:
        os.fchmod(marker, 0o600)  # whatever the umask is
        os.write(marker, os.fsencode(lower) + b"\n")
    finally:
        os.close(marker)


def open_upper(keep: str) -> int:
    """Open the upper layer in a directory that keeps one, by the directory's link-free path."""
    return open_directory(os.path.join(keep, _UPPER))


def obstacle(keep: str) -> str | None:
    """Return what lies where overlayfs wants a directory of its own, and is none; or None."""
    for name in (_UPPER, _WORK):
        part = os.path.join(keep, name)
        if os.path.lexists(part) and (os.path.islink(part) or not os.path.isdir(part)):
            return part
    return None


def make_removable(keep: str) -> None:
    """Open up the one directory in such a directory that the kernel closes even to its owner.

    With it, ``rm -r`` of the whole would fail. The next overlay makes it anew.
    """
    try:
        fd = open_directory(os.path.join(keep, _WORK, "work"))
    except OSError:
        return  # there is none yet
    try:
        change_mode(fd, 0o700)
    except PermissionError:
        pass  # an id of a range owns it: whoever has that can remove it
    finally:
        os.close(fd)
