"""What to show, hide or make up in the capsule's files: frozen values and their validation."""

from __future__ import annotations

import os

from capsule.base.errors import PolicyError
from capsule.base.text import is_below, shown
from capsule.base.values import Choice, Value

from .paths import absolute, check_path, inside_path
from .units import parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = 4096
OVERLAY_SIZE = 512 << 20
# Of one mount. The whole lies in memory twice while a capsule starts.
CONTENT_SIZE = 8 << 20
_GLOB = frozenset("*?[")


class MountKind(Choice):
    """What a `Mount` does; its words are the names of the functions that make one."""

    READ_ONLY = "read_only"
    READ_WRITE = "read_write"
    OVERLAY = "overlay"
    TMPFS = "tmpfs"
    HIDE = "hide"
    SYMLINK = "symlink"
    DIRECTORY = "directory"
    FILE = "file"
    CONTENT = "content"
    DEVICE = "device"

    @property
    def word(self) -> str:
        """As messages have it."""
        return self.value.replace("_", "-")


# Of these, the source is a path of the host.
FROM_HOST = (
    MountKind.READ_ONLY,
    MountKind.READ_WRITE,
    MountKind.OVERLAY,
    MountKind.FILE,
    MountKind.DEVICE,
)
# Of these, what lies below it is the host's as well.
TREES = (MountKind.READ_ONLY, MountKind.READ_WRITE, MountKind.OVERLAY)
# Nothing can lie below these.
LEAVES = (MountKind.SYMLINK, MountKind.FILE, MountKind.CONTENT)


