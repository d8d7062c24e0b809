"""Sources on the host (A-04, A-05, A-15, A-16): nothing that was planted is shown or cleaned up."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import capsule
from capsule import CapsuleError, Mount, Policy, PolicyError, SetupError
from tests.attacks.flipper import flipping, naive_read, until_beaten
from tests.attacks.hostdiff import unchanged, unlock
from tests.support import (
    RACES,
    ask,
    await_line,
    closed_place,
    give,
    lab,
    needs,
    overlay_apart,
    probe_args,
    shared_directory,
)

CANARY = "canary-5f1c2a"
LAUNCHES = [pytest.param(RACES, id="short"), pytest.param(2000, id="long", marks=pytest.mark.slow)]


class Place(NamedTuple):
    """A project that programs write to, and a home that they must not see."""

    project: Path
    home: Path


@pytest.fixture
def place() -> Iterator[Place]:
    """A project with a directory `cache`, and a home with a key; all the capsule's outside ids'."""
    with shared_directory() as top:
        project, home = top / "project", top / "home"
        for each in (project, project / "cache", project / "cache/x", home, home / "x", home / "x/y"):
            each.mkdir()
            give(each)
        for each in (home / "key", home / "x/key", home / "x/y/key"):
            each.write_text(CANARY)
            give(each)
        (project / "cache/key").write_text("harmless")
        give(project / "cache/key")
        yield Place(project, home)


def plant(place: Place, name: str, target: str) -> None:
    """Run 1: a program in a capsule replaces something in the project by a link."""
    script = 'rm -rf "$1" && ln -s "$2" "$1"'
    policy = Policy(mounts=(Mount.read_write(place.project),), cwd=str(place.project))
    result = capsule.run(["sh", "-c", script, "sh", name, target], policy)
    assert result.ok, result
    assert os.path.islink(place.project / name)


# --- a source that became a link between two runs -------------------------------------------

SHOWN: dict[str, Callable[[Path], dict[str, Any]]] = {
    "read-only": lambda path: {"mounts": [Mount.read_only(path, at="/data")]},
    "read-write": lambda path: {"mounts": [Mount.read_write(path, at="/data")]},
    "overlay": lambda path: {"mounts": [Mount.overlay(path, at="/data")]},
    "optional": lambda path: {"mounts": [Mount.read_only(path, at="/data", optional=True)]},
    "file": lambda path: {"mounts": [Mount.file(path / "key", at="/data/key")]},
    "one file": lambda path: {"mounts": [Mount.read_only(path / "key", at="/data/key")]},
    "own place": lambda path: {"mounts": [Mount.read_only(path)]},
    "below": lambda path: {"mounts": [Mount.read_only(path / "x", at="/data")]},
    "working directory": lambda path: {"cwd": str(path)},
    "root": lambda path: {"root": str(path)},
}
_LOOK = '[ "$PWD" = / ] || set -- "$1" .; grep -rls canary /data "$@"; true'


def _seen(place: Place, options: dict[str, Any]) -> str:
    """Whether the capsule shows the canary: the files that hold it, or the error's name."""
    policy = Policy(**{"cwd": "/", **options})
    try:
        result = capsule.run(["sh", "-c", _LOOK, "sh", str(place.home.parent)], policy, text=True)
    except (PolicyError, SetupError) as error:
        return type(error).__name__
    return str(result.stdout + result.stderr)


@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("link", ["absolute", "relative", "of links", "magic"])
def test_a04_a_source_that_became_a_link_is_refused(place: Place, shown: str, link: str) -> None:
    """Run 1 replaces a directory by a link to a home; run 2, told to show it, refuses."""
    targets = {
        "absolute": str(place.home),
        "relative": "../home",
        "of links": "second",
        "magic": f"/proc/self/root{place.home}",
    }
    plant(place, "second", "../home")
    plant(place, "cache", targets[link])
    path = place.project / "cache"
    # The control: the path as such leads to the canary.
    assert (path / "key").read_text() == CANARY
    with unchanged(place.home, tables=False):
        assert _seen(place, SHOWN[shown](path)) == "PolicyError"


@pytest.mark.parametrize("shown", overlay_apart(name for name in SHOWN if name != "root"))
def test_a04_the_same_source_without_a_link_is_shown(place: Place, shown: str) -> None:
    """The control: what no program replaced is shown, and the canary is not in it."""
    assert _seen(place, SHOWN[shown](place.project / "cache")) == ""


