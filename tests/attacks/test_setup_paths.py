"""Paths during the set-up (A-01, A-03, A-06, A-07, A-14): links that a program planted lead nowhere."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import capsule
from capsule import CapsuleError, Mount, Policy
from tests.attacks.flipper import flipping
from tests.attacks.hostdiff import snapshot, unchanged
from tests.attacks.lab import in_lab
from tests.support import (
    PYTHON,
    RACES,
    ask,
    await_line,
    give,
    lab,
    needs,
    overlay_apart,
    shared_directory,
)

# Launches of a racing test: in the normal lane, and in the slow one.
LAUNCHES = [pytest.param(RACES, id="short"), pytest.param(2000, id="long", marks=pytest.mark.slow)]


class Place(NamedTuple):
    """A tree that an earlier program wrote to, and what it must not reach."""

    tree: Path
    victim: Path


@pytest.fixture
def place() -> Iterator[Place]:
    """Links of every kind from a writable tree to a victim beside it, which holds a secret."""
    with shared_directory() as top:
        tree, victim = top / "tree", top / "victim"
        tree.mkdir()
        victim.mkdir()
        (victim / "file").write_text("canary")
        (victim / "below").mkdir()
        for each in (tree, victim, victim / "below", victim / "file"):
            give(each)
        (tree / "real").mkdir()
        (tree / "absolute").symlink_to(victim)
        (tree / "relative").symlink_to("../victim")
        (tree / "oldroot").symlink_to(f"../../../../../../oldroot{victim}")
        (tree / "up").symlink_to(f"../../../../../../..{victim}")
        (tree / "magic").symlink_to(f"/proc/self/root{victim}")
        (tree / "cwd").symlink_to("/proc/self/cwd/victim")
        yield Place(tree, victim)


# --- places behind planted links ------------------------------------------------------------

LINKS = ("absolute", "relative", "oldroot", "up", "magic", "cwd")
MAKERS: dict[str, Callable[[str, Path], Mount]] = {
    "directory": lambda at, _: Mount.directory(at),
    "content": lambda at, _: Mount.content(b"planted", at),
    "file": lambda at, source: Mount.file(source / "file", at),
    "symlink": lambda at, _: Mount.symlink("/etc/passwd", at),
    "tmpfs": lambda at, _: Mount.tmpfs(at),
    "read-only": lambda at, source: Mount.read_only(source, at),
    "read-write file": lambda at, source: Mount.read_write(source / "file", at),
    "overlay": lambda at, source: Mount.overlay(source, at),
    "hide": lambda at, _: Mount.hide(at, optional=True),
}


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("maker", MAKERS)
def test_a01_a_place_behind_a_planted_link_is_not_made_on_the_host(
    place: Place, link: str, maker: str
) -> None:
    """A mount whose place leads through a link fails or lies inside; the victim stays as it was."""
    with shared_directory() as source:
        give(source)
        (source / "file").write_text("harmless")
        give(source / "file")
        for name in ("new", "below/new", "file", "below"):
            mount = MAKERS[maker](f"{place.tree}/{link}/{name}", source)
            policy = Policy(mounts=(Mount.read_write(place.tree), mount))
            script = f'echo overwritten >"{place.tree}/{link}/{name}"; true'
            with unchanged(place.tree, place.victim, tables=False), contextlib.suppress(CapsuleError):
                capsule.run(["sh", "-c", script], policy, cwd="/")


def test_a01_control_a_path_by_name_goes_through_the_link(place: Place) -> None:
    """What creates the same places by their names makes them at the victim."""
    for number, link in enumerate(("absolute", "relative", "up", "magic")):
        os.makedirs(place.tree / link / f"new-{number}/x")
        assert (place.victim / f"new-{number}/x").is_dir()


# --- the place is exchanged while the capsule starts ----------------------------------------

_WHERE = 'grep -o " /[^ ]*/x " /proc/self/mountinfo; ls "$1"; : >"$1/x/written"'


@pytest.mark.parametrize("launches", LAUNCHES)
@pytest.mark.parametrize("maker", overlay_apart(["tmpfs", "read-only", "overlay", "hide"]))
def test_a03_a_place_that_is_exchanged_leads_nowhere(place: Place, maker: str, launches: int) -> None:
    """While a directory and a link change places, mounts land in the capsule, or it does not start."""
    contested, link = place.tree / "contested", place.tree / "absolute"
    (contested / "x").mkdir(parents=True)
    with shared_directory() as source:
        (place.victim / "x").mkdir()
        mount = MAKERS[maker](f"{contested}/x", source)
        policy = Policy(mounts=(Mount.read_write(place.tree), mount), cwd="/")
        with unchanged(place.victim, place.tree, source, tables=False):
            # At full speed hardly a start gets past the first look; with pauses many come further.
            for pause in (0.0, 0.004):
                with flipping(contested, link, pause) as flips:
                    for _ in range(launches // 2):
                        _lands_inside(policy, contested, place.victim)
                assert flips.count > 0
            assert _lands_inside(policy, contested, place.victim)


def _lands_inside(policy: Policy, contested: Path, victim: Path) -> bool:
    """Whether the capsule started: what it mounted lies where it was asked for, or behind the link."""
    try:
        result = capsule.run(["sh", "-c", _WHERE, "sh", str(contested)], policy, text=True)
    except CapsuleError:
        return False
    first = result.stdout.split("\n")[0].strip()
    assert first in (f"{contested}/x", f"{contested.parent}/absolute/x"), result
    assert "below" not in result.stdout
    assert not os.path.exists(victim / "x/written")
    return True


# --- a root that was made to deceive -----------------------------------------------


@contextlib.contextmanager
def hostile_root(links: dict[str, str]) -> Iterator[tuple[Path, tuple[Mount, ...]]]:
    """A root whose top has these links, and the mounts that bring the host's programs into it."""
    with shared_directory() as root:
        for name in ("x", "etc", "victim"):
            (root / name).mkdir()
        for name in ("null", "kcore", "shm", "pts"):
            (root / "x" / name).write_text("bait\n")
        mounts = []
        for path, link in capsule.probe().system:
            if link is None:
                (root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
                mounts.append(Mount.read_only(path))
            else:
                (root / path.lstrip("/")).symlink_to(link)
        for name, target in links.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).symlink_to(target)
        yield root, tuple(mounts)


