"""Which Unix sockets lie in a tree. Who may write to one talks to the service behind it; unix(7).

A read-only mount is no help: connect(2) changes nothing in the file system.
"""

from __future__ import annotations

import os
import stat

from capsule.base.errors import PolicyError
from capsule.base.text import is_below, listed, printable
from capsule.files.trees.walk import TooMany, entries

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# Of each tree, nearest to its top. The live ones are known besides.
SOCKET_ENTRIES = 4096
GIVES_AWAY = "whoever can reach a socket uses the service behind it, with that service's rights"


def _table() -> bytes:
    """The sockets of the caller's network namespace, or nothing."""
    try:
        with open("/proc/net/unix", "rb", buffering=0) as table:
            return table.read() or b""
    except OSError:
        return b""


def _bound(found: bytes) -> Iterator[str]:
    """The absolute paths in the table. A newline in a path ends its line; the rest goes with it."""
    path = b""
    for line in found.split(b"\n"):
        words = line.split(None, 7)
        if len(words) >= 7 and words[0].endswith(b":"):
            yield from _absolute(path)
            path = words[7] if len(words) == 8 else b""
        else:
            path += b"\n" + line
    yield from _absolute(path)


def _absolute(path: bytes) -> Iterator[str]:
    for name in {path, path.rstrip(b"\n")}:
        if name.startswith(b"/"):
            yield os.fsdecode(name)


def live() -> frozenset[str]:
    """The paths without links of all sockets that are bound now, as far as their names are true.

    The kernel keeps the name that bind(2) was given: it may be relative, or removed, or have meant
    another file system.
    """
    folders: dict[str, str] = {}
    paths = set()
    for path in _bound(_table()):
        folder, name = os.path.split(path)
        if folder not in folders:
            try:
                folders[folder] = os.path.realpath(folder)
            except OSError:
                continue
        place = os.path.join(folders[folder], name)
        if _is_socket(place):
            paths.add(place)
    return frozenset(paths)


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def live_below(top: str, sockets: frozenset[str]) -> list[str]:
    """Of the live ones those below a directory, as paths from there."""
    start = len(top.rstrip("/")) + 1
    return [path[start:] for path in sockets if path != top and is_below(path, top)]


def sockets_in(top: str) -> tuple[list[str], bool]:
    """(Paths of sockets from a directory on, whether all of it was looked at)."""
    found: list[str] = []
    try:
        # Not by a comprehension, for what was found before an error counts.
        for entry in entries(top, most=SOCKET_ENTRIES):
            if entry.kind == "socket":
                found += [entry.path]
    except (TooMany, OSError):
        return found, False
    return found, True


def not_all(top: str) -> str:
    """The note on a tree that `sockets_in` did not look at as a whole."""
    where = f"among the first {SOCKET_ENTRIES} entries and those in use"
    return f"{top} was not searched for sockets as a whole, only {where}"


def hide_sockets(
    top: str, names: list[str], *, deep: bool
) -> tuple[tuple[tuple[str, bool], ...], tuple[str, ...]]:
    """(Places to hide, notes) of a directory that is shown unasked.

    Args:
        top: the directory.
        names: what lies directly in it and may be a socket.
        deep: whether to look below that as well.
    """
    start = top.rstrip("/")
    found = {name for name in names if _is_socket(f"{start}/{name}")}
    found.update(live_below(top, live()))
    notes: list[str] = []
    if deep:
        below, complete = sockets_in(top)
        found.update(below)
        if not complete:
            notes.append(not_all(top))
    hidden = tuple((f"{start}/{name}", False) for name in sorted(found))
    if hidden:
        notes.append(f"hidden in {top}: {listed(sorted(found), 'sockets')}")
    return hidden, tuple(map(printable, notes))


def gives_away(what: str, path: str, names: list[str]) -> PolicyError:
    """The error about sockets in use that nobody named."""
    message = f"{what}: sockets lie in it: {listed(names, 'sockets')}; {GIVES_AWAY}"
    first = os.path.join(path, names[0])
    hint = (
        f"hide them (--hide), show what you need of the directory, or name the socket itself: {first}"
    )
    return PolicyError(message, field=what.partition(":")[0], value=path, hint=hint)
