"""What must work although it looks odd: other launchers were too strict here, or broke it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import capsule
from capsule import Mount, Policy
from tests.support import (
    OUTSIDE_UID,
    REAL_ROOT,
    ask,
    give,
    lab,
    needs,
    shared_directory,
)


@pytest.fixture
def top() -> Iterator[Path]:
    """A directory with a file that the capsule may read and write."""
    with shared_directory() as path:
        (path / "file").write_text("content")
        give(path / "file")
        yield path


# --- directories that can only be searched --------------------------------------------------


@pytest.mark.parametrize(
    "kind", [Mount.read_only, Mount.read_write, pytest.param(Mount.overlay, marks=needs("overlay"))]
)
def test_a02_a_source_below_a_directory_that_only_can_be_searched(top: Path, kind: Any) -> None:
    """Above the source one may search but not list, as below a home of mode 0711: it is shown."""
    (top / "home/below").mkdir(parents=True)
    (top / "home/below/it").write_text("content")
    for each in (top / "home/below", top / "home/below/it"):
        give(each)
    # 0711 of root's for who is not root, and what the owner himself can only search.
    (top / "home").chmod(0o711 if REAL_ROOT else 0o111)
    try:
        if not REAL_ROOT:
            with pytest.raises(PermissionError):
                os.listdir(top / "home")
        for at in (None, "/data"):
            policy = Policy(mounts=(kind(top / "home/below", at=at),), cwd="/")
            place = at or f"{top}/home/below"
            assert ask("tell(open(given['path']).read())", policy, {"path": f"{place}/it"}) == "content"
    finally:
        (top / "home").chmod(0o755)


def test_a02_a_place_below_a_directory_that_only_can_be_searched(top: Path) -> None:
    """A place inside of a shown directory of mode 0711 takes a mount."""
    (top / "shown/closed/place").mkdir(parents=True)
    (top / "shown/closed").chmod(0o711)
    mounts = (Mount.read_only(top / "shown"), Mount.read_only(top / "file", at="/data"))
    inner = Mount.tmpfs(f"{top}/shown/closed/place")
    code = "open(given['path'] + '/new', 'w').close(); tell(os.listdir(given['path']))"
    given = {"path": f"{top}/shown/closed/place"}
    assert ask(code, Policy(mounts=(*mounts, inner), cwd="/"), given) == ["new"]


# --- symbolic links of the place ------------------------------------------------------------


@pytest.mark.parametrize("place", ["/var/run/x", "/var/run/deep/er"])
def test_a02_a_place_through_an_absolute_link(top: Path, place: str) -> None:
    """A place that leads through a link of the view, /var/run, lies where the link leads."""
    policy = Policy(mounts=(Mount.read_only(top, at=place),))
    real = place.removeprefix("/var")
    code = "tell([os.path.realpath(given['place']), open(given['real'] + '/file').read()])"
    assert ask(code, policy, {"place": place, "real": real}) == [real, "content"]


def test_a02_a_place_through_an_absolute_link_of_a_root(top: Path) -> None:
    """The same in a root of the caller's own whose /var/run is an absolute link, as Debian's is."""
    with shared_directory() as root:
        (root / "var").mkdir()
        (root / "run/x").mkdir(parents=True)
        (root / "var/run").symlink_to("/run")
        mounts = [Mount.read_only(top, at="/var/run/x")]
        for path, link in capsule.probe().system:
            if link is None:
                (root / path.lstrip("/")).mkdir(parents=True)
                mounts.append(Mount.read_only(path))
            else:
                (root / path.lstrip("/")).symlink_to(link)
        policy = Policy(root=str(root), mounts=mounts, extra_env={"PATH": "/usr/bin:/bin"})
        result = capsule.run(["cat", "/run/x/file", "/var/run/x/file"], policy)
        assert result.stdout == b"contentcontent", result


@pytest.mark.parametrize("target", ["file", "/etc/passwd", "missing", "/no/such"])
def test_a_mount_over_a_symbolic_link(top: Path, target: str) -> None:
    """A place that is a link in a shown directory: the mount lies where it leads, or is refused."""
    (top / "shown").mkdir()
    (top / "shown/file").write_text("covered")
    (top / "shown/link").symlink_to(target)
    mounts = (Mount.read_only(top / "shown"), Mount.read_only(top / "file", at=f"{top}/shown/link"))
    policy = Policy(mounts=mounts, cwd="/")
    if target in ("missing", "/no/such"):
        # Where it leads would have to be made, in the one case on the host.
        if target == "missing":
            with pytest.raises(capsule.SetupError):
                capsule.run(["true"], policy)
        assert sorted(os.listdir(top / "shown")) == ["file", "link"]
        return
    assert ask("tell(open(given['path']).read())", policy, {"path": f"{top}/shown/link"}) == "content"
    assert (top / "shown/file").read_text() == "covered"


def test_a_mount_over_a_link_of_the_default_view() -> None:
    """A place of the host's view that is a link, /etc/localtime for one, can be given other content."""
    policy = Policy(mounts=(Mount.content(b"mine", "/etc/localtime"),))
    assert ask("tell(open('/etc/localtime').read())", policy) == "mine"