# What holds in each capsule, as lines that begin with "wrong" if it does not.
_HOLDS = """
export LC_ALL=C
case $(stat -f -c %T /proc/self/) in proc) ;; *) echo wrong: /proc is $(stat -f -c %T /proc);; esac
[ "$(stat -L -c %t:%T /dev/null)" = 1:3 ] || echo wrong: null is $(stat -L -c %F:%t:%T /dev/null)
[ -c /dev/zero ] && : >/dev/null || echo wrong: no devices
for place in $1; do
    [ -e /proc$place ] || continue
    [ -d /proc$place ] || [ -z "$(cat /proc$place 2>/dev/null)" ] || echo wrong: content: $place
    (echo 1 >>/proc$place) 2>&1 | grep -q -e Read-only -e denied -e directory || echo wrong: $place
done
(echo x >/proc/sys/kernel/core_pattern) 2>&1 | grep -q -e Read-only -e denied ||
    echo wrong: core_pattern
: >/tmp/harmless && echo held
"""


def _holds(root: Path, mounts: tuple[Mount, ...]) -> list[str] | None:
    """What is wrong in a capsule of that root, or None if it does not start."""
    masked = " ".join(path.removeprefix("/proc") for path in capsule.probe().masked)
    policy = Policy(root=str(root), mounts=mounts, cwd="/", extra_env={"PATH": "/usr/bin:/bin"})
    try:
        result = capsule.run(["sh", "-c", _HOLDS, "sh", masked], policy, text=True)
    except CapsuleError:
        return None
    lines = str(result.stdout).splitlines()
    assert lines[-1:] == ["held"], result
    return lines[:-1]


def test_a06_an_honest_root_starts() -> None:
    """The control: without links the same root starts, and what must hold in it holds."""
    with hostile_root({}) as (root, mounts):
        assert _holds(root, mounts) == []


def test_a06_the_check_sees_what_is_wrong() -> None:
    """The control: outside the script finds content that shows and a file that can be written."""
    with shared_directory() as top:
        script = _HOLDS.replace("/proc/sys/kernel/core_pattern", f"{top}/file")
        script = script.replace("/tmp/harmless", f"{top}/harmless")
        done = subprocess.run(["sh", "-c", script, "sh", "/version"], capture_output=True, text=True)
        lines = done.stdout.splitlines()
        assert {"wrong: content: /version", "wrong: core_pattern", "held"} <= set(lines)


@pytest.mark.parametrize(
    "links",
    [
        {"dev": "/victim"},
        {"dev": "victim"},
        {"dev": "../../victim"},
        {"dev": "/x"},
        {"dev": "/proc"},
        {"dev": "/proc/self/fd"},
        {"dev/null": "/proc/sys/kernel/core_pattern"},
        {"dev/null": "/victim/file", "dev/console": "/victim/file", "dev/ptmx": "/victim/file"},
        {"dev/pts": "/victim", "dev/shm": "/victim"},
        {"proc": "/x"},
        {"proc": "/victim"},
        {"proc": "/dev"},
        {"proc/kcore": "/x/kcore", "proc/sys": "/x"},
        {"tmp": "/proc/sys"},
        {"tmp": "/proc/self"},
        {"tmp": "/dev"},
        {"tmp": "/victim", "home": "/victim", "run": "/victim", "root": "/victim"},
        {"home": "/proc/self", "root": "/proc/self"},
        {"sys": "/proc/sys"},
        {".empty-file": "/victim/file", ".empty-directory": "/victim", ".layers": "/victim"},
    ],
    ids=str,
)
def test_a06_a07_links_of_a_root_deceive_nobody(place: Place, links: dict[str, str]) -> None:
    """With such a root the capsule does not start, or has its own /proc and /dev and all its masks."""
    real = {name: target.replace("/victim", str(place.victim)) for name, target in links.items()}
    for each in (links, real):
        with hostile_root(each) as (root, mounts), unchanged(root, place.victim, tables=False):
            assert _holds(root, mounts) in (None, [])


