"""Where guards count in one tree of the host, and which paths there they name, by their names alone."""

from __future__ import annotations

import os
import sys

from capsule.base.errors import PolicyError
from capsule.base.text import printable
from capsule.policy.protected import ITSELF

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from capsule.policy.protected import Guard

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# A tree is looked through breadth first: its top, and so many levels below it,
GUARD_DEPTH = 4
# until so many entries were seen. What lies at the top is looked up directly and always found.
GUARD_ENTRIES = 20_000
# Each is a mount: of what is protected, and of every directory above it in its tree.
MOST_GUARDED = 2048
# PATH_MAX, with the NUL.
_PATH_BYTES = 4095
# Of these, the repository of a submodule, a linked working tree and a bare repository has its own.
IN_GIT = (
    ".git/hooks", ".git/config", ".git/config.worktree", ".git/commondir", ".git/info/attributes",
    ".git/objects/info/alternates",
)  # fmt: skip
REPOSITORIES = ("modules", "worktrees")


def within(guards: Iterable[Guard], tree: str) -> tuple[Guard, ...]:
    """The guards as they count in the tree at this path of the host, which has no link in it.

    A guard of home directories becomes one for a place in this tree, or is left out; likewise if the
    tree is itself part of what a guard names, as *project*/.git is.
    """
    homes = _homes(tree)
    found: dict[tuple[str, bool], Guard] = {}
    for guard in guards:
        for one in _placed(guard, tree, homes):
            found.setdefault((one.path, one.unless_directory), one)
    return tuple(found.values())


def _placed(guard: Guard, tree: str, homes: list[str]) -> list[Guard]:
    """One guard for each place that it has in a tree."""
    top = tree.rstrip("/") + "/"
    placed = [
        guard.replace(anywhere=False, home=False, at=place[len(top) :])
        for place in _places(guard, tree, homes)
        if place.startswith(top)
    ]
    return placed if guard.home else [guard, *placed]


def _places(guard: Guard, tree: str, homes: list[str]) -> list[str]:
    """Paths of the host that a guard names, besides those that its name says in a tree."""
    if guard.name == ITSELF:
        return [os.path.realpath(path) for path in (sys.prefix, _PACKAGE)]
    path = guard.path
    if not guard.anywhere:
        return [f"{home}/{path}" for home in homes]
    parts = path.split("/")
    beginnings = ["/" + "/".join(parts[:end]) for end in range(1, len(parts))]
    return [
        f"{tree.removesuffix(beginning)}/{path}" for beginning in beginnings if tree.endswith(beginning)
    ]


def _homes(tree: str) -> list[str]:
    """The caller's home directories and that of the tree's owner, without a link."""
    import pwd

    homes = [os.environ.get("HOME", "")]
    uids = {os.geteuid()}
    try:
        uids.add(os.stat(tree).st_uid)
    except OSError:
        pass
    for uid in uids:
        try:
            homes.append(pwd.getpwuid(uid).pw_dir)
        except KeyError:
            continue
    real = {os.path.realpath(home) for home in homes if home.startswith("/")}
    return sorted(real - {"/"})


def check_places(places: Iterable[str]) -> None:
    """Check that all these places, of what is protected and of what is above, can be mounts.

    Raises:
        PolicyError: they are too many, or the path of one is longer than the kernel takes.
    """
    number = 0
    for place in places:
        number += 1
        if len(os.fsencode(place)) > _PATH_BYTES:
            message = f"mounts: a protected path is longer than {_PATH_BYTES} bytes: {printable(place)}"
            hint = "show its tree at a shorter place (--rw PATH:/AT), or leave the name out (unprotect)"
            raise PolicyError(message, field="mounts", value=place, hint=hint)
    if number > MOST_GUARDED:
        message = f"mounts: protected paths in writable trees, and the directories above them: {number}"
        message += f"; at most {MOST_GUARDED} can be protected"
        hint = "show smaller trees, or leave names out of the protected ones (unprotect)"
        raise PolicyError(message, field="mounts", value=number, hint=hint)


def match(relative: str, guards: Iterable[Guard], kind: str = "directory") -> Guard | None:
    """The guard that protects a path, because it names that or a directory above it.

    Nothing is looked at. Names compare byte for byte; `guarded` knows file systems that fold case.

    Args:
        relative: the path from the tree's top.
        guards: as `in_force` or `within` gives them.
        kind: what stands there; "symlink" also matches where a link in the place of a directory would
            lead to what a guard names.
    """
    parts = relative.split("/")
    for guard in guards:
        if not (guard.home and not guard.at) and _matches(guard, parts, kind):
            return guard
    return None


def _matches(guard: Guard, parts: list[str], kind: str) -> bool:
    name = guard.path.split("/")
    starts = range(len(parts)) if guard.anywhere else range(1)
    if any(_matches_from(guard, name, parts[start:], kind) for start in starts):
        return True
    # The tree may be a .git directory itself.
    whole = parts if guard.anywhere else [".git", *parts]
    return guard.name in IN_GIT and _in_repository(guard.name.split("/")[1:], whole)


def _matches_from(guard: Guard, name: list[str], parts: list[str], kind: str) -> bool:
    if guard.unless_directory:
        return parts == name and kind != "directory"
    if parts[: len(name)] == name:
        return True
    return kind == "symlink" and parts == name[: len(parts)]


def _in_repository(name: list[str], parts: list[str]) -> bool:
    """Return whether it may be such a name in the repository of a submodule or a linked tree."""
    for number, part in enumerate(parts[:-2]):
        if part == ".git" and parts[number + 1] in REPOSITORIES:
            rest = parts[number + 2 :]
            if any(rest[start : start + len(name)] == name for start in range(len(rest))):
                return True
    return False
