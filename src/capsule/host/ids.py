"""Who the caller is to the kernel, and which other ids are the caller's to give; user_namespaces(7)."""

from __future__ import annotations

import os

from capsule.base.descriptors import read_file
from capsule.base.values import Value

# The host id of who is started by real root: the kernel's own choice for "nobody".
NOBODY = 65534

HELPERS = ("/usr/bin", "/bin", "/usr/local/bin")


class Range(Value):
    """A range of subordinate ids: *count* host ids from *start* on."""

    start: int
    count: int


def has_initial_ids(*, unsure: bool) -> bool:
    """Return whether ids are the kernel's own: the initial user namespace, not a container's.

    Args:
        unsure: the answer where /proc does not say.
    """
    try:
        return read_file("/proc/self/uid_map").split() == [b"0", b"0", b"4294967295"]
    except OSError:
        return unsure


def in_capsule() -> bool:
    """Return whether this is inside of a capsule: by the name of its init."""
    try:
        return read_file("/proc/1/comm") == b"capsule-launch\n"
    except OSError:
        return False


def subordinate(table: str, uid: int) -> Range | None:
    """The first range of the caller in a table of subuid(5)."""
    try:
        lines = os.fsdecode(read_file(table)).split("\n")
        rows = [line.strip().split(":") for line in lines]
    except OSError:
        return None
    mine = {str(uid), _user_name(uid)} if any(len(row) == 3 for row in rows) else set()
    for row in rows:
        if len(row) == 3 and row[0] in mine and row[1].isdigit() and row[2].isdigit():
            return Range(int(row[1]), int(row[2]))
    return None


def _user_name(uid: int) -> str:
    import pwd  # rarely needed: only where there are subordinate ids at all

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def helper(name: str) -> str | None:
    """A set-uid program, only where a package puts it: PATH is the caller's to change."""
    for folder in HELPERS:
        path = f"{folder}/{name}"
        if os.access(path, os.X_OK):
            return path
    return None


def group_of(uid: int, gid: int) -> int:
    """The group as which somebody may act: that of a directory of theirs only if they are in it."""
    import pwd  # root alone asks

    try:
        account = pwd.getpwuid(uid)
        mine = os.getgrouplist(account.pw_name, account.pw_gid)
    except KeyError:
        return NOBODY
    return gid if gid in mine else account.pw_gid


def own_names() -> tuple[str, str]:
    """(Name of the user, of the group) that a command with the caller's ids is: for root nobody's."""
    import grp
    import pwd  # both only where a policy keeps the ids

    uid, gid = os.geteuid(), os.getegid()
    if uid == 0 and has_initial_ids(unsure=True):
        return "nobody", "nogroup"
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = "user"
    try:
        return user, grp.getgrgid(gid).gr_name
    except KeyError:
        return user, user
