"""Names of paths (A-11, A-10): none is read as an option, an escape or a separator."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import capsule
from capsule import Mount, Policy
from tests.attacks.hostdiff import unchanged, unlock
from tests.support import CAPSULE, HANG, give, needs, shared_directory

# What mount(8), overlayfs, fstab, mountinfo, shells and terminals give a meaning.
NAMES = [
    b"a:b", b"a,b", b"a\\b", b"a\\:b", b"a\\,b", b"a\\\\b", b"a\\040b", b"a b", b"a\tb", b"a\nb",
    b"x,upperdir=..,workdir=.", b"x:etc", b"lower:upper:", b":", b"::", b",", b"\\", b"\\\\",
    b"#x", b"%s", b"--rw", b"-", b"=", b"a=b", b"'", b'"', b"$(id)", b"`id`", b"*", b"?", b"[a]", b"~",
    b"a\n", b"\xff\xfe", b"\xc3", b"t\xc3\xa4st", b"\xed\xa0\x80", b"\x1b[2J", b"\x7f", b"\x01",
    b"...", b" ", b"a" * 255,
]  # fmt: skip


@pytest.fixture(scope="module")
def top() -> Iterator[Path]:
    """A place for directories of any name."""
    with shared_directory() as path:
        yield give(path)


def make(top: Path, name: bytes) -> str:
    """A directory of that name, with a file in it, that the capsule may write to."""
    folder = Path(tempfile.mkdtemp(dir=top))
    folder.chmod(0o755)
    path = folder / os.fsdecode(name)
    path.mkdir()
    (path / "it").write_text("content")
    give(path)
    give(path / "it")
    return str(path)


_CHECK = """
set -e
[ "$(cat "$1/it")" = content ]
[ "$(ls "$1")" = it ]
: >"$1/new" && rm "$1/it" && [ "$(ls "$1")" = new ]
"""


def check_overlay(top: Path, name: bytes, *, kept: bool = False) -> None:
    """An overlay of such a directory, below such a place, shows that very directory."""
    path = make(top, name)
    at = "/" + os.fsdecode(name)
    keep = Path(path).parent / ("keep " + os.fsdecode(name))[:255] if kept else None
    if keep is not None:
        keep.mkdir(0o700)
    policy = Policy(mounts=(Mount.overlay(path, at=f"/data{at}", keep=keep),), cwd="/")
    with unchanged(path, tables=False):
        result = capsule.run(["sh", "-c", _CHECK, "sh", f"/data{at}"], policy)
    if keep is not None:
        unlock(keep)  # overlayfs made a closed directory in it
    assert result.ok, (name, result)
    assert {(change.path, change.action.value) for change in result.changes} == {
        (f"/data{at}/new", "added"),
        (f"/data{at}/it", "deleted"),
    }


@needs("overlay")
@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a11_an_overlay_of_any_name(top: Path, name: bytes) -> None:
    """No name ends a layer's path or begins another option: content, changes and the host say so."""
    check_overlay(top, name)


@needs("overlay")
@pytest.mark.parametrize("name", [b"a:b", b"x,upperdir=x", b"a\\b", b"a\nb", b"\xff"], ids=repr)
def test_a11_a_kept_layer_of_any_name(top: Path, name: bytes) -> None:
    """The same of the directory that keeps the upper layer."""
    check_overlay(top, name, kept=True)


@needs("overlay")
@settings(
    max_examples=30,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.sampled_from([b":", b",", b"\\", b"\n", b" ", b"=", b"a", b"0", b"\xff"]),
        min_size=1,
        max_size=9,
    )
)
def test_a11_names_at_random(top: Path, words: list[bytes]) -> None:
    """Any mixture of what separates and escapes is a name like any other."""
    check_overlay(top, b"".join(words))


_NAIVE = """
mkdir "$1/upper" "$1/work" "$1/merged"
mount -t overlay none -o "userxattr,lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$1/merged" || exit 9
[ "$(cat "$1/merged/it")" = content ]
"""


@needs("unshare", "overlay")
@pytest.mark.parametrize("name", [b"a:b", b"x,volatile", b"a\\b"], ids=repr)
def test_a11_control_options_in_one_string_go_wrong(top: Path, name: bytes) -> None:
    """The control: mount(8) with the bare name in its options mounts something else, or nothing."""
    path = make(top, name)
    flags = "-Urm" if os.geteuid() else "-m"
    script = f"mount -t tmpfs x /mnt && {_NAIVE}"
    done = subprocess.run(
        ["unshare", flags, "sh", "-c", script, "sh", "/mnt", path], capture_output=True
    )
    assert done.returncode != 0
    plain = make(top, b"plain")
    done = subprocess.run(
        ["unshare", flags, "sh", "-c", script, "sh", "/mnt", plain], capture_output=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a10_the_command_line_takes_any_name(top: Path, name: bytes) -> None:
    """--ro, --rw and --file take such names, at their place and at another."""
    path = os.fsencode(make(top, name))
    words = [b"--ro", path, b"--rw", path + b":/data/" + name, b"--file", path + b"/it:/tmp/" + name]
    inside = [path + b"/it", b"/data/" + name + b"/it", b"/tmp/" + name]
    command = [b"run", *words, b"--", b"cat", *inside]
    done = subprocess.run([CAPSULE, *command], capture_output=True, timeout=HANG, cwd="/")
    assert (done.returncode, done.stdout) == (0, b"content" * 3), done


def test_a10_a_hidden_path_may_have_any_name(top: Path) -> None:
    """A path that is hidden literally is the one of that name, though it be a pattern's."""
    for name in (b"a,b", b"a\\b", b"a\nb", b"\xff", b"a:b", b"-x"):
        path = make(top, name)
        policy = Policy(mounts=(Mount.read_only(Path(path).parent), Mount.hide(path)), cwd="/")
        result = capsule.run(["ls", "-A", path], policy)
        assert (result.returncode, result.stdout) == (0, b""), shlex.quote(path)
