"""The launcher's steps for files, each driven by itself: a plan with steps of the test's own in it."""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

import capsule
from capsule.api import look
from capsule.files.found import Survey
from capsule.host.host import Host
from capsule.launcher import spawn
from capsule.launcher import steps as s
from capsule.launcher.failure import SetupError
from capsule.planner.plan import Plan, make_plan
from capsule.policy.policy import Policy
from capsule.process.launch import end, launch
from capsule.program.command import Command, resolve
from tests.support import NOBODY, OUTSIDE_UID, REAL_ROOT, needs

BOUND = s.NO_SUID | s.NO_DEV
CLOSED = BOUND | s.READ_ONLY | s.NO_EXEC
SIZE, INODES = 1 << 20, 256
DATA = b"\0text\0\xff\n"

Build = Callable[[int], Sequence[s.Step]]


class Ran(NamedTuple):
    """What a command wrote, and what init gave away."""

    text: str
    gifts: tuple[int, ...]


def take(path: Path, attributes: int = BOUND, how: int = s.NO_LINKS) -> s.Tree:
    """The step that takes a tree."""
    return s.Tree(str(path), attributes, how)


def overlay(lower: int, upper: int = s.Overlay.NONE, at: str = "/data") -> s.Overlay:
    """The step that makes an overlay."""
    return s.Overlay(at, lower, upper, SIZE, INODES, BOUND)


def edited(plan: Plan, taken: Sequence[s.Step], build: Build) -> Plan:
    """The plan with trees of its own, and with steps that are told the number of the first of them."""
    steps = list(plan.steps)
    mapped = [step for step in taken if isinstance(step, s.MappedTree)]
    for index, step in enumerate(steps):
        if isinstance(step, s.Attach):
            later = len(taken) if step[1] == "/proc" else len(mapped)
            steps[index] = s.Attach(step[0] + later, *step[1:])
    proc = next(step[0] for step in steps if isinstance(step, s.Attach) and step[1] == "/proc")
    first = 0 if mapped else proc - len(taken)
    last = steps.index(next(s_ for s_ in steps if isinstance(s_, s.Remount) and s_[0] == "/"))
    steps[last:last] = build(first)
    place = steps.index(next(s_ for s_ in steps if isinstance(s_, s.Identity)))
    steps[place:place] = [step for step in taken if not isinstance(step, s.MappedTree)]
    steps[:0] = mapped
    given = [step for step in steps if isinstance(step, s.Overlay) and step[2] == s.Overlay.NONE]
    return plan.replace(steps=tuple(steps), overlays=tuple((step[0], "", "") for step in given))