class Mount(Value):
    """One thing to show, hide or make up. Made by the class methods, not by the constructor.

    Attributes:
        kind: what is done.
        at: the place inside the capsule, an absolute path; for a hide also a pattern.
        source: the path on the host, absolute; of a symlink its target; else "".
        size: bytes of a tmpfs, or of what an overlay may hold.
        mode: permission bits of a directory or of content.
        data: the bytes of content.
        keep: directory of the host that keeps the upper layer of an overlay, or "".
        noexec: nothing in it can be executed.
        optional: left out if the source is missing, or of a hide the place.
    """

    kind: MountKind
    at: str
    source: str = ""
    size: int = 0
    mode: int = 0
    data: bytes = b""
    keep: str = ""
    noexec: bool = False
    optional: bool = False

    def __post_init__(self) -> None:
        for field in ("noexec", "optional"):
            if not isinstance(self.__dict__[field], bool):
                message = f"mounts: {field} is not a bool"
                hint = f"write {field}=True, or leave it out"
                raise PolicyError(message, field="mounts", value=self.__dict__[field], hint=hint)
        if self.kind is MountKind.HIDE and not self.at.startswith("/"):
            return
        self._set("at", inside_path(self.at, "mounts"))
        _check_place(self)

    @property
    def is_pattern(self) -> bool:
        """Whether this hides what a pattern matches, and not the one place that it names."""
        return self.kind is MountKind.HIDE and (self.at[0] != "/" or not _GLOB.isdisjoint(self.at))

    @classmethod
    def read_only(
        cls,
        source: str | os.PathLike[str],
        at: str | None = None,
        *,
        noexec: bool = False,
        optional: bool = False,
    ) -> Mount:
        """Show a file or directory of the host, with all mounts below it, read-only.

        A relative *source* counts from the working directory at the time of this call. Without
        *at* it is shown at its own path. Enforced by mount_setattr(2) (5.12) or a remount of each
        mount (before), always nosuid and nodev.

        Raises:
            PolicyError: a path is empty, or *at* is relative.
        """
        place, path = _bind(source, at)
        return cls(MountKind.READ_ONLY, place, path, noexec=noexec, optional=optional)

    @classmethod
    def read_write(
        cls,
        source: str | os.PathLike[str],
        at: str | None = None,
        *,
        noexec: bool = False,
        optional: bool = False,
    ) -> Mount:
        """Show a file or directory of the host, writable with the rights of the caller.

        What is written there is written on the host, where it belongs to the caller. What a trusted
        tool would execute later is read-only all the same: see ``Policy.protect``. Started by root,
        the command acts there as the owner of *source* (an id-mapped mount, 5.12), but never as root.
        Otherwise as `read_only`.
        """
        place, path = _bind(source, at)
        return cls(MountKind.READ_WRITE, place, path, noexec=noexec, optional=optional)

    @classmethod
    def overlay(
        cls,
        source: str | os.PathLike[str],
        at: str | None = None,
        *,
        size: int | str | None = None,
        keep: str | os.PathLike[str] | None = None,
        noexec: bool = False,
        optional: bool = False,
    ) -> Mount:
        """Show a directory of the host writable, while the host's stays as it is.

        What is written goes to an upper layer: in memory, at most *size* bytes (512M), gone after the
        run; or in the directory *keep*, which is made if it is missing and may hold the layer of an
        earlier run, then without a limit of size. `Result.changes` lists what the layer holds. Enforced
        by overlayfs in the user namespace (5.11).

        Raises:
            PolicyError: a path is empty, *at* is relative, or the size is less than a page.
        """
        place, path = _bind(source, at)
        kept = "" if keep is None else absolute(check_path(keep, "mounts"), "mounts")
        if keep is not None and size is not None:
            hint = "leave one of them out: a layer that is kept has the size of its file system"
            message = "mounts: an overlay has either a size or a directory that keeps its layer"
            raise PolicyError(message, field="mounts", value=size, hint=hint)
        number = 0 if kept else OVERLAY_SIZE if size is None else _size(size)
        return cls(MountKind.OVERLAY, place, path, number, keep=kept, noexec=noexec, optional=optional)

    @classmethod
    def tmpfs(cls, at: str, size: int | str = "64M", *, noexec: bool = False) -> Mount:
        """Show an empty, writable, private directory in memory of at most *size* bytes.

        Enforced by tmpfs(5): a write beyond the size fails with ENOSPC.
        """
        return cls(MountKind.TMPFS, at, "", _size(size), noexec=noexec)

    @classmethod
    def hide(cls, pattern: str | os.PathLike[str], *, optional: bool = False) -> Mount:
        """Cover a file or directory with an empty one that cannot be written to.

        A path, from the working directory if it is relative, names one place, which must be there
        unless *optional*. A name without a slash, or a pattern with ``*``, ``?``, ``[...]`` or ``**``
        (any number of directories), names all that matches when the capsule starts: a relative one
        in whatever is shown beside the host's programs, at any depth; an absolute one where it says.
        Links are not followed.

        Raises:
            PolicyError: it is empty, holds a NUL byte, or names what Capsule makes itself.
        """
        word = check_path(pattern, "mounts")
        relative = not word.startswith("/")
        if relative and "/" in word and _GLOB.isdisjoint(word):
            word = absolute(word, "mounts")
        elif relative and (word in (".", "..") or "/../" in f"/{word}/"):
            hint = "write the path from the root, a name, or a pattern without '..'"
            message = f"mounts: not a name or a pattern: {word}"
            raise PolicyError(message, field="mounts", value=word, hint=hint)
        return cls(MountKind.HIDE, word, optional=optional)

    @classmethod
    def symlink(cls, target: str | os.PathLike[str], at: str) -> Mount:
        """Make a symbolic link; *target* is its text and need not exist."""
        return cls(MountKind.SYMLINK, at, check_path(target, "mounts"))

    @classmethod
    def directory(cls, at: str, mode: int = 0o755) -> Mount:
        """Make an empty directory, unless there is one."""
        return cls(MountKind.DIRECTORY, at, mode=_mode(mode))

    @classmethod
    def file(
        cls,
        source: str | os.PathLike[str],
        at: str,
        *,
        mode: int = 0o644,
        optional: bool = False,
    ) -> Mount:
        """Make a private copy of a file of the host as it is at the start, at most 8 MiB.

        It can be written to where the directory that holds it can, for instance in /tmp.

        Raises:
            PolicyError: a path is empty, *at* is relative, or (at the start) the file is too large.
        """
        path = absolute(check_path(source, "mounts"), "mounts")
        return cls(MountKind.FILE, at, path, mode=_mode(mode), optional=optional)

    @classmethod
    def content(cls, data: bytes | str, at: str, *, mode: int = 0o644) -> Mount:
        """Make a file that holds *data* (text as UTF-8), at most 8 MiB. Otherwise as `file`."""
        content = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
        if not isinstance(content, (bytes, bytearray, memoryview)):
            raise PolicyError(
                "mounts: content is not bytes or text",
                field="mounts",
                value=data,
                hint="pass bytes, or str, which is written as UTF-8",
            )
        if len(content) > CONTENT_SIZE:
            hint = "write it to a file and show that with read_only (--ro)"
            message = f"mounts: the content for {at} is larger than 8 MiB"
            raise PolicyError(message, field="mounts", value=len(content), hint=hint)
        return cls(MountKind.CONTENT, at, mode=_mode(mode), data=bytes(content))

    @classmethod
    def device(
        cls, node: str | os.PathLike[str], at: str | None = None, *, optional: bool = False
    ) -> Mount:
        """Show a device node of the host, or a directory of some below /dev, with the caller's rights.

        What the device offers is open to the command: /dev/kvm, /dev/fuse, a GPU's node.
        """
        place, path = _bind(node, at)
        return cls(MountKind.DEVICE, place, path, optional=optional)


