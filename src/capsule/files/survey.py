"""What lies on the host where a policy points: looked at with the caller's rights, before the plan.

This is the part of it that belongs to each start, which is next to nothing.
"""

from __future__ import annotations

import os

from capsule.base.descriptors import read_file
from capsule.policy.policy import IdMap

from .found import Survey
from .git import find

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from capsule.policy.policy import Policy

    from .found import Shown

# Of a directory that is shown unasked, which happens at each start.
_TOP_ENTRIES = 512
_NOTHING = Survey()


def survey(
    policy: Policy,
    *,
    cwd_shown: str | None,
    shown: Sequence[Shown],
    uid: int,
    cwd_inside: str = "/",
) -> Survey:
    """Look at all that a policy's mounts point to, and at the repositories of what they show.

    Makes what ``keep`` of an overlay names.

    A non-optional source that is missing or cannot be looked at is found all the same, as a file: the
    step that opens it says why it cannot.

    Args:
        policy: the policy.
        cwd_shown: the working directory, if it is shown unasked.
        shown: what else of the host is shown unasked.
        uid: the caller.
        cwd_inside: the working directory inside.

    Raises:
        PolicyError: a source would give away more than its name says, or is not what its mount is for.
    """
    cwd = _cwd(policy, cwd_shown, uid)
    hidden, notes = _unasked_sockets(cwd_shown)
    repositories, more = find.repositories(policy, cwd=cwd_inside, cwd_shown=cwd_shown, uid=uid)
    notes += more
    unasked = Survey(hidden=hidden, notes=notes, cwd=cwd) if hidden or notes or cwd else _NOTHING
    named = policy.protect or policy.unprotect or policy.show_secrets
    if not (policy.mounts or repositories or policy.root is not None or named):
        return unasked
    from .survey_mounts import survey_mounts  # only where there is something to look at

    return survey_mounts(policy, unasked, repositories, cwd_shown=cwd_shown, shown=shown, uid=uid)


def _cwd(policy: Policy, shown: str | None, uid: int) -> str:
    """The way to a working directory that was named; that of the caller itself is without links."""
    if shown is None or policy.cwd is None:
        return ""
    from .lookup import follow, trusts_root

    trusted = trusts_root(uid, host_root=policy.id_map is IdMap.HOST_ROOT)
    return follow(shown, f"cwd: {shown}", trusted=trusted).path


def _unasked_sockets(top: str | None) -> tuple[tuple[tuple[str, bool], ...], tuple[str, ...]]:
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
        table = read_file("/proc/net/unix")
        in_use = os.fsencode(top.rstrip("/") + "/") in table or _has_relative(table)
    except OSError:
        # What cannot be listed may be searched still.
        in_use = True
    if not others and not in_use:
        return (), ()
    from .sockets import hide_sockets

    return hide_sockets(top, others, deep=in_use)


def _has_relative(table: bytes) -> bool:
    """Return whether a socket was bound by a relative name: kept as it is, it may lie anywhere.

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
