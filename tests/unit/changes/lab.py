"""A directory of the host with an upper layer over it, made by the test."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from capsule.changes.layer import Layer
from capsule.files.trees.cursor import open_directory
from capsule.policy.protected import Guard, named

AT = "/at"
GIT = named([".git", ".git/hooks"])


class Lab:
    """A directory of the host and an upper layer over it, both made by the test."""

    def __init__(self, top: Path) -> None:
        self.lower = top / "lower"
        self.keep = top / "keep"
        self.upper = self.keep / "upper"
        self.upper.mkdir(parents=True)
        self.lower.mkdir()

    def layer(self, *guards: Guard) -> Layer:
        """The layer as it is now."""
        return Layer(open_directory(str(self.upper)), str(self.lower), AT, guards)

    def changes(self, *guards: Guard) -> list[tuple[str, str, str]]:
        """(Path from the top, action, type) of each change; all are there."""
        with self.layer(*guards) as layer:
            found, complete = layer.changes()
        assert complete
        return [(c.path.removeprefix(f"{AT}/"), c.action.value, c.type) for c in found]

    def apply(self, *guards: Guard) -> list[str]:
        """The paths that were applied."""
        with self.layer(*guards) as layer:
            return [change.path.removeprefix(f"{AT}/") for change in layer.apply()]


def write(path: Path, text: str = "", mode: int | None = None) -> Path:
    """A file, with the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if mode is not None:
        path.chmod(mode)
    return path


def delete(path: Path) -> None:
    """What the kernel leaves in an upper layer when something is deleted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(0, 0))


def tree(top: Path) -> dict[str, tuple[str, int, bytes]]:
    """(Type, mode, content) of all in a tree."""
    found = {}
    for folder, directories, files in os.walk(top):
        for name in directories + files:
            path = Path(folder, name)
            info = path.lstat()
            content = b""
            if stat.S_ISREG(info.st_mode):
                content = path.read_bytes()
            elif stat.S_ISLNK(info.st_mode):
                content = os.fsencode(os.readlink(path))
            kind = stat.filemode(info.st_mode)[0]
            found[str(path.relative_to(top))] = kind, stat.S_IMODE(info.st_mode), content
    return found


def make_deep(top: Path, depth: int) -> None:
    """A chain of directories; deeper than a path can say."""
    fd = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
