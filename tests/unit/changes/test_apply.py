"""What applying an upper layer does to the host."""

from __future__ import annotations

import errno
import os
import resource
import stat
from pathlib import Path

import pytest

from capsule.changes import apply as applying
from capsule.changes.layer import Layer
from capsule.changes.values import Action, Change
from capsule.files.trees.cursor import Cursor, open_directory
from tests.support import needs
from tests.unit.changes.lab import AT, GIT, Lab, delete, make_deep, tree, write

# --- applying -----------------------------------------------------------------------------------


def test_applying_all(lab: Lab) -> None:
    """Added, modified and deleted; then the host's directory is what the overlay was."""
    for name in ("kept", "changed", "deleted", "d/e/file", "sub/kept", "sub/gone"):
        write(lab.lower / name, "old")
    write(lab.upper / "changed", "new", 0o600)
    write(lab.upper / "new" / "script", "run", 0o755)
    write(lab.upper / "sub" / "new", "new")
    os.symlink("../changed", lab.upper / "sub" / "link")
    for name in ("deleted", "d", "sub/gone"):
        delete(lab.upper / name)
    listed = [name for name, *_ in lab.changes()]
    assert lab.apply() == listed
    assert lab.changes() == []
    found = tree(lab.lower)
    assert set(found) == {
        "changed", "kept", "new", "new/script", "sub", "sub/kept", "sub/link", "sub/new"
    }  # fmt: skip
    assert found["changed"] == ("-", 0o600, b"new")
    assert found["new/script"] == ("-", 0o755, b"run")
    assert found["sub/link"][::2] == ("l", b"../changed")


def test_applying_some(lab: Lab) -> None:
    """Those that are named, with the new directories that they lie in, and no other."""
    write(lab.upper / "a" / "b" / "one", "1")
    write(lab.upper / "a" / "b" / "two", "2")
    write(lab.upper / "c", "3")
    with lab.layer() as layer:
        chosen = [c for c in layer.changes()[0] if c.path.endswith("one")]
        assert [c.path for c in layer.apply(chosen)] == ["/at/a", "/at/a/b", "/at/a/b/one"]
        assert set(tree(lab.lower)) == {"a", "a/b", "a/b/one"}
        assert layer.apply([]) == ()


def test_applying_what_is_no_change(lab: Lab) -> None:
    """A deletion that the layer does not say is not done: ValueError."""
    file = write(lab.lower / "file")
    with lab.layer() as layer, pytest.raises(ValueError, match="not among the changes"):
        layer.apply([Change("/at/file", Action.DELETED, "file")])
    assert file.exists()


def refuse(layer: Layer, change: Change) -> None:
    """The change is not what it was."""
    with pytest.raises(ValueError, match="not what it was"):
        layer.apply([change])


def test_what_is_not_what_it_was_is_not_applied(lab: Lab) -> None:
    """Another type, size or mode than what was looked at: ValueError, and nothing is done."""
    file = write(lab.upper / "file", "text", 0o644)
    with lab.layer() as layer:
        (seen,) = layer.changes()[0]
        file.chmod(0o755)
        refuse(layer, seen)
        write(file, "longer text", 0o644)
        refuse(layer, seen)
        file.unlink()
        file.mkdir()
        refuse(layer, seen)
        assert tree(lab.lower) == {}
        file.rmdir()
        write(file, "text", 0o644)
        assert layer.apply([seen]) == (seen,)


def test_types_that_changed_are_applied(lab: Lab) -> None:
    """A directory gives way to a file or link with all that is in it, and the reverse."""
    write(lab.lower / "directory" / "a" / "b")
    write(lab.lower / "other" / "a")
    write(lab.lower / "file")
    os.symlink("file", lab.lower / "link")
    write(lab.upper / "directory", "now a file")
    os.symlink("directory", lab.upper / "other")
    write(lab.upper / "file" / "inner", "now in a directory")
    write(lab.upper / "link" / "inner", "here too")
    assert lab.changes() != []
    lab.apply()
    assert lab.changes() == []
    assert {name: kind for name, (kind, *_) in tree(lab.lower).items()} == {
        "directory": "-", "other": "l", "file": "d", "file/inner": "-", "link": "d", "link/inner": "-"
    }  # fmt: skip


