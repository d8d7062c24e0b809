"""The host before and after: what a capsule leaves or alters is a difference of two snapshots."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support import HANG, descendants

# Beyond this a file counts by its size and the time of its last change.
HASHED = 1 << 20
# Where programs leave things, besides the home and $XDG_RUNTIME_DIR.
PLACES = ("/tmp", "/var/tmp", "/run", "/dev/shm")

_KINDS = {
    stat.S_IFDIR: "directory",
    stat.S_IFREG: "file",
    stat.S_IFLNK: "symlink",
    stat.S_IFSOCK: "socket",
    stat.S_IFIFO: "fifo",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


class Snapshot(NamedTuple):
    """What of a host can be compared.

    Attributes:
        entries: of each path what it is: type, mode, owner, size, links, content.
        mounts: the lines of mountinfo, in order.
        processes: "PID (NAME) START" of all that have not ended.
        sockets: listening and bound sockets, from /proc/net.
    """

    entries: dict[str, str]
    mounts: tuple[str, ...]
    processes: frozenset[str]
    sockets: frozenset[str]


def snapshot(*tops: str | Path, tables: bool = True) -> Snapshot:
    """Look at trees, whole, and at the tables of the kernel: at that of mounts in any case."""
    entries: dict[str, str] = {}
    for top in tops:
        entries.update(_tree(os.fspath(top)))
    if not tables:
        return Snapshot(entries, _mounts(), frozenset(), frozenset())
    return Snapshot(entries, _mounts(), _processes(), _sockets())


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """All that came, went or changed, in words."""
    found = []
    for path in sorted(before.entries.keys() | after.entries.keys()):
        old, new = before.entries.get(path), after.entries.get(path)
        if old != new:
            found.append(f"{path!r}: {old} -> {new}")
    if before.mounts != after.mounts:
        changed = set(before.mounts) ^ set(after.mounts)
        found.append(f"mounts: {sorted(changed) or 'in another order'}")
    for name in ("processes", "sockets"):
        old, new = getattr(before, name), getattr(after, name)
        found += [f"{name}, gone: {one}" for one in sorted(old - new)]
        found += [f"{name}, new: {one}" for one in sorted(new - old)]
    return found


@contextlib.contextmanager
def unchanged(*tops: str | Path, tables: bool = True) -> Iterator[None]:
    """The block leaves these trees and the mount table as they were, and no process or socket.

    Args:
        tops: trees of the test's own, of which each entry counts.
        tables: whether processes and sockets of the whole host count. Others start and end them,
            so only in a lab, where nobody else is.
    """
    before = snapshot(*tops, tables=tables)
    yield
    left = _left(before, tops, tables)
    assert not left, "\n".join(left)


def _left(before: Snapshot, tops: Sequence[str | Path], tables: bool) -> list[str]:
    """The differences, once what is about to end has ended."""
    until = time.monotonic() + HANG
    while True:
        after = snapshot(*tops, tables=tables)
        found = differences(before, after)
        # Only the kernel's tables lag behind: a process that was killed, its socket; and others on
        # the host may mount what they will unmount again. What a capsule leaves stays.
        if not found or any(one.startswith(("'", '"')) for one in found):
            return found
        if time.monotonic() > until:
            return found
        time.sleep(0.02)


# --- trees ----------------------------------------------------------------------------------------


def _tree(top: str) -> Iterator[tuple[str, str]]:
    """What lies in a tree, without what is mounted in it: a link is an entry, never a way."""
    device = os.lstat(top).st_dev
    waiting = [top]
    while waiting:
        path = waiting.pop()
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            continue  # gone since it was listed
        if found.st_dev != device:
            continue
        yield path, _entry(path, found)
        if stat.S_ISDIR(found.st_mode):
            waiting += [f"{path.rstrip('/')}/{name}" for name in _names(path)]


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except (PermissionError, FileNotFoundError):
        return []


def _entry(path: str, found: os.stat_result) -> str:
    kind = _KINDS[stat.S_IFMT(found.st_mode)]
    words = [kind, f"{stat.S_IMODE(found.st_mode):04o}", f"{found.st_uid}:{found.st_gid}"]
    if kind == "directory":
        return " ".join(words)
    words += [str(found.st_size), f"links {found.st_nlink}"]
    if kind == "symlink":
        words.append(f"-> {os.readlink(path)!r}")
    elif kind == "file":
        words.append(_content(path, found))
    elif "device" in kind:
        words.append(f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}")
    return " ".join(words)


def _content(path: str, found: os.stat_result) -> str:
    changed = f"changed {found.st_mtime_ns}"
    if found.st_size > HASHED:
        return changed
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            return f"{changed} {hashlib.sha256(file.read()).hexdigest()}"
    except OSError:
        return changed


# --- tables of the kernel -------------------------------------------------------------------------


def _mounts() -> tuple[str, ...]:
    table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    return tuple(table.splitlines())


def _processes() -> frozenset[str]:
    """All that this process can see, but for its own; zombies run nothing."""
    return frozenset(f"{s.pid} ({s.name}) {s.started}" for s in descendants(1) if s.alive)


def _sockets() -> frozenset[str]:
    found = set()
    for name in ("tcp", "tcp6", "udp", "udp6"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/self/net/{name}") as table:
            found |= {f"{name} {line.split()[1]}" for line in list(table)[1:]}
    with open("/proc/self/net/unix", encoding="utf-8", errors="surrogateescape") as table:
        for line in list(table)[1:]:
            words = line.rstrip("\n").split(" ", 7)
            found |= {f"unix {words[7]}"} if len(words) > 7 else set()
    return frozenset(found)


# --- hostile trees --------------------------------------------------------------------------------


def unlock(top: str | Path) -> None:
    """Let the directories of a tree be entered, so that a test can remove it. No link is followed."""
    for folder, names, _ in os.walk(top):
        for name in names:
            path = f"{folder}/{name}"
            if not os.path.islink(path):
                os.chmod(path, 0o700)
