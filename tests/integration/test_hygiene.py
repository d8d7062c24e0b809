"""Nothing is left on the host, whatever ran and however it ended: tables and trees are as before."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import capsule
from capsule import CapsuleError, Mount, Policy
from tests.attacks.hostdiff import PLACES, unchanged
from tests.attacks.lab import HOME, in_lab
from tests.support import CAPSULE, HANG, PYTHON, give, needs, probe_args, shared_directory

# --- kinds of run ---------------------------------------------------------------------------------

# Each gets a directory that it may write to and one that must stay as it is.
Kind = Callable[[Path, Path], object]


def _run(script: str, *mounts: Mount, **options: object) -> object:
    policy = Policy(mounts=mounts, cwd="/")
    return capsule.run(["sh", "-c", script], policy, **options)  # type: ignore[arg-type]


def _refused(*mounts: Mount) -> None:
    with contextlib.suppress(CapsuleError):
        _run("true", *mounts)
        raise AssertionError("it started")


def _not_found() -> None:
    with pytest.raises(CapsuleError):
        capsule.run(["no-such-program"], cwd="/")


def _terminal(_: Path, __: Path) -> None:
    with capsule.start(["sh", "-c", "tty"], terminal=capsule.Terminal()) as process:
        process.wait()


def _left_alone(_: Path, __: Path) -> None:
    """Leaving the block kills what still runs."""
    with capsule.start(["sh", "-c", "trap '' TERM; sleep 1000 & sleep 1000"], cwd="/"):
        pass


_SUPERVISOR = """
import capsule, sys
capsule.run(["cat"], mounts=[capsule.Mount.overlay(sys.argv[1])], stdin=0, stdout=1)
"""


def _killed(_: Path, kept: Path) -> None:
    """The supervisor is killed while its capsule, with an overlay, runs."""
    command = [PYTHON, "-B", "-c", _SUPERVISOR, str(kept)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"x")
        process.stdin.flush()
        assert process.stdout.read(1) == b"x"  # it runs
        process.send_signal(signal.SIGKILL)


_CRASH = "mkdir -p /tmp/a/b && : >/dev/shm/x && kill -SEGV $$"
_FILL = "dd if=/dev/zero of=/data/x bs=64k 2>/dev/null; mkdir /data/d; chmod 0 /data/d; true"
# 10,000 levels, and a million of what costs only an entry, in what vanishes with the capsule.
_DEEP = """
os.chdir("/data")
for number in range(10000):
    os.mkdir("d")
    os.chdir("d")
tell(None)
"""
_MANY = """
os.chdir("/data")
for number in range(given["many"]):
    os.symlink("x", f"{number}")
tell(None)
"""

KINDS: dict[str, Kind] = {
    "plain": lambda _, __: _run("exit 0"),
    "failing": lambda _, __: _run("exit 3"),
    "crash": lambda _, __: _run(_CRASH),
    "timeout": lambda _, __: _run("sleep 1000", timeout=0.05),
    "output limit": lambda _, __: _run("yes", output=4096),
    "background": lambda _, __: _run("sleep 1000 & (trap '' TERM HUP; sleep 1000) & true"),
    "left alone": _left_alone,
    "terminal": _terminal,
    "supervisor killed": _killed,
    "read-only": lambda _, kept: _run("ls /data; : >/data/new", Mount.read_only(kept, at="/data")),
    "overlay": lambda _, kept: _run(
        "rm -r /data/*; mkdir /data/new; ln -s /etc /data/link; chmod 0 /data/new",
        Mount.overlay(kept, at="/data"),
    ),
    "full overlay": lambda _, kept: _run(_FILL, Mount.overlay(kept, at="/data", size="1M")),
    "full tmpfs": lambda _, __: _run(_FILL, Mount.tmpfs("/data", "1M")),
    "hide": lambda _, kept: _run("true", Mount.read_only(kept), Mount.hide(kept / "file")),
    "hide pattern": lambda _, kept: _run("true", Mount.read_only(kept), Mount.hide("**/f*")),
    "made up": lambda _, __: _run(
        "cat /a/b/c",
        Mount.directory("/d/e"),
        Mount.content(b"x", "/a/b/c"),
        Mount.symlink("/d", "/l/m"),
    ),
    "protected": lambda work, __: _run(
        "mkdir /data/.git && rmdir /data/.git", Mount.read_write(work, at="/data")
    ),
    "policy error": lambda _, __: _refused(Mount.read_only("/no/such/place")),
    "setup error": lambda work, kept: _refused(
        Mount.read_write(work), Mount.overlay(kept, at=f"{work}/no/such")
    ),
    "not found": lambda _, __: _not_found(),
    "deep": lambda _, kept: capsule.run(
        probe_args(_DEEP), Policy(mounts=(Mount.overlay(kept, at="/data"),)), cwd="/", check=True
    ),
    "many": lambda _, kept: capsule.run(
        probe_args(_MANY, {"many": 20000}),
        Policy(mounts=(Mount.overlay(kept, at="/data"),)),
        cwd="/",
        check=True,
    ),
}


def trees(top: Path) -> tuple[Path, Path]:
    """A directory to write to, and one with all kinds of entry that must stay as it is."""
    work, kept = top / "work", top / "kept"
    for each in (work, kept, kept / "below"):
        each.mkdir(parents=True)
    (kept / "file").write_text("content")
    (kept / "below/link").symlink_to("../file")
    os.link(kept / "file", kept / "below/hard")
    for each in (work, kept, kept / "below", kept / "file"):
        give(each)
    return work, kept


@pytest.mark.parametrize("kind", KINDS)
def test_trees_and_the_mount_table_are_as_before(kind: str) -> None:
    """After a run of each kind the trees and the host's mount table are byte for byte as before."""
    with shared_directory() as top:
        work, kept = trees(top)
        with unchanged(top, tables=False):
            KINDS[kind](work, kept)


