"""What a survey finds: frozen values."""

from __future__ import annotations

from capsule.base.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from capsule.policy.mounts import Mount


class Shown(Value):
    """What of the host a command needs to be seen, besides the system's programs.

    Attributes:
        path: where it is, inside as on the host.
        reason: why.
        source: where the path leads, without a symbolic link in it.
        is_directory: whether that is one.
    """

    path: str
    reason: str
    source: str
    is_directory: bool = True


class Found(Value):
    """A mount of the policy, and what its source is.

    Attributes:
        mount: the mount. One that is optional and whose source is missing is not found.
        path: the source on the host without a symbolic link in it; "" if the mount has none.
        is_directory: whether that is a directory; of a hide, whether its place is one.
        owner: (uid, gid) of the source.
        device: (major, minor) of a device node, or None.
        data: the bytes of a file or of content.
        keep: of an overlay the directory that keeps its upper layer, without a symbolic link; or "".
    """

    mount: Mount
    path: str = ""
    is_directory: bool = True
    owner: tuple[int, int] = (0, 0)
    device: tuple[int, int] | None = None
    data: bytes = b""
    keep: str = ""


class Guarded(Value):
    """A path in a writable tree that is protected while the command runs.

    Attributes:
        at: the place inside.
        read_only: false for a directory above what is protected, which only must not be renamed.
    """

    at: str
    read_only: bool = True


class Watch(Value):
    """A writable tree that is looked through when the capsule has ended.

    Attributes:
        at: its place inside.
        path: its place on the host, without a symbolic link in it.
        names: the guards in force in it; see `policy.protected`.
        identity: (device, inode) of it at the start.
        known: (path below it, what stood there) of all that matched a guard at the start.
        depth: how many levels below its top were looked through then; see `guarded.View`.
        deeper: whether the tree was deeper than that then.
    """

    at: str
    path: str
    names: tuple[str, ...]
    known: tuple[tuple[str, str], ...] = ()
    depth: int = 4
    deeper: bool = False
    identity: tuple[int, int] = (0, 0)


class Survey(Value):
    """All that was found out about the sources of a policy's mounts.

    Attributes:
        found: the mounts, in the policy's order, without patterns.
        hidden: (place inside, whether it is a directory) of what patterns match.
        guarded: what is protected in writable trees, parents before children.
        watched: the writable trees themselves.
        notes: what was done unasked, and why.
        root: the policy's root, without a symbolic link in its path; "" if it has none.
        cwd: likewise the working directory, if it is shown unasked.
    """

    found: tuple[Found, ...] = ()
    hidden: tuple[tuple[str, bool], ...] = ()
    guarded: tuple[Guarded, ...] = ()
    watched: tuple[Watch, ...] = ()
    notes: tuple[str, ...] = ()
    root: str = ""
    cwd: str = ""


def name_of(mount: Mount) -> str:
    """The beginning of a message about a mount."""
    place = (
        mount.at if not mount.source or mount.at == mount.source else f"{mount.source} at {mount.at}"
    )
    return f"mounts: {mount.kind.word} {place}"