@pytest.mark.parametrize("where", ["cache", "cache/x"])
def test_a04_a_link_in_the_middle_of_a_path_is_refused(place: Place, where: str) -> None:
    """A component above the source that became a link is refused as the source itself is."""
    plant(place, "cache", str(place.home))
    mount = Mount.read_only(place.project / where / "x", at="/data")
    with contextlib.suppress(FileNotFoundError):
        os.stat(mount.source)
    with pytest.raises(PolicyError, match="symbolic link"):
        capsule.run(["true"], mounts=[mount], cwd="/")


def test_a04_the_directory_that_keeps_a_layer_is_no_link(place: Place) -> None:
    """The directory of an overlay's upper layer, if a program replaced it by a link, is refused."""
    plant(place, "cache", str(place.home))
    with shared_directory() as lower, unchanged(place.home, tables=False):
        give(lower)
        for keep in (place.project / "cache", place.project / "cache/x"):
            policy = Policy(mounts=(Mount.overlay(lower, at="/data", keep=keep),))
            with pytest.raises(CapsuleError):
                capsule.run(["sh", "-c", "echo x >/data/new"], policy, cwd="/")


@pytest.mark.parametrize("part", ["upper", "work"])
def test_a08_what_lies_ready_where_a_layer_is_kept_is_not_trusted(place: Place, part: str) -> None:
    """A link under the name of a layer's own directory is refused; its target stays as it was."""
    keep = place.project / "cache"
    shutil.rmtree(keep)
    keep.mkdir()
    give(keep)
    (keep / part).symlink_to(place.home)
    with shared_directory() as lower, unchanged(place.home, tables=False):
        give(lower)
        policy = Policy(mounts=(Mount.overlay(lower, at="/data", keep=keep),))
        with pytest.raises(CapsuleError):
            capsule.run(["sh", "-c", "cat /data/key; echo x >/data/new"], policy, cwd="/")


def test_a04_a_program_that_became_a_link_shows_no_more_than_programs(place: Place) -> None:
    """A script that is a link to a key, or names one as its interpreter, does not show it."""
    key = place.home / "key"
    key.chmod(0o600)
    (place.project / "script").write_text(f"#!{key}\n")
    (place.project / "script").chmod(0o755)
    (place.project / "link").symlink_to(key)
    (place.project / "honest").write_text("#!/bin/sh\necho ran\n")
    (place.project / "honest").chmod(0o755)
    for name in ("script", "link", "honest"):
        taken = ""
        with contextlib.suppress(CapsuleError):
            taken = str(capsule.plan([f"{place.project}/{name}"], cwd="/"))
        assert f"take {key}" not in taken
        assert f"take {place.home} " not in taken
    assert f"take {place.project}/honest" in taken


_CAT = 'cat /data/key "$1/key" /data/*/key "$1"/*/key 2>/dev/null; true'


