"""What lies on the host where a policy points: read with the caller's rights, before the plan."""

from __future__ import annotations

import os

from capsule.base.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from capsule.policy.mounts import Mount

# Of a directory that is shown unasked, which happens at each start.
_TOP_ENTRIES = 512


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
        names: the guards in force in it; see `guards`.
        identity: (device, inode) of it at the start.
        known: (path below it, what stood there) of all that matched a guard at the start.
        depth: how many levels below its top were looked through then; see `sightings.View`.
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


def _has_relative(table: bytes) -> bool:
    """Whether a socket was bound by a relative name: the kernel keeps it so, and it may lie anywhere.

    What is no plain line, because of a newline in a name, may be one.
    """
    # The last line has an end, the first is the heading.
    for line in table.split(b"\n")[1:-1]:
        words = line.split(None, 7)
        if len(words) < 7:
            return True
        # Of a socket without a name the inode's number is the end. Blanks may begin a name.
        name = line[line.index(words[6], 52 if len(line) > 52 else 0) + len(words[6]) :]
        if name and name[:2] not in (b" /", b" @"):
            return True
    return False


def unasked_sockets(top: str | None) -> tuple[tuple[tuple[str, bool], ...], tuple[str, ...]]:
    """(Sockets to hide, notes) of a directory that is shown unasked: close to its top, or in use.

    This is a part of each start: it looks further only if a socket in use may lie deeper in it.
    """
    if top is None:
        return (), ()
    others: list[str] = []
    try:
        with os.scandir(top) as items:
            for count, item in enumerate(items):
                if count == _TOP_ENTRIES:
                    break
                if item.is_file(follow_symlinks=False) or item.is_dir(follow_symlinks=False):
                    continue
                if not item.is_symlink():
                    others.append(item.name)
        with open("/proc/net/unix", "rb", buffering=0) as file:
            table = file.read() or b""
        in_use = os.fsencode(top.rstrip("/") + "/") in table or _has_relative(table)
    except OSError:
        # What cannot be listed may be searched still.
        in_use = True
    if not others and not in_use:
        return (), ()
    from .sockets import hide_sockets

    return hide_sockets(top, others, deep=in_use)
