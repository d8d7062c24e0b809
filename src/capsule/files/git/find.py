"""What a directory that is shown is a part of: a working tree of git, modules above it.

This is a part of each start, and next to nothing where there is neither.
"""

from __future__ import annotations

import os

from capsule.base.errors import PolicyError
from capsule.base.text import above, is_below, printable
from capsule.host.places import kind_of, known_homes
from capsule.policy.mounts import TREES, Mount
from capsule.policy.policy import Git, System

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from capsule.policy.policy import Policy


def repositories(
    policy: Policy, *, cwd: str, cwd_shown: str | None, uid: int
) -> tuple[tuple[Mount, ...], tuple[str, ...]]:
    """Return (mounts that show the repositories of what is shown, notes).

    Looked at are the top of each directory that is shown, and the working directory.

    Args:
        policy: the policy.
        cwd: the working directory inside.
        cwd_shown: the same, if it is shown unasked.
        uid: the caller.

    Raises:
        PolicyError: a repository is to be writable, and cannot be shown at all.
    """
    write = policy.git is Git.WRITE
    if policy.root is not None and write:
        message = "git: of a root of its own it is not known where a repository would be"
        hint = "leave it out, or show the repository with a mount (--rw)"
        raise PolicyError(message, field="git", value="write", hint=hint)
    if policy.root is not None or (policy.system is System.NEEDED and not write):
        return (), ()
    mounts: list[Mount] = []
    notes: list[str] = []
    homes, is_any = known_homes(), False
    for top, at in _shown(policy, cwd_shown):
        has_cwd = is_below(cwd, at)
        here = os.path.normpath(top + cwd[len(at.rstrip("/")) :]) if has_cwd else top
        for folder in _upwards(here, homes) if has_cwd else (top,):
            if kind_of(f"{folder}/.git"):
                is_any = True
                from .repository import look  # only where there is one

                look(mounts, notes, policy, (folder, top, at), uid)
                break
            if not is_below(folder, top):
                notes += _modules(folder)
    if write and not is_any:
        notes.append(f"git: there is no repository in {cwd}, nor where a mount leads")
    return tuple(dict.fromkeys(mounts)), tuple(map(printable, dict.fromkeys(notes)))


def _shown(policy: Policy, cwd_shown: str | None) -> Iterator[tuple[str, str]]:
    """Yield (path, place inside) of what of the host may be a directory and is shown."""
    if cwd_shown is not None:
        yield cwd_shown, cwd_shown
    for mount in policy.mounts:
        if mount.kind in TREES:
            yield mount.source, mount.at


def _upwards(folder: str, homes: Iterable[str]) -> Iterator[str]:
    """A directory and those above it, up to the home that it lies in."""
    for path in above(folder):
        if path != folder and path in homes:
            return
        yield path


def _modules(folder: str) -> Iterator[str]:
    path = f"{folder}/node_modules"
    if kind_of(path):
        yield f"node: {path} is not shown; --ro {path} shows it"