@pytest.mark.parametrize("launches", LAUNCHES)
@pytest.mark.parametrize(
    "shown", overlay_apart(name for name in SHOWN if name not in ("root", "below", "optional"))
)
def test_a04_a_source_that_is_exchanged_is_never_the_other(
    place: Place, shown: str, launches: int
) -> None:
    """While source and link change places the directory is shown, or the start is refused."""
    cache, link = place.project / "cache", place.project / "link"
    link.symlink_to(place.home)
    policy = Policy(**{"cwd": "/", **SHOWN[shown](cache)})
    command = ["sh", "-c", _CAT, "sh", str(cache)]
    with unchanged(place.project, place.home, tables=False):
        # At full speed hardly a start gets past the first look; with pauses many come to the second.
        for pause in (0.0, 0.004):
            with flipping(cache, link, pause) as flips:
                assert until_beaten(lambda: naive_read(cache, "key") == CANARY)
                for _ in range(launches // 2):
                    with contextlib.suppress(CapsuleError):
                        assert CANARY not in capsule.run(command, policy, text=True).stdout
            assert flips.count > 0
        assert capsule.run(command, policy, text=True).stdout.startswith("harmless")


# --- what cleans up, reads back or applies --------------------------------------------------

_LITTER = """
os.chdir("/data")
os.symlink(given["victim"], "link")
os.symlink(given["victim"] + "/key", "file-link")
os.makedirs("closed/below")
os.symlink(given["victim"], "closed/below/link")
os.chmod("closed/below", 0)
os.chmod("closed", 0)
for number in range(given["depth"]):
    os.mkdir("d")
    os.chdir("d")
tell(None)
"""


@needs("overlay")
@pytest.mark.parametrize("kept", [False, True])
def test_a05_looking_at_a_layer_and_letting_it_go_follows_no_link(place: Place, kept: bool) -> None:
    """Links, closed directories and deep ones in an upper layer: the victim stays as it was."""
    keep = place.project / "kept" if kept else None
    if keep is not None:
        keep.mkdir(0o700)
    with unchanged(place.home, place.project / "cache", tables=False):
        mount = Mount.overlay(place.project / "cache", at="/data", keep=keep)
        command = probe_args(_LITTER, {"victim": str(place.home), "depth": 100 if kept else 2000})
        result = capsule.run(command, Policy(mounts=(mount,)), cwd="/")
        assert result.ok, result
        listed = {change.path: change.type for change in result.changes}
        assert listed["/data/link"] == listed["/data/file-link"] == "symlink"
        assert not [path for path in listed if path.startswith("/data/link/")]
    if keep is not None:
        unlock(keep)


@pytest.mark.parametrize("name", [".envrc", ".git/hooks", ".bashrc"])
def test_a05_setting_aside_follows_no_link(place: Place, name: str) -> None:
    """A protected name that a program makes a link is set aside itself; its target keeps its mode."""
    (place.home / "key").chmod(0o755)
    path = place.project / name
    script = 'mkdir -p "${1%/*}"; ln -s "$2" "$1"; ln -s "$2" .profile'
    policy = Policy(mounts=(Mount.read_write(place.project),), cwd=str(place.project))
    with unchanged(place.home, tables=False):
        command = ["sh", "-c", script, "sh", str(path), str(place.home / "key")]
        result = capsule.run(command, policy)
    assert result.set_aside, result
    assert not os.path.lexists(path)


# --- no right that the caller lacks ---------------------------------------------------------


def _outside_error(path: str) -> int | None:
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
        return error.errno
    return None


@needs("closed place")
@pytest.mark.parametrize("optional", [False, True])
def test_a15_a_closed_directory_tells_nothing(optional: bool) -> None:
    """Behind a closed directory what exists and what does not give the same error."""
    told = []
    for name in (".", "no-such-name"):
        path = f"{closed_place()}/{name}/x"
        assert _outside_error(path) == errno.EACCES
        for kind in (Mount.read_only, Mount.read_write, Mount.overlay):
            with pytest.raises(CapsuleError) as caught:
                capsule.run(["true"], mounts=[kind(path, at="/data", optional=optional)])
            told.append(str(caught.value).replace(os.path.normpath(path), "PATH"))
    assert told[:3] == told[3:]


def test_a15_an_unreadable_file_stays_unreadable() -> None:
    """A file that only root may read can be shown, and gives the command EACCES, whoever starts it."""
    path = "/etc/shadow"
    with open("/etc/passwd") as readable:
        assert readable.read()
    try:
        told = ask(
            """
try:
    tell(open("/data").read())
except OSError as error:
    tell(errno.errorcode[error.errno])
""",
            Policy(mounts=(Mount.read_only(path, at="/data"),)),
        )
    except CapsuleError as error:
        told = "EACCES" if "ermission" in str(error) else str(error)
    assert told == "EACCES"


@pytest.mark.parametrize(
    "size", ["1M,uid=0", "1M,mode=777", "1M huge=always", "-1", "0x10", "1e9", "100%", "1M,", ""]
)
def test_a15_a_size_carries_no_option(size: str) -> None:
    """What would be a further option of mount(2) in a size is refused; 1M is taken."""
    assert Mount.tmpfs("/data", "1M").size == 1 << 20
    with pytest.raises(PolicyError):
        Mount.tmpfs("/data", size)
    with pytest.raises(PolicyError):
        Mount.overlay("/usr", at="/data", size=size)


# --- read-only to the last mount, private places --------------------------------------------

_SUBMOUNTS = """
mount -t tmpfs a "$1/cache"
mkdir "$1/cache/deep" "$1/cache/two"
mount -t tmpfs b "$1/cache/deep"
mkdir "$1/cache/deep/er"
mount --bind "$1/x" "$1/cache/deep/er"
mount -t tmpfs -o ro c "$1/cache/two"
mkdir -p "$1/cache/spaced"
mount -t tmpfs 'name with space' "$1/cache/spaced"
"""

_WALK = """
import capsule, subprocess
top, how = sys.argv[2:]
inside = '''
import errno, json, os, sys
told = {}
for line in open("/proc/self/mountinfo"):
    place = line.split()[4]
    if place == "/data" or place.startswith("/data/"):
        try:
            open(place + "/new", "w").close()
            told[place] = "written"
        except OSError as error:
            told[place] = errno.errorcode[error.errno]
open("/tmp/harmless", "w").close()
print(json.dumps(told))
'''
command = [sys.executable, "-I", "-S", "-c", inside]
kind = getattr(capsule.Mount, how)
result = capsule.run(command, mounts=[kind(top, at="/data")], cwd="/", check=True)
outside = []
for place in ("", "/cache", "/cache/deep", "/cache/deep/er", "/cache/spaced"):
    open(f"{top}{place}/new", "w").close()
    outside.append(place)
tell([json.loads(result.stdout), outside])
"""


@needs("unshare")
def test_a16_read_only_holds_on_every_mount_below() -> None:
    """Writing to each of six mounts of a read-only source is EROFS; the lab's root writes."""
    with shared_directory() as top:
        for name in ("cache", "x"):
            (top / name).mkdir()
        told, outside = lab(_SUBMOUNTS, _WALK, top, "read_only")
    places = ["", "/cache", "/cache/deep", "/cache/deep/er", "/cache/two", "/cache/spaced"]
    assert told == {f"/data{place}": "EROFS" for place in places}
    assert len(outside) == 5


@needs("unshare")
def test_a16_the_walk_sees_a_mount_that_can_be_written() -> None:
    """The control: shown writable, the same walk writes to those that are not read-only on the host."""
    with shared_directory() as top:
        for name in ("cache", "x"):
            (top / name).mkdir()
            (top / name).chmod(0o777)
        told, _ = lab(
            _SUBMOUNTS + 'chmod 777 "$1" "$1/cache" "$1/cache/deep"', _WALK, top, "read_write"
        )
    assert told["/data/cache/two"] == "EROFS"
    assert told["/data/cache"] == told["/data/cache/deep"] == "written"


def test_a16_no_place_is_shared_by_two_capsules() -> None:
    """What one capsule puts in /tmp, /dev/shm, /run or its home, another that runs beside it lacks."""
    script = """
for place in /tmp /dev/shm /var/tmp "$HOME"; do echo x >"$place/mine" || exit; done
echo ready; read line; ls /tmp/mine
"""
    with capsule.start(["sh", "-c", script], stdin=capsule.PIPE) as process:
        assert process.stdin is not None
        assert await_line(process) == b"ready\n"
        code = """
places = ["/tmp", "/dev/shm", "/var/tmp", "/run", os.environ["HOME"]]
tell([place for place in places if os.path.exists(place + "/mine")])
"""
        assert ask(code) == []
        # The control: it is still there, in the capsule that made it.
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert await_line(process) == b"/tmp/mine\n"


def test_a16_a_socket_that_a_program_left_is_not_shown(place: Place) -> None:
    """A directory in which a socket of the host listens is refused, and connecting works outside."""
    path = str(place.project / "cache/socket")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen()
        client.connect(path)
        for kind in (Mount.read_only, Mount.read_write, Mount.overlay):
            with pytest.raises(PolicyError, match="socket"):
                capsule.run(["true"], mounts=[kind(place.project, at="/data")], cwd="/")


# --- a program's prefix behind a link -------------------------------------------------------


@pytest.mark.parametrize("name", ["cache", ".cargo", "cache/x"])
def test_a04_a_prefix_behind_a_link_is_not_shown(place: Place, name: str) -> None:
    """Run 1 makes a prefix, or what is above it, a link to a home: run 2 shows only the program."""
    for top in (place.home, place.home / "x"):
        (top / "lib").mkdir()
        (top / "bin").mkdir()
        (top / "bin/tool").write_text("#!/bin/sh\n")
        (top / "bin/tool").chmod(0o755)
    honest = capsule.plan([f"{place.home}/bin/tool"], cwd="/")
    assert f"take {place.home} " in str(honest)
    plant(place, name.partition("/")[0], str(place.home))
    prefix = place.project / name
    taken = str(capsule.plan([f"{prefix}/bin/tool"], cwd="/"))
    # The file that the link leads to, and no directory around it.
    real = os.path.realpath(prefix)
    assert f"take {real}/bin/tool " in taken
    for shown in (prefix, place.home, real):
        for one in (shown, f"{shown}/lib", f"{shown}/bin"):
            assert f"take {one} " not in taken
            assert f"at {one}\n" not in taken


@pytest.mark.parametrize("part", [".cargo/bin", ".rustup", ".local/lib"])
def test_a04_a_part_of_a_prefix_that_is_a_link_is_not_shown(place: Place, part: str) -> None:
    """What a prefix of this name consists of is shown, but for what a program made a link."""
    folder = ".local" if part == ".local/lib" else ".cargo"
    for each in (f"{folder}/bin", ".local/lib", ".rustup"):
        (place.project / each).mkdir(parents=True)
    for top in (place.project / folder / "bin", place.home):
        (top / "tool").write_text("#!/bin/sh\n")
        (top / "tool").chmod(0o755)
    command = [f"{place.project}/{folder}/bin/tool"]
    assert f"take {place.project}/{part} " in str(capsule.plan(command, cwd="/"))
    shutil.rmtree(place.project / part)
    (place.project / part).symlink_to(place.home)
    assert f"take {place.project}/{part} " not in str(capsule.plan(command, cwd="/"))
