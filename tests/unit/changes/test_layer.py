"""Upper layers of overlays: what is listed and read; made by hand and by the kernel."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import resource
import stat
import subprocess
import warnings
from pathlib import Path

import pytest

from capsule.base.errors import PolicyError
from capsule.changes import compare
from capsule.changes.layer import Layer, open_layer
from capsule.changes.values import Action, Change
from capsule.files.kept import make_removable
from capsule.files.trees.cursor import Cursor, open_directory
from tests.support import REAL_ROOT, needs, open_descriptors
from tests.unit.changes.lab import AT, Lab, delete, make_deep, write

# --- what is listed -----------------------------------------------------------------------------


def test_an_empty_layer_changes_nothing(lab: Lab) -> None:
    """No change, and that is all."""
    write(lab.lower / "file")
    assert lab.changes() == []


def test_what_is_new_is_added(lab: Lab) -> None:
    """Files, directories, links, FIFOs, each with mode and size, ordered by path."""
    write(lab.upper / "new" / "file", "12345", 0o640)
    os.symlink("/etc/passwd", lab.upper / "link")
    os.mkfifo(lab.upper / "pipe")
    with lab.layer() as layer:
        found, complete = layer.changes()
    pipe, directory = found[2].mode, found[1].replace(mode=0)
    assert complete
    assert directory == Change("/at/new", Action.ADDED, "directory")
    assert stat.S_IMODE((lab.upper / "pipe").stat().st_mode) == found[3].mode != pipe
    assert [c.replace(mode=0) for c in found] == [
        Change("/at/link", Action.ADDED, "symlink", size=11),
        Change("/at/new", Action.ADDED, "directory"),
        Change("/at/new/file", Action.ADDED, "file", size=5),
        Change("/at/pipe", Action.ADDED, "fifo"),
    ]
    assert found[2].mode == 0o640


def test_a_deletion_tells_what_was_there(lab: Lab) -> None:
    """Type, mode and size are those of the host's; a directory is one change."""
    write(lab.lower / "file", "123", 0o604)
    write(lab.lower / "directory" / "below")
    delete(lab.upper / "file")
    delete(lab.upper / "directory")
    delete(lab.upper / "unknown")
    assert lab.changes() == [("directory", "deleted", "directory"), ("file", "deleted", "file")]
    with lab.layer() as layer:
        assert layer.changes()[0][1] == Change("/at/file", Action.DELETED, "file", 0o604, 3)


def test_a_merged_directory_is_not_listed(lab: Lab) -> None:
    """Only what changed in it; unless its own mode did."""
    write(lab.lower / "a" / "b" / "file", "one")
    write(lab.upper / "a" / "b" / "file", "two")
    assert lab.changes() == [("a/b/file", "modified", "file")]
    (lab.upper / "a").chmod(0o700 if (lab.lower / "a").stat().st_mode & 0o7 else 0o755)
    assert lab.changes() == [("a", "modified", "directory"), ("a/b/file", "modified", "file")]


def test_the_mode_of_the_top_is_a_change_of_the_overlay_itself(lab: Lab) -> None:
    """Its path is the overlay's place."""
    lab.upper.chmod(0o710)
    with lab.layer() as layer:
        assert layer.changes()[0] == (Change(AT, Action.MODIFIED, "directory", 0o710),)
        layer.apply()
    assert stat.S_IMODE(lab.lower.stat().st_mode) == 0o710


def test_a_file_that_was_only_opened_is_not_listed(lab: Lab) -> None:
    """Same content and mode. Another mode, content or size is a change, and so is a large file."""
    large = "x" * (compare.COMPARED_FILE + 1)
    for name, text in {"same": "text", "mode": "text", "content": "text", "large": large}.items():
        write(lab.lower / name, text, 0o644)
        write(lab.upper / name, text, 0o644)
    (lab.upper / "mode").chmod(0o600)
    write(lab.upper / "content", "TEXT")
    os.symlink("text", lab.lower / "link")
    os.symlink("text", lab.upper / "link")
    assert [name for name, *_ in lab.changes()] == ["content", "large", "mode"]