def prepare(script: str) -> tuple[Plan, Host, Command]:
    """The default plan for a shell's script; a ruleset would know nothing of the steps put into it."""
    policy = Policy(cwd="/", env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"}, landlock="off")
    host = capsule.probe()
    command = resolve(["sh", "-c", f"exec 2>&1; {script}"], policy)
    return make_plan(policy, host, command, look(policy, command)), host, command


def run(script: str, taken: Sequence[s.Step], build: Build) -> Ran:
    """Run a script in a capsule with such steps, to its end."""
    plan, host, command = prepare(script)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    reading, writing = os.pipe()
    try:
        running = launch(edited(plan, taken, build), host, command, Survey(), (null, writing, writing))
    finally:
        os.close(writing)
        os.close(null)
        text = b""
        while data := os.read(reading, 65536):
            text += data
        os.close(reading)
    while spawn.read_record(running.status):
        pass
    end(running.replace(gifts=()))
    return Ran(text.decode(), running.gifts)


def refused(taken: Sequence[s.Step], build: Build) -> tuple[str, int]:
    """(Word of the step that failed, its error)."""
    with pytest.raises(SetupError) as caught:
        run("echo ran", taken, build)
    return caught.value.step.word, caught.value.errno or 0


@pytest.fixture
def lower(tmp_path: Path) -> Iterator[Path]:
    """A tree that belongs to whom the command is on the host."""
    top = tmp_path / "lower"
    for name in ("kept", "changed", "gone", "again/old", "again/below/old", "removed/old"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(f"{name}\n")
    top.chmod(0o750)
    give(top)
    before = listing(top)
    yield top
    assert listing(top) == before


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A directory for upper layers, which belongs to whom the command is on the host."""
    top = tmp_path / "upper"
    top.mkdir()
    give(top)
    return top


def give(top: Path) -> None:
    """Hand a tree to whom the command is on the host."""
    if REAL_ROOT:
        for path in (top, *top.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def listing(top: Path) -> dict[str, tuple[int, int, bytes]]:
    """Mode, owner and content of all that is in a tree."""
    return {
        str(path.relative_to(top)): (
            path.lstat().st_mode,
            path.lstat().st_uid,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in (top, *top.rglob("*"))
    }


WORK = (
    "cd /data && echo more >>changed && rm gone && echo new >new && "
    "rm -r again removed && mkdir again && echo fresh >again/fresh && "
    "find . | sort && stat -c %a . && cat changed again/fresh"
)
NAMES = [".", "./again", "./again/fresh", "./changed", "./kept", "./new"]
SEEN = [*NAMES, "750", "changed", "more", "fresh"]


def check_upper(upper: int) -> None:
    """What `WORK` leaves in an upper layer: files, whiteouts, and a directory that hides the lower."""
    found = {entry.name: entry.stat(follow_symlinks=False).st_mode for entry in os.scandir(upper)}
    assert {name: stat.S_IFMT(mode) for name, mode in found.items()} == {
        "again": stat.S_IFDIR,
        "changed": stat.S_IFREG,
        "gone": stat.S_IFCHR,
        "new": stat.S_IFREG,
        "removed": stat.S_IFCHR,
    }
    assert os.stat("gone", dir_fd=upper, follow_symlinks=False).st_rdev == 0
    again = os.open("again", os.O_RDONLY, dir_fd=upper)
    assert os.getxattr(again, "user.overlay.opaque") == b"y"
    assert os.listdir(again) == ["fresh"]
    os.close(again)
    new = os.open("new", os.O_RDONLY, dir_fd=upper)
    assert (os.read(new, 99), os.fstat(new).st_uid) == (b"new\n", OUTSIDE_UID)
    os.close(new)


# --- overlay --------------------------------------------------------------------------------


@needs("mount_setattr", "overlay deletes")
def test_an_overlay_in_memory(lower: Path) -> None:
    """The tree is writable inside and unchanged outside; its layer can be read after the end."""
    ran = run(WORK, [take(lower)], lambda n: [overlay(n)])
    assert ran.text.split() == SEEN
    (upper,) = ran.gifts
    check_upper(upper)
    assert os.get_inheritable(upper) is False
    os.close(upper)


@needs("mount_setattr")
def test_an_overlay_that_is_kept(lower: Path, kept: Path) -> None:
    """The layer is a directory of the host; a second capsule finds what the first one wrote."""
    build: Build = lambda n: [overlay(n, n + 1)]  # noqa: E731
    ran = run(WORK, [take(lower, BOUND | s.READ_ONLY), take(kept)], build)
    assert (ran.text.split(), ran.gifts) == (SEEN, ())
    assert sorted(os.listdir(kept)) == ["upper", "work"]
    upper = os.open(kept / "upper", os.O_RDONLY)
    check_upper(upper)
    os.close(upper)
    again = run("cd /data; find . | sort; chmod 700 .", [take(lower), take(kept)], build)
    assert again.text.split() == NAMES
    last = run("stat -c %a /data", [take(lower), take(kept)], build)
    assert last.text == "700\n"


@needs("mount_setattr")
@pytest.mark.parametrize("name", ["upper", "work"])
@pytest.mark.parametrize("what", ["link", "dangling", "file", "fifo"])
def test_a_part_that_is_no_directory_is_refused(
    lower: Path, kept: Path, tmp_path: Path, name: str, what: str
) -> None:
    """What an earlier program put in the place of a part of the layer is not followed or opened."""
    other = tmp_path / "other"
    other.mkdir(mode=0o777)
    if what in ("link", "dangling"):
        (kept / name).symlink_to(other if what == "link" else tmp_path / "nothing")
    elif what == "file":
        (kept / name).write_text("")
    else:
        os.mkfifo(kept / name)
    give(kept)
    taken = [take(lower), take(kept)]
    assert refused(taken, lambda n: [overlay(n, n + 1)]) == ("overlay", errno.ENOTDIR)
    assert list(other.iterdir()) == []
    (kept / name).unlink()
    assert run("cat /data/kept", taken, lambda n: [overlay(n, n + 1)]).text == "kept\n"


@needs("mount_setattr")
def test_layers_are_out_of_reach(lower: Path, kept: Path) -> None:
    """Inside there is neither a path to a layer nor the host's name of one."""
    script = "ls -A /; cat /proc/self/mountinfo; ls /proc/self/fd"
    ran = run(
        script, [take(lower), take(kept)], lambda n: [s.Directory("/deep", 0o755), overlay(n, n + 1)]
    )
    assert " - overlay " in ran.text
    assert ".layers" not in ran.text
    assert str(lower) not in ran.text
    assert str(kept) not in ran.text
    assert ran.text.split()[-4:] == ["0", "1", "2", "3"]


@needs("mount_setattr")
def test_two_overlays_give_two_layers_in_order(lower: Path) -> None:
    """Gifts come in the order of the steps, and each overlay has a layer of its own."""
    script = "echo 1 >/data/first; echo 2 >/other/second; ls /data /other"
    build: Build = lambda n: [overlay(n), overlay(n + 1, at="/other")]  # noqa: E731
    ran = run(script, [take(lower), take(lower)], build)
    assert [os.listdir(fd) for fd in ran.gifts] == [["first"], ["second"]]
    for fd in ran.gifts:
        os.close(fd)


@needs("mount_setattr")
def test_an_overlay_has_a_size_and_attributes(lower: Path) -> None:
    """Beyond its bytes or inodes a write fails with ENOSPC; what is noexec cannot be executed."""
    script = (
        "cd /data; head -c 2M /dev/zero >big; rm big; for i in $(seq 300); do echo >$i; done; "
        "printf '#!/bin/sh\n' >kept; chmod +x kept; ./kept"
    )
    build: Build = lambda n: [s.Overlay("/data", n, s.Overlay.NONE, SIZE, INODES, BOUND | s.NO_EXEC)]  # noqa: E731
    ran = run(script, [take(lower)], build)
    os.close(ran.gifts[0])
    assert "head: error writing 'standard output': No space left on device" in ran.text
    assert "cannot create 300: No space left on device" in ran.text
    assert "./kept: Permission denied" in ran.text


@needs("mount_setattr")
def test_a_file_is_no_layer(lower: Path) -> None:
    """An overlay of a file is refused."""
    assert refused([take(lower / "kept")], lambda n: [overlay(n)]) == ("overlay", errno.EINVAL)


# --- hide, mask, content --------------------------------------------------------------------


@needs("mount_setattr")
def test_hide(lower: Path) -> None:
    """A file and a directory are covered with emptiness that cannot be written to; ENOENT may be."""
    script = (
        "cd /data; cat changed; ls -A again; echo x >changed; echo x >again/x; "
        "cat kept; cat again/old; grep -c ' /data/' /proc/self/mountinfo"
    )
    hidden = [
        s.Hide("/data/changed", CLOSED, 0),
        s.Hide("/data/again", CLOSED, 1),
        s.Hide("/data/nothing/at/all", CLOSED, 1),
    ]
    ran = run(script, [take(lower)], lambda n: [s.Attach(n, "/data", ""), *hidden])
    assert ran.text.splitlines() == [
        "sh: 1: cannot create changed: Read-only file system",
        "sh: 1: cannot create again/x: Read-only file system",
        "kept",
        "cat: again/old: No such file or directory",
        "2",
    ]
    attach: Build = lambda n: [s.Attach(n, "/data", ""), s.Hide("/data/nothing", CLOSED, 0)]  # noqa: E731
    assert refused([take(lower)], attach) == ("hide", errno.ENOENT)


@needs("mount_setattr")
def test_what_is_hidden_by_a_link_is_its_target(lower: Path) -> None:
    """A link that came in the place of a hidden file leads nowhere out, and hides what it leads to."""
    (lower / "link").symlink_to("/data/kept")
    (lower / "out").symlink_to("../../../../../../etc/hostname")
    steps = [s.Hide("/data/link", CLOSED, 0), s.Hide("/data/out", CLOSED, 1)]
    ran = run("cat /data/kept /etc/hostname; cat /data/changed", [take(lower)],
              lambda n: [s.Attach(n, "/data", ""), *steps])  # fmt: skip
    assert ran.text == "changed\n"
    (lower / "link").unlink()
    (lower / "out").unlink()


def test_a_masked_directory_is_empty() -> None:
    """Where /proc has a directory that is masked, it can be read and holds nothing."""
    plan, _, _ = prepare("true")
    masked = next((step[1] for step in plan.steps if isinstance(step, s.Mask)), ())
    directory = next((path for path in masked if os.path.isdir(path)), None)
    file = next((path for path in masked if os.path.isfile(path)), None)
    if directory is None or file is None:
        pytest.skip("this kernel's /proc has no directory that is masked")
    ran = run(f"ls -A {directory} && cat {file} && echo empty", [], lambda _: [])
    assert ran.text == "empty\n"


@pytest.mark.parametrize("data", [b"", b"\0", DATA, bytes(range(256)) * 4096])
def test_content(data: bytes) -> None:
    """A file of any bytes, with its mode."""
    script = "stat -c %a /etc/data && od -An -v -tx1 </etc/data"
    ran = run(script, [], lambda _: [s.Content("/etc/data", 0o640, data.hex())])
    mode, *words = ran.text.split()
    assert (mode, bytes.fromhex("".join(words))) == ("640", data)


@pytest.mark.parametrize("text", ["0", "0g", "000", "0 ", "AB"])
def test_bad_content(text: str) -> None:
    """What is not pairs of hexadecimal digits is refused."""
    assert refused([], lambda _: [s.Content("/etc/data", 0o600, text)]) == ("content", errno.EPROTO)


# --- sources --------------------------------------------------------------------------------


@needs("mount_setattr")
@pytest.mark.parametrize(
    ("name", "how", "error"),
    [
        ("link", s.NO_LINKS, errno.ELOOP),
        ("link/old", s.NO_LINKS, errno.ELOOP),
        ("kept", s.DIRECTORY, errno.ENOTDIR),
        ("kept", s.NO_LINKS | s.DIRECTORY, errno.ENOTDIR),
        ("nothing", s.NO_LINKS, errno.ENOENT),
        ("link", 0, None),
        ("link", s.DIRECTORY, None),
        ("again", s.NO_LINKS | s.DIRECTORY, None),
        ("kept", s.NO_LINKS, None),
    ],
)
def test_how_a_source_is_resolved(tmp_path: Path, name: str, how: int, error: int | None) -> None:
    """A link anywhere in a path that had none, or no directory where one was, fails the step."""
    (tmp_path / "again").mkdir()
    (tmp_path / "again/old").write_text("old\n")
    (tmp_path / "kept").write_text("kept\n")
    (tmp_path / "link").symlink_to("again")
    give(tmp_path)
    build: Build = lambda n: [s.Attach(n, "/data", "")]  # noqa: E731
    if error is not None:
        assert refused([take(tmp_path / name, how=how)], build) == ("tree", error)
        return
    ran = run("test -e /data && cat /data/old /data", [take(tmp_path / name, how=how)], build)
    assert "kept" in ran.text or "old" in ran.text


@needs("real root")
def test_a_mapped_tree(tmp_path: Path) -> None:
    """What the command makes in a tree of another user belongs to that user, on the host."""
    place = tmp_path / "place"
    place.mkdir(mode=0o700)
    (place / "old").write_text("old\n")
    for path in (place, place / "old"):
        os.chown(path, 1000, 1001)
    maps = (f"1000 {NOBODY} 1", f"1001 {NOBODY} 1")
    mapped = s.MappedTree(str(place), BOUND, s.NO_LINKS | s.DIRECTORY, *maps)
    script = "cd /data && echo new >new && mkdir dir && echo more >>old && stat -c %u:%g . old new"
    ran = run(f"{script}; id -u; id -g", [mapped, take(tmp_path)],
              lambda n: [s.Attach(n, "/data", "")])  # fmt: skip
    inside = ":".join(ran.text.split()[-2:])
    assert ran.text.split()[:-2] == [inside] * 3
    owners = [(path.stat().st_uid, path.stat().st_gid) for path in sorted(place.iterdir())]
    assert owners == [(1000, 1001)] * 3


@needs("real root")
def test_a_tree_that_cannot_be_mapped(tmp_path: Path) -> None:
    """A file system that has no such mounts is taken as it is; a link in its path is refused."""
    maps = (f"1000 {NOBODY} 1", f"1000 {NOBODY} 1")
    mapped = s.MappedTree("/proc/fs", BOUND, s.NO_LINKS, *maps)
    assert run("ls -d /data", [mapped], lambda n: [s.Attach(n, "/data", "")]).text == "/data\n"
    link = tmp_path / "link"
    link.symlink_to("/proc/fs")
    mapped = s.MappedTree(str(link), BOUND, s.NO_LINKS, *maps)
    assert refused([mapped], lambda n: [s.Attach(n, "/data", "")]) == ("mapped-tree", errno.ELOOP)


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A directory that is a mount of its own, whose mounts travel to its copies and back."""
    place = tmp_path / "shared"
    (place / "below").mkdir(parents=True)
    for path in (place, place / "below"):
        os.chown(path, 1000, 1000)
    if subprocess.run(["mount", "--bind", place, place], capture_output=True).returncode:
        pytest.skip("mount(8) may not bind a directory here")
    try:
        subprocess.run(["mount", "--make-shared", place], check=True)
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@needs("real root")
def test_a_mapped_tree_is_private(shared: Path) -> None:
    """Taken from a shared mount of the host's, it is no peer: what is mounted on it stays inside."""
    table = Path("/proc/self/mountinfo")
    (line,) = (line for line in table.read_text().splitlines() if f" {shared} " in line)
    assert " shared:" in line
    maps = (f"1000 {NOBODY} 1", f"1000 {NOBODY} 1")
    mapped = s.MappedTree(str(shared), BOUND, s.NO_LINKS | s.DIRECTORY, *maps)
    build: Build = lambda n: [s.Attach(n, "/data", ""), s.Protect("/data/below", s.READ_ONLY)]  # noqa: E731
    ran = run("grep ' /data' /proc/self/mountinfo; touch /data/new /data/below/new", [mapped], build)
    assert ran.text.count("idmapped") == 2
    assert not re.search("shared:|master:", ran.text)
    assert "touch: cannot touch '/data/below/new': Read-only file system" in ran.text
    assert (shared / "new").stat().st_uid == 1000


@needs("mount_setattr")
def test_a_tree_cannot_be_taken_twice(lower: Path) -> None:
    """A number that is used up, or was never given, is refused."""
    twice: Build = lambda n: [overlay(n), overlay(n)]  # noqa: E731
    assert refused([take(lower)], twice) == ("overlay", errno.EPROTO)
    assert refused([take(lower)], lambda n: [overlay(n, 999)]) == ("overlay", errno.EPROTO)