def test_what_is_protected_is_never_applied(lab: Lab) -> None:
    """Neither named nor as a part of a deleted or replaced directory; the rest of that goes."""
    for top in ("gone", "replaced"):
        write(lab.lower / top / ".git" / "hooks" / "pre-commit", "ours")
        write(lab.lower / top / "other")
    delete(lab.upper / "gone")
    write(lab.upper / "replaced")
    write(lab.upper / ".git" / "hooks" / "pre-commit", "planted")
    write(lab.upper / ".git" / "HEAD")
    with lab.layer(*GIT) as layer:
        found, _ = layer.changes()
        assert {c.path for c in found if c.protected} == {
            "/at/.git/hooks", "/at/.git/hooks/pre-commit"
        }  # fmt: skip
        applied = layer.apply()
        assert layer.apply([c for c in found if c.protected]) == ()
    assert [c.path for c in applied] == ["/at/.git", "/at/.git/HEAD"]
    assert {name for name, (kind, *_) in tree(lab.lower).items() if kind != "d"} == {
        ".git/HEAD", "gone/.git/hooks/pre-commit", "replaced/.git/hooks/pre-commit"
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["file", "symlink"])
def test_nothing_takes_the_place_of_a_directory_above_what_is_protected(lab: Lab, kind: str) -> None:
    """A .git that is a file or link and says where the hooks are; the same elsewhere is applied."""
    for name in (".git", "sub/.git", "sub/git"):
        (lab.upper / name).parent.mkdir(exist_ok=True)
        if kind == "file":
            write(lab.upper / name, "gitdir: evil")
        else:
            os.symlink("evil", lab.upper / name)
    assert lab.apply(*GIT) == ["sub", "sub/git"]


def test_special_files_and_bits_are_left_out(lab: Lab) -> None:
    """FIFOs are not made; set-id and sticky bits not set, in a directory of the host not taken away."""
    os.mkfifo(lab.upper / "fifo")
    write(lab.upper / "program", "", 0o6755)
    (lab.upper / "new").mkdir()
    (lab.upper / "new").chmod(0o3777)
    (lab.lower / "shared").mkdir()
    (lab.lower / "shared").chmod(0o1777)
    (lab.upper / "shared").mkdir()
    (lab.upper / "shared").chmod(0o750)
    assert lab.apply() == ["new", "program", "shared"]
    assert {name: mode for name, (_, mode, _) in tree(lab.lower).items()} == {
        "new": 0o777, "program": 0o755, "shared": 0o1750
    }  # fmt: skip


def test_links_that_lead_out_are_left_out(lab: Lab) -> None:
    """Absolute ones and such with too many "..", or one behind a name; the others are applied."""
    (lab.upper / "d").mkdir()
    texts = {
        "d/in": "../file", "d/here": "file", "d/top": "..", "dangling": "no/such",
        "out": "../x", "absolute": "/etc/passwd", "d/out": "../../x", "d/by-link": "top/../x",
    }  # fmt: skip
    for name, text in texts.items():
        os.symlink(text, lab.upper / name)
    assert lab.apply() == ["d", "d/here", "d/in", "d/top", "dangling"]


@pytest.mark.parametrize(
    ("text", "depth", "stays"),
    [
        ("a", 0, True), ("a/./b//c", 0, True), ("..", 0, False), ("..", 1, True), ("../..", 1, False),
        ("./../a", 1, True), ("a/..", 1, False), ("/a", 9, False), ("../a/../b", 9, False),
        ("...", 0, True),
    ],
)  # fmt: skip
def test_where_a_link_leads(text: str, depth: int, stays: bool) -> None:
    """Nothing but the text decides."""
    assert applying.stays_below(text, depth) is stays


def test_the_hosts_own_links_are_not_followed(lab: Lab) -> None:
    """A directory that became a link meanwhile: ENOTDIR, and nothing is written behind it."""
    outside = lab.keep / "outside"
    outside.mkdir()
    write(lab.upper / "d" / "file", "text")
    (lab.lower / "d").mkdir()
    with lab.layer() as layer:
        found, _ = layer.changes()
        (lab.lower / "d").rmdir()
        os.symlink(outside, lab.lower / "d")
        # The control: through the link a file could be made.
        write(lab.lower / "d" / "control")
        with pytest.raises(NotADirectoryError) as caught:
            applying_one(layer, found[-1])
    assert caught.value.filename == "/at/d/file"
    assert [path.name for path in outside.iterdir()] == ["control"]


def applying_one(layer: Layer, change: Change) -> None:
    """Apply a change as it was listed before the host's directory became another."""
    upper, lower = (
        open_directory(str(Path(layer.source).parent / "keep" / "upper")),
        open_directory(layer.source),
    )
    try:
        with Cursor(upper) as above, Cursor(lower) as below:
            applier = applying.Applier(above, below, lambda _path, _kind: False)
            applier.run([(change, change.path.removeprefix(f"{AT}/"))])
    finally:
        os.close(upper)
        os.close(lower)