def test_what_is_compared_in_all_is_bounded(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond, a file that was opened for writing counts as modified."""
    monkeypatch.setattr(compare, "COMPARED_IN_ALL", 10)
    for name in ("a", "b", "c"):
        write(lab.lower / name, "1234")
        write(lab.upper / name, "1234")
    assert lab.changes() == [("c", "modified", "file")]


def test_another_type_is_a_modification(lab: Lab) -> None:
    """A file that became a directory, and the reverse; what is in the new one is added."""
    write(lab.lower / "file")
    write(lab.lower / "directory" / "below")
    write(lab.upper / "file" / "inner")
    write(lab.upper / "directory")
    assert lab.changes() == [
        ("directory", "modified", "file"),
        ("file", "modified", "directory"),
        ("file/inner", "added", "file"),
    ]


def test_an_opaque_directory_hides_what_is_below_it(lab: Lab) -> None:
    """What it lacks is deleted, at any depth, without a whiteout for each."""
    for name in ("d/gone", "d/kept", "d/sub/gone", "d/sub/kept", "d/whole/file"):
        write(lab.lower / name, "old")
    for name in ("d/kept", "d/sub/kept", "d/new"):
        write(lab.upper / name, "newer")
    os.setxattr(lab.upper / "d", "user.overlay.opaque", b"y")
    assert lab.changes() == [
        ("d/gone", "deleted", "file"),
        ("d/kept", "modified", "file"),
        ("d/new", "added", "file"),
        ("d/sub/gone", "deleted", "file"),
        ("d/sub/kept", "modified", "file"),
        ("d/whole", "deleted", "directory"),
    ]


def test_other_attributes_of_overlays_mean_nothing(lab: Lab) -> None:
    """Origin, impure, and the opaque "x" that only announces marked whiteouts."""
    write(lab.lower / "d" / "file")
    (lab.upper / "d").mkdir()
    for name, value in {"origin": b"\0", "impure": b"y", "opaque": b"x"}.items():
        os.setxattr(lab.upper / "d", f"user.overlay.{name}", value)
    assert lab.changes() == []


def test_an_empty_file_with_the_mark_is_a_deletion(lab: Lab) -> None:
    """The other form of a whiteout; a file with content is none, whatever its attributes."""
    for name in ("marked", "full"):
        write(lab.lower / name, "text")
        write(lab.upper / name, "more text" if name == "full" else "")
        os.setxattr(lab.upper / name, "user.overlay.whiteout", b"y")
    assert lab.changes() == [("full", "modified", "file"), ("marked", "deleted", "file")]


def test_names_are_any_bytes(lab: Lab) -> None:
    """Newline, what is not UTF-8, terminal controls: as os.fsdecode gives them; readable by them."""
    names = [b"new\nline", b"invalid\xff", b"\x1b[31m", b"a:b,c\\d"]
    for name in names:
        Path(os.fsdecode(os.fsencode(lab.upper) + b"/" + name)).write_bytes(name)
    with lab.layer() as layer:
        found, complete = layer.changes()
        assert complete
        assert {os.fsencode(c.path) for c in found} == {b"/at/" + name for name in names}
        assert {layer.read(c.path) for c in found} == set(names)


def test_what_is_closed_is_listed_and_read_and_stays_closed(lab: Lab) -> None:
    """Directories and files of mode 000, their modes as before afterwards."""
    secret = write(lab.upper / "a" / "b" / "secret", "text", 0)
    (lab.upper / "a" / "b").chmod(0)
    (lab.upper / "a").chmod(0)
    with lab.layer() as layer:
        found, complete = layer.changes()
        assert (complete, [c.path for c in found]) == (True, ["/at/a", "/at/a/b", "/at/a/b/secret"])
        assert [c.mode for c in found] == [0, 0, 0]
        assert layer.read("a/b/secret") == b"text"
    (lab.upper / "a").chmod(0o700)
    assert stat.S_IMODE((lab.upper / "a" / "b").stat().st_mode) == 0
    (lab.upper / "a" / "b").chmod(0o700)
    assert stat.S_IMODE(secret.stat().st_mode) == 0


def test_a_top_that_is_closed(lab: Lab) -> None:
    """The program can close the overlay's top, too."""
    write(lab.upper / "file", "text")
    lab.upper.chmod(0)
    with Layer(open_directory(str(lab.upper)), str(lab.lower), AT, ()) as layer:
        assert layer.changes()[0][0].mode == 0
        assert layer.read("file") == b"text"
    assert stat.S_IMODE(lab.upper.stat().st_mode) == 0


@needs("unprivileged")
def test_what_the_caller_may_not_read_on_the_host_is_said(lab: Lab) -> None:
    """The listing is not complete, and the host's directory keeps its mode."""
    write(lab.lower / "closed" / "file")
    write(lab.upper / "closed" / "file")
    write(lab.upper / "other")
    (lab.lower / "closed").chmod(0)
    with lab.layer() as layer:
        found, complete = layer.changes()
    assert not complete
    assert "/at/other" in {c.path for c in found}
    assert stat.S_IMODE((lab.lower / "closed").stat().st_mode) == 0


# --- bounds -------------------------------------------------------------------------------------


def test_no_more_than_asked_for(lab: Lab) -> None:
    """Of more than `most` so many are listed, and that it is not all is said."""
    for number in range(20):
        write(lab.upper / str(number))
    with lab.layer() as layer:
        assert [(len(found), complete) for found, complete in map(layer.changes, (19, 20, 0))] == [
            (19, False), (20, True), (0, False)
        ]  # fmt: skip


def test_an_opaque_directory_that_is_not_all_read_deletes_nothing(lab: Lab) -> None:
    """What was not looked at is not missing."""
    for number in range(20):
        write(lab.lower / "d" / str(number), "old")
        write(lab.upper / "d" / str(number), "newer")
    os.setxattr(lab.upper / "d", "user.overlay.opaque", b"y")
    with lab.layer() as layer:
        found, complete = layer.changes(10)
    assert not complete
    assert {c.action for c in found} <= {Action.MODIFIED}


def remove_deep(top: Path) -> None:
    """What shutil.rmtree cannot."""
    subprocess.run(["rm", "-rf", top], check=True)


def test_a_deep_tree_needs_few_descriptors(lab: Lab) -> None:
    """A thousand levels are all listed and applied with two dozen descriptors."""
    make_deep(lab.upper, 1000)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_descriptors()) + 24, limits[1]))
    try:
        assert len(lab.changes()) == 1000
        assert len(lab.apply()) == 1000
        assert lab.changes() == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        remove_deep(lab.upper)
        remove_deep(lab.lower)