def every_kind() -> list[str]:
    """In a lab: the kinds of run after which something is not as before."""
    wrong = []
    top = Path(HOME) / "project"
    top.mkdir()
    top.parent.chmod(0o755)
    work, kept = trees(top)
    for name, kind in KINDS.items():
        try:
            with unchanged(*PLACES, HOME, "/mnt"):
                kind(work, kept)
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
    return wrong


@needs("unshare")
def test_a_whole_host_is_as_before() -> None:
    """Where nobody else acts each kind leaves all as it was: places, home, processes, sockets."""
    assert in_lab(every_kind) == []


def leaving() -> bool:
    """In a lab: a run that writes to the host through --rw."""
    with unchanged(*PLACES, HOME):
        Path(HOME, "work").mkdir(mode=0o777)
        Path(HOME, "work").chmod(0o777)
        _run(": >/data/new", Mount.read_write(Path(HOME, "work"), at="/data"))
    return True


@needs("unshare")
def test_the_oracle_sees_a_file_that_was_written() -> None:
    """The control: a file that a command wrote through --rw is a difference."""
    with pytest.raises(AssertionError, match="work/new"):
        in_lab(leaving)


def the_command() -> bool:
    """In a lab: the command line, with a terminal's worth of options."""
    top = Path(HOME) / "project"
    top.mkdir()
    (top / "file").write_text("content")
    for each in (top.parent, top):
        each.chmod(0o755)
    for words in (
        ["run", "--", "true"],
        ["run", "--overlay", str(top), "--", "sh", "-c", "rm file; mkdir x"],
        ["run", "--timeout", "50ms", "--", "sleep", "1000"],
        ["run", "--ro", "/no/such", "--", "true"],
        ["plan", "--", "true"],
        ["doctor"],
    ):
        with unchanged(*PLACES, HOME, "/mnt"):
            subprocess.run([CAPSULE, *words], capture_output=True, timeout=HANG, cwd=top)
    return True


@needs("unshare")
def test_the_command_line_leaves_nothing() -> None:
    """run, plan and doctor leave no file, no process and no mount either."""
    assert in_lab(the_command)


# --- trees made to be hard to remove --------------------------------------------------------------


@pytest.mark.slow
def test_a_million_entries_go_with_their_capsule() -> None:
    """A million links in an overlay are counted or said to be too many, and nothing is left."""
    with shared_directory() as top:
        _, kept = trees(top)
        with unchanged(top, tables=False):
            mount = Mount.overlay(kept, at="/data", size="2G")
            result = capsule.run(probe_args(_MANY, {"many": 10**6}), Policy(mounts=(mount,)), cwd="/")
            assert not (result.ok and result.changes_complete and len(result.changes) < 10**6)


_DEEP_AND_CLOSED = """
os.chdir("/data")
for number in range(3000):
    os.mkdir("d")
    os.symlink("/etc", "link")
    os.chdir("d")
os.chdir("/data")
os.makedirs("closed/below")
os.chmod("closed/below", 0)
os.chmod("closed", 0)
tell(None)
"""


def test_a_hostile_tree_in_a_writable_mount_does_no_harm() -> None:
    """A deep tree with closed directories in --rw keeps no run from ending or starting."""
    with shared_directory() as top:
        work, kept = trees(top)
        with unchanged(kept, tables=False):
            policy = Policy(mounts=(Mount.read_write(work, at="/data"),), cwd="/")
            assert capsule.run(probe_args(_DEEP_AND_CLOSED), policy).ok
            result = capsule.run(["sh", "-c", "chmod -R u+rwx /data/closed; rm -rf /data/*"], policy)
            assert result.ok, result
        assert os.listdir(work) == []