# --- other file systems ---------------------------------------------------------------------------

_FUSE = """
mkdir "$1/mounted"
bindfs -o "$2" "$1/shown" "$1/mounted"
"""
_THROUGH_FUSE = """
import capsule
top = sys.argv[2]
told = []
for kind in (capsule.Mount.read_only, capsule.Mount.read_write):
    script = 'cat /data/it; echo written 2>/dev/null >/data/new && echo wrote; true'
    mounts = [kind(top + "/mounted", at="/data")]
    result = capsule.run(["sh", "-c", script], mounts=mounts, cwd="/", text=True)
    told.append(result.stdout + result.stderr)
told.append(open("/proc/self/mountinfo").read().count(" fuse"))
tell(told)
"""


@needs("unshare", "bindfs", "fuse")
def test_a_fuse_mount_can_be_shown(top: Path) -> None:
    """A FUSE file system is shown read-only and writable, as any other is."""
    (top / "shown").mkdir()
    (top / "shown/it").write_text("content\n")
    for each in (top / "shown", top / "shown/it"):
        give(each)
    # By default only who mounted it may look: root's command is somebody else.
    read_only, writable, number = lab(
        _FUSE, _THROUGH_FUSE, top, "allow_other" if REAL_ROOT else "fsname=x"
    )
    assert number == 1
    assert read_only.startswith("content")
    assert "wrote" not in read_only
    assert writable.splitlines()[0].startswith("content")
    assert "wrote" in writable
    assert (top / "shown/new").exists()


_AUTOMOUNT = """
mount -t tmpfs other "$1/mounts"
mkdir -p "$1/mounts/home/user"
mount -t tmpfs user "$1/mounts/home/user"
echo content >"$1/mounts/home/user/it"
"""
_LATE = """
import capsule, subprocess
top = sys.argv[2]
policy = capsule.Policy(mounts=[capsule.Mount.read_only(top + "/mounts/home", at="/home")], cwd="/")
before = capsule.run(["cat", "/home/user/it"], policy).stdout
subprocess.run(["umount", top + "/mounts/home/user"], check=True)
gone = capsule.run(["ls", "-A", "/home/user"], policy).stdout
subprocess.run(["mount", "-t", "tmpfs", "again", top + "/mounts/home/user"], check=True)
open(top + "/mounts/home/user/again", "w").close()
after = capsule.run(["ls", "-A", "/home/user"], policy).stdout
tell([before.decode(), gone.decode(), after.decode()])
"""


@needs("unshare")
def test_mounts_that_come_and_go_below_a_source(top: Path) -> None:
    """What is mounted below a source at the start is shown, as with homes mounted on demand."""
    (top / "mounts").mkdir()
    assert lab(_AUTOMOUNT, _LATE, top) == ["content\n", "", "again\n"]


_OTHER = """
mount -t tmpfs other "$1/mounts"
echo content >"$1/mounts/it"
chmod 777 "$1/mounts"
"""
_ON_OTHER = """
import capsule
top = sys.argv[2]
told = []
for kind in (capsule.Mount.read_only, capsule.Mount.read_write, capsule.Mount.overlay):
    script = 'cat /data/it; : >/data/new && rm /data/new && echo wrote; true'
    mounts = [kind(top + "/mounts", at="/data")]
    result = capsule.run(["sh", "-c", script], mounts=mounts, cwd="/", text=True)
    told.append(result.stdout.split())
tell([told, os.listdir(top + "/mounts")])
"""


@needs("unshare", "overlay")
def test_a_source_on_another_file_system(top: Path) -> None:
    """A mount point itself is shown, written to and overlaid as a directory is."""
    (top / "mounts").mkdir()
    told = lab(_OTHER, _ON_OTHER, top)
    assert told == [[["content"], ["content", "wrote"], ["content", "wrote"]], ["it"]]


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [":", ",", "\\", "a\nb", "a:b,c\\d", "\udcff\udcfe", "it's", "%s", "#"]
)
def test_a_single_file_may_have_any_name(top: Path, name: str) -> None:
    """A file is shown read-only and writable under whatever name it has."""
    path = top / name
    path.write_text("content")
    give(path)
    policy = Policy(mounts=(Mount.read_only(path), Mount.read_write(path, at=f"/data/{name}")), cwd="/")
    code = """
with open(given["at"], "a") as file:
    file.write("+")
tell(open(given["path"]).read())
"""
    assert ask(code, policy, {"path": str(path), "at": f"/data/{name}"}) == "content+"
    assert path.stat().st_uid == OUTSIDE_UID