def _bind(source: str | os.PathLike[str], at: str | None) -> tuple[str, str]:
    path = absolute(check_path(source, "mounts"), "mounts")
    return (path if at is None else at), path


def _size(size: int | str) -> int:
    number = parse_size(size, "size")
    if number < PAGE:
        hint = f"write {PAGE} bytes or more, for instance 64M"
        message = f"size: less than a page: {shown(size)}"
        raise PolicyError(message, field="size", value=size, hint=hint)
    return number


def _mode(mode: int) -> int:
    if type(mode) is not int or not 0 <= mode <= 0o777:
        hint = "write permission bits, for instance 0o644"
        message = f"mode: not permission bits: {shown(mode)}"
        raise PolicyError(message, field="mode", value=mode, hint=hint)
    return mode


def _check_place(mount: Mount) -> None:
    """Refuse a place of what Capsule makes itself."""
    at = mount.at
    if at == "/":
        hint = "a whole root directory is Policy(root=...) or --root"
        raise PolicyError("mounts: cannot replace /", field="mounts", value="/", hint=hint)
    in_proc = at.startswith("/proc/") and mount.kind is not MountKind.HIDE
    if at in ("/proc", "/dev", "/dev/pts") or at.startswith("/dev/pts/") or in_proc:
        hint = "Capsule makes its own; choose another place, for instance below /dev/shm"
        raise PolicyError(f"mounts: cannot replace {at}", field="mounts", value=at, hint=hint)


def in_force(mounts: Sequence[Mount]) -> tuple[Mount, ...]:
    """The mounts that count, in order: of several for one place the last one, at its own turn.

    Raises:
        PolicyError: a mount would hide one that was given before it, or lie in what is no directory.
    """
    last = {mount.at: number for number, mount in enumerate(mounts)}
    kept = tuple(mount for number, mount in enumerate(mounts) if last[mount.at] == number)
    for number, mount in enumerate(kept):
        for earlier in kept[:number]:
            _check_pair(earlier, mount)
    return kept


def _check_pair(earlier: Mount, later: Mount) -> None:
    if later.is_pattern or earlier.is_pattern:
        return
    if is_below(earlier.at, later.at):
        hint = f"give {later.at} before {earlier.at}"
        message = f"mounts: {_name(later)} would hide {_name(earlier)}, which was given before it"
        raise PolicyError(message, field="mounts", value=later.at, hint=hint)
    if earlier.kind in LEAVES and is_below(later.at, earlier.at):
        hint = f"choose another place, or leave {_name(earlier)} out"
        message = f"mounts: {_name(later)} cannot lie in {_name(earlier)}, which is no directory"
        raise PolicyError(message, field="mounts", value=later.at, hint=hint)


def _name(mount: Mount) -> str:
    return f"{mount.kind.word} {mount.at}" + (f" (from {mount.source})" if mount.source else "")