def test_a06_a07_links_of_a_root_to_each_other() -> None:
    """Whatever two of the names that Capsule uses itself lead to, the same holds."""
    names = ("dev", "proc", "tmp", "home", "run")
    for one, other in itertools.permutations(names, 2):
        links = {one: f"/{other}", other: "/x"}
        with hostile_root(links) as (root, mounts), unchanged(root, tables=False):
            assert _holds(root, mounts) in (None, []), links


def test_a07_stdio_is_never_opened_again(place: Place) -> None:
    """A root's console that leads to a file gets nothing of what the command prints."""
    (place.victim / "console").touch()
    links = {
        f"dev/{name}": f"{place.victim}/console" for name in ("console", "tty", "stdout", "stderr")
    }
    with hostile_root(links) as (root, mounts), unchanged(root, place.victim, tables=False):
        policy = Policy(root=str(root), mounts=mounts, cwd="/", extra_env={"PATH": "/usr/bin:/bin"})
        result = capsule.run(["sh", "-c", "echo out; echo err >&2"], policy)
        assert (result.stdout, result.stderr) == (b"out\n", b"err\n")


def test_a06_masks_hold_in_the_default_view() -> None:
    """Each masked path is empty, and writing fails with EROFS or EACCES; own files can be written."""
    code = """
told = {}
for path in given["masked"]:
    try:
        content = os.listdir(path) if os.path.isdir(path) else open(path).read()
    except OSError as error:
        content = errno.errorcode[error.errno]
    try:
        os.close(os.open(f"{path}/new" if os.path.isdir(path) else path, os.O_WRONLY | os.O_CREAT))
        written = True
    except OSError as error:
        written = errno.errorcode[error.errno]
    told[path] = [not content or content == "EACCES", written in ("EROFS", "EACCES")]
open("/tmp/harmless", "w").close()
tell(told)
"""
    masked = capsule.probe().masked
    assert ask(code, given={"masked": masked}) == {path: [True, True] for path in masked}


# --- mounts stay inside ---------------------------------------------------------------------


@needs("overlay")
def test_a14_the_mount_table_is_the_same_while_it_runs(place: Place) -> None:
    """No mount of a capsule can be seen on the host, neither while it runs nor after."""
    mounts = (Mount.read_write(place.tree), Mount.tmpfs("/data"), Mount.overlay(place.victim))
    before = snapshot(tables=False).mounts
    with capsule.start(
        ["cat"], Policy(mounts=mounts), stdin=capsule.PIPE, stdout=capsule.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"ready\n")
        process.stdin.flush()
        assert await_line(process) == b"ready\n"
        assert snapshot(tables=False).mounts == before
    assert snapshot(tables=False).mounts == before


_SHARED = """
import capsule, subprocess
mounts = lambda: open("/proc/self/mountinfo").read()
top, before = sys.argv[2], mounts()
policy = capsule.Policy(mounts=[capsule.Mount.read_write(top, at="/data")])
script = "echo; read line; cat /proc/self/mountinfo; test -e /data/below/late || echo hidden"
with capsule.start(["sh", "-c", script], policy, stdin=-1, stdout=-1) as process:
    process.stdout.readline()
    during = mounts()
    subprocess.run(["mount", "-t", "tmpfs", "late", top + "/below"], check=True)
    open(top + "/below/late", "w").close()
    process.stdin.write(b"go\\n")
    process.stdin.flush()
    inside = process.stdout.read().decode()
subprocess.run(["umount", top + "/below"], check=True)
after = mounts()
leak = ["unshare", "-m", "--propagation", "unchanged", "mount", "-t", "tmpfs", "leak", top]
subprocess.run(leak, check=True)
tell([during == before, after == before, inside.endswith("hidden\\n"), " late " in inside,
      " leak " in mounts()])
"""


@needs("unshare")
def test_a14_nothing_travels_where_mounts_are_shared(place: Place) -> None:
    """Where mounts are shared none leaves the capsule or enters it; a namespace left shared leaks."""
    (place.tree / "below").mkdir()
    told = lab("mount --make-rshared /", _SHARED, place.tree)
    assert told == [True, True, True, False, True]


_NESTED = 'unshare -Urm sh -c "mount -t tmpfs planted /tmp && echo mounted && sleep 1000 & wait"'


@needs("unshare")
def test_a14_a_mount_of_the_command_is_not_seen() -> None:
    """What the command mounts in namespaces of its own stays there."""
    with capsule.start(["sh", "-c", _NESTED], stdout=capsule.PIPE, stderr=capsule.DEVNULL) as process:
        assert await_line(process) in (b"mounted\n", b"")
        assert " planted " not in "\n".join(snapshot(tables=False).mounts)


def _run_in_lab() -> bool:
    with unchanged("/tmp", "/run", "/dev/shm"):
        capsule.run([PYTHON, "-I", "-S", "-c", "pass"])
    return True


@needs("unshare")
def test_a14_a_lab_is_as_before() -> None:
    """Where nobody else is, nothing at all has changed: mounts, places, processes, sockets."""
    assert in_lab(_run_in_lab)
