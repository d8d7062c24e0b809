"""The tools of this folder: a lab is one, a difference is seen, and the flipper flips."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import capsule
from tests.attacks.flipper import flipping, naive_read, until_beaten
from tests.attacks.hostdiff import PLACES, differences, snapshot, unchanged
from tests.attacks.lab import in_lab
from tests.support import HANG, needs, shared_directory


def _look() -> list[object]:
    return [os.getuid(), os.listdir("/run"), [pid for pid in os.listdir("/proc") if pid.isdigit()]]


@needs("unshare")
def test_a_lab_is_empty_and_the_caller_the_same() -> None:
    """Nothing lies in its places, nobody runs in it, and a capsule starts there."""
    uid, run, pids = in_lab(_look)
    assert uid == os.getuid()
    assert set(run) <= {"mount"}  # mount(8)'s own notes
    assert len(pids) == 1
    assert in_lab(_run) == "inside\n"


def _run() -> str:
    return str(capsule.run(["echo", "inside"], text=True).stdout)


@pytest.mark.parametrize(
    "act",
    [
        lambda top: (top / "new").touch(),
        lambda top: (top / "file").write_text("CONTENT"),
        lambda top: (top / "file").chmod(0o600),
        lambda top: (top / "file").unlink(),
        lambda top: (top / "link").unlink() or (top / "link").symlink_to("else"),
        lambda top: (top / "file").rename(top / "renamed"),
        lambda top: os.link(top / "file", top / "below/hard"),
        lambda top: os.mkfifo(top / "below/fifo"),
    ],
)
def test_a_difference_in_a_tree_is_seen(act: Callable[[Path], object]) -> None:
    """A name, a type, a mode, a content or a target that changed is a difference; nothing else is."""
    with shared_directory() as top:
        (top / "below").mkdir()
        (top / "file").write_text("content")
        (top / "link").symlink_to("file")
        before = snapshot(top, tables=False)
        assert differences(before, snapshot(top, tables=False)) == []
        act(top)
        assert differences(before, snapshot(top, tables=False))


def _differences() -> list[bool]:
    """Whether each kind of leftover is seen."""
    seen = []
    before = snapshot(*PLACES)
    with socket.socket(socket.AF_UNIX) as one, socket.socket() as other:
        one.bind("\0left")
        other.bind(("127.0.0.1", 0))
        other.listen()
        seen.append(len(differences(before, snapshot(*PLACES))) == 2)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        seen.append(len(differences(before, snapshot(*PLACES))) == 1)
        process.kill()
    Path("/dev/shm/left").touch()
    seen.append(len(differences(before, snapshot(*PLACES))) == 1)
    Path("/dev/shm/left").unlink()
    with unchanged(*PLACES):
        capsule.run(["true"])
    return seen


def _mount() -> bool:
    before = snapshot()
    subprocess.run(["mount", "-t", "tmpfs", "left", "/run"], check=True, timeout=HANG)
    return bool(differences(before, snapshot()))


@needs("unshare")
def test_a_leftover_is_seen() -> None:
    """A socket, a process, a file in a place and a mount are each a difference."""
    assert in_lab(_differences) == [True] * 3
    assert in_lab(_mount, user=False) is True


def test_the_flipper_beats_a_check_before_a_use() -> None:
    """A check for links loses the race, and both names are as before in the end."""
    with shared_directory() as top:
        (top / "directory").mkdir()
        (top / "victim").mkdir()
        (top / "victim/secret").write_text("canary")
        (top / "link").symlink_to("victim")
        with unchanged(top, tables=False):
            with flipping(top / "directory", top / "link") as flips:
                assert until_beaten(lambda: naive_read(top / "directory", "secret") == "canary")
            assert flips.count > 0