def test_a_link_of_the_host_is_replaced_not_written_through(lab: Lab) -> None:
    """A file in its place is a new file; what the link led to stays as it is."""
    outside = write(lab.keep / "outside", "host's")
    os.symlink(outside, lab.lower / "name")
    write(lab.upper / "name", "new")
    assert lab.apply() == ["name"]
    assert outside.read_text() == "host's"
    assert tree(lab.lower)["name"][::2] == ("-", b"new")


def test_a_lower_that_is_a_link_is_not_opened(lab: Lab) -> None:
    """NotADirectoryError, for the last component and one above; by its true path it opens."""
    os.symlink(lab.lower, lab.keep / "link")
    for source in (lab.keep / "link", lab.keep / "link" / "below"):
        layer = Layer(open_directory(str(lab.upper)), str(source), AT, ())
        with layer, pytest.raises(NotADirectoryError):
            layer.changes()
    assert lab.changes() == []


def test_a_failure_leaves_no_temporary_file(lab: Lab) -> None:
    """What came before it stays done; the error names the path inside."""
    write(lab.upper / "a", "1")
    write(lab.upper / "b", "2")
    (lab.upper / "closed").mkdir(mode=0o500)
    # There is no mode that would stop root.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    write(lab.upper / "large", "x" * 8192)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with lab.layer() as layer, pytest.raises(OSError, match="large") as caught:
            layer.apply()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, "/at/large")
    assert {name: mode for name, (_, mode, _) in tree(lab.lower).items() if name == "closed"} == {
        "closed": 0o500
    }
    assert set(tree(lab.lower)) == {"a", "b", "closed"}


def test_directories_get_their_modes_last(lab: Lab) -> None:
    """One that its owner may not write to is filled all the same."""
    write(lab.upper / "a" / "b" / "file", "text")
    (lab.upper / "a" / "b").chmod(0)
    (lab.upper / "a").chmod(0o555)
    assert lab.apply() == ["a", "a/b", "a/b/file"]
    assert stat.S_IMODE((lab.lower / "a").stat().st_mode) == 0o555
    assert stat.S_IMODE((lab.lower / "a" / "b").stat().st_mode) == 0
    (lab.lower / "a" / "b").chmod(0o700)
    assert (lab.lower / "a" / "b" / "file").read_text() == "text"


def test_holes_stay_holes(lab: Lab) -> None:
    """A file of a terabyte with a page in it takes no more than that on the host."""
    with open(lab.upper / "sparse", "wb") as file:
        file.seek(1 << 39)
        file.write(b"data")
        file.truncate(1 << 40)
    lab.apply()
    made = lab.lower / "sparse"
    assert made.stat().st_size == 1 << 40
    assert made.stat().st_blocks * 512 < 1 << 20
    with open(made, "rb") as file:
        file.seek(1 << 39)
        assert file.read(4) == b"data"


def test_a_deep_directory_is_deleted(lab: Lab) -> None:
    """Ten thousand levels on the host, one deletion; closed ones too, and not what links lead to."""
    outside = write(lab.keep / "outside")
    make_deep(lab.lower, 10_000)
    os.symlink(lab.keep, lab.lower / "d" / "link")
    write(lab.lower / "e" / "f" / "file")
    (lab.lower / "e" / "f").chmod(0)
    delete(lab.upper / "d")
    delete(lab.upper / "e")
    assert lab.apply() == ["d", "e"]
    assert not any(lab.lower.iterdir())
    assert outside.exists()


@needs("real root")
def test_nothing_becomes_roots(lab: Lab) -> None:
    """What root applies belongs to whom the place belongs, or what was there."""
    write(lab.lower / "theirs", "old")
    os.chown(lab.lower, 1234, 1235)
    os.chown(lab.lower / "theirs", 2345, 2346)
    write(lab.upper / "theirs", "new")
    write(lab.upper / "d" / "file", "new")
    os.symlink("d", lab.upper / "link")
    lab.apply()
    owners = {name: (lab.lower / name).lstat() for name in tree(lab.lower)}
    assert {name: (info.st_uid, info.st_gid) for name, info in owners.items()} == {
        "theirs": (2345, 2346), "d": (1234, 1235), "d/file": (1234, 1235), "link": (1234, 1235)
    }  # fmt: skip