def test_a_tree_deeper_than_a_path_is_not_all_listed(lab: Lab) -> None:
    """Ten thousand levels: up to the longest path, and that there is more; the rest is there."""
    make_deep(lab.upper, 10_000)
    write(lab.upper / "e")
    try:
        with lab.layer() as layer:
            found, complete = layer.changes()
            with pytest.raises(OSError, match="more changes than can be listed"):
                layer.apply()
        assert not complete
        assert {"/at/d", "/at/e"} < {c.path for c in found}
        assert max(len(c.path) for c in found) <= compare.LONGEST_PATH + len(AT)
        assert not any(lab.lower.iterdir())
    finally:
        remove_deep(lab.upper)


def test_all_paths_together_are_bounded(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many long paths take no more memory than that."""
    monkeypatch.setattr(compare, "_ALL_PATHS", 1000)
    for number in range(20):
        write(lab.upper / ("n" * 200) / str(number))
    with lab.layer() as layer:
        found, complete = layer.changes()
    assert not complete
    assert sum(len(c.path) for c in found) < 1500


# --- reading ------------------------------------------------------------------------------------


def test_reading_what_was_written(lab: Lab) -> None:
    """By the path inside or from the overlay's top, as text, bytes or PathLike."""
    write(lab.upper / "d" / "file", "text")
    with lab.layer() as layer:
        for path in ("/at/d/file", "d/file", "./d//file", Path("d/file")):
            assert layer.read(path) == b"text"
        with layer.open("d/file") as file:
            assert file.read(2) == b"te"


def test_no_more_is_read_than_asked_for(lab: Lab) -> None:
    """EFBIG, at once for a file that is a hole of 8 EiB."""
    write(lab.upper / "file", "12345")
    with open(lab.upper / "hole", "wb") as file:
        file.truncate(1 << 40)
    with lab.layer() as layer:
        assert layer.read("file", most=5) == b"12345"
        for name, most in (("file", 4), ("hole", 1 << 20)):
            with pytest.raises(OSError, match="more than") as caught:
                layer.read(name, most=most)
            assert caught.value.errno == errno.EFBIG


def test_only_regular_files_are_opened(lab: Lab) -> None:
    """Nothing else is opened, so that no FIFO blocks and no link leads out; the control does."""
    outside = write(lab.keep / "outside", "secret")
    write(lab.upper / "file", "control")
    write(lab.lower / "deleted")
    write(lab.lower / "unchanged")
    write(lab.upper / "d" / "inner")
    os.symlink(outside, lab.upper / "link")
    os.symlink("file", lab.upper / "inner-link")
    os.symlink(lab.upper / "d", lab.upper / "directory-link")
    os.mkfifo(lab.upper / "fifo")
    delete(lab.upper / "deleted")
    assert (lab.upper / "link").read_text() == "secret"
    want = {
        "link": errno.ELOOP,
        "inner-link": errno.ELOOP,
        "directory-link/inner": errno.ENOTDIR,
        "link/below": errno.ENOTDIR,
        "file/below": errno.ENOTDIR,
        "fifo": errno.EINVAL,
        "d": errno.EISDIR,
        "": errno.EISDIR,
        "deleted": errno.ENOENT,
        "unchanged": errno.ENOENT,
    }
    with lab.layer() as layer:
        assert layer.read("file") == b"control"
        for path, error in want.items():
            with pytest.raises(OSError, match=r".") as caught:
                layer.open(path)
            assert (path, caught.value.errno) == (path, error)
            assert caught.value.filename == path


@pytest.mark.parametrize("path", ["/elsewhere", "/at2/file", "/at/../etc", "../file", "d/../../x"])
def test_paths_outside_of_the_overlay_are_refused(lab: Lab, path: str) -> None:
    """ValueError, before anything is opened."""
    with lab.layer() as layer, pytest.raises(ValueError, match=r"overlay|'\.\.'"):
        layer.open(path)


# --- the object ---------------------------------------------------------------------------------


def mark(keep: Path, lower: Path) -> None:
    """What the supervisor leaves in a directory that keeps a layer."""
    (keep / "capsule-layer").write_text(f"{lower}\n")
    (keep / "capsule-layer").chmod(0o600)


def test_a_layer_that_was_kept(lab: Lab) -> None:
    """Opened again by the directory that keeps it; a link in the layer's place is not followed."""
    write(lab.upper / "file", "text")
    mark(lab.keep, lab.lower)
    with open_layer(lab.keep, lab.lower) as layer:
        assert layer.at == str(lab.lower)
        assert [c.path for c in layer.changes()[0]] == [f"{lab.lower}/file"]
    with open_layer(lab.keep, lab.lower, at="/at/") as layer:
        assert layer.read("/at/file") == b"text"
    other = lab.keep / "other"
    other.mkdir()
    mark(other, lab.lower)
    os.symlink(lab.upper, other / "upper")
    with pytest.raises(NotADirectoryError):
        open_layer(other, lab.lower)
    with pytest.raises(FileNotFoundError):
        open_layer(lab.lower, lab.lower)
    with pytest.raises(PolicyError, match="keeps a layer of"):
        open_layer(lab.keep, other)


def test_a_kept_layer_has_one_user(lab: Lab) -> None:
    """While one is open, nobody else opens it; afterwards it is free."""
    mark(lab.keep, lab.lower)
    with open_layer(lab.keep, lab.lower):
        with pytest.raises(PolicyError, match="an open layer, uses") as caught:
            open_layer(lab.keep, lab.lower)
        assert caught.value.hint
    open_layer(lab.keep, lab.lower).close()


def test_what_the_kernel_closes_can_be_removed(lab: Lab) -> None:
    """The directory in the work directory; a link in its place is not followed, none is no error."""
    make_removable(str(lab.keep))
    inner = lab.keep / "work" / "work"
    inner.mkdir(parents=True)
    inner.chmod(0)
    make_removable(str(lab.keep))
    assert stat.S_IMODE(inner.stat().st_mode) == 0o700
    inner.rmdir()
    other = lab.keep / "other"
    other.mkdir(mode=0o500)
    os.symlink(other, inner)
    make_removable(str(lab.keep))
    assert stat.S_IMODE(other.stat().st_mode) == 0o500


def test_the_table_of_guards_holds_unless_others_are_given(lab: Lab) -> None:
    """Without guards nothing that a trusted tool would execute is applied."""
    write(lab.upper / ".git" / "hooks" / "pre-commit")
    mark(lab.keep, lab.lower)
    with open_layer(lab.keep, lab.lower) as layer:
        assert layer.changes()[0][-1].protected
    with Layer(open_directory(str(lab.upper)), str(lab.lower), AT) as layer:
        assert layer.changes()[0][-1].protected
    with open_layer(lab.keep, lab.lower, protect=["new"], unprotect=["all"]) as layer:
        assert not layer.changes()[0][-1].protected


def test_a_layer_that_is_closed(lab: Lab) -> None:
    """Closing twice is allowed; using it is not."""
    layer = lab.layer()
    layer.close()
    layer.close()
    assert "closed" in repr(layer)
    for use in (layer.changes, layer.apply, lambda: layer.read("x")):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_a_layer_that_is_forgotten_is_closed_with_a_warning(lab: Lab) -> None:
    """As an open file."""
    layer = lab.layer()
    with pytest.warns(ResourceWarning, match="not closed"):
        del layer
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lab.layer().close()


def test_a_layer_is_neither_pickled_nor_copied(lab: Lab) -> None:
    """TypeError: two would close one descriptor."""
    with lab.layer() as layer:
        for act in (pickle.dumps, copy.copy):
            with pytest.raises(TypeError, match="cannot be pickled or copied"):
                act(layer)


# --- others at work -----------------------------------------------------------------------------


def test_a_directory_that_is_moved_away_is_not_left_by_its_new_parent(lab: Lab, tmp_path: Path) -> None:
    """ESTALE: what is above it now is not in the tree."""
    write(lab.upper / "a" / "b" / "file")
    fd = open_directory(str(lab.upper))
    with Cursor(fd) as cursor:
        cursor.go(["a", "b"])
        os.rename(lab.upper / "a" / "b", tmp_path / "moved")
        with pytest.raises(OSError, match="moved") as caught:
            cursor.up()
        assert caught.value.errno == errno.ESTALE
    os.close(fd)


@needs("unprivileged")
def test_a_directory_that_cannot_be_searched_can_be_left(lab: Lab) -> None:
    """Not by "..", but from the top."""
    write(lab.lower / "a" / "b" / "file")
    (lab.lower / "a" / "b").chmod(0o400)
    fd = open_directory(str(lab.lower))
    with Cursor(fd) as cursor:
        cursor.go(["a", "b"])
        cursor.up()
        assert cursor.names == ["a"]
        assert os.path.samestat(os.fstat(cursor.fd), (lab.lower / "a").stat())
    os.close(fd)


# --- the kernel's own ---------------------------------------------------------------------------

_WORK = r"""
cd "$1/merged"
echo new > new; echo more >> changed; rm deleted; chmod 600 mode; : >> touched
rm -r d; mkdir d; echo new > d/again; mkdir d/sub; rm -r gone; mv moved elsewhere
mkdir -p closed/in; echo s > closed/in/secret; chmod 000 closed/in/secret closed/in closed
ln -s /etc/passwd link; rm was-file; mkdir was-file; rm -r was-directory; echo x > was-directory
"""
_MOUNT = """
set -e
if test "$2" = memory; then mount -t tmpfs -o mode=700 none "$1/keep"; mkdir "$1/keep/upper"; fi
chmod --reference="$1/lower" "$1/keep/upper"; mkdir "$1/keep/work" "$1/merged"
mount -t overlay overlay -o "lowerdir=$1/lower,upperdir=$1/keep/upper,workdir=$1/keep/work,userxattr" \
    "$1/merged"
"""


def listing(within: list[str], top: Path) -> set[bytes]:
    """Name, type and mode of all in a tree, seen by one who may read all of it."""
    find = ["find", str(top), "-mindepth", "1", "-printf", r"%P %y %m\n"]
    return set(subprocess.run([*within, *find], capture_output=True, check=True).stdout.splitlines())


@needs("unshare", "overlay")
@pytest.mark.parametrize("where", [pytest.param("memory", marks=needs("overlay deletes")), "directory"])
def test_what_the_kernel_writes_is_understood(lab: Lab, tmp_path: Path, where: str) -> None:
    """A real overlay: its layer applied to the host's directory makes that what the overlay showed."""
    for name in (
        "changed", "deleted", "mode", "touched", "kept", "d/gone", "d/sub/x", "gone/x/y", "moved/x",
        "was-file", "was-directory/x",
    ):  # fmt: skip
        write(lab.lower / name, name, 0o644)
    script = f"{_MOUNT}{_WORK}\nprintf ready; exec cat"
    flags = "-m" if REAL_ROOT else "-Urm"
    with subprocess.Popen(
        ["unshare", flags, "sh", "-c", script, "sh", tmp_path, where],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == b"ready"
        top = f"/proc/{process.pid}/root{tmp_path}"
        enter = ["nsenter", "-m", *([] if REAL_ROOT else ["-U", "--preserve-credentials"])]
        shown = listing([*enter, "-t", str(process.pid)], tmp_path / "merged")
        upper = os.open(f"{top}/keep/upper", os.O_PATH | os.O_DIRECTORY)
    layer = Layer(upper, str(lab.lower), AT, ())
    with layer:
        found, complete = layer.changes()
        assert complete
        assert [(c.path.removeprefix("/at/"), c.action.value[0], c.type) for c in found] == [
            ("changed", "m", "file"),
            ("closed", "a", "directory"),
            ("closed/in", "a", "directory"),
            ("closed/in/secret", "a", "file"),
            ("d/again", "a", "file"),
            ("d/gone", "d", "file"),
            ("d/sub/x", "d", "file"),
            ("deleted", "d", "file"),
            ("elsewhere", "a", "directory"),
            ("elsewhere/x", "a", "file"),
            ("gone", "d", "directory"),
            ("link", "a", "symlink"),
            ("mode", "m", "file"),
            ("moved", "d", "directory"),
            ("new", "a", "file"),
            ("was-directory", "m", "file"),
            ("was-file", "m", "directory"),
        ]
        assert layer.read("closed/in/secret") == b"s\n"
        assert [c for c in found if c.type != "symlink"] == list(layer.apply())
    now = listing(["unshare", "-Ur"], lab.lower)
    assert shown - now == {b"link l 777"}
    assert now < shown
