"""Trees with protected names in them, before and after."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from capsule.files import guarded
from capsule.files.found import Watch
from capsule.files.guards import GUARD_ENTRIES, within
from capsule.policy.protected import Guard, in_force

ALL = in_force((), ())


def open_all(top: Path) -> None:
    """What was set aside or closed can be removed."""
    for folder, names, _ in os.walk(top):
        for name in names:
            if not os.path.islink(os.path.join(folder, name)):
                os.chmod(os.path.join(folder, name), 0o700)


def watch(tree: Path, guards: Sequence[Guard] = ALL, most: int = GUARD_ENTRIES) -> Watch:
    """A tree as it is known at the start."""
    top = os.open(tree, os.O_PATH | os.O_DIRECTORY)
    try:
        view = guarded.look(top, within(guards, str(tree)), most=most)
    finally:
        os.close(top)
    known = tuple((sight.path, sight.identity) for sight in view.found)
    names = tuple(guard.name for guard in guards)
    return Watch(str(tree), str(tree), names, known, view.depth, view.deeper)


def tree_of(top: Path) -> dict[str, tuple[str, int]]:
    """Path to kind and mode of all that lies in a tree; of a link its text, too."""
    found = {}
    for path in top.rglob("*"):
        info = path.lstat()
        text = os.readlink(path) if path.is_symlink() else stat.filemode(info.st_mode)
        found[str(path.relative_to(top))] = (text, info.st_ino)
    return found


def mode(path: Path) -> int:
    """The permission bits."""
    return stat.S_IMODE(path.lstat().st_mode)


def hook(path: Path, text: str = "#!/bin/sh\n") -> Path:
    """A file that would be executed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path
